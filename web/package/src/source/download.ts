/** Downloads one file into the cache: resumes after breaks, takes a digest of each chunk, checks the whole file. */
import { BadCheckpoint, Network, throwIfAborted } from '../errors';
import type { Progress } from '../types';
import { requestOnce, shown, waitOrThrow } from './http';
import { digestHex, Sha256 } from './sha256';
import { CHUNK, type Manifest, type ModelStore, type StoredFile } from './store';
import type { Writer } from './storage';

/** The manifest is saved after each of so many bytes, so that closing the tab loses little. */
const SAVE_EVERY = 4;

export interface DownloadHooks {
  signal?: AbortSignal | undefined;
  token?: string | undefined;
  onProgress?: ((progress: Progress) => void) | undefined;
}

export async function downloadFile(
  store: ModelStore,
  manifest: Manifest,
  index: number,
  hooks: DownloadHooks,
): Promise<void> {
  const file = manifest.files[index]!;
  const writer = await store.storage.openWriter(manifest.id, store.fileName(index));
  try {
    for (let restarted = false; ; restarted = true) {
      await new FileDownload(store, manifest, file, writer, hooks).run(restarted || file.chunks.length === 0);
      const problem = await checkWhole(file, writer, store, manifest, index, hooks);
      if (problem === null) break;
      file.chunks = [];
      writer.truncate(0);
      await store.writeManifest(manifest);
      if (restarted)
        throw new BadCheckpoint(`${file.path}: ${problem}, twice. The server may hold a damaged file`, {
          file: file.path,
        });
      hooks.onProgress?.({ phase: 'repair', file: file.path, reason: problem });
    }
    file.done = true;
    writer.flush();
  } finally {
    writer.close();
    await store.writeManifest(manifest);
  }
}

class FileDownload {
  private buffer = new Uint8Array(CHUNK);
  private filled = 0;
  private started = performance.now();
  private received = 0;
  private resumed = false;
  private lastReport = 0;

  constructor(
    private readonly store: ModelStore,
    private readonly manifest: Manifest,
    private readonly file: StoredFile,
    private readonly writer: Writer,
    private readonly hooks: DownloadHooks,
  ) {}

  async run(fresh: boolean): Promise<void> {
    const { file, writer } = this;
    if (fresh) file.chunks = [];
    file.chunks.length = Math.min(file.chunks.length, Math.floor(writer.size() / CHUNK));
    this.resumed = file.chunks.length > 0;
    let attempt = 1;
    while (!(file.size >= 0 && this.offset() >= file.size)) {
      const before = this.offset();
      try {
        if (await this.once()) break;
        throw new Network(`${shown(file.url)}: the connection ended after ${this.offset()} of ${file.size} bytes`, {
          url: shown(file.url),
        });
      } catch (error) {
        if (this.offset() > before + CHUNK) attempt = 1;
        await waitOrThrow(error, attempt++, {
          signal: this.hooks.signal,
          onRetry: (n, waitMs, reason) =>
            this.hooks.onProgress?.({ phase: 'retry', file: file.path, attempt: n, waitMs, reason }),
        });
        this.resumed = this.offset() > 0;
      }
    }
    await this.flushTail();
  }

  private offset(): number {
    return this.file.chunks.length * CHUNK + this.filled;
  }

  /** One request. True where the end of the file was reached. */
  private async once(): Promise<boolean> {
    const { file, hooks } = this;
    const from = this.offset();
    const headers: Record<string, string> = {};
    // No If-Range: across origins it would need a preflight request that file hosts do not answer. The ETag is compared
    // below instead.
    if (from > 0) headers['Range'] = `bytes=${from}-`;
    const response = await requestOnce(file.url, { signal: hooks.signal, token: hooks.token, headers, accept: [416] });
    if (response.status === 416 || (from > 0 && response.status === 200)) this.restart();
    if (response.status === 416) return false;
    this.learn(response, response.status === 206 ? from : 0);
    if (!response.body) throw new Network(`${shown(file.url)} answered without a body`);
    const reader = response.body.getReader();
    try {
      for (;;) {
        const part = await this.read(reader);
        if (part === null) break;
        await this.take(part);
        this.report();
      }
    } finally {
      void reader.cancel().catch(() => {});
    }
    if (file.size < 0) file.size = this.offset();
    return this.offset() >= file.size;
  }

