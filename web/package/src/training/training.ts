/** Trains a LoRA adapter in a worker of its own, so that the page and its chat stay responsive. */
import type { Backend, LoadHooks } from '../backend';
import type { BayanError } from '../errors';
import type { EnginePlace } from '../place';
import { asSource, type LoadOptions, openBackend } from '../session';
import type { Source, SourceFile, WeightFormat } from '../types';
import type { TrainingCall, TrainingEvent, TrainingPlan, TrainingRecipe, TrainingResult } from './types';

export interface TrainingOptions extends LoadHooks, EnginePlace, Pick<LoadOptions, 'createWorker'> {
  /** Files (jsonl, json, csv, tsv), or rows such as `{ prompt, response }` or `{ messages }`. */
  examples: SourceFile[] | Record<string, unknown>[];
  recipe?: TrainingRecipe;
  /** As for `load`: an adapter fits any format of its base, and fits best the one it was trained over. */
  format?: WeightFormat;
  /** Default 50 MB. */
  confirmAboveBytes?: number;
}

export interface RunOptions {
  onEvent?: (event: TrainingEvent) => void;
  /** The files of a `saved` event: the run continues from there. Examples and recipe must be those of its start. */
  checkpoint?: SourceFile[];
}

/**
 * Reads the model's headers and the examples, and checks the recipe; the weights are not loaded yet. Throws `BadInput`
 * for examples or settings that cannot be used. Dispose the training where it is no longer needed.
 */
export async function prepareTraining(source: Source | string, options: TrainingOptions): Promise<Training> {
  return prepareTrainingWith(openBackend(options), source, options);
}

/** As {@link prepareTraining}, with a backend the caller holds. It is disposed where preparing fails. */
export async function prepareTrainingWith(
  backend: Backend,
  source: Source | string,
  options: TrainingOptions,
): Promise<Training> {
  const call: TrainingCall = {
    source: asSource(source),
    recipe: options.recipe ?? {},
    examples: filesOf(options.examples),
    confirmAboveBytes: options.confirmAboveBytes ?? 50e6,
  };
  if (options.format !== undefined) call.format = options.format;
  try {
    return new Training(backend, await backend.prepareTraining(call, options));
  } catch (error) {
    await backend.dispose();
    throw error;
  }
}

function filesOf(examples: SourceFile[] | Record<string, unknown>[]): SourceFile[] {
  if (examples.length > 0 && examples.every((each) => each['file'] instanceof Blob)) return examples as SourceFile[];
  const lines = examples.map((row) => `${JSON.stringify(row)}\n`);
  return [{ path: 'examples.jsonl', file: new Blob(lines) }];
}

export class Training {
  /** Called once when the device or the worker is lost; every later call throws. The last checkpoint stays good. */
  onLost: ((error: BayanError) => void) | null = null;
  private running: AbortController | null = null;

  constructor(
    private readonly backend: Backend,
    readonly plan: TrainingPlan,
  ) {
    backend.onLost = (error) => this.onLost?.(error);
  }

  /** Loads the weights and measures a micro-batch: the seconds that the run will take on this device, estimated. */
  estimateSeconds(hooks: Pick<LoadHooks, 'onProgress' | 'signal'> = {}): Promise<number> {
    return this.backend.measureTraining(hooks);
  }

  /** Trains until the end or `pause`. */
  async run({ onEvent, checkpoint }: RunOptions = {}): Promise<TrainingResult> {
    const abort = (this.running = new AbortController());
    try {
      return await this.backend.train(checkpoint ?? null, onEvent ?? (() => {}), abort.signal);
    } finally {
      if (this.running === abort) this.running = null;
    }
  }

  /** Ends `run` after the current step, with a checkpoint. */
  pause(): void {
    this.running?.abort();
  }

  /** Ends the worker; a step that takes longer than half a second is not waited for, and `run` rejects with Aborted. */
  dispose(): Promise<void> {
    return this.backend.dispose();
  }
}
