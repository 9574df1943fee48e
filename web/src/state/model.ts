/** The model: loading and unloading it, the one that ran last, and the models stored in this browser. */
import {
  BayanError,
  type DownloadPlan,
  load,
  openBackend,
  type Progress,
  type Session,
  type Source,
  type SourceFile,
  type StoredModel,
} from 'bayan-web';
import { plainName } from '../text/hidden';
import * as adapters from './adapters';
import { unpackAdapter } from './adapter-file';
import { answerWaiting } from './answers';
import { restoreCache } from './kept-cache';
import { stop } from './live';
import { currentSession, loseModel, plainLabel, runningLabel, setSession } from './session';
import { samplingOf } from './settings';
import { getState, onCpu, set, strings, subscribe } from './store';

let lastSource: Source | null = null;
/** Where the running model came from. */
export const runningSource = (): Source | null => (currentSession() ? lastSource : null);
let loading: AbortController | null = null;

/** The page's own copy of the engine lies beside it, and its build finds the worker here. */
export const engine = {
  engineUrl: 'engine/bayan.js',
  createWorker: (name: string) =>
    new Worker(new URL('../../package/src/worker.ts', import.meta.url), { type: 'module', name }),
};

/** The model that ran last: the included one starts by itself unless the person stopped it; another one is offered. */
const LAST = 'bayan-last-model';

function storeLast(source: Source | null, label: string): void {
  try {
    if (source === null) localStorage.setItem(LAST, JSON.stringify({ kind: 'stopped' }));
    else if (source.kind === 'shipped') localStorage.setItem(LAST, JSON.stringify({ kind: 'shipped' }));
    else if (source.kind !== 'files')
      localStorage.setItem(LAST, JSON.stringify({ kind: 'other', source: { ...source, token: undefined }, label }));
  } catch {
    // Storage is refused: the next visit starts as the first one did.
  }
}

export function lastModel():
  { kind: 'none' | 'shipped' | 'stopped' } | { kind: 'other'; source: Source; label: string } {
  try {
    const raw = JSON.parse(localStorage.getItem(LAST) ?? 'null') as {
      kind?: string;
      source?: { kind?: string; repo?: unknown; url?: unknown };
      label?: unknown;
    } | null;
    if (raw?.kind === 'shipped' || raw?.kind === 'stopped') return { kind: raw.kind };
    const source = raw?.source;
    const fine =
      (source?.kind === 'hub' && typeof source.repo === 'string') ||
      (source?.kind === 'url' && typeof source.url === 'string');
    if (raw?.kind === 'other' && fine && typeof raw.label === 'string')
      return { kind: 'other', source: source as Source, label: raw.label };
  } catch {
    // Unreadable: treated as a first visit.
  }
  return { kind: 'none' };
}

/** A larger included model starts only by its button, because the visitor may pay for the download. */
const START_BELOW_BYTES = 200e6;

export function startByItself(): void {
  const { shipped, probe, model } = getState();
  const last = lastModel().kind;
  if (
    model.kind === 'none' &&
    shipped &&
    probe !== null &&
    shipped.bytes <= START_BELOW_BYTES &&
    (last === 'none' || last === 'shipped')
  )
    void loadModel(shippedSource(), plainName(shipped.name));
}

export async function findShipped(): Promise<void> {
  try {
    const response = await fetch('model/manifest.json', { cache: 'no-cache' });
    const json = response.ok ? ((await response.json()) as { name?: unknown; files?: { size?: number }[] }) : null;
    if (!json || !Array.isArray(json.files)) return;
    set({
      shipped: {
        name: String(json.name ?? ''),
        bytes: json.files.reduce((sum, file) => sum + (Number(file.size) || 0), 0),
      },
    });
  } catch {
    // This copy of the page includes no model.
  }
}

export const shippedSource = (): Source => ({ kind: 'shipped', url: new URL('model/', document.baseURI).href });

