/** Which files make a checkpoint: what to fetch for a shipped model, an address or a repository. */
import { BadCheckpoint, Network } from '../errors';
import type { Source } from '../types';
import { fetchJson, type HttpOptions, remoteSize } from './http';
import { safePath } from './store';

export interface ListedFile {
  path: string;
  url: string;
  /** -1 where the server does not say. */
  size: number;
  sha256: string | null;
}

export interface Listing {
  label: string;
  files: ListedFile[];
}

export const DEFAULT_ENDPOINT = 'https://huggingface.co';
const MAX_FILES = 2000;

/** Small files beside the weights: configuration, tokenizer, template. */
const SIDE_FILES = [
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'tokenizer.model',
  'chat_template.jinja',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
  'quantize_config.json',
  'quant_config.json',
  'adapter_config.json',
];

export function sourceKey(source: Exclude<Source, { kind: 'files' }>): string {
  switch (source.kind) {
    case 'shipped':
      return `shipped:${source.url}`;
    case 'url':
      return `url:${source.url}`;
    case 'hub':
      return [
        `hub:${source.endpoint ?? DEFAULT_ENDPOINT}`,
        `/${source.repo}@${source.revision ?? 'main'}#${source.file ?? ''}`,
      ].join('');
  }
}

export async function listSource(source: Exclude<Source, { kind: 'files' }>, options: HttpOptions): Promise<Listing> {
  switch (source.kind) {
    case 'shipped':
      return listManifest(source.url.endsWith('/') ? source.url : `${source.url}/`, options);
    case 'url':
      return listUrl(source.url, source.sha256 ?? null, { ...options, token: source.token });
    case 'hub':
      return listHub(source, { ...options, token: source.token });
  }
}

/** `manifest.json`: `{"name": …, "files": [{"path", "size", "sha256"}]}`, paths relative to it. */
async function listManifest(base: string, options: HttpOptions): Promise<Listing> {
  const json = (await fetchJson(new URL('manifest.json', base).href, options)) as { name?: unknown; files?: unknown };
  if (!Array.isArray(json?.files) || json.files.length === 0 || json.files.length > MAX_FILES) {
    throw new BadCheckpoint(`${base}manifest.json: expected "files" with 1 to ${MAX_FILES} entries`);
  }
  const files = json.files.map((entry: { path?: unknown; size?: unknown; sha256?: unknown }) => {
    if (typeof entry?.path !== 'string') throw new BadCheckpoint(`${base}manifest.json: an entry has no "path"`);
    const path = safePath(entry.path);
    return { path, url: new URL(path, base).href, size: asSize(entry.size), sha256: asSha256(entry.sha256) };
  });
  return { label: typeof json.name === 'string' ? json.name.slice(0, 200) : base, files };
}

async function listUrl(address: string, sha256: string | null, options: HttpOptions): Promise<Listing> {
  const url = parseUrl(address);
  const name = decodeURIComponent(url.pathname.split('/').pop() ?? '');
  if (name === '') return listFolder(url.href, options);
  const split = /^(.*)-00001-of-(\d{5})\.(gguf|safetensors)$/.exec(name);
  if (split) {
    const count = Number(split[2]);
    if (count < 1 || count > MAX_FILES)
      throw new BadCheckpoint(`${name}: ${count} parts; at most ${MAX_FILES} are read`);
    const files = Array.from({ length: count }, (_, i) => {
      const path = `${split[1]}-${String(i + 1).padStart(5, '0')}-of-${split[2]}.${split[3]}`;
      return { path: safePath(path), url: new URL(encodeURIComponent(path), url).href, size: -1, sha256: null };
    });
    return { label: name, files: await withSizes(files, options) };
  }
  if (!/\.(gguf|safetensors)$/i.test(name))
    throw new BadCheckpoint(
      `${name}: expected an address of a .gguf or .safetensors file, or of a folder (ending in /)`,
    );
  const files: ListedFile[] = [{ path: safePath(name), url: url.href, size: -1, sha256 }];
  if (/\.safetensors$/i.test(name)) files.push(...(await sideFiles(new URL('.', url).href, options)));
  return { label: name, files: await withSizes(files, options) };
}

