/** The page's side of the worker: each call becomes a message, each stream a queue of pieces. */
import type { Backend, LoadCall, LoadHooks } from './backend';
import { Aborted, type BayanError, DeviceLost, fromWire } from './errors';
import { AsyncQueue } from './queue';
import type { TrainingCall, TrainingEvent, TrainingPlan, TrainingResult } from './training/types';
import type {
  AdapterInfo,
  AdapterOptions,
  DownloadPlan,
  Message,
  Piece,
  Progress,
  Sampling,
  SessionInfo,
  Source,
  SourceFile,
  StoredModel,
} from './types';
import type { CallName, Calls, FromWorker, Port, ToWorker } from './wire';

interface Pending {
  resolve: (value: unknown) => void;
  reject: (error: unknown) => void;
  onProgress?: ((progress: Progress) => void) | undefined;
  confirm?: ((plan: DownloadPlan) => Promise<boolean> | boolean) | undefined;
  onPiece?: ((piece: Piece) => void) | undefined;
  onEvent?: ((event: TrainingEvent) => void) | undefined;
}

export class RemoteBackend implements Backend {
  onLost: ((error: BayanError) => void) | null = null;
  private nextId = 1;
  private pending = new Map<number, Pending>();
  private dead: BayanError | null = null;

  constructor(
    private readonly port: Port<ToWorker, FromWorker>,
    private readonly terminate: () => void = () => {},
  ) {
    port.addEventListener('message', (event) => this.receive(event.data));
  }

  /** The worker itself failed (script missing, crash): every open call fails with this. */
  fail(error: BayanError): void {
    if (this.dead) return;
    this.dead = error;
    for (const call of this.pending.values()) call.reject(error);
    this.pending.clear();
    this.onLost?.(error);
  }

  load(call: LoadCall, hooks: LoadHooks): Promise<SessionInfo> {
    return this.call('load', call, hooks);
  }

  chat(messages: Message[], sampling: Sampling, signal?: AbortSignal): AsyncIterable<Piece> {
    return this.stream('chat', { messages, sampling }, signal);
  }

  generate(prompt: string, sampling: Sampling, signal?: AbortSignal): AsyncIterable<Piece> {
    return this.stream('generate', { prompt, sampling }, signal);
  }

  async warmUp(tokens: number, sampling: Sampling, signal?: AbortSignal): Promise<void> {
    await this.call('warmUp', { tokens, sampling }, signal ? { signal } : {});
  }

  tokenize(text: string): Promise<Uint32Array> {
    return this.call('tokenize', { text });
  }

  detokenize(ids: Uint32Array): Promise<string> {
    return this.call('detokenize', { ids });
  }

  saveState(): Promise<Uint8Array> {
    return this.call('saveState', null);
  }

  restoreState(bytes: Uint8Array): Promise<number> {
    return this.call('restoreState', { bytes });
  }

  loadAdapter(source: Source, options: AdapterOptions, hooks: LoadHooks): Promise<AdapterInfo> {
    return this.call('loadAdapter', { source, options }, hooks);
  }

  async unloadAdapter(name?: string): Promise<void> {
    await this.call('unloadAdapter', { name });
  }

  prepareTraining(call: TrainingCall, hooks: LoadHooks): Promise<TrainingPlan> {
    return this.call('prepareTraining', call, hooks);
  }

  measureTraining(hooks: LoadHooks): Promise<number> {
    return this.call('measureTraining', null, hooks);
  }

  train(
    checkpoint: SourceFile[] | null,
    onEvent: (event: TrainingEvent) => void,
    signal?: AbortSignal,
  ): Promise<TrainingResult> {
    return this.open('train', { checkpoint }, signal ? { signal } : {}, { onEvent }).done as Promise<TrainingResult>;
  }

  info(): Promise<SessionInfo> {
    return this.call('info', null);
  }

  listStored(): Promise<StoredModel[]> {
    return this.call('listStored', null);
  }

