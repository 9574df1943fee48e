/** The engine on the CPU in real Chromium: kernels, logits and answers as elsewhere, and what it refuses. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, it } from 'node:test';
import { filesOf, fixtures, made, newEngine, nmse, root, start, tensor } from './harness.mjs';
import { synthetic } from './synthetic.mjs';

const program = process.env.BAYAN_NATIVE ?? join(root, 'target/debug/bayan');
const embedded = join(root, 'crates/embedded/checkpoint');
/** Where two logits are nearer than this, another order of sums may choose the other token. */
const CLEAR_GAP = 0.02;
const GREEDY = { temperature: 0, repetitionPenalty: 1, ignoreEos: true };

const json = (...path) => JSON.parse(readFileSync(join(fixtures, ...path), 'utf8'));
let site;
before(async () => {
  site = await start();
});
after(async () => {
  await site?.stop();
});

async function onCpu() {
  const engine = await newEngine(site.page);
  return { engine, device: await engine.call('create', { device: 'cpu' }) };
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
