/**
 * Runs in the browser's private file system, so that a closed tab can go on where it stopped. A run is a folder with
 * its examples, its newest checkpoint and `run.json`, which names that checkpoint: it is replaced in one step, after
 * the checkpoint is complete.
 */
import { privateFolder } from '../private-folder';
import type { SourceFile } from '../types';

export interface StoredTraining<About = unknown> {
  id: string;
  createdAt: number;
  /** Steps of the checkpoint; 0 without one. */
  steps: number;
  /** What the caller wrote about the run: model, recipe, losses so far. */
  about: About;
}

const RUN = 'run.json';
const EXAMPLES = 'examples';
const CHECKPOINT = 'checkpoint-';

export class TrainingStore {
  private constructor(private readonly root: FileSystemDirectoryHandle) {}

  /** Null where the browser has no private file system for this page (some private windows, insecure origins). */
  static async open(name = 'bayan-training'): Promise<TrainingStore | null> {
    const root = await privateFolder(name);
    return root && new TrainingStore(root);
  }

  /** All runs, the newest first. */
  async list<About>(): Promise<StoredTraining<About>[]> {
    const found: StoredTraining<About>[] = [];
    for await (const [id, handle] of this.root.entries()) {
      if (handle.kind !== 'directory') continue;
      const run = await readRun<About>(handle as FileSystemDirectoryHandle, id);
      if (run) found.push(run);
    }
    return found.sort((a, b) => b.createdAt - a.createdAt);
  }

  async create<About>(about: About, examples: SourceFile[]): Promise<StoredTraining<About>> {
    const run: StoredTraining<About> = { id: crypto.randomUUID(), createdAt: Date.now(), steps: 0, about };
    const folder = await this.root.getDirectoryHandle(run.id, { create: true });
    await writeFiles(await folder.getDirectoryHandle(EXAMPLES, { create: true }), examples);
    await writeRun(folder, run);
    return run;
  }

  /** Replaces the checkpoint of a run; the earlier one stays until the new one is complete. */
  async save<About>(
    run: StoredTraining<About>,
    steps: number,
    checkpoint: SourceFile[],
    about: About,
  ): Promise<StoredTraining<About>> {
    const folder = await this.root.getDirectoryHandle(run.id);
    const name = `${CHECKPOINT}${steps}`;
    await writeFiles(await folder.getDirectoryHandle(name, { create: true }), checkpoint);
    const next = { ...run, steps, about };
    await writeRun(folder, next);
    for await (const other of folder.keys())
      if (other.startsWith(CHECKPOINT) && other !== name) await folder.removeEntry(other, { recursive: true });
    return next;
  }

  /** The examples and, if there is one, the checkpoint of a run. */
  async read(run: StoredTraining): Promise<{ examples: SourceFile[]; checkpoint: SourceFile[] | null }> {
    const folder = await this.root.getDirectoryHandle(run.id);
    const examples = await readFiles(await folder.getDirectoryHandle(EXAMPLES));
    if (run.steps === 0) return { examples, checkpoint: null };
    return { examples, checkpoint: await readFiles(await folder.getDirectoryHandle(`${CHECKPOINT}${run.steps}`)) };
  }

  async delete(id: string): Promise<void> {
    try {
      await this.root.removeEntry(id, { recursive: true });
    } catch (error) {
      if (!(error instanceof DOMException && error.name === 'NotFoundError')) throw error;
    }
  }
}

async function readRun<About>(folder: FileSystemDirectoryHandle, id: string): Promise<StoredTraining<About> | null> {
  try {
    const text = await (await (await folder.getFileHandle(RUN)).getFile()).text();
    const run = JSON.parse(text) as Partial<StoredTraining<About>>;
    if (!Number.isInteger(run.steps) || typeof run.createdAt !== 'number' || run.about === undefined) return null;
    return { id, createdAt: run.createdAt, steps: run.steps!, about: run.about };
  } catch {
    // A tab was closed while the run was created.
    return null;
  }
}

const writeRun = (folder: FileSystemDirectoryHandle, run: StoredTraining): Promise<void> =>
  writeFiles(folder, [{ path: RUN, file: new Blob([JSON.stringify(run)]) }]);

async function writeFiles(folder: FileSystemDirectoryHandle, files: SourceFile[]): Promise<void> {
  for (const { path, file } of files) {
    // Closing replaces the file in one step.
    const writer = await (await folder.getFileHandle(path.split('/').at(-1)!, { create: true })).createWritable();
    await writer.write(file);
    await writer.close();
  }
}

async function readFiles(folder: FileSystemDirectoryHandle): Promise<SourceFile[]> {
  const files: SourceFile[] = [];
  for await (const [path, handle] of folder.entries())
    if (handle.kind === 'file') files.push({ path, file: await (handle as FileSystemFileHandle).getFile() });
  return files;
}
