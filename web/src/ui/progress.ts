import type { BayanError, Progress } from 'bayan-web';
import type { Strings } from '../strings/ar';
import type { SourceKind } from '../state/store';
import type { Formats } from '../text/format';

export function phaseText(progress: Progress | { phase: 'warmup' }, t: Strings, onCpu: boolean): string {
  switch (progress.phase) {
    case 'device':
      return onCpu ? t.phaseCpu : t.phaseDevice;
    case 'listing':
      return t.phaseListing;
    case 'download':
      return progress.resumed ? t.phaseResume : t.phaseDownload;
    case 'retry':
      return t.phaseRetry;
    case 'verify':
      return t.phaseVerify;
    case 'repair':
      return t.phaseRepair;
    case 'weights':
      return onCpu ? t.phaseCpuWeights : t.phaseWeights;
    case 'warmup':
      return onCpu ? t.phaseCpu : t.phaseCompile;
    case 'ready':
      return t.modelReady;
  }
}

/** Title and text of an error in the person's language. */
export function errorText(
  error: BayanError,
  t: Strings,
  f: Formats,
  from: SourceKind = null,
): { title: string; text: string } {
  const { details } = error;
  if (error.code === 'BadCheckpoint') {
    if (details.badAddress) return t.errors.BadAddress;
    // What is on the person's disk was not downloaded.
    if (from === 'files') return t.errors.BadFiles;
    if (details.unsupported) return t.errors.BadKind;
  }
  if (error.code === 'UnsupportedDevice' && details.device === 'cpu') {
    const { title, text } = t.errors.LargeForCpu;
    const [need, limit] = [f.bytes(details.neededBytes ?? 0), f.bytes(details.availableBytes ?? 0)];
    return { title, text: text.replace('{need}', need).replace('{limit}', limit) };
  }
  if (error.code === 'Network') {
    if (details.needsToken) return t.errors.NetworkToken;
    if (details.status === 404) return t.errors.Network404;
    if (details.status === 429) return t.errors.Network429;
  }
  if (error.code === 'Quota') {
    if (details.neededBytes === undefined || details.availableBytes === undefined) {
      return {
        title: t.errors.Quota.title,
        text: t.errors.QuotaUnknown.text.replace('{need}', f.bytes(details.neededBytes ?? 0)),
      };
    }
    return {
      title: t.errors.Quota.title,
      text: t.errors.Quota.text
        .replace('{need}', f.bytes(details.neededBytes))
        .replace('{free}', f.bytes(details.availableBytes)),
    };
  }
  return t.errors[error.code];
}
