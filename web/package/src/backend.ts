/**
 * The interface on both sides of the worker: `LocalBackend` implements it with the engine, `RemoteBackend` with
 * `postMessage`. A session works with either, and so do tests.
 */
import type {
  AdapterInfo,
  AdapterOptions,
  DeviceChoice,
  DownloadPlan,
  Message,
  OpenOptions,
  Piece,
  Progress,
  Sampling,
  SessionInfo,
  Source,
  SourceFile,
  StoredModel,
} from './types';
import type { BayanError } from './errors';
import type { TrainingCall, TrainingEvent, TrainingPlan, TrainingResult } from './training/types';

export interface LoadCall {
  source: Source;
  options: OpenOptions;
  /** Default `auto`. */
  device?: DeviceChoice;
  /** Ask `confirm` before downloading more than this many bytes. */
  confirmAboveBytes: number;
}

export interface LoadHooks {
  onProgress?: (progress: Progress) => void;
  /** False ends the load with Aborted. Without it a download of any size starts. */
  confirm?: (plan: DownloadPlan) => Promise<boolean> | boolean;
  signal?: AbortSignal;
}

export interface Backend {
  load(call: LoadCall, hooks: LoadHooks): Promise<SessionInfo>;
  chat(messages: Message[], sampling: Sampling, signal?: AbortSignal): AsyncIterable<Piece>;
  generate(prompt: string, sampling: Sampling, signal?: AbortSignal): AsyncIterable<Piece>;
  warmUp(tokens: number, sampling: Sampling, signal?: AbortSignal): Promise<void>;
  tokenize(text: string): Promise<Uint32Array>;
  detokenize(ids: Uint32Array): Promise<string>;
  saveState(): Promise<Uint8Array>;
  restoreState(bytes: Uint8Array): Promise<number>;
  loadAdapter(source: Source, options: AdapterOptions, hooks: LoadHooks): Promise<AdapterInfo>;
  /** Without a name: all of them. */
  unloadAdapter(name?: string): Promise<void>;
  /** A backend answers or trains, not both. */
  prepareTraining(call: TrainingCall, hooks: LoadHooks): Promise<TrainingPlan>;
  /** Seconds of the prepared run, estimated. */
  measureTraining(hooks: LoadHooks): Promise<number>;
  /** `signal` ends the run after its current step, with a checkpoint; the promise then resolves. */
  train(
    checkpoint: SourceFile[] | null,
    onEvent: (event: TrainingEvent) => void,
    signal?: AbortSignal,
  ): Promise<TrainingResult>;
  info(): Promise<SessionInfo>;
  listStored(): Promise<StoredModel[]>;
  deleteStored(id: string): Promise<void>;
  dispose(): Promise<void>;
  /** Set by the owner; called once when the device or the worker is lost. */
  onLost: ((error: BayanError) => void) | null;
}
