/** The messages between page and worker: one tagged union for each direction, matched by request id. */
import type { WireError } from './errors';
import type { LoadCall } from './backend';
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

/** Calls by name: arguments and result. */
export interface Calls {
  load: { args: LoadCall; result: SessionInfo };
  chat: { args: { messages: Message[]; sampling: Sampling }; result: null };
  generate: { args: { prompt: string; sampling: Sampling }; result: null };
  warmUp: { args: { tokens: number; sampling: Sampling }; result: null };
  tokenize: { args: { text: string }; result: Uint32Array };
  detokenize: { args: { ids: Uint32Array }; result: string };
  saveState: { args: null; result: Uint8Array };
  restoreState: { args: { bytes: Uint8Array }; result: number };
  loadAdapter: { args: { source: Source; options: AdapterOptions }; result: AdapterInfo };
  unloadAdapter: { args: { name: string | undefined }; result: null };
  prepareTraining: { args: TrainingCall; result: TrainingPlan };
  measureTraining: { args: null; result: number };
  train: { args: { checkpoint: SourceFile[] | null }; result: TrainingResult };
  info: { args: null; result: SessionInfo };
  listStored: { args: null; result: StoredModel[] };
  deleteStored: { args: { id: string }; result: null };
  dispose: { args: null; result: null };
}
export type CallName = keyof Calls;

export type ToWorker =
  | { [N in CallName]: { kind: 'call'; id: number; name: N; args: Calls[N]['args'] } }[CallName]
  | { kind: 'cancel'; id: number }
  | { kind: 'answer'; id: number; ok: boolean };

export type FromWorker =
  | { kind: 'result'; id: number; value: unknown }
  | { kind: 'error'; id: number; error: WireError }
  | { kind: 'piece'; id: number; piece: Piece }
  | { kind: 'training'; id: number; event: TrainingEvent }
  | { kind: 'progress'; id: number; progress: Progress }
  | { kind: 'confirm'; id: number; plan: DownloadPlan }
  | { kind: 'lost'; error: WireError };

/** The part of Worker and MessagePort used here. */
export interface Port<Out, In> {
  postMessage(message: Out, transfer?: Transferable[]): void;
  addEventListener(type: 'message', listener: (event: MessageEvent<In>) => void): void;
}
