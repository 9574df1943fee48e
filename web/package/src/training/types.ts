/** Training in the tab: what is asked, and what the worker says. Times are seconds, sizes bytes. */
import type { Source, SourceFile, WeightFormat } from '../types';

/**
 * Fields of a recipe of `bayan finetune`, with the same names, defaults and checks (docs/training.md). Not among them:
 * files (`data`, `output`, …), `quantize` (see `format`), `full` and `keep_best`.
 */
export interface TrainingRecipe {
  method?: 'sft' | 'dpo';
  rank?: number;
  alpha?: number;
  dropout?: number;
  target_modules?: string | string[];
  batch_size?: number;
  gradient_accumulation_steps?: number;
  epochs?: number;
  max_steps?: number;
  max_seq_length?: number;
  packing?: boolean;
  mask_prompt?: boolean;
  learning_rate?: number;
  lr_scheduler?: 'cosine' | 'linear' | 'constant';
  warmup_steps?: number;
  warmup_ratio?: number;
  val_split?: number;
  eval_every?: number;
  save_every?: number;
  grad_checkpoint?: boolean;
  seed?: number;
  f16?: boolean;
  [field: string]: unknown;
}

export interface TrainingCall {
  source: Source;
  /** How dense weights are loaded, as for `load`. */
  format?: WeightFormat;
  recipe: TrainingRecipe;
  /** jsonl, json, csv or tsv, also with .gz; those named valid…, eval… or dev… are evaluated on. */
  examples: SourceFile[];
  /** Ask `confirm` before downloading more than this many bytes of the base model. */
  confirmAboveBytes: number;
}

/** What a run would do, known before the weights are loaded. */
export interface TrainingPlan {
  /** Examples that are trained on, and those set aside for evaluation. */
  examples: number;
  evaluated: number;
  /** Rows read, and among them: not readable (`skip_bad`), left out, cut at `max_seq_length`. */
  read: number;
  bad: number;
  dropped: number;
  truncated: number;
  /** Tokens whose loss is computed, in all examples. */
  trainedTokens: number;
  /** Tokens of the longest example. */
  longest: number;
  steps: number;
  stepsPerEpoch: number;
  /** Tokens that the whole run computes. */
  tokens: number;
  trainedParameters: number;
  /** GPU memory in bytes, estimated. */
  memory: {
    base: number;
    weights: number;
    gradients: number;
    optimizer: number;
    cache: number;
    activations: number;
    working: number;
    fixed: number;
    total: number;
  };
}

/** `steps`: optimizer steps done. */
export type TrainingEvent =
  | { kind: 'loading'; doneBytes: number; totalBytes: number }
  | { kind: 'reference'; done: number; total: number }
  | {
      kind: 'step';
      steps: number;
      totalSteps: number;
      epoch: number;
      loss: number;
      learningRate: number;
      /** The norm of the gradients before clipping. */
      gradNorm: number;
      tokensPerSecond: number;
      secondsLeft: number;
      memoryBytes: number | null;
    }
  | { kind: 'largeNorm'; steps: number; gradNorm: number }
  | { kind: 'evaluating'; done: number; total: number }
  | { kind: 'evaluated'; steps: number; loss: number; best: boolean }
  /** The files of a checkpoint, from which a run resumes to the bit, here or elsewhere. */
  | { kind: 'saved'; steps: number; checkpoint: SourceFile[] };

export interface TrainingReport {
  end: 'done' | 'earlyStopped' | 'paused';
  steps: number;
  /** Tokens computed, including those before a resumption. */
  tokens: number;
  /** Time of this call. */
  seconds: number;
  /** Loss of the last step; null where there was none. */
  loss: number | null;
  /** The peak of GPU memory. */
  peakBytes: number;
}

export interface TrainingResult extends TrainingReport {
  /** A PEFT adapter: adapter_config.json and adapter_model.safetensors. After a pause: as trained so far. */
  adapter: SourceFile[];
}
