/** Checks the caller's input before it reaches the engine: a number out of range is an error and is never clamped. */
import type { Message, Sampling } from './types';

const RANGES = {
  temperature: [0, 5],
  topP: [0, 1],
  topK: [0, 1_000_000],
  minP: [0, 1],
  repetitionPenalty: [0.1, 10],
  presencePenalty: [-2, 2],
  frequencyPenalty: [-2, 2],
  maxTokens: [1, 1_000_000],
  seed: [0, Number.MAX_SAFE_INTEGER],
} as const;
const KNOWN = [...Object.keys(RANGES), 'stop', 'responseFormat'].join(', ');
const WHOLE = new Set(['topK', 'maxTokens', 'seed']);

export function checkSampling(sampling: Sampling): Sampling {
  const checked: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(sampling)) {
    if (value === undefined) continue;
    if (name === 'stop') {
      if (!Array.isArray(value) || value.length > 16 || value.some((s) => typeof s !== 'string' || s === '')) {
        throw new TypeError('sampling.stop: expected up to 16 strings that are not empty');
      }
      checked['stop'] = value;
      continue;
    }
    if (name === 'responseFormat') {
      // The engine says what is wrong with a schema.
      if (typeof value !== 'object' || value === null)
        throw new TypeError('sampling.responseFormat: expected an object with a type');
      checked[name] = value;
      continue;
    }
    const range = (RANGES as Record<string, readonly [number, number]>)[name];
    if (!range) throw new TypeError(`sampling.${name} is not a known setting; known: ${KNOWN}`);
    const whole = WHOLE.has(name);
    if (typeof value !== 'number' || !(value >= range[0] && value <= range[1]) || (whole && !Number.isInteger(value))) {
      const kind = whole ? 'a whole number' : 'a number';
      throw new TypeError(`sampling.${name}: expected ${kind} from ${range[0]} to ${range[1]}, got ${String(value)}`);
    }
    checked[name] = value;
  }
  return checked as Sampling;
}

export function checkMessages(messages: Message[]): Message[] {
  if (!Array.isArray(messages) || messages.length === 0) throw new TypeError('messages: expected at least one message');
  return messages.map((message, at) => {
    if (!['system', 'user', 'assistant'].includes(message?.role))
      throw new TypeError(`messages[${at}].role: expected system, user or assistant, got ${String(message?.role)}`);
    for (const name of Object.keys(message))
      if (!['role', 'content'].includes(name)) throw new TypeError(`messages[${at}].${name} is not a known field`);
    return { role: message.role, content: contentOf(message.content, at) };
  });
}

function contentOf(content: Message['content'], at: number): string {
  if (typeof content === 'string') return content;
  if (!Array.isArray(content))
    throw new TypeError(`messages[${at}].content: expected text or parts of text, got ${typeof content}`);
  return content
    .map((part, i) => {
      if (part?.type !== 'text' || typeof part.text !== 'string')
        throw new TypeError(`messages[${at}].content[${i}]: expected a part of type text, got ${String(part?.type)}`);
      return part.text;
    })
    .join('');
}
