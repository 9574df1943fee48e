/** The memory that a model takes on the GPU, and whether it is likely to fit. */
import type { WeightFormat } from 'bayan-web';

export interface CatalogueModel {
  name: string;
  maker: string;
  repo: string;
  /** The file of a GGUF repository; its weights are quantized already. */
  file?: string;
  licence: string;
  parameters: number;
  publishedBytesPerParameter: number;
  cacheBytesPerToken: number;
  context: number;
  gated: boolean;
  note: { ar: string; en: string };
}

/** Bits of a weight in each format, with its scales. */
const BITS: Record<Exclude<WeightFormat, 'auto'>, number> = { q4: 4.5, q8: 8.5, f16: 16 };
/** Activations and staging buffers. */
const WORK_BYTES = 250e6;

/** The most bytes of weights that the engine takes on the CPU. */
const CPU_WEIGHT_BYTES = 640e6;

/** Whether the CPU takes the model in this format. */
export function fitsCpu(model: CatalogueModel, format: Exclude<WeightFormat, 'auto'>): boolean {
  const bytes = model.file ? downloadBytes(model) : (model.parameters * BITS[format]) / 8;
  return bytes <= CPU_WEIGHT_BYTES;
}

export function downloadBytes(model: CatalogueModel): number {
  return model.parameters * model.publishedBytesPerParameter;
}

export function memoryBytes(
  model: CatalogueModel,
  format: Exclude<WeightFormat, 'auto'>,
  contextLength: number,
): number {
  return (
    (model.parameters * BITS[format]) / 8 +
    model.cacheBytesPerToken * Math.min(contextLength, model.context) +
    WORK_BYTES
  );
}

export type Fit = 'yes' | 'tight' | 'no';

/** WebGPU does not report the memory size: the budget is the person's own figure or a guess from system memory. */
export function fits(bytes: number, budgetBytes: number): Fit {
  return bytes <= budgetBytes * 0.8 ? 'yes' : bytes <= budgetBytes * 1.1 ? 'tight' : 'no';
}

/**
 * Bytes that the GPU may use. `deviceMemory` is GiB of system memory, rounded and capped by browsers (at 8 in most);
 * half of it is a cautious guess.
 */
export function guessBudget(deviceMemoryGib: number | undefined): number {
  return deviceMemoryGib === undefined ? 4e9 : Math.max(1e9, (deviceMemoryGib * 2 ** 30) / 2);
}
