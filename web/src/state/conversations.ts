/** Conversations: opening, renaming, deleting, storing, exporting and importing them. */
import { stop } from './live';
import {
  allConversations,
  type Conversation,
  exportText,
  importText,
  newConversation,
  removeConversation,
  saveConversation,
  titleFrom,
} from './database';
import { formats, getState, set, strings } from './store';

export async function refreshFromOtherTab(id: string): Promise<void> {
  const conversations = await allConversations().catch(() => getState().conversations);
  const fresh = conversations.find((c) => c.id === id);
  const open = getState().current.id === id && getState().answering?.conversation !== id;
  set({ conversations, ...(open && fresh ? { current: fresh } : {}) });
}

let saved = Promise.resolve();
export async function store(conversation: Conversation): Promise<void> {
  const others = getState().conversations.filter((c) => c.id !== conversation.id);
  set({
    conversations: [conversation, ...others].sort((a, b) => b.updatedAt - a.updatedAt),
    ...(getState().current.id === conversation.id ? { current: conversation } : {}),
  });
  saved = saved.then(() => saveConversation(conversation)).catch(() => set({ storageBroken: true }));
  await saved;
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
  const found = getState().conversations.find((c) => c.id === id);
  if (found && title.trim() !== '') await store({ ...found, title: titleFrom(title) });
}

export async function deleteConversation(id: string): Promise<void> {
  const gone = getState().conversations.find((c) => c.id === id);
  if (!gone) return;
  if (getState().answering?.conversation === id) stop();
  set({ conversations: getState().conversations.filter((c) => c.id !== id) });
  if (getState().current.id === id) startConversation();
  await removeConversation(id).catch(() => set({ storageBroken: true }));
  const t = strings();
  set({
    notice: {
      text: t.deleted,
      action: { label: t.undo, run: () => void store(gone).then(() => openConversation(gone.id)) },
    },
  });
}

export async function setConversationSystem(system: string): Promise<void> {
  const next = { ...getState().current, system };
  if (next.turns.length === 0) set({ current: next });
  else await store(next);
}

function saveFile(name: string, text: string): void {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], { type: 'application/json' }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export function exportConversations(id?: string): void {
  const chosen = id === undefined ? getState().conversations : getState().conversations.filter((c) => c.id === id);
  saveFile(`bayan-${new Date().toISOString().slice(0, 10)}.json`, exportText(chosen));
}

export async function importConversations(file: File): Promise<void> {
  const t = strings();
  const found = importText(await file.text());
  if (found === null) return set({ notice: { text: t.importBad } });
  const known = new Map(getState().conversations.map((c) => [c.id, c]));
  const fresh = found.filter((c) => (known.get(c.id)?.updatedAt ?? -1) < c.updatedAt);
  for (const conversation of fresh) await store(conversation);
  set({
    notice: {
      text: formats().plural(
        fresh.length,
        fresh.length === 0 ? { other: t.imported.zero ?? t.imported.other } : t.imported,
      ),
    },
  });
}
