/** Conversations in IndexedDB, one record each; changes are broadcast to other tabs. */
import { directionOf } from '../text/direction';
import { plainName } from '../text/hidden';
import { shownTurns, type Turn, withParents } from './turns';

export interface Conversation {
  id: string;
  title: string;
  createdAt: number;
  updatedAt: number;
  system: string;
  turns: Turn[];
  /** Versions that the person chose to see: `shownTurns`. */
  chosen?: Record<string, string>;
  pinned?: boolean;
  folder?: string;
}

const NAME = 'bayan';
const STORE = 'conversations';
const channel = typeof BroadcastChannel === 'undefined' ? null : new BroadcastChannel('bayan-conversations');

let database: Promise<IDBDatabase> | null = null;

function open(): Promise<IDBDatabase> {
  database ??= new Promise<IDBDatabase>((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: 'id' });
    request.onsuccess = () => {
      request.result.onversionchange = () => request.result.close();
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error('another tab holds an older version of the data'));
  }).catch((error) => {
    database = null;
    throw error;
  });
  return database;
}

async function run<T>(mode: IDBTransactionMode, work: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> {
  const db = await open();
  return new Promise((resolve, reject) => {
    const transaction = db.transaction(STORE, mode);
    const request = work(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error ?? request.error);
  });
}

export async function allConversations(): Promise<Conversation[]> {
  const all = (await run('readonly', (store) => store.getAll())) as Conversation[];
  return all.sort((a, b) => b.updatedAt - a.updatedAt);
}

/**
 * Changes the stored conversation in one transaction, so that what another tab stored meanwhile is kept. `create` is
 * stored first where there is none. Null where there is neither.
 */
export async function changeConversation(
  id: string,
  change: (stored: Conversation) => Conversation,
  create?: Conversation,
): Promise<Conversation | null> {
  const db = await open();
  const changed = await new Promise<Conversation | null>((resolve, reject) => {
    const transaction = db.transaction(STORE, 'readwrite');
    const store = transaction.objectStore(STORE);
    let result: Conversation | null = null;
    const read = store.get(id) as IDBRequest<Conversation | undefined>;
    read.onsuccess = () => {
      const before = read.result ?? create;
      if (before) store.put((result = change(before)));
    };
    transaction.oncomplete = () => resolve(result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
  if (changed) channel?.postMessage({ id });
  return changed;
}

export async function removeConversation(id: string): Promise<void> {
  await run('readwrite', (store) => store.delete(id));
  channel?.postMessage({ id });
}

export function onOtherTab(listener: (id: string) => void): void {
  channel?.addEventListener('message', (event: MessageEvent<{ id?: unknown }>) => {
    if (typeof event.data?.id === 'string') listener(event.data.id);
  });
}

export function newConversation(system = ''): Conversation {
  const now = Date.now();
  return { id: crypto.randomUUID(), title: '', createdAt: now, updatedAt: now, system, turns: [] };
}

/** A title from the first message: its first line, cut at a word. */
export function titleFrom(text: string): string {
  const line =
    text
      .trim()
      .split('\n')
      .find((part) => part.trim() !== '') ?? '';
  // Only the marks of Markdown go: `C#` and `my_var` stay.
  const clean = plainName(line.replace(/^\s*(?:#{1,6}|>|[-*])\s+/, '').replace(/\*\*|`/g, ''));
  if (clean.length <= 46) return clean;
  const cut = clean.lastIndexOf(' ', 46);
  return `${clean.slice(0, cut > 20 ? cut : 46)}…`;
}

export function titleDirection(title: string, base: 'rtl' | 'ltr'): 'rtl' | 'ltr' {
  return directionOf(title, base).direction;
}
