/** Which turns a model reads: all where the context holds them, else the newest that it holds. */
import type { Session } from 'bayan-web';
import { contentOf, type Turn } from './turns';

/** Tokens of a chat template around one message, estimated. */
const AROUND = 8;
/** Token counts by turn; a turn's text never changes once it is complete. */
const counts = new Map<string, { length: number; tokens: number }>();

async function tokensOf(session: Session, turn: Turn): Promise<number> {
  const content = contentOf(turn);
  const known = counts.get(turn.id);
  if (known?.length === content.length) return known.tokens;
  const tokens = (await session.tokenize(content)).length + AROUND;
  counts.set(turn.id, { length: content.length, tokens });
  return tokens;
}

/**
 * Index of the first turn to read, so that the prompt leaves room for an answer of `maxTokens` or a quarter of the
 * context. It is a message of the person, and never beyond the last one.
 */
export async function firstToRead(session: Session, turns: Turn[], system: string, maxTokens: number): Promise<number> {
  const { contextLength } = session.info.model;
  let left = contextLength - Math.min(maxTokens, Math.floor(contextLength / 4));
  if (system !== '') left -= (await session.tokenize(system)).length + AROUND;
  let first = turns.length - 1;
  for (let at = turns.length - 1; at >= 0; at--) {
    left -= await tokensOf(session, turns[at]!);
    if (left < 0) break;
    if (turns[at]!.role === 'user') first = at;
  }
  return first;
}
