import { randomBytes } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { BayanError } from '../src/errors';
import type { DownloadPlan, Progress, Source } from '../src/types';
import { RETRIES } from '../src/source/http';
import { chooseFiles, parseRepo } from '../src/source/listing';
import { openSource, type OpenHooks } from '../src/source/open';
import { DiskSource } from '../src/source/readers';
import { CHUNK, ModelStore, safePath } from '../src/source/store';
import { MemoryStorage } from './memory-storage';
import { FileServer } from './server';

let server: FileServer;
let disk: MemoryStorage;
let store: ModelStore;
let progress: Progress[];
const weights = randomBytes(CHUNK * 2 + 12345);
const hooks = (more: Partial<OpenHooks> = {}): OpenHooks => ({
  confirmAboveBytes: Infinity,
  onProgress: (p) => progress.push(p),
  ...more,
});
const read = async (source: Source, more: Partial<OpenHooks> = {}) => {
  const opened = await openSource(source, store, hooks(more));
  return Buffer.from(await opened.read('model.gguf', 0, opened.size('model.gguf')));
};
const failure = async (work: Promise<unknown>): Promise<BayanError> =>
  work.then(
    () => {
      throw new Error('expected a failure');
    },
    (error) => error as BayanError,
  );
const url = (): Source => ({ kind: 'url', url: `${server.base}/model.gguf` });
const gets = () => server.log.filter((entry) => entry.method === 'GET');
const storedWeights = async () => `${(await disk.folders())[0]}/f0`;

beforeEach(async () => {
  RETRIES.baseMs = 5;
  server = await new FileServer().start();
  disk = new MemoryStorage();
  store = new ModelStore(disk);
  progress = [];
  server.put('/model.gguf', weights);
});
afterEach(() => server.stop());

