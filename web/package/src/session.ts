/** `load` and `Session`: what most callers use. */
import type { Backend, LoadHooks } from './backend';
import type { BayanError } from './errors';
import { completions, type ChatCompletions } from './openai';
import { type EnginePlace, workerName } from './place';
import { connectWorker } from './remote';
import type {
  AdapterInfo,
  AdapterOptions,
  DeviceChoice,
  Message,
  OpenOptions,
  Piece,
  Sampling,
  SessionInfo,
  Source,
  StoredModel,
} from './types';

export interface LoadOptions extends LoadHooks, OpenOptions, EnginePlace {
  /**
   * Makes a worker in place of the package's own, for bundlers that must find `new Worker(…)` in the caller's code. Its
   * name must be the given one, which holds the engine's address.
   */
  createWorker?: (name: string) => Worker;
  /**
   * What computes: by default the GPU, or the CPU where the browser offers none. `info.device.kind` says which it is.
   * On the CPU models may have 640 MB of weights; larger ones are refused with `UnsupportedDevice`.
   */
  device?: DeviceChoice;
  /** Default 50 MB. */
  confirmAboveBytes?: number;
}

export interface CallOptions {
  sampling?: Sampling;
  signal?: AbortSignal;
}

/** Relative to the built `dist/index.js`, as the addresses in `place.ts`. */
const WORKER_JS: string = './worker.js';

function startWorker(name: string): Worker {
  return new Worker(new URL(WORKER_JS, import.meta.url), { type: 'module', name });
}

/** A backend in a worker of its own, for `load` and for listing and deleting stored models. */
export function openBackend(options: EnginePlace & Pick<LoadOptions, 'createWorker'> = {}): Backend {
  return connectWorker((options.createWorker ?? startWorker)(workerName(options)));
}

/**
 * Fetch (or reopen) a model and put it on the device. Throws the errors of `errors.ts`. Aborting `signal` ends the
 * download; the bytes that arrived are kept, and the next call resumes there.
 */
export async function load(source: Source | string, options: LoadOptions = {}): Promise<Session> {
  const backend = openBackend(options);
  return loadWith(backend, source, options);
}

/** As {@link load}, with a backend the caller holds (a `LocalBackend` in tests). It is disposed where loading fails. */
export async function loadWith(backend: Backend, source: Source | string, options: LoadOptions = {}): Promise<Session> {
  checkLoadOptions(options);
  const open: OpenOptions = {};
  if (options.format !== undefined) open.format = options.format;
  if (options.contextLength !== undefined) open.contextLength = options.contextLength;
  try {
    const info = await backend.load(
      {
        source: asSource(source),
        options: open,
        device: options.device ?? 'auto',
        confirmAboveBytes: options.confirmAboveBytes ?? 50e6,
      },
      options,
    );
    return new Session(backend, info);
  } catch (error) {
    await backend.dispose();
    throw error;
  }
}

const LOAD_OPTIONS = [
  'format',
  'contextLength',
  'device',
  'engineUrl',
  'wasmUrl',
  'createWorker',
  'confirmAboveBytes',
  'onProgress',
  'confirm',
  'signal',
];

function checkLoadOptions(options: LoadOptions): void {
  for (const name of Object.keys(options))
    if (!LOAD_OPTIONS.includes(name))
      throw new TypeError(`load: ${name} is not a known option; known: ${LOAD_OPTIONS.join(', ')}`);
  const { device } = options;
  if (device !== undefined && !['auto', 'gpu', 'cpu'].includes(device))
    throw new TypeError(`load: device: expected auto, gpu or cpu, got ${String(device)}`);
}

/** Text to a source: an address, a path beside the page, or `owner/name` of a repository. */
export function asSource(source: Source | string): Source {
  if (typeof source !== 'string') return source;
  if (/^https?:\/\//.test(source)) return { kind: 'url', url: source };
  if (/^\.{0,2}\//.test(source))
    return { kind: 'shipped', url: new URL(source, globalThis.document?.baseURI ?? globalThis.location.href).href };
  return { kind: 'hub', repo: source };
}

export class Session {
  /** OpenAI-shaped access to the same model. */
  readonly chat: ((messages: Message[], options?: CallOptions) => AsyncIterable<Piece>) & {
    completions: ChatCompletions;
  };
  /** Called once when the device or the worker is lost; every later call throws. Load the model again. */
  onLost: ((error: BayanError) => void) | null = null;

  constructor(
    private readonly backend: Backend,
    private last: SessionInfo,
  ) {
    backend.onLost = (error) => this.onLost?.(error);
    const chat = (messages: Message[], options: CallOptions = {}) =>
      backend.chat(messages, options.sampling ?? {}, options.signal);
    this.chat = Object.assign(chat, { completions: completions(chat, () => this.last.model.name) });
  }

  /** What was known when the model was loaded or at the last `refreshInfo`. */
  get info(): SessionInfo {
    return this.last;
  }

  async refreshInfo(): Promise<SessionInfo> {
    this.last = await this.backend.info();
    return this.last;
  }

  generate(prompt: string, options: CallOptions = {}): AsyncIterable<Piece> {
    return this.backend.generate(prompt, options.sampling ?? {}, options.signal);
  }

  tokenize(text: string): Promise<Uint32Array> {
    return this.backend.tokenize(text);
  }

  /**
   * Compiles the kernels for a prompt of `tokens` tokens and for its answer, by running both once. Without it the first
   * answer waits for them. Lengths above 9 share their kernels; shorter ones have their own. On the CPU nothing is
   * compiled, and it does nothing.
   */
  async warmUp(tokens = 24, options: CallOptions = {}): Promise<void> {
    await this.backend.warmUp(tokens, options.sampling ?? {}, options.signal);
  }

  /** Text of token ids, special tokens included. */
  detokenize(ids: Iterable<number>): Promise<string> {
    return this.backend.detokenize(Uint32Array.from(ids));
  }

  /**
   * The cache of the last conversation, as bytes to keep (see `StateStore`). A model needs 10 to 100 KB for a token.
   */
  saveState(): Promise<Uint8Array> {
    return this.backend.saveState();
  }

  /**
   * Puts a saved cache back, and resolves to its number of tokens: a conversation that begins with the saved one goes
   * on without computing it again. Throws `BadInput` for bytes of another model, weight format or cache, of other
   * adapters, and for damaged ones; the session is unchanged then.
   */
  async restoreState(bytes: Uint8Array | Blob): Promise<number> {
    return this.backend.restoreState(bytes instanceof Blob ? new Uint8Array(await bytes.arrayBuffer()) : bytes);
  }

  /** Loads a PEFT LoRA adapter onto the model; several add up. */
  async loadAdapter(source: Source | string, options: AdapterOptions & LoadHooks = {}): Promise<AdapterInfo> {
    const { name, scale, ...hooks } = options;
    const info = await this.backend.loadAdapter(
      asSource(source),
      { ...(name === undefined ? {} : { name }), ...(scale === undefined ? {} : { scale }) },
      hooks,
    );
    await this.refreshInfo();
    return info;
  }

  /** Removes the adapter of that name, or all adapters. */
  async unloadAdapter(name?: string): Promise<void> {
    await this.backend.unloadAdapter(name);
    await this.refreshInfo();
  }

  listStored(): Promise<StoredModel[]> {
    return this.backend.listStored();
  }

  dispose(): Promise<void> {
    return this.backend.dispose();
  }
}