  async deleteStored(id: string): Promise<void> {
    await this.call('deleteStored', { id });
  }

  /** Ends the worker: whatever it held is freed, even where it hangs. */
  async dispose(): Promise<void> {
    if (this.dead) return;
    const closing = this.call('dispose', null).catch(() => null);
    await Promise.race([closing, new Promise((done) => setTimeout(done, 500))]);
    this.onLost = null;
    this.fail(new Aborted('the session was disposed'));
    this.terminate();
  }

  private call<N extends CallName>(
    name: N,
    args: Calls[N]['args'],
    hooks: LoadHooks = {},
  ): Promise<Calls[N]['result']> {
    return this.open(name, args, hooks).done as Promise<Calls[N]['result']>;
  }

  private stream<N extends 'chat' | 'generate'>(
    name: N,
    args: Calls[N]['args'],
    signal?: AbortSignal,
  ): AsyncIterable<Piece> {
    let cancel = () => {};
    const queue = new AsyncQueue<Piece>(() => cancel());
    const call = this.open(name, args, signal ? { signal } : {}, { onPiece: (piece) => queue.push(piece) });
    cancel = call.cancel;
    // The caller need not wait until the step on the GPU has ended; the next call does, in the worker.
    signal?.addEventListener('abort', () => queue.fail(new Aborted()), { once: true });
    call.done.then(
      () => queue.end(),
      (error) => queue.fail(error),
    );
    return queue;
  }

  private open<N extends CallName>(
    name: N,
    args: Calls[N]['args'],
    hooks: LoadHooks,
    listeners: Pick<Pending, 'onPiece' | 'onEvent'> = {},
  ) {
    const id = this.nextId++;
    const { signal } = hooks;
    const cancel = () => {
      if (this.pending.has(id)) this.port.postMessage({ kind: 'cancel', id });
    };
    const done = new Promise<unknown>((resolve, reject) => {
      if (this.dead) return reject(this.dead);
      if (signal?.aborted) return reject(new Aborted());
      this.pending.set(id, { resolve, reject, onProgress: hooks.onProgress, confirm: hooks.confirm, ...listeners });
      signal?.addEventListener('abort', cancel, { once: true });
      this.port.postMessage({ kind: 'call', id, name, args } as ToWorker);
    }).finally(() => signal?.removeEventListener('abort', cancel));
    return { done, cancel };
  }

  private receive(message: FromWorker): void {
    if (message.kind === 'lost') {
      this.onLost?.(fromWire(message.error));
      return;
    }
    const call = this.pending.get(message.id);
    if (!call) return;
    switch (message.kind) {
      case 'result':
        this.pending.delete(message.id);
        call.resolve(message.value);
        break;
      case 'error':
        this.pending.delete(message.id);
        call.reject(fromWire(message.error));
        break;
      case 'piece':
        call.onPiece?.(message.piece);
        break;
      case 'training':
        call.onEvent?.(message.event);
        break;
      case 'progress':
        call.onProgress?.(message.progress);
        break;
      case 'confirm':
        void this.confirm(message.id, message.plan, call);
        break;
    }
  }

  private async confirm(id: number, plan: DownloadPlan, call: Pending): Promise<void> {
    let ok = true;
    try {
      ok = call.confirm ? await call.confirm(plan) : true;
    } catch {
      ok = false;
    }
    this.port.postMessage({ kind: 'answer', id, ok });
  }
}

/** Start the worker at `workerUrl` and speak to it. */
export function connectWorker(worker: Worker): RemoteBackend {
  const backend = new RemoteBackend(worker, () => worker.terminate());
  worker.addEventListener('error', (event) => {
    event.preventDefault();
    backend.fail(
      new DeviceLost(
        `the engine's worker stopped: ${event.message || 'its script could not be loaded'}. Load the model again`,
      ),
    );
  });
  worker.addEventListener('messageerror', () =>
    backend.fail(new DeviceLost("a message of the engine's worker could not be read. Load the model again")),
  );
  return backend;
}
