/** The engine on the CPU in real Chromium: kernels, logits and answers as elsewhere, and what it refuses. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { filesOf, fixtures, ISOLATED, made, newEngine, nmse, root, start, tensor } from './harness.mjs';
import { synthetic } from './synthetic.mjs';

const program = process.env.BAYAN_NATIVE ?? join(root, 'target/debug/bayan');
const embedded = join(root, 'crates/embedded/checkpoint');
/** Where two logits are nearer than this, another order of sums may choose the other token. */
const CLEAR_GAP = 0.02;
const GREEDY = { temperature: 0, repetitionPenalty: 1, ignoreEos: true };

const json = (...path) => JSON.parse(readFileSync(join(fixtures, ...path), 'utf8'));
let site;
/** A site under the headers that allow threads. */
let isolated;
before(async () => {
  [site, isolated] = await Promise.all([start(), start(ISOLATED)]);
});
after(async () => {
  await Promise.all([site?.stop(), isolated?.stop()]);
});

async function onCpu(page = site.page, options = {}) {
  const engine = await newEngine(page);
  return { engine, device: await engine.call('create', { device: 'cpu', ...options }) };
}

it('op suite: vectors of 128 bits agree with the references', async () => {
  const engine = await newEngine(site.page);
  const names = ['linear ', 'attention 8/2', 'rms_norm', 'layer_norm', 'gated silu', 'rope 8/2', 'sample greedy'];
  const { runs, seconds } = await engine.call('runSuite', { device: { device: 'cpu' }, names });
  const [{ path, passed, total, failures }] = runs;
  console.log(`  ${path}: ${passed} of ${total} in ${seconds.toFixed(1)} s`);
  assert.equal(path, 'SIMD128');
  assert.deepEqual(failures.slice(0, 20), []);
  assert.ok(total > 100 && passed === total);
  await engine.end();
});

for (const model of ['llama3_gqa', 'qwen2_bias', 'gemma3_text'])
  it(`${model}: transformers' logits and greedy answers`, async () => {
    const { engine } = await onCpu();
    const files = filesOf(join(fixtures, 'models', model));
    await engine.call('open', `models/${model}/`, files, { format: 'stored', cache: 'f32' });
    const prompts = json('expected', model, 'prompts.json');
    const wanted = tensor(join(fixtures, 'expected', model, 'expected.safetensors'), 'r33.last_logits');
    const error = nmse(wanted, await engine.call('logits', prompts.r33));
    assert.ok(error < 1e-6, `NMSE ${error}`);
    let compared = 0;
    for (const [name, { ids, top1_gaps: gaps }] of Object.entries(json('expected', model, 'expected.json').greedy)) {
      const unclear = gaps.findIndex((gap) => gap < CLEAR_GAP);
      const clear = unclear < 0 ? ids : ids.slice(0, unclear);
      const answer = await engine.call('generateFromIds', prompts[name], { ...GREEDY, maxTokens: ids.length });
      assert.deepEqual(answer.ids.slice(0, clear.length), clear, name);
      compared += clear.length;
    }
    assert.ok(compared > 20, `only ${compared} tokens were clear enough to compare`);
    await engine.end();
  });

