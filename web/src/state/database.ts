/** Conversations in IndexedDB, one record each; changes are broadcast to other tabs. */
import { directionOf } from '../text/direction';
import { plainName } from '../text/hidden';

export interface Turn {
  id: string;
  role: 'user' | 'assistant';
  content: string;
  at: number;
  end?: 'stopped' | 'length' | 'context' | 'error';
  model?: string;
  tokensPerSecond?: number;
  charsPerSecond?: number;
}

export interface Conversation {
  id: string;
  title: string;
  createdAt: number;
  updatedAt: number;
  system: string;
  turns: Turn[];
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

export async function saveConversation(conversation: Conversation): Promise<void> {
  await run('readwrite', (store) => store.put(conversation));
  channel?.postMessage({ id: conversation.id });
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

export const EXPORT_KIND = 'bayan-conversations';

export function exportText(conversations: Conversation[]): string {
  return JSON.stringify({ kind: EXPORT_KIND, version: 1, conversations }, null, 2);
}

/** Conversations of an export; null where the text is none. Unknown fields are dropped, wrong types refused. */
export function importText(text: string): Conversation[] | null {
  let json: { kind?: unknown; version?: unknown; conversations?: unknown };
  try {
    json = JSON.parse(text);
  } catch {
    return null;
  }
  if (json?.kind !== EXPORT_KIND || json.version !== 1 || !Array.isArray(json.conversations)) return null;
  const result: Conversation[] = [];
  for (const item of json.conversations as Partial<Conversation>[]) {
    if (typeof item?.title !== 'string' || !Array.isArray(item.turns)) return null;
    const turns: Turn[] = [];
    for (const turn of item.turns as Partial<Turn>[]) {
      if ((turn?.role !== 'user' && turn?.role !== 'assistant') || typeof turn.content !== 'string') return null;
      turns.push({
        id: crypto.randomUUID(),
        role: turn.role,
        content: turn.content,
        at: Number(turn.at) || Date.now(),
      });
    }
    const createdAt = Number(item.createdAt) || Date.now();
    result.push({
      id: typeof item.id === 'string' && item.id.length <= 64 ? item.id : crypto.randomUUID(),
      title: titleFrom(item.title) || titleFrom(turns[0]?.content ?? ''),
      createdAt,
      updatedAt: Number(item.updatedAt) || createdAt,
      system: typeof item.system === 'string' ? item.system : '',
      turns,
    });
  }
  return result;
}

export function titleDirection(title: string, base: 'rtl' | 'ltr'): 'rtl' | 'ltr' {
  return directionOf(title, base).direction;
}
