/** LoRA adapters on the running model: chosen from disk, shown, taken off, and put back when the model is loaded again. */
import { type AdapterInfo, BayanError, type Session, type SourceFile } from 'bayan-web';
import { getState, set } from './app';

export interface AdapterState {
  list: AdapterInfo[];
  busy: boolean;
  error: BayanError | null;
}

export const NO_ADAPTERS: AdapterState = { list: [], busy: false, error: null };

/** What the adapters were read from: files stay on the person's disk, so they last as long as the page. */
let chosen: { name: string; files: SourceFile[] }[] = [];

const change = (part: Partial<AdapterState>) => set({ adapters: { ...getState().adapters, ...part } });

/** Another model: its adapters begin anew. */
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

/** After the same model was loaded again. */
export async function putBackAdapters(session: Session): Promise<void> {
  const before = chosen;
  forgetAdapters();
  for (const { name, files } of before) await addAdapter(session, files, name);
}
