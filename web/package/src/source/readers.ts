/** Byte sources: verified files of the cache, files from disk, and a server's ranges where nothing can be stored. */
import type { ByteSource } from '../engine';
import { BadCheckpoint, Network } from '../errors';
import type { Progress, SourceFile } from '../types';
import { requestOnce, shown, waitOrThrow } from './http';
import type { ListedFile } from './listing';
import { digestHex } from './sha256';
import { CHUNK, type Manifest, type ModelStore, safePath } from './store';

function checkRange(file: string, size: number, offset: number, length: number): void {
  if (size < 0) throw new BadCheckpoint(`${file}: no such file in this checkpoint`, { file });
  if (
    !Number.isSafeInteger(offset) ||
    !Number.isSafeInteger(length) ||
    offset < 0 ||
    length < 0 ||
    offset + length > size
  ) {
    throw new BadCheckpoint(`${file}: bytes ${offset} to ${offset + length} asked for, the file has ${size}`, { file });
  }
}

/** Files of the cache. The first read of a chunk checks its digest and fetches the chunk again if it changed. */
export class CachedSource implements ByteSource {
  private readonly index: Map<string, number>;
  private readonly verified = new Set<string>();
  private last: { key: string; bytes: Uint8Array } | null = null;

  constructor(
    private readonly store: ModelStore,
    private readonly manifest: Manifest,
    private readonly hooks: {
      token?: string | undefined;
      signal?: AbortSignal | undefined;
      onProgress?: ((p: Progress) => void) | undefined;
    },
  ) {
    this.index = new Map(manifest.files.map((file, i) => [file.path, i]));
  }

  files(): string[] {
    return this.manifest.files.map((file) => file.path);
  }

  size(file: string): number {
    const at = this.index.get(file);
    return at === undefined ? -1 : this.manifest.files[at]!.size;
  }

  async read(file: string, offset: number, length: number): Promise<Uint8Array> {
    checkRange(file, this.size(file), offset, length);
    const out = new Uint8Array(length);
    const at = this.index.get(file)!;
    for (let done = 0; done < length;) {
      const position = offset + done;
      const chunk = Math.floor(position / CHUNK);
      const inside = position - chunk * CHUNK;
      const count = Math.min(length - done, CHUNK - inside);
      out.set(await this.readChunk(at, chunk, inside, count), done);
      done += count;
    }
    return out;
  }

  private async readChunk(at: number, chunk: number, inside: number, count: number): Promise<Uint8Array> {
    const key = `${at}:${chunk}`;
    if (this.last?.key === key) return this.last.bytes.subarray(inside, inside + count);
    const name = this.store.fileName(at);
    if (this.verified.has(key)) return this.store.storage.read(this.manifest.id, name, chunk * CHUNK + inside, count);
    const file = this.manifest.files[at]!;
    const size = Math.min(CHUNK, file.size - chunk * CHUNK);
    let bytes = await this.store.storage
      .read(this.manifest.id, name, chunk * CHUNK, size)
      .catch(() => new Uint8Array(0));
    if (bytes.length !== size || (await digestHex(bytes)) !== file.chunks[chunk])
      bytes = await this.repair(at, chunk, size);
    this.verified.add(key);
    this.last = { key, bytes };
    return bytes.subarray(inside, inside + count);
  }

  private async repair(at: number, chunk: number, size: number): Promise<Uint8Array> {
    const file = this.manifest.files[at]!;
    const from = chunk * CHUNK;
    this.hooks.onProgress?.({
      phase: 'repair',
      file: file.path,
      reason: `the stored bytes ${from} to ${from + size} changed on disk`,
    });
    const bytes = await fetchRange(file.url, from, size, this.hooks);
    if ((await digestHex(bytes)) !== file.chunks[chunk]) {
      throw new BadCheckpoint(
        `${file.path}: the stored copy is damaged and the server now sends other bytes. ` +
          'Delete the stored model and load it again',
        { file: file.path },
      );
    }
    const writer = await this.store.storage.openWriter(this.manifest.id, this.store.fileName(at));
    try {
      writer.write(from, bytes);
      writer.flush();
    } finally {
      writer.close();
    }
    return bytes;
  }
}

