/**
 * The cache of the newest conversation, kept from one visit to the next: a long conversation goes on without its text
 * being read again. It is never wrong: the engine refuses the cache of another model, format or adapter, and compares
 * its tokens with those of the conversation.
 */
import { type Session, StateStore } from 'bayan-web';
import { currentSession } from './session';
import { getState } from './store';

/** Shorter conversations are read again in a moment; larger caches are not worth their writing after each answer. */
const LEAST_TOKENS = 256;
const MOST_BYTES = 64e6;
/** So long after an answer, because the next question would wait. */
const PAUSE_MS = 1500;

let store: Promise<StateStore | null> | null = null;
const opened = (): Promise<StateStore | null> => (store ??= StateStore.open('bayan-newest').catch(() => null));
let timer: ReturnType<typeof setTimeout> | undefined;

/** Writes the cache of a conversation that was just answered, in the place of the earlier one. */
export function keepCache(id: string): void {
  clearTimeout(timer);
  timer = setTimeout(() => void write(id), PAUSE_MS);
}

async function write(id: string): Promise<void> {
  const { answering, usage, conversations } = getState();
  const session = currentSession();
  const of = usage?.conversation === id ? usage.usage : null;
  if (answering || !session || !of || !conversations.some((c) => c.id === id)) return;
  const { cacheBytes, contextLength } = session.info.model;
  if (of.contextUsed < LEAST_TOKENS || (cacheBytes / contextLength) * of.contextUsed > MOST_BYTES) return;
  try {
    const place = await opened();
    if (!place) return;
    const bytes = await session.saveState();
    await place.write(id, bytes);
    // It may have been deleted in the meantime.
    const stays = getState().conversations.some((c) => c.id === id);
    for (const { name } of await place.list()) if (name !== id || !stays) await place.delete(name);
  } catch {
    // No space, or the device is gone: the conversation is read again then.
  }
}

/** Puts the cache of the open conversation back, if it was kept, unless a question came first. */
export async function restoreCache(session: Session): Promise<void> {
  const { answering, current } = getState();
  try {
    const place = await opened();
    const kept = await place?.read(current.id);
    if (!place || !kept || answering || kept.size > MOST_BYTES + 1e6) return;
    const bytes = new Uint8Array(await kept.arrayBuffer());
    if (getState().answering || currentSession() !== session) return;
    await session.restoreState(bytes).catch(() => place.delete(current.id));
  } catch {
    // Unreadable: the conversation is read again.
  }
}

/** Deletes what was kept of a conversation that the person deletes. */
export async function forgetCache(id: string): Promise<void> {
  await (await opened())?.delete(id).catch(() => {});
}
