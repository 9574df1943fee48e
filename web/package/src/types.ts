/** The types that both sides of the worker use. Sizes are bytes, times milliseconds, unless a name says otherwise. */

export interface TextPart {
  type: 'text';
  text: string;
}

/** As in OpenAI's chat completions. */
export interface Message {
  role: 'system' | 'developer' | 'user' | 'assistant' | 'tool';
  /** Text, or parts of text that are joined. Null or missing only beside `tool_calls`. */
  content?: string | TextPart[] | null;
  name?: string;
  /** Of an assistant: its calls. Each needs a result, a message of the role `tool`, before the next turn. */
  tool_calls?: ToolCall[];
  /** Of a `tool`: the id of the call whose result this is. */
  tool_call_id?: string;
}

/** A function that the model may call. */
export interface Tool {
  type: 'function';
  function: {
    /** 1 to 64 letters, digits, `_`, `-` or `.`. */
    name: string;
    description?: string;
    /** JSON schema of the arguments, an object. A schema that cannot be enforced is an error. */
    parameters?: Record<string, unknown>;
    strict?: boolean | null;
  };
}

export type ToolChoice = 'none' | 'auto' | 'required' | { type: 'function'; function: { name: string } };

export interface ToolCall {
  id: string;
  type: 'function';
  /** `arguments`: JSON of an object that the schema of the function allows. */
  function: { name: string; arguments: string };
}

/** A part of a call: its id and name come first, then pieces of its arguments. */
export interface ToolCallDelta {
  /** The number of the call in the answer. */
  index: number;
  id?: string;
  type?: 'function';
  function: { name?: string; arguments: string };
}

/** A token with the natural logarithm of its probability, before penalties and biases. */
export interface TokenLogprob {
  /** Its text; parts of a character are U+FFFD. */
  token: string;
  logprob: number;
  bytes: number[];
}

export interface ScoredToken extends TokenLogprob {
  /** The likeliest tokens at this place, as many as `topLogprobs`. */
  top_logprobs: TokenLogprob[];
}

/** Every field is optional: what is missing comes from the checkpoint's generation_config, then from the engine. */
export interface Sampling {
  /** 0 = always the likeliest token. 0 to 5. */
  temperature?: number;
  /** 0 to 1. */
  topP?: number;
  /** 0 = off. */
  topK?: number;
  /** 0 to 1. */
  minP?: number;
  /** 1 = off. 0.1 to 10. */
  repetitionPenalty?: number;
  /** Subtracted from the logit of each token that occurred. -2 to 2, 0 = off. */
  presencePenalty?: number;
  /** Subtracted from the logit of a token for each time that it occurred. -2 to 2, 0 = off. */
  frequencyPenalty?: number;
  /** The longest answer, in tokens. */
  maxTokens?: number;
  /** The same seed on the same device gives the same answer. */
  seed?: number;
  stop?: string[];
  /** Token ids, and what is added to their logits: -100 to 100, which stand for never and always. */
  logitBias?: Record<string, number>;
  /** Report the log-probability of each token of the answer. */
  logprobs?: boolean;
  /** Report it of this many likeliest tokens at each place as well: 0 to 20, with `logprobs`. */
  topLogprobs?: number;
  /** Functions that a `chat` may call; a grammar makes every call well formed. Not together with `responseFormat`. */
  tools?: Tool[];
  /** Default `auto`: the model decides. */
  toolChoice?: ToolChoice;
  /** Whether an answer may hold several calls. Default true. */
  parallelToolCalls?: boolean;
  /** Further variables of the model's chat template, as `{ enable_thinking: false }` for Qwen3. */
  templateVariables?: Record<string, unknown>;
  /** What the answer must be: JSON, or JSON that a schema allows. As OpenAI's `response_format`. */
  responseFormat?: ResponseFormat;
}

export type ResponseFormat =
  | { type: 'text' }
  | { type: 'json_object' }
  | { type: 'json_schema'; json_schema: { name?: string; schema: Record<string, unknown>; strict?: boolean | null } };

/** Storage of the weights on the GPU. `auto` keeps what the files hold where they are quantized, else q4. */
export type WeightFormat = 'auto' | 'f16' | 'q8' | 'q4';

export type Source =
  /** The model that ships beside the page: a folder with `manifest.json`, relative to the page. */
  | { kind: 'shipped'; url: string }
  /** Files from a file input, a drop or a directory picker. */
  | { kind: 'files'; files: SourceFile[]; label?: string }
  /** One checkpoint file, the first of a split one, or a folder (trailing slash). */
  | { kind: 'url'; url: string; sha256?: string; token?: string }
  /** `owner/name`, optionally one file of it and a revision. */
  | { kind: 'hub'; repo: string; revision?: string; file?: string; token?: string; endpoint?: string };

export interface SourceFile {
  /** Path inside the folder, with `/`. */
  path: string;
  file: Blob;
}

