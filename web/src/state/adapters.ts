/**
 * LoRA adapters of the running model: loaded from disk or trained here, listed, switched off and on, removed, and
 * loaded again with the model.
 */
import { type AdapterInfo, BayanError, type Session, type SourceFile } from 'bayan-web';
import { type AdapterState, getState, NO_ADAPTERS, set } from './store';

/** The files of each adapter, in the order of the list. They are known only until the page is closed. */
let chosen: { info: AdapterInfo; files: SourceFile[]; on: boolean }[] = [];

const change = (part: Partial<AdapterState>) => set({ adapters: { ...getState().adapters, ...part } });
const show = () => change({ list: chosen.map(({ info, on }) => ({ ...info, on })) });

/** Runs `work` on the list, which shows the result or its error. */
async function working(work: () => Promise<void>): Promise<void> {
  change({ busy: true, error: null });
  try {
    await work();
  } catch (error) {
    change({ error: error instanceof BayanError ? error : new BayanError('Internal', String(error)) });
  }
  show();
  change({ busy: false });
}

/** Clears the list: another model starts without adapters. */
export function forgetAdapters(): void {
  chosen = [];
  set({ adapters: NO_ADAPTERS });
}

async function load(session: Session, files: SourceFile[], name: string): Promise<AdapterInfo> {
  await session.loadAdapter({ kind: 'files', files }, { name });
  return session.info.adapters.find((adapter) => adapter.name === name)!;
}

export async function addAdapter(session: Session | null, files: SourceFile[], label: string): Promise<void> {
  if (!session || files.length === 0) return;
  const taken = new Set(chosen.map(({ info }) => info.name));
  let name = label;
  for (let n = 2; taken.has(name); n++) name = `${label} ${n}`;
  await working(async () => {
    const info = await load(session, files, name);
    chosen.push({ info, files, on: true });
  });
}

/** Takes an adapter off the model, or puts it on again; its files are kept. */
export async function switchAdapter(session: Session | null, name: string, on: boolean): Promise<void> {
  const one = chosen.find(({ info }) => info.name === name);
  if (!session || !one || one.on === on) return;
  await working(async () => {
    if (on) one.info = await load(session, one.files, name);
    else await session.unloadAdapter(name);
    one.on = on;
  });
}

export async function removeAdapter(session: Session | null, name: string): Promise<void> {
  await working(async () => {
    if (chosen.find(({ info }) => info.name === name)?.on) await session?.unloadAdapter(name);
    chosen = chosen.filter(({ info }) => info.name !== name);
  });
}

/** Loads the same adapters after their model was loaded again. */
export async function reloadAdapters(session: Session): Promise<void> {
  const before = chosen;
  forgetAdapters();
  for (const one of before) {
    if (one.on) await addAdapter(session, one.files, one.info.name);
    else chosen.push(one);
  }
  show();
}
