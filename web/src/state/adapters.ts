/** LoRA adapters on the running model: loaded from disk, listed, removed, and loaded again with the model. */
import { BayanError, type Session, type SourceFile } from 'bayan-web';
import { type AdapterState, getState, NO_ADAPTERS, set } from './store';

/** The files of each adapter. They stay on the person's disk, so they are known only until the page is closed. */
let chosen: { name: string; files: SourceFile[] }[] = [];

const change = (part: Partial<AdapterState>) => set({ adapters: { ...getState().adapters, ...part } });

/** Clears the list: another model starts without adapters. */
export function forgetAdapters(): void {
  chosen = [];
  set({ adapters: NO_ADAPTERS });
}

export async function addAdapter(session: Session | null, files: SourceFile[], label: string): Promise<void> {
  if (!session || files.length === 0) return;
  const taken = new Set(getState().adapters.list.map((adapter) => adapter.name));
  let name = label;
  for (let n = 2; taken.has(name); n++) name = `${label} ${n}`;
  change({ busy: true, error: null });
  try {
    await session.loadAdapter({ kind: 'files', files }, { name });
    chosen.push({ name, files });
    change({ list: session.info.adapters, busy: false });
  } catch (error) {
    change({ busy: false, error: error instanceof BayanError ? error : new BayanError('Internal', String(error)) });
  }
}

export async function removeAdapter(session: Session | null, name: string): Promise<void> {
  chosen = chosen.filter((adapter) => adapter.name !== name);
  try {
    await session?.unloadAdapter(name);
    change({ list: session?.info.adapters ?? [], error: null });
  } catch (error) {
    change({ error: error instanceof BayanError ? error : new BayanError('Internal', String(error)) });
  }
}

/** Loads the same adapters after their model was loaded again. */
export async function reloadAdapters(session: Session): Promise<void> {
  const before = chosen;
  forgetAdapters();
  for (const { name, files } of before) await addAdapter(session, files, name);
}