/**
 * Exactly `length` bytes of a server's file, with retries. A server that ignores ranges is an error: each read would
 * transfer the whole file.
 */
export async function fetchRange(
  url: string,
  offset: number,
  length: number,
  hooks: { token?: string | undefined; signal?: AbortSignal | undefined },
): Promise<Uint8Array> {
  if (length === 0) return new Uint8Array(0);
  for (let attempt = 1; ; attempt++) {
    try {
      const response = await requestOnce(url, {
        signal: hooks.signal,
        token: hooks.token,
        headers: { Range: `bytes=${offset}-${offset + length - 1}` },
      });
      const whole =
        response.status === 200 && offset === 0 && Number(response.headers.get('Content-Length')) === length;
      if (response.status !== 206 && !whole) {
        void response.body?.cancel().catch(() => {});
        throw new BadCheckpoint(`${shown(url)} does not serve parts of a file (range requests), which this needs`, {
          url: shown(url),
        });
      }
      const bytes = new Uint8Array(
        await response.arrayBuffer().catch((error: unknown) => {
          throw new Network(
            `${shown(url)}: the connection broke: ${error instanceof Error ? error.message : String(error)}`,
            { url: shown(url) },
          );
        }),
      );
      if (bytes.length !== length)
        throw new Network(`${shown(url)}: asked for ${length} bytes, got ${bytes.length}`, { url: shown(url) });
      return bytes;
    } catch (error) {
      await waitOrThrow(error, attempt, { signal: hooks.signal });
    }
  }
}

/** Files the person chose. They stay on their disk; nothing is copied. */
export class DiskSource implements ByteSource {
  private readonly entries = new Map<string, Blob>();

  constructor(files: SourceFile[]) {
    for (const { path, file } of stripCommonFolder(files)) this.entries.set(safePath(path), file);
    if (this.entries.size === 0)
      throw new BadCheckpoint('no file was chosen. Choose a folder with config.json and weights, or one .gguf file');
  }

  files(): string[] {
    return [...this.entries.keys()];
  }

  size(file: string): number {
    return this.entries.get(file)?.size ?? -1;
  }

  async read(file: string, offset: number, length: number): Promise<Uint8Array> {
    checkRange(file, this.size(file), offset, length);
    try {
      return new Uint8Array(
        await this.entries
          .get(file)!
          .slice(offset, offset + length)
          .arrayBuffer(),
      );
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      throw new BadCheckpoint(
        `${file} could not be read from disk: ${reason}. If it was moved or changed, choose it again`,
        { file },
      );
    }
  }
}

function stripCommonFolder(files: SourceFile[]): SourceFile[] {
  const first = files[0]?.path.split('/');
  if (!first || first.length < 2) return files;
  const folder = `${first[0]}/`;
  return files.every((file) => file.path.startsWith(folder))
    ? files.map((file) => ({ ...file, path: file.path.slice(folder.length) }))
    : files;
}

/** Reads ranges from the server, for pages without storage (private windows). Nothing is stored. */
export class RangeSource implements ByteSource {
  private readonly entries: Map<string, ListedFile>;

  constructor(
    files: ListedFile[],
    private readonly hooks: { token?: string | undefined; signal?: AbortSignal | undefined },
  ) {
    this.entries = new Map(files.map((file) => [file.path, file]));
  }

  files(): string[] {
    return [...this.entries.keys()];
  }

  size(file: string): number {
    return this.entries.get(file)?.size ?? -1;
  }

  async read(file: string, offset: number, length: number): Promise<Uint8Array> {
    checkRange(file, this.size(file), offset, length);
    return fetchRange(this.entries.get(file)!.url, offset, length, this.hooks);
  }
}
