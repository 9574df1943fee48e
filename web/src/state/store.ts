/**
 * The page's state. Components read it with `useApp` and change it through the functions of `model.ts`, `training.ts`,
 * `conversations.ts`, `answers.ts` and `panels.ts`; no component calls the engine or the database itself.
 */
import type {
  AdapterInfo,
  BayanError,
  DeviceProbe,
  DownloadPlan,
  Progress,
  Source,
  StoredModel,
  Usage,
} from 'bayan-web';
import { ar, type Strings } from '../strings/ar';
import { en } from '../strings/en';
import { Formats } from '../text/format';
import { type Conversation, newConversation } from './database';
import { readSettings, type Settings } from './settings';
import type { Attachment } from '../text/documents';
import { NO_TRAINING, type TrainingState } from './training-state';

export type ModelState =
  | { kind: 'none' }
  | {
      kind: 'loading';
      label: string;
      progress: Progress | { phase: 'warmup' };
      totals: { done: number; total: number };
    }
  | { kind: 'ready'; label: string }
  | { kind: 'failed'; label: string; error: BayanError; from: SourceKind };

/** Where a model was read from, for the words of its errors; null where it was running already. */
export type SourceKind = Source['kind'] | null;

export interface AdapterState {
  /** All that the person chose; those that are off are not on the model. */
  list: (AdapterInfo & { on: boolean })[];
  busy: boolean;
  error: BayanError | null;
}

export const NO_ADAPTERS: AdapterState = { list: [], busy: false, error: null };

export type Panel = 'models' | 'settings' | 'device' | 'training' | null;

export interface State {
  settings: Settings;
  conversations: Conversation[];
  current: Conversation;
  query: string;
  sidebar: boolean;
  panel: Panel;
  model: ModelState;
  adapters: AdapterState;
  training: TrainingState;
  /** Set while an answer is being written, in any conversation. */
  answering: { conversation: string; turn: string } | null;
  /** Files of the next message, and how many are still being read. */
  attachments: Attachment[];
  reading: number;
  /** The answer that is read aloud. */
  speaking: string | null;
  /** Whether the next first token waits for no kernel: all are compiled, or the first answer is written. */
  quick: boolean;
  /** A model that could not be loaded while another one runs. */
  loadError: { label: string; error: BayanError; from: SourceKind } | null;
  /** The error under the last answer. */
  answerError: { conversation: string; error: BayanError } | null;
  usage: { conversation: string; usage: Usage } | null;
  plan: { plan: DownloadPlan; answer: (ok: boolean) => void } | null;
  probe: DeviceProbe | null;
  stored: StoredModel[] | null;
  estimate: { used: number; quota: number } | null;
  shipped: { name: string; bytes: number } | null;
  online: boolean;
  notice: { text: string; action?: { label: string; run: () => void } } | null;
  storageBroken: boolean;
}

let state: State = {
  settings: readSettings(),
  conversations: [],
  current: newConversation(),
  query: '',
  sidebar: false,
  panel: null,
  model: { kind: 'none' },
  adapters: NO_ADAPTERS,
  training: NO_TRAINING,
  answering: null,
  attachments: [],
  reading: 0,
  speaking: null,
  quick: false,
  loadError: null,
  answerError: null,
  usage: null,
  plan: null,
  probe: null,
  stored: null,
  estimate: null,
  shipped: null,
  online: navigator.onLine,
  notice: null,
  storageBroken: false,
};
const listeners = new Set<() => void>();
export const getState = (): State => state;
export function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}
export function set(change: Partial<State>): void {
  state = { ...state, ...change };
  for (const listener of listeners) listener();
}

/** Whether models run on the CPU: there is no WebGPU, or the person wants it so. */
export const onCpu = (): boolean => state.settings.device === 'cpu' || state.probe?.webgpu === false;

export const strings = (): Strings => (state.settings.language === 'ar' ? ar : en);
export const formats = (): Formats => new Formats(state.settings.language, state.settings.digits);
export const baseDirection = (): 'rtl' | 'ltr' => (state.settings.language === 'ar' ? 'rtl' : 'ltr');
