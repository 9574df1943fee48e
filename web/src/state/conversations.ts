/** Conversations: opening, naming, sorting, deleting, storing, exporting and importing them. */
import {
  allConversations,
  changeConversation,
  type Conversation,
  newConversation,
  removeConversation,
  titleFrom,
} from './database';
import { forgetCache } from './kept-cache';
import { stop } from './live';
import { formats, getState, set, strings } from './store';
import { exportText, importText, markdownText } from './transfer';
import { groupOf, merged, type Turn } from './turns';

/** Puts a conversation into the page's state. */
export function show(conversation: Conversation): void {
  const { conversations, current } = getState();
  const others = conversations.filter((c) => c.id !== conversation.id);
  set({
    conversations: [conversation, ...others].sort((a, b) => b.updatedAt - a.updatedAt),
    ...(current.id === conversation.id ? { current: conversation } : {}),
  });
}

let saved: Promise<unknown> = Promise.resolve();
/** Changes that are not stored yet, by conversation. */
const pending = new Map<string, number>();

/**
 * Changes a conversation, on the page at once and then in the store, where another tab may have changed it as well: the
 * same change is applied to what is stored. `create` is the conversation where it is not stored yet.
 */
export async function change(
  id: string,
  edit: (conversation: Conversation) => Conversation,
  create?: Conversation,
): Promise<void> {
  const here = getState().conversations.find((c) => c.id === id) ?? create;
  if (!here) return;
  show(edit(here));
  pending.set(id, (pending.get(id) ?? 0) + 1);
  saved = saved
    .then(() => changeConversation(id, edit, create))
    .catch(() => {
      set({ storageBroken: true });
      return null;
    })
    .then((stored) => {
      const left = pending.get(id)! - 1;
      pending.set(id, left);
      const local = getState().conversations.find((c) => c.id === id);
      if (stored && local && left === 0) show(merged(stored, local));
    });
  await saved;
}

export async function refreshFromOtherTab(id: string): Promise<void> {
  const conversations = await allConversations().catch(() => getState().conversations);
  const { current, answering } = getState();
  const fresh = conversations.find((c) => c.id === id);
  if (!fresh || current.id !== id) return set({ conversations });
  const known = new Set(current.turns.map((turn) => turn.id));
  const others = fresh.turns.some((turn) => turn.role === 'user' && !known.has(turn.id));
  // The answer that this tab is writing is not stored yet.
  const next = answering?.conversation === id || pending.get(id) ? merged(fresh, current) : fresh;
  set({
    conversations: conversations.map((c) => (c.id === id ? next : c)),
    current: next,
    ...(others ? { notice: { text: strings().busyOtherTab } } : {}),
  });
}

export function openConversation(id: string): void {
  const found = getState().conversations.find((c) => c.id === id);
  if (!found) return;
  set({ current: found, sidebar: false });
  history.replaceState(null, '', `#${encodeURIComponent(id)}`);
}

export function startConversation(): void {
  set({ current: newConversation(), sidebar: false });
  history.replaceState(null, '', location.pathname + location.search);
  queueMicrotask(() => document.getElementById('composer')?.focus());
}

export async function renameConversation(id: string, title: string): Promise<void> {
  if (title.trim() !== '') await change(id, (c) => ({ ...c, title: titleFrom(title) }));
}

export async function pinConversation(id: string, pinned: boolean): Promise<void> {
  await change(id, (c) => ({ ...c, pinned }));
}

/** An empty name takes the conversation out of its folder. */
export async function moveConversation(id: string, folder: string): Promise<void> {
  await change(id, (c) => ({ ...c, folder: titleFrom(folder) }));
}

/** Shows another version of a turn. */
export async function chooseVersion(turn: Turn): Promise<void> {
  const { current } = getState();
  await change(current.id, (c) => ({ ...c, chosen: { ...c.chosen, [groupOf(turn)]: turn.id } }));
}

export async function deleteConversation(id: string): Promise<void> {
  const gone = getState().conversations.find((c) => c.id === id);
  if (!gone) return;
  if (getState().answering?.conversation === id) stop();
  set({ conversations: getState().conversations.filter((c) => c.id !== id) });
  if (getState().current.id === id) startConversation();
  void forgetCache(id);
  await removeConversation(id).catch(() => set({ storageBroken: true }));
  const t = strings();
  const restore = () => void change(id, (c) => c, gone).then(() => openConversation(id));
  set({ notice: { text: t.deleted, action: { label: t.undo, run: restore } } });
}

export async function setConversationSystem(system: string): Promise<void> {
  const { current } = getState();
  if (current.turns.length === 0) set({ current: { ...current, system } });
  else await change(current.id, (c) => ({ ...c, system }));
}

/** Gives a file to the person as a download. */
export function saveFile(file: File): void {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(file);
  link.download = file.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export type ExportKind = 'json' | 'markdown';

function fileOf(chosen: Conversation[], kind: ExportKind): File {
  const day = new Date().toISOString().slice(0, 10);
  if (kind === 'json') return new File([exportText(chosen)], `bayan-${day}.json`, { type: 'application/json' });
  const text = chosen.map((conversation) => markdownText(conversation, strings())).join('\n');
  return new File([text], `bayan-${day}.md`, { type: 'text/markdown' });
}

const chosenOf = (id?: string) => getState().conversations.filter((c) => id === undefined || c.id === id);

export function exportConversations(id?: string, kind: ExportKind = 'json'): void {
  saveFile(fileOf(chosenOf(id), kind));
}

/** Whether the system can share a conversation as a file. */
export function canShare(): boolean {
  return navigator.canShare?.({ files: [new File(['x'], 'x.md', { type: 'text/markdown' })] }) ?? false;
}

export async function shareConversation(id: string): Promise<void> {
  // A person may close the system's sheet: nothing was shared then.
  await navigator.share({ files: [fileOf(chosenOf(id), 'markdown')] }).catch(() => {});
}

/** Opens the browser's print dialogue, which also writes PDF, for one conversation. */
export function printConversation(id: string): void {
  openConversation(id);
  requestAnimationFrame(() => requestAnimationFrame(() => window.print()));
}

export async function importConversations(file: File): Promise<void> {
  const t = strings();
  const found = importText(await file.text());
  if (found === null) return set({ notice: { text: t.importBad } });
  const known = new Map(getState().conversations.map((c) => [c.id, c]));
  const fresh = found.filter((c) => (known.get(c.id)?.updatedAt ?? -1) < c.updatedAt);
  for (const one of fresh) await change(one.id, (c) => merged(one, c), one);
  const forms = fresh.length === 0 ? { other: t.imported.zero ?? t.imported.other } : t.imported;
  set({ notice: { text: formats().plural(fresh.length, forms) } });
}