/**
 * Loads a model. The one that runs stays until the new one is open, and for good where that fails; only where the
 * device has no memory for both is it closed first. `again`: after a failure. The unanswered message is then not sent
 * automatically, because it may have caused it.
 */
export async function loadModel(source: Source, label: string, again = false): Promise<void> {
  loading?.abort();
  const abort = (loading = new AbortController());
  const oldSource = lastSource;
  lastSource = source;
  void navigator.storage?.persist?.().catch(() => false);
  set({
    answerError: null,
    loadError: null,
    model: { kind: 'loading', label, progress: { phase: 'device' }, totals: { done: 0, total: 0 } },
  });
  try {
    const opened = await open(source, abort).catch(async (error: unknown) => {
      if (!(error instanceof BayanError) || error.code !== 'OutOfMemory' || !currentSession()) throw error;
      await closeSession();
      return open(source, abort);
    });
    if (abort.signal.aborted) return void opened.dispose();
    await answerEnds();
    await closeSession();
    const name = label || opened.info.model.name;
    setSession(opened, name);
    opened.onLost = (error) => loseModel(error);
    await (again ? adapters.reloadAdapters(opened) : adapters.forgetAdapters());
    // The label that the person saw stays; many checkpoints do not hold their own name.
    set({ model: { kind: 'ready', label: name }, quick: false });
    storeLast(source, name);
    if (!again && (await answerWaiting())) set({ quick: currentSession() === opened });
    else void compileShort(opened);
  } catch (error) {
    if (loading !== abort) return;
    const known = error instanceof BayanError ? error : new BayanError('Internal', String(error));
    const failed = known.code !== 'Aborted';
    if (currentSession()) {
      lastSource = oldSource;
      const loadError = failed ? { label, error: known, from: source.kind } : null;
      set({ plan: null, model: { kind: 'ready', label: runningLabel() }, loadError });
    } else
      set({
        plan: null,
        model: failed ? { kind: 'failed', label, error: known, from: source.kind } : { kind: 'none' },
      });
  }
}

async function open(source: Source, abort: AbortController): Promise<Session> {
  let planned = 0;
  const arrived = new Map<string, number>();
  const onProgress = (progress: Progress) => {
    const { model } = getState();
    if (abort.signal.aborted || model.kind !== 'loading') return;
    if (progress.phase === 'download') arrived.set(progress.file, progress.doneBytes);
    const sum = [...arrived.values()].reduce((a, b) => a + b, 0);
    const totals =
      progress.phase === 'weights'
        ? { done: progress.doneBytes, total: progress.totalBytes }
        : { done: sum, total: Math.max(planned, progress.phase === 'download' ? progress.totalBytes : 0, sum) };
    set({ model: { ...model, progress, totals } });
  };
  const confirm = (plan: DownloadPlan) => {
    planned = plan.neededBytes;
    if (plan.neededBytes <= 50e6) return true;
    return new Promise<boolean>((resolve) => {
      const answer = (ok: boolean) => {
        set({ plan: null });
        resolve(ok);
      };
      set({ plan: { plan, answer } });
    });
  };
  const { settings } = getState();
  const { format, contextLength } = settings;
  const { signal } = abort;
  const opened = await load(source, {
    ...engine,
    format,
    contextLength,
    device: onCpu() ? 'cpu' : 'auto',
    confirmAboveBytes: 0,
    confirm,
    onProgress,
    signal,
  });
  try {
    await compile(opened, signal);
  } catch (error) {
    await opened.dispose();
    throw error;
  }
  return opened;
}

/** Tokens of a prompt whose kernels serve all longer ones, and of shorter prompts, which have kernels of their own. */
const USUAL_PROMPT = 24;
const SHORT_PROMPTS = [9, 8, 7, 6, 5, 4, 3];

