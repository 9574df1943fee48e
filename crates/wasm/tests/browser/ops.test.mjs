/**
 * Each kernel against its reference in real Chromium. The op suite takes as long as everything else of the engine: in a
 * file of its own it runs beside that.
 */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { newEngine, start } from './harness.mjs';

let site;
before(async () => {
  site = await start();
});
after(async () => {
  await site?.stop();
});

/** The runs of the op suite on one device, with all features first; each must pass whole. */
async function suiteOf(engine, options) {
  const { device, runs, seconds } = await engine.call('runSuite', options);
  console.log(`  ${device.adapter}: ${runs.length} runs in ${seconds.toFixed(1)} s`);
  for (const { path, passed, total, failures } of runs) {
    console.log(`  ${path}: ${passed} of ${total}`);
    assert.deepEqual(failures.slice(0, 20), []);
    assert.ok(total > 0 && passed === total);
  }
  return { device, runs };
}

it('op suite: agrees with the references in every form', async () => {
  const engine = await newEngine(site.page);
  const names = process.env.BAYAN_CASES ? process.env.BAYAN_CASES.split(',') : [];
  const { runs } = await suiteOf(engine, { device: {}, names, further: [['subgroups'], ['subgroups', 'dot']] });
  assert.deepEqual(
    runs.map(({ paths }) => [paths.reduce, paths.dot]),
    [
      ['subgroups', 'packed'],
      ['workgroup', 'packed'],
      ['workgroup', 'f32'],
    ],
  );
  await engine.end();
});

describe('language features', () => {
  for (const [name, path, value] of [
    ['subgroup_id', 'reduce', 'workgroup'],
    ['packed_4x8_integer_dot_product', 'dot', 'f32'],
  ]) {
    it(`computes without ${name}, and says so`, async () => {
      const engine = await newEngine(site.page);
      await engine.call('withoutLanguageFeature', name);
      const { device } = await suiteOf(engine, { device: {}, names: ['rms_norm', 'decode 8/2x80'] });
      assert.equal(device.paths[path], value);
      assert.ok(
        device.missing.some((text) => text.includes(name)),
        JSON.stringify(device.missing),
      );
      await engine.end();
    });
  }
});
