/** What helps after an error, by its cause: the page shows it as the one button beside the words. */
import type { BayanError } from 'bayan-web';
import type { SourceKind } from '../state/store';

export type Remedy =
  /** Chooses another model or address, enters a token, or frees storage: all in the sheet of models. */
  | 'models'
  /** Chooses what computes, and reads what the device lacks. */
  | 'device'
  /** Loads the same model once more. */
  | 'reload'
  /** Goes on with what did not arrive. */
  | 'retry'
  /** Deletes the stored files and downloads them again. */
  | 'fetchAgain';

/**
 * After a model could not be loaded or was lost. `from`: where its files come from; `cpuChosen`: the person chose the
 * CPU, although there may be a GPU.
 */
export function remedyOf({ code, details }: BayanError, from: SourceKind, cpuChosen: boolean): Remedy {
  switch (code) {
    case 'BadCheckpoint':
      if (details.badAddress || details.unsupported || from === 'files') return 'models';
      return from === 'hub' || from === 'url' ? 'fetchAgain' : 'reload';
    case 'UnsupportedDevice':
      return details.device === 'cpu' && cpuChosen ? 'device' : 'models';
    case 'Quota':
    case 'BadInput':
      return 'models';
    case 'NoWebGpu':
      return 'device';
    case 'Network':
      return details.needsToken || details.status === 404 ? 'models' : 'retry';
    default:
      return 'reload';
  }
}