async function listFolder(base: string, options: HttpOptions): Promise<Listing> {
  try {
    return await listManifest(base, options);
  } catch (error) {
    if (!(error instanceof Network) || (error.details.status !== 404 && error.details.status !== undefined))
      throw error;
    if (error.details.status === undefined && !error.message.includes('JSON')) throw error;
  }
  const files = await sideFiles(base, options);
  const index = await remoteSize(new URL('model.safetensors.index.json', base).href, options);
  if (index) {
    const url = new URL('model.safetensors.index.json', base).href;
    const json = (await fetchJson(url, options)) as { weight_map?: Record<string, string> };
    files.push({ path: 'model.safetensors.index.json', url, size: index.size, sha256: null });
    for (const path of new Set(Object.values(json?.weight_map ?? {}).map(String)))
      files.push({ path: safePath(path), url: new URL(path, base).href, size: -1, sha256: null });
  } else {
    for (const path of ['model.safetensors', 'adapter_model.safetensors'])
      files.push({ path, url: new URL(path, base).href, size: -1, sha256: null });
  }
  const sized = await withSizes(files, options, true);
  if (!sized.some((file) => file.path.endsWith('.safetensors')))
    throw new BadCheckpoint(`${base}: no manifest.json, model.safetensors or index was found there`);
  return { label: new URL(base).pathname.split('/').filter(Boolean).pop() ?? base, files: sized };
}

async function sideFiles(base: string, options: HttpOptions): Promise<ListedFile[]> {
  const files = SIDE_FILES.map((path) => ({ path, url: new URL(path, base).href, size: -1, sha256: null }));
  return withSizes(files, options, true);
}

async function withSizes(files: ListedFile[], options: HttpOptions, dropMissing = false): Promise<ListedFile[]> {
  const kept: ListedFile[] = [];
  for (const file of files) {
    if (file.size >= 0) {
      kept.push(file);
      continue;
    }
    const found = await remoteSize(file.url, options);
    if (found) kept.push({ ...file, size: found.size });
    else if (!dropMissing)
      throw new Network(`${file.url} does not exist (404). Check the address`, { status: 404, url: file.url });
  }
  return kept;
}

interface TreeEntry {
  type?: string;
  path?: string;
  size?: number;
  lfs?: { oid?: string; size?: number };
}

async function listHub(source: Extract<Source, { kind: 'hub' }>, options: HttpOptions): Promise<Listing> {
  const repo = parseRepo(source.repo);
  const endpoint = (source.endpoint ?? DEFAULT_ENDPOINT).replace(/\/$/, '');
  const revision = source.revision ?? 'main';
  const about = (await fetchJson(
    `${endpoint}/api/models/${repo}/revision/${encodeURIComponent(revision)}`,
    options,
  )) as { sha?: unknown };
  const commit = typeof about?.sha === 'string' && /^[0-9a-f]{40}$/.test(about.sha) ? about.sha : revision;
  const tree = (await fetchJson(
    `${endpoint}/api/models/${repo}/tree/${encodeURIComponent(commit)}?recursive=true`,
    options,
  )) as TreeEntry[];
  if (!Array.isArray(tree)) throw new Network(`${endpoint}: the list of files of ${repo} is not a list`);
  const chosen = chooseFiles(
    tree
      .filter((entry) => entry?.type === 'file' && typeof entry.path === 'string')
      .map((entry) => entry.path as string),
    source.file,
  );
  const byPath = new Map(tree.map((entry) => [entry.path, entry]));
  const files = chosen.map((path) => {
    const entry = byPath.get(path);
    return {
      path: safePath(path),
      url: [endpoint, repo, 'resolve', ...[commit, ...path.split('/')].map(encodeURIComponent)].join('/'),
      size: asSize(entry?.lfs?.size ?? entry?.size),
      sha256: asSha256(entry?.lfs?.oid),
    };
  });
  return { label: source.file ? `${repo} · ${source.file}` : repo, files };
}

