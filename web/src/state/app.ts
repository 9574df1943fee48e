/**
 * The page's state and what can be done to it. Components read `state` and call these functions; none of them touches
 * the engine or the database itself. Text that streams does not pass through here for every token: `live` carries it
 * to the one message that shows it.
 */
import { BayanError, type DeviceProbe, type DownloadPlan, load, openBackend, probeDevice, type Progress, type Session, type Source, type SourceFile, type StoredModel, type Usage } from 'bayan-web';
import { ar, type Strings } from '../strings/ar';
import { en } from '../strings/en';
import { plainName } from '../text/direction';
import { Formats } from '../text/format';
import { addAdapter as add, type AdapterState, forgetAdapters, NO_ADAPTERS, putBackAdapters, removeAdapter as remove } from './adapters';
import { allConversations, type Conversation, exportText, importText, newConversation, onOtherTab, removeConversation, saveConversation, titleFrom, type Turn } from './database';
import { readSettings, samplingOf, type Settings, writeSettings } from './settings';

export type ModelState =
  | { kind: 'none' }
  | { kind: 'loading'; label: string; progress: Progress; totals: { done: number; total: number } }
  | { kind: 'ready'; label: string }
  | { kind: 'failed'; label: string; error: BayanError };

export interface Live {
  conversation: string;
  turn: string;
  text: string;
  tokens: number;
  startedAt: number;
  firstAt: number;
}

export type Panel = 'models' | 'settings' | 'device' | null;

export interface State {
  settings: Settings;
  conversations: Conversation[];
  current: Conversation;
  query: string;
  sidebar: boolean;
  panel: Panel;
  model: ModelState;
  adapters: AdapterState;
  /** Set while an answer is being written, in any conversation. */
  answering: { conversation: string; turn: string } | null;
  /** The error under the last answer. */
  answerError: { conversation: string; error: BayanError } | null;
  usage: { conversation: string; usage: Usage } | null;
  plan: { plan: DownloadPlan; answer: (ok: boolean) => void } | null;
  probe: DeviceProbe | null;
  readOnly: boolean;
  stored: StoredModel[] | null;
  estimate: { used: number; quota: number } | null;
  shipped: { name: string; bytes: number } | null;
  online: boolean;
  notice: { text: string; action?: { label: string; run: () => void } } | null;
  storageBroken: boolean;
}

let state: State = {
  settings: readSettings(), conversations: [], current: newConversation(), query: '', sidebar: false, panel: null,
  model: { kind: 'none' }, adapters: NO_ADAPTERS, answering: null, answerError: null, usage: null, plan: null, probe: null, readOnly: false, stored: null,
  estimate: null, shipped: null, online: navigator.onLine, notice: null, storageBroken: false,
};
const listeners = new Set<() => void>();
export const getState = (): State => state;
export function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}
export function set(change: Partial<State>): void {
  state = { ...state, ...change };
  for (const listener of listeners) listener();
}

export const strings = (): Strings => (state.settings.language === 'ar' ? ar : en);
export const formats = (): Formats => new Formats(state.settings.language, state.settings.digits);
export const baseDirection = (): 'rtl' | 'ltr' => (state.settings.language === 'ar' ? 'rtl' : 'ltr');

let session: Session | null = null;
let lastSource: Source | null = null;
let loading: AbortController | null = null;
let answering: AbortController | null = null;
export let live: Live | null = null;
export const sessionInfo = () => session?.info ?? null;

const createWorker = (engineUrl: string) => new Worker(new URL('../../package/src/worker.ts', import.meta.url), { type: 'module', name: engineUrl });

/** What was run last: the included model starts by itself unless the person stopped it; another is offered. */
const LAST = 'bayan-last-model';

function remember(source: Source | null, label: string): void {
  try {
    if (source === null) localStorage.setItem(LAST, JSON.stringify({ kind: 'stopped' }));
    else if (source.kind === 'shipped') localStorage.setItem(LAST, JSON.stringify({ kind: 'shipped' }));
    else if (source.kind !== 'files') localStorage.setItem(LAST, JSON.stringify({ kind: 'other', source: { ...source, token: undefined }, label }));
  } catch {
    // Storage is refused: nothing is remembered.
  }
}

export function lastModel(): { kind: 'none' | 'shipped' | 'stopped' } | { kind: 'other'; source: Source; label: string } {
  try {
    const raw = JSON.parse(localStorage.getItem(LAST) ?? 'null') as { kind?: string; source?: { kind?: string; repo?: unknown; url?: unknown }; label?: unknown } | null;
    if (raw?.kind === 'shipped' || raw?.kind === 'stopped') return { kind: raw.kind };
    const source = raw?.source;
    const fine = (source?.kind === 'hub' && typeof source.repo === 'string') || (source?.kind === 'url' && typeof source.url === 'string');
    if (raw?.kind === 'other' && fine && typeof raw.label === 'string') return { kind: 'other', source: source as Source, label: raw.label };
  } catch {
    // Unreadable: as if nothing had been run.
  }
  return { kind: 'none' };
}

