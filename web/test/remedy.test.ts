import { BayanError, type ErrorCode, type ErrorDetails } from 'bayan-web';
import { expect, it } from 'vitest';
import type { SourceKind } from '../src/state/store';
import { type Remedy, remedyOf } from '../src/ui/remedy';

it('every cause of a failed model has one remedy', () => {
  const cases: [ErrorCode, ErrorDetails, SourceKind, Remedy][] = [
    ['BadCheckpoint', {}, 'files', 'models'],
    ['BadCheckpoint', { badAddress: true }, 'hub', 'models'],
    ['BadCheckpoint', { unsupported: true }, 'hub', 'models'],
    ['BadCheckpoint', {}, 'hub', 'fetchAgain'],
    ['BadCheckpoint', {}, 'shipped', 'reload'],
    ['UnsupportedDevice', {}, 'hub', 'models'],
    ['UnsupportedDevice', { device: 'cpu' }, 'hub', 'models'],
    ['Quota', {}, 'url', 'models'],
    ['NoWebGpu', {}, 'shipped', 'device'],
    ['Network', { needsToken: true }, 'hub', 'models'],
    ['Network', { status: 404 }, 'hub', 'models'],
    ['Network', { status: 429 }, 'hub', 'retry'],
    ['Network', {}, 'url', 'retry'],
    ['DeviceLost', {}, 'shipped', 'reload'],
    ['OutOfMemory', {}, 'hub', 'reload'],
    ['Internal', {}, null, 'reload'],
  ];
  for (const [code, details, from, expected] of cases)
    expect(remedyOf(new BayanError(code, 'x', details), from, false), code).toBe(expected);
  const large = new BayanError('UnsupportedDevice', 'x', { device: 'cpu' });
  expect(remedyOf(large, 'hub', true)).toBe('device');
});