export interface DownloadPlan {
  label: string;
  files: { path: string; sizeBytes: number }[];
  totalBytes: number;
  /** Already stored by an earlier try. */
  presentBytes: number;
  neededBytes: number;
  /** What the browser still grants this site; null where it does not say. */
  freeBytes: number | null;
}

export type Progress =
  | { phase: 'device' }
  | { phase: 'listing' }
  | { phase: 'download'; file: string; doneBytes: number; totalBytes: number; bytesPerSecond: number; resumed: boolean }
  | { phase: 'retry'; file: string; attempt: number; waitMs: number; reason: string }
  | { phase: 'verify'; file: string; doneBytes: number; totalBytes: number }
  | { phase: 'repair'; file: string; reason: string }
  | { phase: 'weights'; doneBytes: number; totalBytes: number }
  | { phase: 'ready' };

/** What the browser and the GPU adapter offer, before any engine runs. */
export interface DeviceProbe {
  webgpu: boolean;
  /** Why there is no WebGPU, where there is none. */
  missing: 'api' | 'adapter' | 'insecure' | null;
  vendor: string;
  architecture: string;
  description: string;
  /** A software adapter: works, slowly. */
  fallback: boolean;
  features: string[];
  shaderF16: boolean;
  subgroups: boolean;
  packedDot: boolean;
  maxBufferBytes: number;
  maxBindingBytes: number;
  maxWorkgroupBytes: number;
}

/** `auto`: the GPU, or the CPU where the browser offers none. */
export type DeviceChoice = 'auto' | 'gpu' | 'cpu';

/** What the engine chose on this device. */
export interface DeviceInfo {
  /** What computes: a GPU through WebGPU, or the CPU through WebAssembly on one thread, which is slower. */
  kind: 'gpu' | 'cpu';
  adapter: string;
  /** Name of each choice (`storage`, `reduce`, `dot`, `matmul`, …) and what was picked. */
  paths: Record<string, string>;
  /** What is missing and what runs instead, as sentences for a developer. */
  missing: string[];
  maxBufferBytes: number;
  /** On the CPU: the most bytes of weights that a model may have there. */
  maxWeightBytes?: number;
}

export interface ModelInfo {
  name: string;
  architecture: string;
  parameters: number;
  contextLength: number;
  /** Format of most weights, as the engine names it. */
  format: string;
  weightBytes: number;
  cacheBytes: number;
  /** True where the checkpoint brings its own chat template. */
  hasChatTemplate: boolean;
}

/** A LoRA adapter on the loaded model. */
export interface AdapterInfo {
  name: string;
  /** A factor on the adapter's own scale (alpha / rank). */
  scale: number;
  /** The largest rank of its pairs; null for an adapter without any. */
  rank: number | null;
  modules: number;
  parameters: number;
}

export interface AdapterOptions {
  /** The name by which `unloadAdapter` finds it; must not be in use. */
  name?: string;
  /** Default 1. */
  scale?: number;
}

export interface SpeedInfo {
  prefillTokensPerSecond: number;
  decodeTokensPerSecond: number;
}

export interface SessionInfo {
  device: DeviceInfo;
  model: ModelInfo;
  speed: SpeedInfo | null;
  /** The adapters in use, in the order in which they were loaded. */
  adapters: AdapterInfo[];
  /** Bytes of wasm memory now in use; null where the engine does not say. */
  wasmBytes: number | null;
}

/** `tool_calls`: the answer ends with calls whose results it waits for. */
export type FinishReason = 'stop' | 'length' | 'context' | 'tool_calls';

export interface Usage {
  promptTokens: number;
  /** Tokens of the prompt that were in the cache and not computed again. */
  cachedTokens: number;
  completionTokens: number;
  /** Tokens now in the cache, and how many it holds. */
  contextUsed: number;
  contextLength: number;
  prefillMs: number;
  decodeMs: number;
}

/** One piece of an answer. Texts joined in order are the answer; the last piece has `done`. */
export interface Piece {
  text: string;
  /** Tokens of the answer so far. */
  tokens: number;
  /** What this piece adds to calls. */
  toolCalls?: ToolCallDelta[];
  /** Of the tokens since the last piece, where the sampling asks for them. Their text may come later. */
  logprobs?: ScoredToken[];
  done?: boolean;
  usage?: Usage;
  finishReason?: FinishReason;
}

export interface StoredModel {
  id: string;
  label: string;
  source: Exclude<Source, { kind: 'files' }>;
  complete: boolean;
  sizeBytes: number;
  storedBytes: number;
  files: { path: string; sizeBytes: number; storedBytes: number }[];
  createdAt: number;
}

export interface OpenOptions {
  format?: WeightFormat;
  /** Tokens that the cache holds; the engine lowers it to the model's own context length. */
  contextLength?: number;
}