/** Larger included models wait for a button: the visitor may pay for the download. */
const START_BELOW_BYTES = 200e6;

function startByItself(): void {
  const { shipped, probe, model } = state;
  const last = lastModel().kind;
  if (model.kind === 'none' && shipped && probe?.webgpu && shipped.bytes <= START_BELOW_BYTES && (last === 'none' || last === 'shipped')) void loadModel(shippedSource(), plainName(shipped.name));
}

export async function start(): Promise<void> {
  applySettings();
  window.addEventListener('online', () => set({ online: true }));
  window.addEventListener('offline', () => set({ online: false }));
  onOtherTab((id) => void refreshFromOtherTab(id));
  void Promise.all([probeDevice().then((probe) => set({ probe })), findShipped()]).then(startByItself);
  try {
    const conversations = await allConversations();
    const wanted = decodeURIComponent(location.hash.slice(1));
    const current = conversations.find((c) => c.id === wanted) ?? state.current;
    set({ conversations, current });
  } catch {
    set({ storageBroken: true });
  }
  window.addEventListener('hashchange', () => {
    const found = state.conversations.find((c) => c.id === decodeURIComponent(location.hash.slice(1)));
    if (found && found.id !== state.current.id) openConversation(found.id);
  });
}

async function findShipped(): Promise<void> {
  try {
    const response = await fetch('model/manifest.json', { cache: 'no-cache' });
    const json = response.ok ? ((await response.json()) as { name?: unknown; files?: { size?: number }[] }) : null;
    if (!json || !Array.isArray(json.files)) return;
    set({ shipped: { name: String(json.name ?? ''), bytes: json.files.reduce((sum, file) => sum + (Number(file.size) || 0), 0) } });
  } catch {
    // This copy of the page ships no model.
  }
}

export const shippedSource = (): Source => ({ kind: 'shipped', url: new URL('model/', document.baseURI).href });

async function refreshFromOtherTab(id: string): Promise<void> {
  const conversations = await allConversations().catch(() => state.conversations);
  const fresh = conversations.find((c) => c.id === id);
  const open = state.current.id === id && state.answering?.conversation !== id;
  set({ conversations, ...(open && fresh ? { current: fresh } : {}) });
}

export function changeSettings(change: Partial<Settings>): void {
  set({ settings: { ...state.settings, ...change } });
  writeSettings(state.settings);
  applySettings();
}

function applySettings(): void {
  const { language, theme, textSize } = state.settings;
  const root = document.documentElement;
  root.lang = language;
  root.dir = baseDirection();
  root.dataset['theme'] = theme;
  root.dataset['size'] = textSize;
  document.title = `${strings().appName} · ${strings().tagline}`;
}

// Conversations

let saved = Promise.resolve();
async function store(conversation: Conversation): Promise<void> {
  const others = state.conversations.filter((c) => c.id !== conversation.id);
  set({
    conversations: [conversation, ...others].sort((a, b) => b.updatedAt - a.updatedAt),
    ...(state.current.id === conversation.id ? { current: conversation } : {}),
  });
  saved = saved.then(() => saveConversation(conversation)).catch(() => set({ storageBroken: true }));
  await saved;
}

export function openConversation(id: string): void {
  const found = state.conversations.find((c) => c.id === id);
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
  const found = state.conversations.find((c) => c.id === id);
  if (found && title.trim() !== '') await store({ ...found, title: titleFrom(title) });
}

export async function deleteConversation(id: string): Promise<void> {
  const gone = state.conversations.find((c) => c.id === id);
  if (!gone) return;
  if (state.answering?.conversation === id) stop();
  set({ conversations: state.conversations.filter((c) => c.id !== id) });
  if (state.current.id === id) startConversation();
  await removeConversation(id).catch(() => set({ storageBroken: true }));
  const t = strings();
  set({ notice: { text: t.deleted, action: { label: t.undo, run: () => void store(gone).then(() => openConversation(gone.id)) } } });
}

export async function setConversationSystem(system: string): Promise<void> {
  const next = { ...state.current, system };
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
  const chosen = id === undefined ? state.conversations : state.conversations.filter((c) => c.id === id);
  saveFile(`bayan-${new Date().toISOString().slice(0, 10)}.json`, exportText(chosen));
}