  private async read(reader: ReadableStreamDefaultReader<Uint8Array>): Promise<Uint8Array | null> {
    try {
      const { done, value } = await reader.read();
      return done ? null : value;
    } catch (error) {
      throwIfAborted(this.hooks.signal);
      const url = shown(this.file.url);
      const reason = error instanceof Error ? error.message : String(error);
      throw new Network(`${url}: the connection broke after ${this.offset()} bytes: ${reason}`, { url });
    }
  }

  /** The server cannot continue (or the file changed): from the first byte. */
  private restart(): void {
    this.file.chunks = [];
    this.filled = 0;
    this.file.etag = null;
    this.writer.truncate(0);
  }

  private learn(response: Response, from: number): void {
    const { file } = this;
    const range = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(response.headers.get('Content-Range') ?? '');
    if (response.status === 206 && range && Number(range[1]) !== from)
      throw new Network(`${shown(file.url)}: asked for bytes from ${from}, got bytes from ${range[1]}`, {
        url: shown(file.url),
      });
    const etag = response.headers.get('ETag');
    if (response.status === 206 && etag && file.etag && etag !== file.etag) {
      void response.body?.cancel().catch(() => {});
      this.restart();
      throw new Network(
        `${shown(file.url)}: the file changed on the server between two requests; it is fetched from the start`,
        { url: shown(file.url) },
      );
    }
    const length = response.headers.get('Content-Encoding')
      ? NaN
      : Number(response.headers.get('Content-Length') ?? NaN);
    const total = range && range[2] !== '*' ? Number(range[2]) : response.status === 200 ? length : NaN;
    file.etag = etag ?? file.etag;
    if (!Number.isInteger(total)) return;
    if (file.size >= 0 && total !== file.size) {
      this.restart();
      throw new BadCheckpoint(
        `${file.path}: expected ${file.size} bytes, the server has ${total}. ` +
          'The published file changed; delete the stored copy and load again',
        { file: file.path },
      );
    }
    file.size = total;
  }

  private async take(part: Uint8Array): Promise<void> {
    if (this.file.size >= 0 && this.offset() + part.length > this.file.size) {
      throw new BadCheckpoint(`${this.file.path}: the server sent more than the ${this.file.size} bytes it promised`, {
        file: this.file.path,
      });
    }
    this.received += part.length;
    for (let at = 0; at < part.length;) {
      const count = Math.min(CHUNK - this.filled, part.length - at);
      this.buffer.set(part.subarray(at, at + count), this.filled);
      this.filled += count;
      at += count;
      if (this.filled === CHUNK) await this.writeChunk();
    }
  }

  private async writeChunk(): Promise<void> {
    const bytes = this.buffer.subarray(0, this.filled);
    this.writer.write(this.file.chunks.length * CHUNK, bytes);
    const digest = await digestHex(bytes);
    this.file.chunks.push(digest);
    this.filled = 0;
    if (this.file.chunks.length % SAVE_EVERY === 0) {
      this.writer.flush();
      await this.store.writeManifest(this.manifest);
    }
  }

  private async flushTail(): Promise<void> {
    if (this.filled > 0) await this.writeChunk();
    this.writer.truncate(Math.max(0, this.file.size));
    this.report(true);
  }

  private report(force = false): void {
    const now = performance.now();
    if (!force && now - this.lastReport < 100) return;
    this.lastReport = now;
    const seconds = Math.max(0.001, (now - this.started) / 1000);
    this.hooks.onProgress?.({
      phase: 'download',
      file: this.file.path,
      doneBytes: Math.min(this.offset(), this.file.size < 0 ? Infinity : this.file.size),
      totalBytes: this.file.size,
      bytesPerSecond: this.received / seconds,
      resumed: this.resumed,
    });
  }
}

/** Null where size and published digest agree, else the difference. */
async function checkWhole(
  file: StoredFile,
  writer: Writer,
  store: ModelStore,
  manifest: Manifest,
  index: number,
  hooks: DownloadHooks,
): Promise<string | null> {
  writer.flush();
  if (writer.size() !== file.size) return `expected ${file.size} bytes, stored ${writer.size()}`;
  if (file.sha256 === null) return null;
  const sha = new Sha256();
  for (let at = 0; at < file.size; at += CHUNK) {
    throwIfAborted(hooks.signal);
    sha.update(await store.storage.read(manifest.id, store.fileName(index), at, Math.min(CHUNK, file.size - at)));
    hooks.onProgress?.({
      phase: 'verify',
      file: file.path,
      doneBytes: Math.min(at + CHUNK, file.size),
      totalBytes: file.size,
    });
  }
  const found = sha.hex();
  return found === file.sha256 ? null : `expected SHA-256 ${file.sha256}, got ${found}`;
}