for (const [file, model] of [
  ['llama3_k256-mix.gguf', 'llama3_k256'],
  ['qwen2_bias-Q4_0.gguf', 'qwen2_bias'],
])
  it(`${file}: the native program's logits and answer on its CPU`, async () => {
    const path = join(fixtures, 'gguf', file);
    const bytes = readFileSync(path);
    made.one = { sizes: { [file]: bytes.length }, read: (_, from, to) => bytes.subarray(from, to) };
    const ids = json('expected', model, 'prompts.json').r33;
    const folder = mkdtempSync(join(tmpdir(), 'bayan-'));
    const requests = [
      { id: 'logits', op: 'logits', ids, full_last: true },
      { id: 'answer', op: 'generate', ids, max_new_tokens: 16, greedy: true, ignore_eos: true },
    ];
    writeFileSync(join(folder, 'r.json'), JSON.stringify({ version: 1, model: path, adapter: null, requests }));
    const flags = ['conformance', '--request', join(folder, 'r.json'), '--cache', 'f32', '--device', 'cpu'];
    const [native, answer] = JSON.parse(execFileSync(program, flags, { encoding: 'utf8' })).responses;
    rmSync(folder, { recursive: true });
    const { engine } = await onCpu();
    await engine.call('open', 'one/', made.one.sizes, { format: 'stored', cache: 'f32' });
    const error = nmse(native.last_logits, await engine.call('logits', ids));
    // The same codes and integer products; a code that is rounded in the other direction contributes about 1e-7.
    assert.ok(error < 1e-6, `NMSE ${error}`);
    assert.deepEqual((await engine.call('generateFromIds', ids, { ...GREEDY, maxTokens: 16 })).ids, answer.ids);
    await engine.end();
  });

describe('threads', () => {
  /** Some of its matrices are divided between threads, and some are too small for that. */
  const SHAPE = { hidden: 1024, intermediate: 2048, layers: 2, heads: 8, vocabulary: 4096 };
  /** More tokens than one message to a helper has. */
  const IDS = Array.from({ length: 150 }, (_, i) => (i * 37) % 4000);

  /** Logits and an answer of the model on this page. */
  async function answers(page, options, format) {
    const { engine, device } = await onCpu(page, options);
    made.threads ??= synthetic(embedded, SHAPE);
    const info = await engine.call('open', 'threads/', made.threads.sizes, { format });
    const logits = await engine.call('logits', IDS);
    const { ids } = await engine.call('generateFromIds', IDS, { ...GREEDY, maxTokens: 12 });
    const { wasmBytes } = await engine.call('info');
    await engine.end();
    return { threads: Number(device.paths.threads), missing: device.missing, info, logits, ids, wasmBytes };
  }

  for (const format of ['q4', 'f16'])
    it(`${format}: the bits of one thread, in less memory of each`, async () => {
      const cores = await isolated.page.evaluate(() => navigator.hardwareConcurrency);
      const [without, one, several] = [
        await answers(site.page, {}, format),
        await answers(isolated.page, { threads: 1 }, format),
        await answers(isolated.page, {}, format),
      ];
      assert.equal(without.threads, 1);
      assert.match(without.missing[1], /^threads: one, .* headers COOP and COEP$/);
      assert.equal(one.threads, 1);
      assert.equal(several.threads, Math.min(cores, 4));
      assert.ok(cores > 1, 'this test needs two cores');
      assert.ok(without.logits.every(Number.isFinite) && without.logits.length === SHAPE.vocabulary);
      for (const other of [one, several]) {
        assert.deepEqual(other.logits, without.logits);
        assert.deepEqual(other.ids, without.ids);
        assert.ok(Math.abs(other.info.weightBytes / without.info.weightBytes - 1) < 0.01);
      }
      const saved = one.wasmBytes - several.wasmBytes;
      assert.ok(saved > 0.2 * one.info.weightBytes, `${saved} bytes of ${one.info.weightBytes} are with helpers`);
    });

  it('helpers end with the engine', async () => {
    const engine = await newEngine(isolated.page);
    await engine.call('watchHelpers');
    const { paths } = await engine.call('create', { device: 'cpu', threads: 2 });
    assert.equal(paths.threads, '2');
    assert.deepEqual(await engine.call('helpers'), [1, 0]);
    await engine.call('open', 'threads/', made.threads.sizes, { format: 'q4' });
    await engine.call('dispose');
    assert.deepEqual(await engine.call('helpers'), [1, 1]);
    await engine.end();
  });

  it('a helper that does not start: one thread, and the reason', async () => {
    const engine = await newEngine(isolated.page);
    await engine.call('watchHelpers', 'missing.mjs');
    const { paths, missing } = await engine.call('create', { device: 'cpu' });
    assert.equal(paths.threads, '1');
    assert.match(missing[1], /^threads: one, because a helper did not start: /);
    assert.deepEqual(await engine.call('helpers'), [1, 1]);
    await engine.call('open', 'embedded/', filesOf(embedded), {});
    const text = await engine.call('chat', [{ role: 'user', content: 'ما عاصمة مصر؟' }], { temperature: 0 });
    assert.match(text.text, /القاهرة/);
    await engine.end();
  });

  it('a lost helper: a clear error, and a new engine answers', async () => {
    const engine = await newEngine(isolated.page);
    await engine.call('watchHelpers');
    await engine.call('create', { device: 'cpu', threads: 2 });
    await engine.call('open', 'threads/', made.threads.sizes, { format: 'q4' });
    await engine.call('loseHelpers');
    for (const _ of [1, 2]) {
      const { error } = await engine.attempt('generateFromIds', IDS, { ...GREEDY, maxTokens: 4 });
      assert.equal(error?.code, 'DeviceLost', error?.message);
      assert.match(error.message, /a helper thread of the CPU ended: it did not answer within 20 seconds/);
    }
    await engine.call('create', { device: 'cpu', threads: 2 });
    await engine.call('open', 'threads/', made.threads.sizes, { format: 'q4' });
    const { ids } = await engine.call('generateFromIds', IDS, { ...GREEDY, maxTokens: 4 });
    assert.equal(ids.length, 4);
    await engine.end();
  });
});

