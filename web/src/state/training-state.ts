/** What the page knows of the training in this tab. */
import type { BayanError, Source, SourceFile, StoredTraining, TrainingPlan, TrainingRecipe } from 'bayan-web';

export interface Point {
  /** Optimizer steps done. */
  step: number;
  loss: number;
}

/** What is stored about a run beside its examples and its checkpoint. */
export interface About {
  /** Name of the adapter. */
  name: string;
  /** The base: what the page calls it, and where it comes from; null for files of the person's disk. */
  model: string;
  parameters: number;
  source: Exclude<Source, { kind: 'files' }> | null;
  format: 'auto' | 'f16' | 'q8' | 'q4';
  recipe: TrainingRecipe;
  totalSteps: number;
  losses: Point[];
  evaluated: Point[];
  question: string;
  before: string | null;
}

export type Run = StoredTraining<About>;

export interface TrainingState {
  phase:
    'idle' | 'preparing' | 'ready' | 'measuring' | 'asking' | 'loading' | 'running' | 'pausing' | 'paused' | 'done';
  name: string;
  /** What the base is called. */
  model: string;
  plan: TrainingPlan | null;
  /** Estimated seconds of the run, once measured. */
  seconds: number | null;
  steps: number;
  totalSteps: number;
  secondsLeft: number | null;
  tokensPerSecond: number | null;
  losses: Point[];
  evaluated: Point[];
  question: string;
  before: string | null;
  after: string | null;
  /** The files of the trained adapter. */
  adapter: SourceFile[] | null;
  /** The name under which it was put on the running model. */
  attachedAs: string | null;
  error: BayanError | null;
  /** Words for the person in place of an error's. */
  trouble: string | null;
  /** The run in this tab, once it has begun. */
  run: Run | null;
  /** Runs stored in this browser. */
  runs: Run[];
  /** False where the browser stores nothing. */
  kept: boolean;
}

export const NO_TRAINING: TrainingState = {
  phase: 'idle',
  name: '',
  model: '',
  plan: null,
  seconds: null,
  steps: 0,
  totalSteps: 0,
  secondsLeft: null,
  tokensPerSecond: null,
  losses: [],
  evaluated: [],
  question: '',
  before: null,
  after: null,
  adapter: null,
  attachedAs: null,
  error: null,
  trouble: null,
  run: null,
  runs: [],
  kept: true,
};
