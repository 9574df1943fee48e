/** Models that are too large for the CPU are refused before they are downloaded. */
import type { LoadCall, LoadHooks } from './backend';
import { UnsupportedDevice } from './errors';
import type { OpenHooks } from './source/open';
import type { DeviceInfo, DownloadPlan, WeightFormat } from './types';

/** Bits of a weight that is stored in 16 and loaded in this format. */
const LOADED_BITS: Record<WeightFormat, number> = { auto: 4.5, q4: 4.5, q8: 8.5, f16: 16 };

/** The bytes of weights that a download will have in memory, at least; a GGUF file keeps its formats. */
function loadedBytes({ files, totalBytes }: DownloadPlan, format: WeightFormat): number {
  const stored = files.some(({ path }) => path.endsWith('.gguf'));
  return stored ? totalBytes : (totalBytes * LOADED_BITS[format]) / 16;
}

/** The hooks of a load. On the CPU a plan for too large a model is refused without asking anyone. */
export function checkDownload(call: LoadCall, hooks: LoadHooks, device: DeviceInfo): OpenHooks {
  const { confirmAboveBytes, options } = call;
  const limit = device.maxWeightBytes;
  if (limit === undefined) return { ...hooks, confirmAboveBytes };
  const confirm = (plan: DownloadPlan) => {
    const neededBytes = Math.round(loadedBytes(plan, options.format ?? 'auto'));
    // What is no weights, such as the tokenizer, is a few MB.
    if (neededBytes > limit + 32e6)
      throw new UnsupportedDevice(
        `${plan.label} would have about ${neededBytes} bytes of weights: expected at most ${limit} on the CPU; ` +
          'choose 4 bits, a smaller model, or a browser with WebGPU',
        { device: 'cpu', neededBytes, availableBytes: limit },
      );
    return plan.neededBytes <= confirmAboveBytes || !hooks.confirm || hooks.confirm(plan);
  };
  return { ...hooks, confirm, confirmAboveBytes: Math.min(confirmAboveBytes, limit / 2) };
}