describe('a file by address', () => {
  it('arrives whole, is listed, opens again without a request', async () => {
    expect((await read(url())).equals(weights)).toBe(true);
    const [model] = await store.list();
    expect(model).toMatchObject({
      complete: true,
      sizeBytes: weights.length,
      storedBytes: weights.length,
      label: 'model.gguf',
    });
    await server.stop();
    server.log.length = 0;
    expect((await read(url())).equals(weights)).toBe(true);
    expect(server.log).toEqual([]);
    await store.delete(model!.id);
    expect(await store.list()).toEqual([]);
    server = await new FileServer().start();
  });

  it('resumes after broken connections instead of starting again', async () => {
    server.trouble.set('/model.gguf', { cut: { bytes: CHUNK + 1000, times: 2 } });
    expect((await read(url())).equals(weights)).toBe(true);
    expect(gets().length).toBe(3);
    const resumed = gets()[1]!;
    expect(Number(/bytes=(\d+)-/.exec(resumed.range!)![1])).toBeGreaterThanOrEqual(CHUNK);
    expect(progress.some((p) => p.phase === 'retry')).toBe(true);
  });

  it('resumes in a later visit after the tab was closed', async () => {
    const abort = new AbortController();
    server.trouble.set('/model.gguf', { cut: { bytes: CHUNK + 1000, times: 1 } });
    const stopped = await failure(
      read(url(), {
        signal: abort.signal,
        onProgress: (p) => {
          if (p.phase === 'retry') abort.abort();
        },
      }),
    );
    expect(stopped.code).toBe('Aborted');
    const [partial] = await store.list();
    expect(partial).toMatchObject({ complete: false, storedBytes: CHUNK });
    server.log.length = 0;
    expect((await read(url())).equals(weights)).toBe(true);
    expect(gets().map((entry) => entry.range)).toEqual([`bytes=${CHUNK}-`]);
    expect(progress.find((p) => p.phase === 'download' && p.resumed)).toBeTruthy();
  });

  it('starts again where the file changed between two visits', async () => {
    const abort = new AbortController();
    server.trouble.set('/model.gguf', { cut: { bytes: CHUNK + 1000, times: 1 } });
    await failure(
      read(url(), {
        signal: abort.signal,
        onProgress: (p) => {
          if (p.phase === 'retry') abort.abort();
        },
      }),
    );
    const changed = randomBytes(weights.length);
    server.put('/model.gguf', changed);
    expect((await read(url())).equals(changed)).toBe(true);
  });

  it('starts again where the server ignores ranges', async () => {
    server.trouble.set('/model.gguf', { cut: { bytes: CHUNK + 1000, times: 1 }, ignoreRange: true });
    expect((await read(url())).equals(weights)).toBe(true);
  });

  it('fetches only the changed chunk of a stored copy again', async () => {
    await read(url());
    const bytes = disk.disk.get(await storedWeights())!;
    bytes[CHUNK + 77]! ^= 1;
    server.log.length = 0;
    expect((await read(url())).equals(weights)).toBe(true);
    expect(gets().map((entry) => entry.range)).toEqual([`bytes=${CHUNK}-${CHUNK * 2 - 1}`]);
    expect(progress.some((p) => p.phase === 'repair')).toBe(true);
    expect(Buffer.from(disk.disk.get(await storedWeights())!).equals(weights)).toBe(true);
  });

  it('fetches the rest where the stored copy was cut short', async () => {
    await read(url());
    const key = await storedWeights();
    disk.disk.set(key, disk.disk.get(key)!.slice(0, CHUNK + 5));
    expect((await read(url())).equals(weights)).toBe(true);
  });

  it('refuses a damaged copy that the server no longer backs', async () => {
    await read(url());
    disk.disk.get(await storedWeights())![3]! ^= 1;
    server.put('/model.gguf', randomBytes(weights.length));
    expect((await failure(read(url()))).code).toBe('BadCheckpoint');
  });

  it('waits and tries again on 429, and gives up on a long wait', async () => {
    server.trouble.set('/model.gguf', { status: { code: 429, times: 2 } });
    expect((await read(url())).length).toBe(weights.length);
    await store.delete((await store.list())[0]!.id);
    server.trouble.set('/model.gguf', { status: { code: 429, times: 9, retryAfter: '3600' } });
    const error = await failure(read(url()));
    expect(error).toMatchObject({ code: 'Network', details: { status: 429, retryAfterSeconds: 3600 } });
  });

  it.each([401, 403])('says that %i wants a token, at once', async (code) => {
    server.trouble.set('/model.gguf', { status: { code, times: 9 } });
    const error = await failure(read(url()));
    expect(error).toMatchObject({ code: 'Network', details: { status: code, needsToken: true } });
    expect(server.log.length).toBe(1);
  });

  it('reports a 404 and a server that does not answer', async () => {
    expect(await failure(read({ kind: 'url', url: `${server.base}/none.gguf` }))).toMatchObject({
      code: 'Network',
      details: { status: 404 },
    });
    const base = server.base;
    await server.stop();
    expect((await failure(read({ kind: 'url', url: `${base}/model.gguf` }))).code).toBe('Network');
    server = await new FileServer().start();
  });

  it('refuses what does not fit the quota before the first byte', async () => {
    disk.free = 1000;
    const error = await failure(read(url()));
    expect(error).toMatchObject({ code: 'Quota', details: { neededBytes: weights.length, availableBytes: 1000 } });
    expect(gets()).toEqual([]);
  });

  it('asks before a large download, with sizes, and stops on no', async () => {
    disk.free = 1e9;
    let plan: DownloadPlan | undefined;
    const error = await failure(
      read(url(), {
        confirmAboveBytes: 1000,
        confirm: (p) => {
          plan = p;
          return false;
        },
      }),
    );
    expect(error.code).toBe('Aborted');
    expect(plan).toMatchObject({ neededBytes: weights.length, presentBytes: 0, freeBytes: 1e9 });
    expect(gets()).toEqual([]);
  });

  it('reads ranges from the server where nothing can be stored', async () => {
    const opened = await openSource(url(), null, hooks());
    expect(Buffer.from(await opened.read('model.gguf', 100, 50)).equals(weights.subarray(100, 150))).toBe(true);
    await expect(opened.read('model.gguf', weights.length - 1, 2)).rejects.toMatchObject({ code: 'BadCheckpoint' });
  });
});

describe('published digests', () => {
  it('retries a damaged transfer once, then refuses it', async () => {
    const { size, sha256 } = server.put('/m/model.gguf', weights);
    server.put('/m/manifest.json', JSON.stringify({ name: 'صغير', files: [{ path: 'model.gguf', size, sha256 }] }));
    const source: Source = { kind: 'shipped', url: `${server.base}/m/` };
    server.trouble.set('/m/model.gguf', { corrupt: { at: CHUNK + 9, times: 1 } });
    expect((await read(source)).equals(weights)).toBe(true);
    expect(progress.some((p) => p.phase === 'repair')).toBe(true);
    await store.delete((await store.list())[0]!.id);
    server.trouble.set('/m/model.gguf', { corrupt: { at: 9, times: 9 } });
    const error = await failure(read(source));
    expect(error.code).toBe('BadCheckpoint');
    expect(error.message).toContain(sha256);
  });

  it('refuses names that leave the folder', async () => {
    server.put('/m/manifest.json', JSON.stringify({ files: [{ path: '../../etc/passwd', size: 1 }] }));
    expect((await failure(read({ kind: 'shipped', url: `${server.base}/m/` }))).code).toBe('BadCheckpoint');
    for (const bad of ['', '/a', 'a/../b', 'a\\b', './a', 'a//b']) expect(() => safePath(bad)).toThrow();
    expect(safePath('a\u202Efdp.exe')).toBe('afdp.exe');
  });
});

