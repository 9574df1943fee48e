/** The backend that holds the engine: validates arguments, runs one call at a time, turns callbacks into streams. */
import type { Backend, LoadCall, LoadHooks } from './backend';
import type { EngineModule, OnToken } from './engine';
import {
  Aborted,
  asBayanError,
  BadCheckpoint,
  BadInput,
  type BayanError,
  DeviceLost,
  fromWire,
  Internal,
  Network,
  throwIfAborted,
} from './errors';
import { AsyncQueue } from './queue';
import { checkMessages, checkSampling } from './check';
import { checkDownload } from './cpu';
import { ModelStore } from './source/store';
import { openSource } from './source/open';
import { DiskSource } from './source/readers';
import type { TrainingCall, TrainingEvent, TrainingPlan, TrainingReport, TrainingResult } from './training/types';
import type {
  AdapterInfo,
  AdapterOptions,
  DeviceChoice,
  DeviceInfo,
  FinishReason,
  Message,
  ModelInfo,
  OpenOptions,
  Piece,
  Sampling,
  SessionInfo,
  Source,
  SourceFile,
  SpeedInfo,
  StoredModel,
  Usage,
} from './types';

export class LocalBackend implements Backend {
  onLost: ((error: BayanError) => void) | null = null;
  private engine: EngineModule | null = null;
  private device: DeviceInfo | null = null;
  private model: ModelInfo | null = null;
  private training = false;
  private lost: BayanError | null = null;
  private disposed = false;
  /** The last call that uses the device; the next one starts when it ends. */
  private turn: Promise<unknown> = Promise.resolve();

  constructor(
    private readonly importEngine: () => Promise<EngineModule>,
    private readonly store: () => Promise<ModelStore | null>,
  ) {}

  load(call: LoadCall, hooks: LoadHooks): Promise<SessionInfo> {
    return this.inTurn(hooks.signal, async () => {
      if (this.model || this.training)
        throw new Internal('this worker already holds a model; load a second one in a second session');
      hooks.onProgress?.({ phase: 'device' });
      const engine = await this.startEngine(call.device ?? 'auto');
      const source = await openSource(call.source, await this.store(), checkDownload(call, hooks, this.device!));
      throwIfAborted(hooks.signal);
      this.model = await this.openModel(engine, source, call.options, hooks);
      hooks.onProgress?.({ phase: 'ready' });
      return this.info();
    });
  }

  private async openModel(
    engine: EngineModule,
    source: Awaited<ReturnType<typeof openSource>>,
    options: OpenOptions,
    hooks: LoadHooks,
  ): Promise<ModelInfo> {
    if (source.files().length === 0)
      throw new BadCheckpoint(
        'the source holds no file. Choose a folder with config.json and weights, or one .gguf file',
      );
    const stop = () => engine.abort();
    hooks.signal?.addEventListener('abort', stop, { once: true });
    try {
      const json = await engine.open(source, JSON.stringify(options), (doneBytes, totalBytes) =>
        hooks.onProgress?.({ phase: 'weights', doneBytes, totalBytes }),
      );
      return JSON.parse(json) as ModelInfo;
    } finally {
      hooks.signal?.removeEventListener('abort', stop);
    }
  }

  private async startEngine(device: DeviceChoice, disable: string[] = []): Promise<EngineModule> {
    if (this.engine && this.device) return this.engine;
    let engine: EngineModule;
    try {
      engine = await this.importEngine();
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      throw new Network(
        `the engine could not be loaded: ${reason}. ` +
          'Check that bayan.js and bayan_bg.wasm are served, by default in engine/ next to the page',
      );
    }
    const options = JSON.stringify({ device, powerPreference: 'high-performance', disable });
    const json = await engine.create(options, (errorJson) => this.lose(errorJson));
    this.device = JSON.parse(json) as DeviceInfo;
    this.engine = engine;
    return engine;
  }

  private lose(errorJson: string): void {
    if (this.lost || this.disposed) return;
    const error = asBayanError(errorJson);
    this.lost =
      error.code === 'Internal'
        ? new DeviceLost(error.message)
        : fromWire({ code: error.code, message: error.message, details: error.details });
    this.onLost?.(this.lost);
  }

