/**
 * The errors that a caller can distinguish, the same on both sides of the worker.
 *
 * An error crosses `postMessage` as plain data (`code`, `message`, `details`) and is rebuilt as the same class,
 * because structured clone drops subclasses. Matching on message text would break when the text changes.
 * Messages are for developers (English: what, expected, got, remedy); a page shows its own words for each code.
 */

export type ErrorCode =
  | 'NoWebGpu'
  | 'UnsupportedDevice'
  | 'DeviceLost'
  | 'OutOfMemory'
  | 'BadCheckpoint'
  | 'BadInput'
  | 'Network'
  | 'Quota'
  | 'ContextFull'
  | 'Aborted'
  | 'Internal';

export interface ErrorDetails {
  /** HTTP status, where the error came from a server. */
  status?: number;
  url?: string;
  file?: string;
  /** Bytes asked for and bytes to be had (Quota, OutOfMemory, UnsupportedDevice). */
  neededBytes?: number;
  availableBytes?: number;
  /** Tokens in the conversation and tokens the context holds (ContextFull). */
  tokens?: number;
  contextLength?: number;
  /** Seconds the server asked to wait (429, 503). */
  retryAfterSeconds?: number;
  /** True where the caller's address or repository name cannot be one. */
  badAddress?: boolean;
  /** True where the server wants an access token (401, 403). */
  needsToken?: boolean;
  /** True where the model is of a kind that is not read here, so that another copy would not help (BadCheckpoint). */
  unsupported?: boolean;
  /** The field of a request that is wrong, as `messages[1].tool_calls[0]` (BadInput). */
  field?: string;
  /** `cpu` where a model is too large for it (UnsupportedDevice, OutOfMemory). */
  device?: 'cpu';
  reason?: string;
}

export interface WireError {
  code: ErrorCode;
  message: string;
  details?: ErrorDetails;
}

/** Base of every error this package throws. */
export class BayanError extends Error {
  readonly code: ErrorCode;
  readonly details: ErrorDetails;
  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message);
    this.name = code;
    this.code = code;
    this.details = details;
  }
}

/** `navigator.gpu` is missing or gives no adapter, and the CPU is no choice: the caller asked for a GPU, or trains. */
export class NoWebGpu extends BayanError {
  constructor(message: string, details?: ErrorDetails) {
    super('NoWebGpu', message, details);
  }
}
/** The GPU lacks something that the model needs, or the model is too large for the CPU. */
export class UnsupportedDevice extends BayanError {
  constructor(message: string, details?: ErrorDetails) {
    super('UnsupportedDevice', message, details);
  }
}
/** The GPU is no longer usable (driver reset, sleep, another page). Load the model again. */
export class DeviceLost extends BayanError {
  constructor(message: string, details?: ErrorDetails) {
    super('DeviceLost', message, details);
  }
}
/** The GPU or the tab has too little memory for this model and context. */
export class OutOfMemory extends BayanError {
  constructor(message: string, details?: ErrorDetails) {
    super('OutOfMemory', message, details);
  }
}
/** The files are damaged, incomplete or of a kind not read here. */
export class BadCheckpoint extends BayanError {
  constructor(message: string, details?: ErrorDetails) {
    super('BadCheckpoint', message, details);
  }
}
/**
 * What the caller passed cannot be used: messages, tools, schemas, a saved state, or the examples, settings or
 * checkpoint of a training. The message says what and why.
 */
export class BadInput extends BayanError {
  constructor(message: string, details?: ErrorDetails) {
    super('BadInput', message, details);
  }
}
/** A server did not answer, or answered with a failure. */
export class Network extends BayanError {
  constructor(message: string, details?: ErrorDetails) {
    super('Network', message, details);
  }
}
/** The browser's storage is too small for the download. */
export class Quota extends BayanError {
  constructor(message: string, details?: ErrorDetails) {
    super('Quota', message, details);
  }
}
/** The conversation is longer than the context. */
export class ContextFull extends BayanError {
  constructor(message: string, details?: ErrorDetails) {
    super('ContextFull', message, details);
  }
}
/** The caller's signal was aborted. */
export class Aborted extends BayanError {
  constructor(message = 'the call was aborted by its signal', details?: ErrorDetails) {
    super('Aborted', message, details);
  }
}
/** A defect in Bayan itself. */
export class Internal extends BayanError {
  constructor(message: string, details?: ErrorDetails) {
    super('Internal', message, details);
  }
}

const CLASSES: Record<ErrorCode, new (message: string, details?: ErrorDetails) => BayanError> = {
  NoWebGpu,
  UnsupportedDevice,
  DeviceLost,
  OutOfMemory,
  BadCheckpoint,
  BadInput,
  Network,
  Quota,
  ContextFull,
  Aborted,
  Internal,
};

export function isErrorCode(code: unknown): code is ErrorCode {
  return typeof code === 'string' && Object.hasOwn(CLASSES, code);
}

export function fromWire(error: WireError): BayanError {
  const code = isErrorCode(error.code) ? error.code : 'Internal';
  return new CLASSES[code](String(error.message), error.details);
}

export function toWire(error: unknown): WireError {
  const known = asBayanError(error);
  return { code: known.code, message: known.message, details: known.details };
}

/**
 * Any thrown value to a typed error. The engine throws `Error` objects with a `code` property, or strings holding
 * the JSON of a {@link WireError}; WebAssembly traps and DOM exceptions are mapped by their kind.
 */
export function asBayanError(error: unknown): BayanError {
  if (error instanceof BayanError) return error;
  if (typeof error === 'string') return fromText(error);
  if (error instanceof Error || error instanceof DOMException) {
    const code = (error as { code?: unknown }).code;
    if (isErrorCode(code))
      return fromWire({ code, message: error.message, details: (error as { details?: ErrorDetails }).details ?? {} });
    if (error.name === 'AbortError') return new Aborted();
    if (error.name === 'QuotaExceededError') return new Quota(`the browser's storage is full: ${error.message}`);
    if (error.name === 'RangeError' && /alloc|memory|array (buffer )?length/i.test(error.message))
      return new OutOfMemory(error.message);
    if (error.name === 'RuntimeError' && /memory/i.test(error.message)) return new OutOfMemory(error.message);
    return fromText(error.message, error.stack);
  }
  return new Internal(`a value that is no error was thrown: ${String(error)}`);
}

function fromText(text: string, stack?: string): BayanError {
  if (text.startsWith('{')) {
    try {
      const parsed = JSON.parse(text) as WireError;
      if (isErrorCode(parsed.code)) return fromWire(parsed);
    } catch {
      // Not the JSON of an error; it is shown as text below.
    }
  }
  return new Internal(text, stack ? { reason: stack } : {});
}

export function throwIfAborted(signal?: AbortSignal | null): void {
  if (signal?.aborted) throw new Aborted();
}