/** Compiles the kernels of usual prompts: the model is ready when its first answer is quick. */
async function compile(opened: Session, signal: AbortSignal): Promise<void> {
  const { model, settings } = getState();
  if (model.kind === 'loading')
    set({ model: { ...model, progress: { phase: 'warmup' }, totals: { done: 0, total: 0 } } });
  const tokens = Math.min(USUAL_PROMPT, opened.info.model.contextLength - 2);
  await opened.warmUp(tokens, { sampling: samplingOf(settings), signal });
}

/** Without a key pressed for this long, the person does not write. */
const WRITING_PAUSE_MS = 1000;

/**
 * Compiles the kernels of short prompts while the person does not write: a question would wait for the kernel that is
 * being compiled. The first question ends it, because it would displace the conversation from the cache.
 */
async function compileShort(opened: Session): Promise<void> {
  const question = new AbortController();
  const off = subscribe(() => {
    if (getState().answering || currentSession() !== opened) question.abort();
  });
  let wroteAt = -Infinity;
  const onInput = () => (wroteAt = performance.now());
  addEventListener('input', onInput, true);
  const sampling = samplingOf(getState().settings);
  try {
    for (const tokens of SHORT_PROMPTS) {
      for (let left; (left = wroteAt + WRITING_PAUSE_MS - performance.now()) > 0;)
        await new Promise((resolve) => setTimeout(resolve, left));
      await opened.warmUp(tokens, { sampling, signal: question.signal });
    }
  } catch {
    // The person asked first, or the device failed: the answer says so.
    await answerEnds();
  } finally {
    off();
    removeEventListener('input', onInput, true);
  }
  if (currentSession() !== opened) return;
  if (!question.signal.aborted) await restoreCache(opened);
  set({ quick: true });
}

/** Ends the session that runs, if there is one. */
async function closeSession(): Promise<void> {
  const old = currentSession();
  setSession(null, '');
  await old?.dispose();
}

function answerEnds(): Promise<void> {
  return new Promise((resolve) => {
    const look = () => {
      if (getState().answering) return;
      off();
      resolve();
    };
    const off = subscribe(look);
    look();
  });
}

/** Puts an adapter on the running model: PEFT's two files, or an archive of them. */
export async function addAdapter(files: SourceFile[], label: string): Promise<void> {
  // Files that were chosen without their folder have the same names for every adapter.
  const name = label.startsWith('adapter_') ? strings().training.unnamed : label.replace(/\.zip$/i, '');
  await adapters.addAdapter(currentSession(), await unpackAdapter(files), name);
}
export const switchAdapter = (name: string, on: boolean): Promise<void> =>
  adapters.switchAdapter(currentSession(), name, on);
export const removeAdapter = (name: string): Promise<void> => adapters.removeAdapter(currentSession(), name);

export function cancelLoading(): void {
  loading?.abort();
  getState().plan?.answer(false);
}

export async function reloadModel(): Promise<void> {
  if (lastSource) await loadModel(lastSource, plainLabel(), true);
  else set({ panel: 'models' });
}

/** Deletes the stored files of the model that failed, and downloads them again. */
export async function fetchAgain(): Promise<void> {
  const failed = lastSource;
  await refreshStored();
  const same = ({ source }: StoredModel) =>
    failed?.kind === 'hub'
      ? source.kind === 'hub' && source.repo === failed.repo && source.file === failed.file
      : failed?.kind === 'url' && source.kind === 'url' && source.url === failed.url;
  for (const { id } of getState().stored?.filter(same) ?? []) await deleteStored(id);
  await reloadModel();
}

export async function unloadModel(): Promise<void> {
  stop();
  loading?.abort();
  set({ model: { kind: 'none' } });
  adapters.forgetAdapters();
  storeLast(null, '');
  await closeSession();
}

export async function refreshStored(): Promise<void> {
  const backend = openBackend(engine);
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
  const backend = openBackend(engine);
  try {
    await backend.deleteStored(id);
  } finally {
    void backend.dispose();
  }
  await refreshStored();
}