describe('a repository', () => {
  const commit = 'a'.repeat(40);
  const source = (): Source => ({ kind: 'hub', repo: 'maker/model', endpoint: server.base, token: 'secret' });

  beforeEach(() => {
    const { sha256 } = server.put(`/maker/model/resolve/${commit}/model.safetensors`, weights);
    server.put(`/maker/model/resolve/${commit}/config.json`, '{}');
    server.put('/api/models/maker/model/revision/main', JSON.stringify({ sha: commit }));
    server.put(
      `/api/models/maker/model/tree/${commit}?recursive=true`,
      JSON.stringify([
        { type: 'file', path: 'config.json', size: 2 },
        { type: 'file', path: 'model.safetensors', size: weights.length, lfs: { oid: sha256, size: weights.length } },
        { type: 'file', path: 'pytorch_model.bin', size: 9 },
        { type: 'directory', path: 'onnx' },
      ]),
    );
  });

  it('is pinned and verified; its token is sent and not stored', async () => {
    const opened = await openSource(source(), store, hooks());
    expect(opened.files()).toEqual(['config.json', 'model.safetensors']);
    expect(Buffer.from(await opened.read('model.safetensors', 0, weights.length)).equals(weights)).toBe(true);
    expect(server.log.every((entry) => entry.authorization === 'Bearer secret')).toBe(true);
    for (const bytes of disk.disk.values()) expect(Buffer.from(bytes).includes('secret')).toBe(false);
    await server.stop();
    expect((await openSource(source(), store, hooks())).files().length).toBe(2);
    server = await new FileServer().start();
  });

  it('chooses weights by kind, archives of PyTorch last', () => {
    expect(
      chooseFiles([
        'config.json',
        'model-00001-of-00002.safetensors',
        'model-00002-of-00002.safetensors',
        'model.safetensors.index.json',
        'x.gguf',
      ]),
    ).toEqual([
      'config.json',
      'model.safetensors.index.json',
      'model-00001-of-00002.safetensors',
      'model-00002-of-00002.safetensors',
    ]);
    expect(chooseFiles(['a-Q8_0.gguf', 'a-Q4_K_M.gguf', 'mmproj.gguf'])).toEqual(['a-Q4_K_M.gguf']);
    expect(chooseFiles(['q/b-Q4_0-00001-of-00002.gguf', 'q/b-Q4_0-00002-of-00002.gguf'])).toHaveLength(2);
    expect(
      chooseFiles([
        'pytorch_model-00001-of-00002.bin',
        'pytorch_model-00002-of-00002.bin',
        'pytorch_model.bin.index.json',
        'config.json',
        'optimizer.bin',
      ]),
    ).toEqual([
      'config.json',
      'pytorch_model.bin.index.json',
      'pytorch_model-00001-of-00002.bin',
      'pytorch_model-00002-of-00002.bin',
    ]);
    expect(chooseFiles(['pytorch_model.bin', 'model.safetensors', 'config.json'])).toEqual([
      'config.json',
      'model.safetensors',
    ]);
    expect(() => chooseFiles(['training_args.bin', 'config.json'])).toThrow(/no weights/);
    expect(() => chooseFiles(['a.gguf'], 'b.gguf')).toThrow(/no file/);
  });

  it('takes a name or a whole address and refuses others', () => {
    expect(parseRepo(' https://huggingface.co/Qwen/Qwen3-0.6B/tree/main ')).toBe('Qwen/Qwen3-0.6B');
    for (const bad of ['x', 'a/b/c', '../b/c', 'a/..', 'a b/c']) expect(() => parseRepo(bad)).toThrow();
  });
});

describe('files from disk', () => {
  it('are read in place, without their common folder', async () => {
    const source = new DiskSource([
      { path: 'm/config.json', file: new Blob(['{}']) },
      { path: 'm/model.gguf', file: new Blob([weights]) },
    ]);
    expect(source.files()).toEqual(['config.json', 'model.gguf']);
    expect(source.size('none')).toBe(-1);
    expect(Buffer.from(await source.read('model.gguf', 5, 10)).equals(weights.subarray(5, 15))).toBe(true);
    await expect(source.read('model.gguf', 0, weights.length + 1)).rejects.toMatchObject({ code: 'BadCheckpoint' });
    expect(() => new DiskSource([])).toThrow();
  });
});
