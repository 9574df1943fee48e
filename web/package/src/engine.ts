/**
 * What the WebAssembly engine must export: the only interface between this package and `crates/wasm`.
 *
 * The engine is an ES module made by `wasm-bindgen --target web`, served as `engine/bayan.js` next to
 * `engine/bayan_bg.wasm`, and imported inside the worker. Structured values cross as JSON text and bulk bytes as
 * `Uint8Array`: serde on one side and `JSON` on the other. Generated bindings would define each of the twenty small
 * types a second time. There is one engine per worker and one model per engine; a second model is a second
 * worker.
 *
 * Errors: throw (reject with) either an `Error` having the property `code`, or a string holding
 * `{"code": ErrorCode, "message": string, "details"?: ErrorDetails}`. Codes are those of `errors.ts`.
 * No call overlaps another, except `abort` and `info`, which may come at any time.
 */

/** A checkpoint's bytes. The engine reads what it needs in pieces of a few MiB and keeps none of them. */
export interface ByteSource {
  /** Paths inside the checkpoint, with `/`, e.g. `config.json`, `model-00001-of-00002.safetensors`. */
  files(): string[];
  /** Bytes of a file listed by `files`; -1 for a name not listed. */
  size(file: string): number;
  /**
   * Exactly `length` bytes from `offset`; rejects where the range is outside the file. Bytes from the cache are
   * verified against the digests taken at download before they are returned. `offset` may exceed 2^32 (f64).
   */
  read(file: string, offset: number, length: number): Promise<Uint8Array>;
}

/**
 * Called for each piece of text: whole characters only. `tokens`: tokens of this answer so far. `moreJson`: the JSON of
 * `{"toolCalls": ToolCallDelta[], "logprobs": ScoredToken[]}`, each only where there are any; then `text` may be empty.
 */
export type OnToken = (text: string, tokens: number, moreJson?: string) => void;

export interface EngineModule {
  /** wasm-bindgen's initializer: compiles and instantiates the wasm. Called once, first. */
  default(init?: { module_or_path: string | URL }): Promise<unknown>;

  /**
   * Ask for adapter and device, raise limits, choose kernel variants.
   * `optionsJson`: `{"device": DeviceChoice, "powerPreference": "high-performance" | "low-power",
   * "disable": ["f16" | "dot" | …]}`.
   * `onLost(errorJson)`: called at most once, when the device is lost later, for any reason but `dispose`.
   * Resolves to the JSON of `DeviceInfo`. Errors: NoWebGpu, UnsupportedDevice.
   */
  create(optionsJson: string, onLost: (errorJson: string) => void): Promise<string>;

  /**
   * Read config, tokenizer and template, then stream the weights to the device.
   * `optionsJson`: `OpenOptions`. `onProgress(doneBytes, totalBytes)`: bytes of weights sent to the device.
   * Resolves to the JSON of `ModelInfo`. Errors: BadCheckpoint, OutOfMemory, UnsupportedDevice, DeviceLost, Aborted.
   */
  open(
    source: ByteSource,
    optionsJson: string,
    onProgress: (doneBytes: number, totalBytes: number) => void,
  ): Promise<string>;

  /**
   * Answer a conversation: `messagesJson` is `Message[]`, `samplingJson` is `Sampling`. The common prefix with the
   * last call is kept in the cache. Resolves to the JSON of `{finishReason: FinishReason, usage: Usage}` when the
   * answer ends; rejects with Aborted after `abort`. Errors: BadInput, ContextFull, DeviceLost, OutOfMemory.
   */
  chat(messagesJson: string, samplingJson: string, onToken: OnToken): Promise<string>;

  /** As `chat`, from plain text without a template. */
  generate(prompt: string, samplingJson: string, onToken: OnToken): Promise<string>;

  /** As `generate`, from token ids; the sampling may also hold `ignoreEos`. */
  generateFromIds(ids: Uint32Array, samplingJson: string, onToken: OnToken): Promise<string>;

  /**
   * Read the headers of a model and the examples of a run, and check its recipe. The device was created without `f16`
   * and `dot`. `optionsJson`: `{"format", "recipe"}`. Resolves to the JSON of `TrainingPlan`. Errors: BadInput,
   * BadCheckpoint.
   */
  prepareTraining(source: ByteSource, examples: ByteSource, optionsJson: string): Promise<string>;

  /** Load the weights and measure a micro-batch. Resolves to the seconds of the prepared run, estimated. */
  measureTraining(onProgress: (doneBytes: number, totalBytes: number) => void): Promise<number>;

  /**
   * Train the prepared run, or continue it from the files of a checkpoint. `onEvent(json, files)`: a `TrainingEvent`,
   * with `files` for `saved`. `abort` saves a checkpoint and ends the run. `report`: the JSON of `TrainingReport`;
   * `files`: those of the adapter. Errors: BadInput, OutOfMemory, DeviceLost.
   */
  train(
    checkpoint: ByteSource | undefined,
    onEvent: (eventJson: string, files?: Record<string, Uint8Array>) => void,
  ): Promise<{ report: string; files: Record<string, Uint8Array> }>;

  /** End the running `open`, `chat`, `generate` or `train` as soon as the current step allows. No effect when idle. */
  abort(): void;

  /** The cache of the last conversation. Errors: BadInput (nothing to save), DeviceLost. */
  saveState(): Promise<Uint8Array>;

  /** Put it back; the number of its tokens. Errors: BadInput (of another model or cache, damaged). */
  restoreState(bytes: Uint8Array): Promise<number>;

  /** Token ids of a text, without added special tokens. */
  tokenize(text: string): Uint32Array;

  /** Text of token ids, special tokens included. */
  detokenize(ids: Uint32Array): string;

  /**
   * A PEFT adapter (adapter_config.json + adapter_model.safetensors), kept apart from the base weights; several add up.
   * `optionsJson`: `AdapterOptions`. Resolves to the JSON of `AdapterInfo`. Errors: BadCheckpoint, OutOfMemory,
   * DeviceLost, Aborted.
   */
  loadAdapter(source: ByteSource, optionsJson: string): Promise<string>;
  /** Removes the adapter of that name, or all adapters; the base model then answers as before. */
  unloadAdapter(name?: string): void;

  /** JSON of `{"speed": SpeedInfo | null, "adapters": AdapterInfo[], "wasmBytes": number | null}`. */
  info(): string;

  /** Free the model and the device. The module is not used again. */
  dispose(): void;
}

/** Imports and initialises the engine; both addresses are absolute. */
export async function importEngine(engineUrl: string, wasmUrl: string): Promise<EngineModule> {
  const module = (await import(/* @vite-ignore */ /* webpackIgnore: true */ engineUrl)) as EngineModule;
  await module.default({ module_or_path: new URL(wasmUrl) });
  return module;
}
