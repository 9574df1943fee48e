/**
 * The few file operations the cache needs, over the origin private file system (and over memory in tests).
 * Reading goes through `File.slice`, which several tabs may do at once; writing through the worker's exclusive
 * access handle, which writes in place without a copy of the whole file.
 */
import { privateFolder } from '../private-folder';

export interface Writer {
  size(): number;
  write(offset: number, bytes: Uint8Array): void;
  truncate(size: number): void;
  flush(): void;
  close(): void;
}

export interface Storage {
  /** -1 where there is no such file. */
  size(folder: string, name: string): Promise<number>;
  read(folder: string, name: string, offset: number, length: number): Promise<Uint8Array>;
  openWriter(folder: string, name: string): Promise<Writer>;
  folders(): Promise<string[]>;
  removeFolder(folder: string): Promise<void>;
  /** Bytes that the browser still grants; null where it does not say. */
  freeBytes(): Promise<number | null>;
}

/** Only workers have it, and TypeScript's DOM library describes pages. */
interface AccessHandle {
  getSize(): number;
  write(bytes: Uint8Array, options: { at: number }): number;
  truncate(size: number): void;
  flush(): void;
  close(): void;
}

export class OpfsStorage implements Storage {
  private constructor(private readonly root: FileSystemDirectoryHandle) {}

  /** Null where the browser has no private file system for this page (some private windows, insecure origins). */
  static async open(name = 'bayan-models'): Promise<OpfsStorage | null> {
    const root = await privateFolder(name);
    return root && new OpfsStorage(root);
  }

  private async file(folder: string, name: string): Promise<File | null> {
    try {
      const dir = await this.root.getDirectoryHandle(folder);
      return await (await dir.getFileHandle(name)).getFile();
    } catch (error) {
      if (error instanceof DOMException && (error.name === 'NotFoundError' || error.name === 'TypeMismatchError'))
        return null;
      throw error;
    }
  }

  async size(folder: string, name: string): Promise<number> {
    return (await this.file(folder, name))?.size ?? -1;
  }

  async read(folder: string, name: string, offset: number, length: number): Promise<Uint8Array> {
    const file = await this.file(folder, name);
    if (!file) throw new DOMException(`${folder}/${name} is not stored`, 'NotFoundError');
    return new Uint8Array(await file.slice(offset, offset + length).arrayBuffer());
  }

  async openWriter(folder: string, name: string): Promise<Writer> {
    const dir = await this.root.getDirectoryHandle(folder, { create: true });
    const file = (await dir.getFileHandle(name, { create: true })) as FileSystemFileHandle & {
      createSyncAccessHandle(): Promise<AccessHandle>;
    };
    const handle = await file.createSyncAccessHandle();
    return {
      size: () => handle.getSize(),
      write: (offset, bytes) => {
        const written = handle.write(bytes, { at: offset });
        if (written !== bytes.length)
          throw new DOMException(`wrote ${written} of ${bytes.length} bytes`, 'QuotaExceededError');
      },
      truncate: (size) => handle.truncate(size),
      flush: () => handle.flush(),
      close: () => handle.close(),
    };
  }

  async folders(): Promise<string[]> {
    const names: string[] = [];
    for await (const [name, handle] of this.root.entries()) if (handle.kind === 'directory') names.push(name);
    return names;
  }

  async removeFolder(folder: string): Promise<void> {
    try {
      await this.root.removeEntry(folder, { recursive: true });
    } catch (error) {
      if (!(error instanceof DOMException && error.name === 'NotFoundError')) throw error;
    }
  }

  async freeBytes(): Promise<number | null> {
    const { quota, usage } = await navigator.storage.estimate();
    return quota === undefined ? null : Math.max(0, quota - (usage ?? 0));
  }
}