  chat(messages: Message[], sampling: Sampling, signal?: AbortSignal): AsyncIterable<Piece> {
    return this.stream(signal, (engine, onToken) =>
      engine.chat(JSON.stringify(checkMessages(messages)), JSON.stringify(checkSampling(sampling)), onToken),
    );
  }

  generate(prompt: string, sampling: Sampling, signal?: AbortSignal): AsyncIterable<Piece> {
    return this.stream(signal, (engine, onToken) =>
      engine.generate(prompt, JSON.stringify(checkSampling(sampling)), onToken),
    );
  }

  private stream(
    signal: AbortSignal | undefined,
    run: (engine: EngineModule, onToken: OnToken) => Promise<string>,
  ): AsyncIterable<Piece> {
    const left = new AbortController();
    const queue = new AsyncQueue<Piece>(() => left.abort());
    const either = signal ? AbortSignal.any([signal, left.signal]) : left.signal;
    this.inTurn(either, async () => {
      const engine = this.ready();
      const stop = () => engine.abort();
      either.addEventListener('abort', stop, { once: true });
      let tokens = 0;
      try {
        const json = await run(engine, (text, count, more) => {
          tokens = count;
          const rest = more === undefined ? {} : (JSON.parse(more) as Pick<Piece, 'toolCalls' | 'logprobs'>);
          if (!either.aborted) queue.push({ text, tokens: count, ...rest });
        });
        throwIfAborted(either);
        const end = JSON.parse(json) as { finishReason: FinishReason; usage: Usage };
        queue.push({ text: '', tokens, done: true, finishReason: end.finishReason, usage: end.usage });
      } finally {
        either.removeEventListener('abort', stop);
      }
    }).then(
      () => queue.end(),
      (error) => queue.fail(error),
    );
    return queue;
  }

  warmUp(tokens: number, sampling: Sampling, signal?: AbortSignal): Promise<void> {
    return this.inTurn(signal, async () => {
      const engine = this.ready();
      const { contextLength } = this.model!;
      if (!Number.isInteger(tokens) || tokens < 1 || tokens >= contextLength)
        throw new TypeError(`warmUp: expected a whole number of tokens from 1 to ${contextLength - 1}, got ${tokens}`);
      if (this.device?.kind === 'cpu') return;
      // Any ids do; another first one than before, because a common beginning would be taken from the cache.
      const words = engine.tokenize('نص قصير تمرّ كلماته على المعالج مرة واحدة قبل السؤال الأول.');
      const ids = Uint32Array.from({ length: tokens }, (_, at) => words[(at + tokens) % words.length]!);
      const settings = JSON.stringify({ ...checkSampling(sampling), maxTokens: 2, ignoreEos: true });
      const stop = () => engine.abort();
      signal?.addEventListener('abort', stop, { once: true });
      try {
        await engine.generateFromIds(ids, settings, () => {});
      } finally {
        signal?.removeEventListener('abort', stop);
      }
    });
  }

  async tokenize(text: string): Promise<Uint32Array> {
    return this.inTurn(undefined, async () => this.ready().tokenize(text));
  }

  async detokenize(ids: Uint32Array): Promise<string> {
    return this.inTurn(undefined, async () => this.ready().detokenize(ids));
  }

  saveState(): Promise<Uint8Array> {
    return this.inTurn(undefined, () => this.ready().saveState());
  }

  restoreState(bytes: Uint8Array): Promise<number> {
    return this.inTurn(undefined, () => {
      const engine = this.ready();
      // The cache, and tokens and header beside it.
      const most = this.model!.cacheBytes + 4 * this.model!.contextLength + 1e6;
      if (!(bytes instanceof Uint8Array)) throw new TypeError('restoreState: expected bytes of saveState');
      if (bytes.length > most)
        throw new BadInput(`the state has ${bytes.length} bytes: expected at most ${most}, as large as the cache here`);
      return engine.restoreState(bytes);
    });
  }

  loadAdapter(source: Source, options: AdapterOptions, hooks: LoadHooks): Promise<AdapterInfo> {
    return this.inTurn(hooks.signal, async () => {
      const engine = this.ready();
      const bytes = await openSource(source, await this.store(), { ...hooks, confirmAboveBytes: Infinity });
      const stop = () => engine.abort();
      hooks.signal?.addEventListener('abort', stop, { once: true });
      try {
        return JSON.parse(await engine.loadAdapter(bytes, JSON.stringify(options))) as AdapterInfo;
      } finally {
        hooks.signal?.removeEventListener('abort', stop);
      }
    });
  }

