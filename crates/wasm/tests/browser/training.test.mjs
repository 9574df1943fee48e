/** Training in real Chromium: PEFT's losses, the native program's, a pause to the bit, and what is refused. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { filesOf, fixtures, made, newEngine, nmse, root, start } from './harness.mjs';

const program = process.env.BAYAN_NATIVE ?? join(root, 'target/debug/bayan');
const json = (...path) => JSON.parse(readFileSync(join(fixtures, ...path), 'utf8'));
/** The precision in which the command line trains. */
const DISABLE = ['f16', 'dot'];
const MODEL = 'llama3_gqa';
let site;
let folder;
before(async () => {
  site = await start();
  folder = mkdtempSync(join(tmpdir(), 'bayan-'));
});
after(async () => {
  await site?.stop();
  rmSync(folder, { recursive: true });
});

async function trainer() {
  const engine = await newEngine(site.page);
  await engine.call('create', { disable: DISABLE });
  return engine;
}

/** Tensors of f32 in a safetensors file, by name. */
function tensors(bytes) {
  const start = 8 + Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.subarray(8, start).toString());
  delete header.__metadata__;
  const numbers = ([from, to]) =>
    Array.from({ length: (to - from) / 4 }, (_, i) => bytes.readFloatLE(start + from + 4 * i));
  return Object.fromEntries(Object.entries(header).map(([name, { data_offsets }]) => [name, numbers(data_offsets)]));
}

const squared = (a, b) => a.reduce((sum, value, i) => sum + (value - b[i]) ** 2, 0);
const written = (files) => Object.entries(files).map(([name, text]) => [name, Buffer.from(text, 'base64')]);

/** The native trainer is compared with PEFT, and the run below with the native trainer; this takes another minute. */
const skip = process.env.BAYAN_LONG ? false : 'BAYAN_LONG=1 runs it';

describe('twenty steps', { skip }, () => {
  for (const name of ['qwen2_r4_rslora'])
    it(`${name}: the losses and the adapter of PEFT`, async () => {
      const expected = json('lora', name, 'expected.json');
      const engine = await trainer();
      const initial = join(fixtures, 'lora', name, 'adapter_init');
      const { losses, files } = await engine.call(
        'loraSteps',
        `models/${expected.model}/`,
        filesOf(join(fixtures, 'models', expected.model)),
        `lora/${name}/adapter_init/`,
        filesOf(initial),
        { micro_batches: expected.micro_batches, optimizer: expected.optimizer, loss_normalization: 'token_mean' },
      );
      const log = expected.training.token_mean.log;
      assert.equal(losses.length, 20);
      assert.equal(log.length, 20);
      const worst = Math.max(...losses.map((loss, at) => Math.abs(loss - log[at].loss)));
      const of = (path) => tensors(readFileSync(join(path, 'adapter_model.safetensors')));
      const [first, last] = [of(initial), of(join(fixtures, 'lora', name, 'adapter_final'))];
      const found = tensors(Buffer.from(files['adapter_model.safetensors'], 'base64'));
      assert.deepEqual(Object.keys(found).sort(), Object.keys(last).sort());
      let [error, moved] = [0, 0];
      for (const [tensor, values] of Object.entries(last)) {
        error += squared(values, found[tensor]);
        moved += squared(values, first[tensor]);
      }
      const relative = Math.sqrt(error / moved);
      console.log(`  losses off by ${worst.toExponential(1)}, the adapter by ${relative.toExponential(1)}`);
      // The bounds of the native suite (crates/train/src/engine/tests.rs).
      assert.ok(worst < 3e-4, `a loss is off by ${worst}`);
      assert.ok(relative < 3e-4, `the adapter is off by ${relative} of its movement`);
      await engine.end();
    });
});

