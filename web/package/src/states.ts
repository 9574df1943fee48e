/** Saved states in the browser's private file system, one file each. */
import { privateFolder } from './private-folder';

export interface StoredState {
  name: string;
  sizeBytes: number;
  savedAt: number;
}

export class StateStore {
  private constructor(private readonly root: FileSystemDirectoryHandle) {}

  /** Null where the browser has no private file system for this page (some private windows, insecure origins). */
  static async open(folder = 'bayan-states'): Promise<StateStore | null> {
    const root = await privateFolder(folder);
    return root && new StateStore(root);
  }

  /** Writes or replaces the state of this name: 1 to 250 bytes of UTF-8. A break leaves the earlier one. */
  async write(name: string, bytes: Uint8Array): Promise<void> {
    // Closing replaces the file in one step.
    const writer = await (await this.root.getFileHandle(fileOf(name), { create: true })).createWritable();
    try {
      await writer.write(bytes as Uint8Array<ArrayBuffer>);
    } catch (error) {
      await writer.abort();
      throw error;
    }
    await writer.close();
  }

  /** The bytes of a state, for `Session.restoreState`; null where there is none of this name. */
  async read(name: string): Promise<Blob | null> {
    try {
      return await (await this.root.getFileHandle(fileOf(name))).getFile();
    } catch (error) {
      if (error instanceof DOMException && error.name === 'NotFoundError') return null;
      throw error;
    }
  }

  /** All states, the newest first. */
  async list(): Promise<StoredState[]> {
    const found: StoredState[] = [];
    for await (const [file, handle] of this.root.entries()) {
      if (handle.kind !== 'file') continue;
      const { size, lastModified } = await (handle as FileSystemFileHandle).getFile();
      found.push({ name: decodeURIComponent(file), sizeBytes: size, savedAt: lastModified });
    }
    return found.sort((a, b) => b.savedAt - a.savedAt);
  }

  async delete(name: string): Promise<void> {
    try {
      await this.root.removeEntry(fileOf(name));
    } catch (error) {
      if (!(error instanceof DOMException && error.name === 'NotFoundError')) throw error;
    }
  }
}

/** Any name as the name of a file; file systems take 255 bytes. */
function fileOf(name: string): string {
  // `.` and `..` are no names of files.
  const file = String(name).replace(
    /[%./\\:*?"<>|\u0000-\u001f]/g,
    (c) => `%${c.charCodeAt(0).toString(16).padStart(2, '0')}`,
  );
  const bytes = new TextEncoder().encode(file).length;
  if (typeof name !== 'string' || bytes < 1 || bytes > 250)
    throw new TypeError(`a state's name: expected 1 to 250 bytes of UTF-8, got ${bytes}`);
  return file;
}
