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
  topLogprobs: [0, 20],
} as const;
const FLAGS = new Set(['logprobs', 'parallelToolCalls']);
/** The engine checks what is in them. */
const OBJECTS = new Set(['responseFormat', 'logitBias', 'tools', 'templateVariables']);
const KNOWN = [...Object.keys(RANGES), 'stop', 'toolChoice', ...FLAGS, ...OBJECTS].join(', ');
const WHOLE = new Set(['topK', 'maxTokens', 'seed', 'topLogprobs']);

const EXPECTED: Record<string, string> = {
  responseFormat: 'an object with a type',
  tools: 'a list of functions',
  toolChoice: 'none, auto, required or an object that names a function',
};

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
    if (OBJECTS.has(name) || name === 'toolChoice') {
      if ((typeof value !== 'object' || value === null) && !(name === 'toolChoice' && typeof value === 'string'))
        throw new TypeError(`sampling.${name}: expected ${EXPECTED[name] ?? 'an object'}, got ${String(value)}`);
      checked[name] = value;
      continue;
    }
    if (FLAGS.has(name)) {
      if (typeof value !== 'boolean')
        throw new TypeError(`sampling.${name}: expected true or false, got ${String(value)}`);
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

const ROLES = ['system', 'developer', 'user', 'assistant', 'tool'];
/** Fields of a message that only one role has. */
const OWN: Record<string, string> = { tool_calls: 'assistant', tool_call_id: 'tool' };

/** Checks roles, names of fields and texts; the engine checks that calls and their results belong together. */
export function checkMessages(messages: Message[]): Message[] {
  if (!Array.isArray(messages) || messages.length === 0) throw new TypeError('messages: expected at least one message');
  return messages.map((message, at) => {
    if (!ROLES.includes(message?.role))
      throw new TypeError(`messages[${at}].role: expected one of ${ROLES.join(', ')}, got ${String(message?.role)}`);
    for (const [name, value] of Object.entries(message))
      if (value != null && !['role', 'content', 'name'].includes(name) && OWN[name] !== message.role)
        throw new TypeError(`messages[${at}].${name} is not a known field of the role ${message.role}`);
    const { content, ...rest } = message;
    return { ...rest, content: contentOf(message, at) };
  });
}

function contentOf({ content, tool_calls }: Message, at: number): string | null {
  if (typeof content === 'string') return content;
  if (content == null && tool_calls?.length) return null;
  if (!Array.isArray(content)) {
    const got = content == null ? String(content) : typeof content;
    throw new TypeError(`messages[${at}].content: expected text or parts of text, got ${got}`);
  }
  return content
    .map((part, i) => {
      if (part?.type !== 'text' || typeof part.text !== 'string')
        throw new TypeError(`messages[${at}].content[${i}]: expected a part of type text, got ${String(part?.type)}`);
      return part.text;
    })
    .join('');
}