  unloadAdapter(name?: string): Promise<void> {
    return this.inTurn(undefined, async () => this.ready().unloadAdapter(name));
  }

  prepareTraining(call: TrainingCall, hooks: LoadHooks): Promise<TrainingPlan> {
    return this.inTurn(hooks.signal, async () => {
      if (this.engine) throw new Internal('this worker already holds a model or a training; prepare one in a second');
      hooks.onProgress?.({ phase: 'device' });
      // As the command line: gradients are computed in f32, unless the recipe asks for f16.
      const engine = await this.startEngine('gpu', call.recipe.f16 === true ? ['dot'] : ['f16', 'dot']);
      const { confirmAboveBytes, recipe, format } = call;
      const source = await openSource(call.source, await this.store(), { ...hooks, confirmAboveBytes });
      throwIfAborted(hooks.signal);
      const examples = new DiskSource(call.examples);
      const json = await engine.prepareTraining(source, examples, JSON.stringify({ format, recipe }));
      this.training = true;
      return JSON.parse(json) as TrainingPlan;
    });
  }

  measureTraining(hooks: LoadHooks): Promise<number> {
    return this.inTurn(hooks.signal, () =>
      this.readyToTrain().measureTraining((doneBytes, totalBytes) =>
        hooks.onProgress?.({ phase: 'weights', doneBytes, totalBytes }),
      ),
    );
  }

  train(
    checkpoint: SourceFile[] | null,
    onEvent: (event: TrainingEvent) => void,
    signal?: AbortSignal,
  ): Promise<TrainingResult> {
    return this.inTurn(signal, async () => {
      const engine = this.readyToTrain();
      const stop = () => engine.abort();
      signal?.addEventListener('abort', stop, { once: true });
      try {
        const from = checkpoint ? new DiskSource(checkpoint) : undefined;
        const { report, files } = await engine.train(from, (json, saved) => {
          const event = JSON.parse(json) as TrainingEvent;
          onEvent(event.kind === 'saved' ? { ...event, checkpoint: asFiles(saved ?? {}) } : event);
        });
        return { ...(JSON.parse(report) as TrainingReport), adapter: asFiles(files) };
      } finally {
        signal?.removeEventListener('abort', stop);
      }
    });
  }

  private readyToTrain(): EngineModule {
    if (this.lost) throw this.lost;
    if (this.disposed || !this.engine || !this.training)
      throw new Internal('no training is prepared; call prepareTraining first');
    return this.engine;
  }

  async info(): Promise<SessionInfo> {
    if (!this.engine || !this.device || !this.model) throw new Internal('no model is loaded; call load first');
    const live = JSON.parse(this.engine.info()) as {
      speed: SpeedInfo | null;
      adapters: AdapterInfo[];
      wasmBytes: number | null;
    };
    return { device: this.device, model: this.model, ...live };
  }

  async listStored(): Promise<StoredModel[]> {
    return (await this.store())?.list() ?? [];
  }

  async deleteStored(id: string): Promise<void> {
    await (await this.store())?.delete(id);
  }

  async dispose(): Promise<void> {
    if (this.disposed) return;
    this.disposed = true;
    this.engine?.abort();
    await this.turn.catch(() => {});
    this.engine?.dispose();
    this.engine = null;
    this.model = null;
  }

  private ready(): EngineModule {
    if (this.lost) throw this.lost;
    if (this.disposed || !this.engine || !this.model) throw new Internal('no model is loaded; call load first');
    return this.engine;
  }

  private inTurn<T>(signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
    const run = this.turn.then(async () => {
      throwIfAborted(signal);
      try {
        return await work();
      } catch (error) {
        if (signal?.aborted) throw new Aborted();
        throw asBayanError(error);
      }
    });
    this.turn = run.catch(() => {});
    return run;
  }
}

function asFiles(files: Record<string, Uint8Array>): SourceFile[] {
  return Object.entries(files).map(([path, bytes]) => ({ path, file: new Blob([bytes as Uint8Array<ArrayBuffer>]) }));
}
