/** The cache's storage in memory, with a size limit, so that tests can damage and inspect it. */
import type { Storage, Writer } from '../src/source/storage';

export class MemoryStorage implements Storage {
  readonly disk = new Map<string, Uint8Array>();
  free: number | null = null;

  private key(folder: string, name: string): string {
    return `${folder}/${name}`;
  }

  async size(folder: string, name: string): Promise<number> {
    return this.disk.get(this.key(folder, name))?.length ?? -1;
  }

  async read(folder: string, name: string, offset: number, length: number): Promise<Uint8Array> {
    const bytes = this.disk.get(this.key(folder, name));
    if (!bytes) throw new Error(`${folder}/${name} is not stored`);
    return bytes.slice(offset, offset + length);
  }

  async openWriter(folder: string, name: string): Promise<Writer> {
    const key = this.key(folder, name);
    const get = () => this.disk.get(key) ?? new Uint8Array(0);
    const resize = (size: number) => {
      const next = new Uint8Array(size);
      next.set(get().subarray(0, size));
      this.disk.set(key, next);
    };
    if (!this.disk.has(key)) this.disk.set(key, new Uint8Array(0));
    return {
      size: () => get().length,
      write: (offset, bytes) => {
        if (offset + bytes.length > get().length) resize(offset + bytes.length);
        get().set(bytes, offset);
      },
      truncate: resize,
      flush: () => {},
      close: () => {},
    };
  }

  async folders(): Promise<string[]> {
    return [...new Set([...this.disk.keys()].map((key) => key.split('/')[0]!))];
  }

  async removeFolder(folder: string): Promise<void> {
    for (const key of [...this.disk.keys()]) if (key.startsWith(`${folder}/`)) this.disk.delete(key);
  }

  async freeBytes(): Promise<number | null> {
    return this.free;
  }
}
