/** What the person writes for a training: examples in one of three ways, and settings. */
import type { SourceFile, TrainingRecipe } from 'bayan-web';

export interface Pair {
  prompt: string;
  response: string;
}

export type Way = 'pairs' | 'paste' | 'file';
export type Preset = 'quick' | 'usual' | 'long';

export interface Form {
  way: Way;
  pairs: Pair[];
  text: string;
  files: SourceFile[];
  name: string;
  question: string;
  preset: Preset;
  rank: number;
  steps: number;
  learningRate: number;
}

/**
 * Steps and learning rate of each length: a small rate needs more steps. `quick` is for a few dozen examples, which the
 * embedded model then repeats word for word; the others are for hundreds.
 */
export const PRESETS: Record<Preset, Pick<Form, 'rank' | 'steps' | 'learningRate'>> = {
  quick: { rank: 16, steps: 80, learningRate: 5e-3 },
  usual: { rank: 16, steps: 200, learningRate: 1e-3 },
  long: { rank: 32, steps: 600, learningRate: 5e-4 },
};

export const EMPTY_PAIR: Pair = { prompt: '', response: '' };

/** The learning rate of a preset: larger models take smaller ones. */
export function rateFor(preset: Preset, parameters: number): number {
  const base = PRESETS[preset].learningRate;
  if (parameters < 1e8) return base;
  return parameters < 2e9 ? base / 5 : base / 10;
}

/** The settings of a preset for a model with this number of parameters. */
export function settingsOf(
  preset: Preset,
  parameters: number,
): Pick<Form, 'preset' | 'rank' | 'steps' | 'learningRate'> {
  return { preset, ...PRESETS[preset], learningRate: rateFor(preset, parameters) };
}

/** The files that the chosen way gives; empty where there is no example. */
export function examplesOf(form: Form): SourceFile[] {
  if (form.way === 'file') return form.files;
  if (form.way === 'paste') {
    const text = form.text.trim();
    return text === '' ? [] : [{ path: pastedName(text), file: new Blob([`${text}\n`]) }];
  }
  const lines = form.pairs
    .map(({ prompt, response }) => ({ prompt: prompt.trim(), response: response.trim() }))
    .filter(({ prompt, response }) => prompt !== '' && response !== '')
    .map((pair) => `${JSON.stringify(pair)}\n`);
  return lines.length > 0 ? [{ path: 'examples.jsonl', file: new Blob(lines) }] : [];
}

/** The name that tells the engine how to read pasted text. */
export function pastedName(text: string): string {
  if (text.startsWith('[')) return 'pasted.json';
  if (text.startsWith('{')) return 'pasted.jsonl';
  return text.split('\n')[0]!.includes('\t') ? 'pasted.tsv' : 'pasted.csv';
}

/**
 * The recipe of a form. Short examples are packed into sequences of one length, so that few kernels are compiled;
 * activations of small models are kept, which is faster than computing them again.
 */
export function recipeOf(form: Form, parameters: number): TrainingRecipe {
  return {
    rank: form.rank,
    alpha: 2 * form.rank,
    max_steps: form.steps,
    learning_rate: form.learningRate,
    batch_size: 1,
    packing: true,
    max_seq_length: parameters < 1e8 ? 256 : 1024,
    warmup_ratio: 0.05,
    grad_checkpoint: parameters >= 1e8,
    save_every: Math.max(1, Math.ceil(form.steps / 20)),
  };
}
