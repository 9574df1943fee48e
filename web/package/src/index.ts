/** Bayan in the browser: load a model onto the visitor's GPU and talk to it. See README.md. */
export { load, loadWith, openBackend, asSource, Session, type LoadOptions, type CallOptions } from './session';
export * from './errors';
export type * from './types';
export {
  prepareTraining,
  prepareTrainingWith,
  Training,
  type RunOptions,
  type TrainingOptions,
} from './training/training';
export { StateStore, type StoredState } from './states';
export { TrainingStore, type StoredTraining } from './training/store';
export type * from './training/types';
export type { Backend, LoadCall, LoadHooks } from './backend';
export { probeDevice } from './device';
export type { EnginePlace } from './place';
export type { ByteSource, EngineModule, OnToken } from './engine';
export type {
  ChatCompletions,
  Completion,
  CompletionChunk,
  CompletionLogprobs,
  CompletionMessage,
  CompletionRequest,
  CompletionUsage,
} from './openai';