export async function importConversations(file: File): Promise<void> {
  const t = strings();
  const found = importText(await file.text());
  if (found === null) return set({ notice: { text: t.importBad } });
  const known = new Map(state.conversations.map((c) => [c.id, c]));
  const fresh = found.filter((c) => (known.get(c.id)?.updatedAt ?? -1) < c.updatedAt);
  for (const conversation of fresh) await store(conversation);
  set({ notice: { text: formats().plural(fresh.length, fresh.length === 0 ? { other: t.imported.zero ?? t.imported.other } : t.imported) } });
}

// Answers

export async function send(text: string): Promise<void> {
  const content = text.replace(/\s+$/u, '');
  if (content.trim() === '' || state.answering) return;
  const turn: Turn = { id: crypto.randomUUID(), role: 'user', content, at: Date.now() };
  const { current } = state;
  const next = { ...current, title: current.title || titleFrom(content), updatedAt: Date.now(), turns: [...current.turns, turn] };
  set({ current: next, answerError: null });
  history.replaceState(null, '', `#${encodeURIComponent(next.id)}`);
  await store(next);
  if (session) await answer(next);
  else set({ panel: state.model.kind === 'loading' ? state.panel : 'models' });
}

export async function editTurn(turnId: string, text: string): Promise<void> {
  const { current } = state;
  const at = current.turns.findIndex((turn) => turn.id === turnId);
  if (at < 0 || text.trim() === '' || state.answering) return;
  set({ current: { ...current, turns: current.turns.slice(0, at) } });
  await send(text);
}

/** Drops the last answer (if there is one) and writes it anew. */
export async function regenerate(): Promise<void> {
  if (state.answering) return;
  const { current } = state;
  const turns = current.turns.at(-1)?.role === 'assistant' ? current.turns.slice(0, -1) : current.turns;
  if (turns.length === 0) return;
  const next = { ...current, turns };
  set({ current: next, answerError: null });
  if (session) await answer(next);
  else set({ panel: 'models' });
}

export function stop(): void {
  answering?.abort();
}

const liveListeners = new Set<() => void>();
export function onLive(listener: () => void): () => void {
  liveListeners.add(listener);
  return () => liveListeners.delete(listener);
}

async function answer(conversation: Conversation): Promise<void> {
  const using = session;
  if (!using) return;
  const turn: Turn = { id: crypto.randomUUID(), role: 'assistant', content: '', at: Date.now(), model: plainLabel() };
  let shown: Conversation = { ...conversation, turns: [...conversation.turns, turn] };
  const abort = (answering = new AbortController());
  live = { conversation: conversation.id, turn: turn.id, text: '', tokens: 0, startedAt: performance.now(), firstAt: 0 };
  const current = live;
  set({ answering: { conversation: conversation.id, turn: turn.id }, ...(state.current.id === conversation.id ? { current: shown } : {}) });
  const system = [state.settings.system, conversation.system].map((s) => s.trim()).filter(Boolean).join('\n\n');
  const messages = [...(system ? [{ role: 'system' as const, content: system }] : []), ...conversation.turns.map(({ role, content }) => ({ role, content }))];
  let end: Turn['end'];
  let failure: BayanError | null = null;
  let lastSave = performance.now();
  try {
    for await (const piece of using.chat(messages, { sampling: samplingOf(state.settings), signal: abort.signal })) {
      if (current.firstAt === 0) current.firstAt = performance.now();
      current.text += piece.text;
      current.tokens = piece.tokens;
      if (piece.done) {
        if (piece.finishReason === 'length' || piece.finishReason === 'context') end = piece.finishReason;
        if (piece.usage) set({ usage: { conversation: conversation.id, usage: piece.usage } });
      }
      for (const listener of liveListeners) listener();
      if (performance.now() - lastSave > 2000 && current.text.length < 1e6) {
        lastSave = performance.now();
        void saveConversation({ ...shown, turns: [...conversation.turns, { ...turn, content: current.text, end: 'stopped' }] }).catch(() => {});
      }
    }
  } catch (error) {
    const known = error instanceof BayanError ? error : new BayanError('Internal', String(error));
    if (known.code === 'Aborted') end = 'stopped';
    else {
      end = 'error';
      failure = known;
    }
  }
  const seconds = Math.max(0.001, (performance.now() - (current.firstAt || current.startedAt)) / 1000);
  const done: Turn = { ...turn, content: current.text, ...(end ? { end } : {}), tokensPerSecond: current.tokens / seconds, charsPerSecond: current.text.length / seconds };
  shown = { ...(state.conversations.find((c) => c.id === conversation.id) ?? conversation), turns: current.text === '' && failure ? conversation.turns : [...conversation.turns, done], updatedAt: Date.now() };
  live = null;
  answering = null;
  set({ answering: null, answerError: failure ? { conversation: conversation.id, error: failure } : null });
  const deleted = !state.conversations.some((c) => c.id === conversation.id);
  if (!deleted) await store(shown);
  if (failure && (failure.code === 'DeviceLost' || failure.code === 'OutOfMemory' || failure.code === 'Internal')) loseModel(failure);
}