/**
 * The files to fetch from a repository: safetensors of the top folder and what belongs to them, else one GGUF (a middle
 * quantization first), else PyTorch archives (the engine's reader of them runs nothing that a file asks for).
 */
export function chooseFiles(paths: string[], wanted?: string): string[] {
  const top = paths.filter((path) => !path.includes('/'));
  const side = top.filter((path) => SIDE_FILES.includes(path));
  if (wanted !== undefined) {
    if (!paths.includes(wanted))
      throw new BadCheckpoint(
        `the repository has no file ${JSON.stringify(wanted)}; it has ${
          paths
            .filter((p) => /\.(gguf|safetensors)$/.test(p))
            .slice(0, 20)
            .join(', ') || 'no weights'
        }`,
      );
    return wanted.endsWith('.gguf') ? ggufParts(paths, wanted) : [...side, wanted];
  }
  const tensors = top.filter((path) => path.endsWith('.safetensors'));
  const model = tensors.filter((path) => /^model(-\d{5}-of-\d{5})?\.safetensors$/.test(path));
  const weights = model.length > 0 ? model : tensors.filter((path) => path === 'adapter_model.safetensors');
  if (weights.length > 0)
    return [...side, ...top.filter((path) => path === 'model.safetensors.index.json'), ...weights];
  const ggufs = paths.filter((path) => path.endsWith('.gguf') && !/mmproj/i.test(path));
  for (const kind of [/q4_k_m/i, /q4_0/i, /q5_k_m/i, /q8_0/i, /q6_k/i, /./]) {
    const found = ggufs.find((path) => kind.test(path) && !/-(?!00001)\d{5}-of-\d{5}\.gguf$/.test(path));
    if (found) return ggufParts(paths, found);
  }
  const archives = top.filter((path) => /^pytorch_model(-\d{5}-of-\d{5})?\.bin$/.test(path));
  if (archives.length > 0)
    return [...side, ...top.filter((path) => path === 'pytorch_model.bin.index.json'), ...archives];
  throw new BadCheckpoint('the repository has no weights in .safetensors, .gguf or pytorch_model.bin');
}

function ggufParts(paths: string[], first: string): string[] {
  const split = /^(.*)-00001-of-(\d{5})\.gguf$/.exec(first);
  if (!split) return [first];
  const parts = paths.filter((path) => path.startsWith(`${split[1]}-`) && path.endsWith(`-of-${split[2]}.gguf`)).sort();
  if (parts.length !== Number(split[2]))
    throw new BadCheckpoint(`${first}: expected ${Number(split[2])} parts, the repository has ${parts.length}`);
  return parts;
}

/** `owner/name`, also from a whole address. */
export function parseRepo(text: string): string {
  const trimmed = text
    .trim()
    .replace(/^https?:\/\/[^/]+\//, '')
    .replace(/\/(tree|blob|resolve)\/.*$/, '')
    .replace(/\/$/, '');
  if (!/^[A-Za-z0-9][\w.-]{0,95}\/[A-Za-z0-9][\w.-]{0,95}$/.test(trimmed) || trimmed.includes('..')) {
    throw new BadCheckpoint(
      `not the name of a repository: ${JSON.stringify(text.slice(0, 120))}; expected owner/name`,
      {
        badAddress: true,
      },
    );
  }
  return trimmed;
}

function parseUrl(text: string): URL {
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    throw new BadCheckpoint(`not an address: ${JSON.stringify(text.slice(0, 120))}; expected https://…`, {
      badAddress: true,
    });
  }
  if (url.protocol !== 'https:' && url.protocol !== 'http:')
    throw new BadCheckpoint(`${url.protocol} addresses are not read; expected https://…`, { badAddress: true });
  return url;
}

function asSize(value: unknown): number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0 ? value : -1;
}

function asSha256(value: unknown): string | null {
  return typeof value === 'string' && /^[0-9a-f]{64}$/i.test(value) ? value.toLowerCase() : null;
}
