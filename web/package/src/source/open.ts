/**
 * Opens a source: lists its files, asks for permission, downloads what is missing, and returns verified reads.
 * A complete copy in the cache is opened without any request, so that it works offline and while a server is down.
 */
import type { ByteSource } from '../engine';
import { Aborted, asBayanError, Network, Quota, throwIfAborted } from '../errors';
import type { DownloadPlan, Progress, Source } from '../types';
import { downloadFile } from './download';
import { type Listing, listSource, sourceKey } from './listing';
import { CachedSource, DiskSource, RangeSource } from './readers';
import { CHUNK, type Manifest, ModelStore } from './store';

export interface OpenHooks {
  onProgress?: (progress: Progress) => void;
  confirm?: (plan: DownloadPlan) => Promise<boolean> | boolean;
  confirmAboveBytes: number;
  signal?: AbortSignal;
}

/** Bytes left free beyond the download itself, because other tabs and the manifest write too. */
const MARGIN = 32 * 1024 * 1024;

export async function openSource(source: Source, store: ModelStore | null, hooks: OpenHooks): Promise<ByteSource> {
  if (source.kind === 'files') return new DiskSource(source.files);
  const token = 'token' in source ? source.token : undefined;
  const inner = { signal: hooks.signal, onProgress: hooks.onProgress, token };
  const retry = {
    signal: hooks.signal,
    onRetry: (attempt: number, waitMs: number, reason: string) =>
      hooks.onProgress?.({ phase: 'retry', file: '', attempt, waitMs, reason }),
  };
  if (!store) {
    hooks.onProgress?.({ phase: 'listing' });
    return new RangeSource((await listSource(source, retry)).files, inner);
  }
  const id = await ModelStore.idOf(sourceKey(source));
  const stored = await store.readManifest(id);
  if (stored && (await isComplete(store, stored))) return new CachedSource(store, stored, inner);
  return withLock(id, hooks, async () => {
    const again = await store.readManifest(id);
    if (again && (await isComplete(store, again))) return new CachedSource(store, again, inner);
    hooks.onProgress?.({ phase: 'listing' });
    const listing = await listSource(source, retry);
    const manifest = merge(id, source, listing, again);
    await ask(store, manifest, hooks);
    await withSizesOfQuota(store, manifest, async () => {
      await store.writeManifest(manifest);
      for (let i = 0; i < manifest.files.length; i++) {
        throwIfAborted(hooks.signal);
        if (!manifest.files[i]!.done) await downloadFile(store, manifest, i, inner);
      }
    });
    return new CachedSource(store, manifest, inner);
  });
}

async function isComplete(store: ModelStore, manifest: Manifest): Promise<boolean> {
  if (!manifest.files.every((file) => file.done)) return false;
  for (let i = 0; i < manifest.files.length; i++) {
    if ((await store.storage.size(manifest.id, store.fileName(i))) !== manifest.files[i]!.size) {
      manifest.files[i]!.done = false;
      await store.writeManifest(manifest);
      return false;
    }
  }
  return true;
}

/** Keeps what an earlier try stored where the server still publishes the same file. */
function merge(
  id: string,
  source: Exclude<Source, { kind: 'files' }>,
  listing: Listing,
  old: Manifest | null,
): Manifest {
  const before = new Map(old?.files.map((file) => [file.path, file]));
  const sameOrder =
    old !== null &&
    old.files.length === listing.files.length &&
    old.files.every((file, i) => file.path === listing.files[i]!.path);
  const files = listing.files.map((file) => {
    const kept = sameOrder ? before.get(file.path) : undefined;
    const same =
      kept &&
      kept.url === file.url &&
      (file.size < 0 || kept.size < 0 || kept.size === file.size) &&
      kept.sha256 === file.sha256;
    const size = file.size >= 0 ? file.size : same ? kept.size : -1;
    return {
      path: file.path,
      url: file.url,
      size,
      sha256: file.sha256,
      etag: same ? kept.etag : null,
      chunks: same ? kept.chunks : [],
      done: same ? kept.done : false,
    };
  });
  const kept = { ...source };
  if ('token' in kept) delete kept.token;
  return {
    version: 1,
    id,
    key: sourceKey(source),
    label: listing.label,
    source: kept,
    createdAt: old?.createdAt ?? Date.now(),
    files,
  };
}

async function ask(store: ModelStore, manifest: Manifest, hooks: OpenHooks): Promise<void> {
  const files = manifest.files.map((file) => ({ path: file.path, sizeBytes: Math.max(0, file.size) }));
  const { totalBytes, presentBytes, neededBytes } = sizes(manifest);
  const freeBytes = await store.storage.freeBytes();
  if (freeBytes !== null && neededBytes > 0 && neededBytes + Math.min(MARGIN, neededBytes) > freeBytes) {
    throw new Quota(
      `the download needs ${neededBytes} bytes, the browser grants ${freeBytes}. ` +
        'Delete stored models or free disk space',
      { neededBytes, availableBytes: freeBytes },
    );
  }
  if (neededBytes > hooks.confirmAboveBytes && hooks.confirm) {
    const ok = await hooks.confirm({ label: manifest.label, files, totalBytes, presentBytes, neededBytes, freeBytes });
    if (!ok) throw new Aborted('the download was declined');
  }
}

/** The error for a write that the browser refused although its estimate left room, with the needed and free bytes. */
async function withSizesOfQuota(store: ModelStore, manifest: Manifest, work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (error) {
    const known = asBayanError(error);
    if (known.code !== 'Quota' || known.details.neededBytes !== undefined) throw error;
    const { neededBytes } = sizes(manifest);
    const freeBytes = await store.storage.freeBytes().catch(() => null);
    const free = freeBytes !== null && freeBytes < neededBytes ? { availableBytes: freeBytes } : {};
    throw new Quota(
      `the browser refused to store the rest of the download, ${neededBytes} bytes: ${known.message}. ` +
        'Delete stored models or free disk space',
      { neededBytes, ...free },
    );
  }
}

function sizes(manifest: Manifest): { totalBytes: number; presentBytes: number; neededBytes: number } {
  const totalBytes = manifest.files.reduce((sum, file) => sum + Math.max(0, file.size), 0);
  const presentBytes = manifest.files.reduce(
    (sum, file) => sum + (file.done ? file.size : Math.min(file.chunks.length * CHUNK, Math.max(0, file.size))),
    0,
  );
  return { totalBytes, presentBytes, neededBytes: totalBytes - presentBytes };
}

/** Two tabs that load the same model download it once: the second waits for the first and reads its copy. */
async function withLock<T>(id: string, hooks: OpenHooks, work: () => Promise<T>): Promise<T> {
  const locks = globalThis.navigator?.locks;
  if (!locks) return work();
  const options: LockOptions = hooks.signal ? { signal: hooks.signal } : {};
  try {
    return (await locks.request(`bayan-model-${id}`, options, work)) as T;
  } catch (error) {
    if (error instanceof DOMException && error.name === 'AbortError') throw new Aborted();
    if (error instanceof DOMException && error.name === 'NoModificationAllowedError')
      throw new Network('another tab is writing this model; close it or wait, then try again');
    throw error;
  }
}