// The model

const plainLabel = (): string => (state.model.kind === 'none' ? '' : state.model.label);

function loseModel(error: BayanError): void {
  if (state.model.kind === 'failed') return;
  const label = plainLabel();
  const old = session;
  session = null;
  void old?.dispose();
  set({ model: { kind: 'failed', label, error } });
}

/** `again`: after a failure. The message that was being answered is then not sent by itself: it may be what failed. */
export async function loadModel(source: Source, label: string, again = false): Promise<void> {
  loading?.abort();
  const abort = (loading = new AbortController());
  const old = session;
  session = null;
  lastSource = source;
  set({ answerError: null, model: { kind: 'loading', label, progress: { phase: 'device' }, totals: { done: 0, total: 0 } } });
  await old?.dispose();
  void navigator.storage?.persist?.().catch(() => false);
  let planned = 0;
  const finished = new Map<string, number>();
  const onProgress = (progress: Progress) => {
    if (abort.signal.aborted || state.model.kind !== 'loading') return;
    if (progress.phase === 'download') finished.set(progress.file, progress.doneBytes);
    const done = progress.phase === 'weights' ? progress.doneBytes : [...finished.values()].reduce((a, b) => a + b, 0);
    const total = progress.phase === 'weights' ? progress.totalBytes : Math.max(planned, progress.phase === 'download' ? progress.totalBytes : 0, done);
    set({ model: { ...state.model, progress, totals: { done, total } } });
  };
  const confirm = (plan: DownloadPlan) => {
    planned = plan.neededBytes;
    if (plan.neededBytes <= 50e6) return true;
    return new Promise<boolean>((resolve) => set({ plan: { plan, answer: (ok) => { set({ plan: null }); resolve(ok); } } }));
  };
  try {
    const opened = await load(source, { createWorker, format: state.settings.format, contextLength: state.settings.contextLength, confirmAboveBytes: 0, confirm, onProgress, signal: abort.signal });
    if (abort.signal.aborted) return void opened.dispose();
    session = opened;
    opened.onLost = (error) => loseModel(error);
    await (again ? putBackAdapters(opened) : forgetAdapters());
    // What the person chose is called as it was when it was chosen; many checkpoints do not say their own name.
    set({ model: { kind: 'ready', label: label || opened.info.model.name }, notice: null });
    remember(source, label || opened.info.model.name);
    if (!again) await answerWaiting();
  } catch (error) {
    if (loading !== abort) return;
    const known = error instanceof BayanError ? error : new BayanError('Internal', String(error));
    set({ plan: null, model: known.code === 'Aborted' ? { kind: 'none' } : { kind: 'failed', label, error: known } });
  }
}

export const addAdapter = (files: SourceFile[], label: string): Promise<void> => add(session, files, label);
export const removeAdapter = (name: string): Promise<void> => remove(session, name);

/** A message written before there was a model is answered once there is one. */
async function answerWaiting(): Promise<void> {
  const { current } = state;
  if (current.turns.at(-1)?.role === 'user' && !state.answering && !state.answerError) await answer(current);
}

export function cancelLoading(): void {
  loading?.abort();
  state.plan?.answer(false);
}

export async function reloadModel(): Promise<void> {
  if (lastSource) await loadModel(lastSource, plainLabel(), true);
  else set({ panel: 'models' });
}

export async function unloadModel(): Promise<void> {
  stop();
  const old = session;
  session = null;
  set({ model: { kind: 'none' } });
  forgetAdapters();
  remember(null, '');
  await old?.dispose();
}

export async function refreshStored(): Promise<void> {
  const backend = openBackend({ createWorker });
  try {
    const stored = await backend.listStored();
    const { usage, quota } = (await navigator.storage?.estimate?.()) ?? {};
    set({ stored, estimate: quota ? { used: usage ?? 0, quota } : null });
  } catch {
    set({ stored: [] });
  } finally {
    void backend.dispose();
  }
}

export async function deleteStored(id: string): Promise<void> {
  const backend = openBackend({ createWorker });
  try {
    await backend.deleteStored(id);
  } finally {
    void backend.dispose();
  }
  await refreshStored();
}

export async function checkDevice(): Promise<void> {
  set({ probe: await probeDevice() });
}
