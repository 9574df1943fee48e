/**
 * The cache of checkpoints: one folder per source with a manifest and numbered files.
 *
 * Files are stored under numbers, not under the names a server sent, so that no name can leave its folder. The
 * manifest holds a digest for every chunk that reached the disk: a download resumes after the last whole chunk, and a
 * chunk that changed on disk is noticed when it is read and fetched again alone. Hashing whole files at every start
 * would cost seconds per gigabyte.
 */
import { BadCheckpoint, Internal } from '../errors';
import type { Source, StoredModel } from '../types';
import { digestHex } from './sha256';
import type { Storage } from './storage';

/** Bytes of a chunk: the unit of resuming, verifying and repairing. */
export const CHUNK = 4 * 1024 * 1024;
const MANIFEST = 'manifest.json';
const MAX_MANIFEST = 64 * 1024 * 1024;

export interface StoredFile {
  path: string;
  url: string;
  /** -1 until the server has sent it. */
  size: number;
  sha256: string | null;
  etag: string | null;
  /** Digest of each chunk on disk, in order; the last may be shorter than CHUNK when `done`. */
  chunks: string[];
  done: boolean;
}

export interface Manifest {
  version: 1;
  id: string;
  key: string;
  label: string;
  source: Exclude<Source, { kind: 'files' }>;
  createdAt: number;
  files: StoredFile[];
}

export class ModelStore {
  constructor(readonly storage: Storage) {}

  static async idOf(key: string): Promise<string> {
    return (await digestHex(new TextEncoder().encode(key))).slice(0, 32);
  }

  async readManifest(id: string): Promise<Manifest | null> {
    if (!/^[0-9a-f]{32}$/.test(id)) return null;
    const size = await this.storage.size(id, MANIFEST);
    if (size <= 0 || size > MAX_MANIFEST) return null;
    try {
      const manifest = JSON.parse(new TextDecoder().decode(await this.storage.read(id, MANIFEST, 0, size))) as Manifest;
      return isManifest(manifest, id) ? manifest : null;
    } catch {
      return null; // Written only in part: the download starts again.
    }
  }

  async writeManifest(manifest: Manifest): Promise<void> {
    const bytes = new TextEncoder().encode(JSON.stringify(manifest));
    const writer = await this.storage.openWriter(manifest.id, MANIFEST);
    try {
      writer.write(0, bytes);
      writer.truncate(bytes.length);
      writer.flush();
    } finally {
      writer.close();
    }
  }

  fileName(index: number): string {
    return `f${index}`;
  }

  async list(): Promise<StoredModel[]> {
    const models: StoredModel[] = [];
    for (const id of await this.storage.folders()) {
      const manifest = await this.readManifest(id);
      if (!manifest) continue;
      const files = await Promise.all(
        manifest.files.map(async (file, i) => ({
          path: file.path,
          sizeBytes: Math.max(0, file.size),
          storedBytes: Math.max(0, await this.storage.size(id, this.fileName(i))),
        })),
      );
      const source = { ...manifest.source };
      if ('token' in source) delete source.token;
      models.push({
        id,
        label: manifest.label,
        source,
        complete: manifest.files.every((file) => file.done),
        sizeBytes: files.reduce((sum, file) => sum + file.sizeBytes, 0),
        storedBytes: files.reduce((sum, file) => sum + file.storedBytes, 0),
        files,
        createdAt: manifest.createdAt,
      });
    }
    return models.sort((a, b) => b.createdAt - a.createdAt);
  }

  async delete(id: string): Promise<void> {
    if (!/^[0-9a-f]{32}$/.test(id)) throw new Internal(`not the id of a stored model: ${JSON.stringify(id)}`);
    await this.storage.removeFolder(id);
  }
}

function isManifest(manifest: Manifest, id: string): boolean {
  return (
    manifest?.version === 1 &&
    manifest.id === id &&
    Array.isArray(manifest.files) &&
    manifest.files.every(
      (f) =>
        typeof f.path === 'string' && typeof f.url === 'string' && Number.isFinite(f.size) && Array.isArray(f.chunks),
    )
  );
}

/** A safe form of a path from a server or a file picker: relative, no `..`, no control or bidi characters. */
export function safePath(path: string): string {
  const clean = path.replace(/[\u0000-\u001f\u007f\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]/g, '');
  const parts = clean.split('/');
  if (
    clean === '' ||
    clean.length > 1024 ||
    clean.includes('\\') ||
    parts.some((part) => part === '' || part === '.' || part === '..')
  ) {
    throw new BadCheckpoint(`a file name that is not a plain relative path: ${JSON.stringify(path.slice(0, 200))}`);
  }
  return clean;
}