it('answers can be stopped from the page', async () => {
  const { engine, device } = await onCpu();
  assert.deepEqual([device.kind, device.paths.threads], ['cpu', '1']);
  const info = await engine.call('open', 'embedded/', filesOf(embedded), {});
  assert.ok(info.weightBytes > 4e6 && info.weightBytes < 8e6, `${info.weightBytes}`);
  const answer = engine.attempt('generateFromIds', [5, 6, 7], { ...GREEDY, maxTokens: 400 }, true);
  const tokens = async () => (await engine.events()).token?.at(-1) ?? 0;
  while ((await tokens()) < 4);
  await engine.call('abort');
  assert.equal((await answer).error?.code, 'Aborted');
  assert.ok((await tokens()) < 400, 'the answer ended by itself');
  const text = await engine.call('chat', [{ role: 'user', content: 'ما عاصمة مصر؟' }], { temperature: 0 });
  assert.match(text.text, /القاهرة/);
  await engine.end();
});

it('refuses a model that is too large, and training', async () => {
  const { engine } = await onCpu();
  made.large = synthetic(embedded, { hidden: 2048, intermediate: 8192, layers: 24, heads: 16, vocabulary: 4096 });
  const { error } = await engine.attempt('open', 'large/', made.large.sizes, { format: 'q4' });
  assert.equal(error?.code, 'UnsupportedDevice', error?.message);
  assert.equal(error.details.device, 'cpu');
  assert.ok(error.details.neededBytes > error.details.availableBytes);
  const training = await engine.attempt('prepareTraining', 'embedded/', filesOf(embedded), {}, {});
  assert.equal(training.error?.code, 'NoWebGpu');
  await engine.end();
});

it('is used where there is no WebGPU, unless a GPU is asked for', async () => {
  const context = await site.page.context().browser().newContext();
  const page = await context.newPage();
  await page.route('**/worker.mjs', async (route) => {
    const response = await route.fetch();
    await route.fulfill({
      response,
      body: `Object.defineProperty(navigator, 'gpu', { value: undefined });\n${await response.text()}`,
    });
  });
  await page.goto(site.page.url());
  const without = await newEngine(page);
  assert.equal((await without.attempt('create', { device: 'gpu' })).error?.code, 'NoWebGpu');
  const device = await without.call('create', {});
  assert.equal(device.kind, 'cpu');
  assert.match(device.missing[0], /navigator\.gpu is missing/);
  await context.close();
  const wrong = await newEngine(site.page);
  assert.match((await wrong.attempt('create', { device: 'tpu' })).error?.message, /expected auto, gpu or cpu, got tpu/);
  assert.equal((await wrong.call('create', {})).kind, 'gpu');
  await wrong.end();
});