/** One pack: kernels are compiled for each size of a batch, and that takes most of the time here. */
const ROWS = [
  ['من أنت؟', 'أنا عم رضا.'],
  ['شكرا', 'العفو.'],
].map(([prompt, response]) => ({ prompt, response }));
const EXAMPLES = ROWS.map((row) => `${JSON.stringify(row)}\n`).join('');
const RECIPE = {
  rank: 4,
  alpha: 8,
  dropout: 0.1,
  batch_size: 1,
  packing: true,
  max_steps: 20,
  max_seq_length: 256,
  learning_rate: 2e-3,
  warmup_steps: 1,
  save_every: 10,
  seed: 3,
};
const base64 = (text) => Buffer.from(text).toString('base64');
const prepare = (engine, recipe = RECIPE, examples = { 'train.jsonl': base64(EXAMPLES) }) =>
  engine.attempt('prepareTraining', `models/${MODEL}/`, filesOf(join(fixtures, 'models', MODEL)), examples, {
    format: 'stored',
    recipe,
  });

/** The plan of a run that must be accepted. */
async function planOf(engine, ...values) {
  const { value, error } = await prepare(engine, ...values);
  assert.equal(error, undefined, error?.message);
  return value;
}

describe('a run', () => {
  it('equals the native run, also after a pause', async () => {
    const engine = await trainer();
    const plan = await planOf(engine);
    assert.equal(plan.steps, 20);
    assert.equal(plan.examples, ROWS.length);
    assert.equal(plan.stepsPerEpoch, 1);
    assert.ok(plan.memory.total > plan.memory.base && plan.memory.base > 0);
    // Measuring changes nothing: the run below is compared with one that was not measured.
    assert.ok((await engine.call('measureTraining')) > 0);
    const whole = await engine.call('train', null, null);
    assert.equal(whole.report.end, 'done');
    assert.ok(whole.report.peakBytes > plan.memory.base);
    // A second run from the start, in the same engine.
    const paused = await engine.call('train', null, 7);
    assert.deepEqual([paused.report.end, paused.report.steps], ['paused', 7]);
    // As after a closed tab: the base is loaded again, and only the files of the checkpoint are there. The device is
    // the same, so that its kernels need not be compiled again.
    await planOf(engine);
    const resumed = await engine.call('train', paused.saved, null);
    const steps = (run) => run.events.filter(({ kind }) => kind === 'step');
    const losses = (run) => steps(run).map(({ loss }) => loss);
    assert.deepEqual([...losses(paused), ...losses(resumed)], losses(whole));
    assert.deepEqual(resumed.files, whole.files, 'the adapter is the same to the bit');
    assert.deepEqual(resumed.saved, whole.saved, 'and so is the checkpoint');

    const other = await planOf(engine, { ...RECIPE, learning_rate: 1e-3 });
    assert.ok(other.steps > 0);
    const foreign = await engine.attempt('train', paused.saved, null);
    assert.equal(foreign.error?.code, 'BadInput');
    assert.match(foreign.error.message, /learning_rate/);
    const damaged = { ...paused.saved, 'optimizer.safetensors': paused.saved['optimizer.safetensors'].slice(0, 400) };
    await planOf(engine);
    assert.equal((await engine.attempt('train', damaged, null)).error?.code, 'BadInput');
    await engine.end();

    const [data, output] = [join(folder, 'train.jsonl'), join(folder, 'run')];
    writeFileSync(data, EXAMPLES);
    const config = join(folder, 'recipe.toml');
    writeFileSync(
      config,
      Object.entries(RECIPE)
        .map(([name, value]) => `${name} = ${value}\n`)
        .join(''),
    );
    const of = ['--config', config, '--model', join(fixtures, 'models', MODEL), '--data', data, '--output', output];
    const lines = execFileSync(program, ['finetune', ...of, '--json'], { encoding: 'utf8' });
    const estimate = lines.split('\n').find((line) => line.includes('"event":"memory"'));
    assert.equal(plan.memory.total, JSON.parse(estimate).total);
    const log = readFileSync(join(output, 'train_log.jsonl'), 'utf8').trim().split('\n').map(JSON.parse);
    const worst = Math.max(...log.map(({ loss }, at) => Math.abs(loss - losses(whole)[at])));
    console.log(`  losses differ from the native program's by ${worst.toExponential(1)}`);
    assert.equal(log.length, 20);
    assert.ok(worst < 3e-4, `a loss differs by ${worst}`);
    assert.ok(losses(whole)[19] < losses(whole)[0], `${losses(whole)}`);
    assert.deepEqual(JSON.parse(Buffer.from(whole.files['adapter_config.json'], 'base64')), {
      ...JSON.parse(readFileSync(join(output, 'adapter_config.json'))),
      base_model_name_or_path: null,
    });

    for (const [name, bytes] of written(whole.files)) writeFileSync(join(folder, name), bytes);
    const prompt = json('expected', MODEL, 'prompts.json').r33;
    const request = join(folder, 'request.json');
    const requests = [{ id: '0', op: 'logits', ids: prompt, full_last: true }];
    const model = join(fixtures, 'models', MODEL);
    writeFileSync(request, JSON.stringify({ version: 1, model, adapter: folder, requests }));
    const options = ['conformance', '--request', request, '--cache', 'f32', '--disable', 'f16,dot'];
    const answer = JSON.parse(execFileSync(program, options, { encoding: 'utf8', maxBuffer: 1 << 26 }));
    const chat = await newEngine(site.page);
    await chat.call('create', {});
    await chat.call('open', `models/${MODEL}/`, filesOf(model), { format: 'stored', cache: 'f32' });
    const base = await chat.call('logits', prompt);
    await chat.call('loadHeldAdapter', whole.files);
    const tuned = await chat.call('logits', prompt);
    const error = nmse(answer.responses[0].last_logits, tuned);
    assert.ok(nmse(tuned, base) > 1e-6, 'the adapter changes something');
    assert.ok(error < 1e-8, `NMSE ${error}`);
    await chat.end();
  });

  it('takes tokenizer and template from a GGUF file', async () => {
    const engine = await trainer();
    const file = 'qwen2_bias-Q4_0.gguf';
    const bytes = readFileSync(join(fixtures, 'gguf', file));
    made.gguf = { sizes: { [file]: bytes.length }, read: (_, from, to) => bytes.subarray(from, to) };
    const examples = { 'train.jsonl': base64(EXAMPLES) };
    const options = { format: 'stored', recipe: { ...RECIPE, max_steps: 2 } };
    const plan = await engine.call('prepareTraining', 'gguf/', made.gguf.sizes, examples, options);
    assert.deepEqual([plan.examples, plan.steps], [ROWS.length, 2]);
    assert.ok(plan.trainedTokens > 0);
    await engine.end();
  });

  it('refuses unusable examples and settings, and says why', async () => {
    const engine = await trainer();
    for (const [recipe, examples, wanted] of [
      [{ learning_rat: 1 }, EXAMPLES, /learning_rate/],
      [{ rank: 0 }, EXAMPLES, /rank/],
      [{ full: true }, EXAMPLES, /full/],
      [{ data: 'x.jsonl' }, EXAMPLES, /data/],
      [RECIPE, '{"prompt": "a", "response": "b"}\n{"prompt": "a", "respo', /line 2/],
      [RECIPE, '{"title": "a"}\n', /examples|train\.jsonl/],
      [RECIPE, '', /example/],
      [RECIPE, '\u0000\u0001\ufffd', /train\.jsonl/],
    ]) {
      const { error } = await prepare(engine, recipe, { 'train.jsonl': base64(examples) });
      assert.equal(error?.code, 'BadInput', `${JSON.stringify(recipe)}: ${JSON.stringify(error)}`);
      assert.match(error.message, wanted);
    }
    assert.equal((await prepare(engine, RECIPE, {})).error?.code, 'BadInput');
    const parquet = { 'train.parquet': base64('PAR1') };
    assert.match((await prepare(engine, RECIPE, parquet)).error.message, /parquet/);
    assert.equal((await engine.attempt('train', null, null)).error?.code, 'Internal', 'nothing is prepared');
    const table = { 'train.csv': base64('prompt,response\nمن أنت؟,أنا رضا\n'), 'valid.jsonl': base64(EXAMPLES) };
    const plan = await planOf(engine, RECIPE, table);
    assert.deepEqual([plan.examples, plan.evaluated], [1, ROWS.length]);
    await engine.end();
  });
});
