/** The engine in real Chromium: the fixtures' logits and greedy answers, sessions, the error paths. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { filesOf, fixtures, made, newEngine, nmse, root, start, tensor } from './harness.mjs';
import { synthetic } from './synthetic.mjs';

const MODELS = ['qwen3_qknorm', 'qwen2_bias', 'llama3_gqa', 'mistral_swa'];
/** Where two logits are nearer than this, another order of sums may choose the other token. */
const CLEAR_GAP = 0.02;

const json = (...path) => JSON.parse(readFileSync(join(fixtures, ...path), 'utf8'));
let site;
before(async () => {
  site = await start();
});
after(async () => {
  await site?.stop();
});

async function opened(model, create = {}, options = {}) {
  const engine = await newEngine(site.page);
  const device = await engine.call('create', create);
  const info = await engine.call('open', `models/${model}/`, filesOf(join(fixtures, 'models', model)), {
    format: 'stored',
    cache: 'f32',
    ...options,
  });
  return { engine, device, info };
}

describe('greedy answers', () => {
  for (const model of MODELS) {
    for (const disable of [[], ['subgroups']]) {
      it(`${model} agrees with the fixtures${disable.length ? ' without subgroups' : ''}`, async () => {
        const { engine } = await opened(model, { disable });
        const prompts = json('expected', model, 'prompts.json');
        const { greedy } = json('expected', model, 'expected.json');
        let compared = 0;
        for (const [name, { ids, top1_gaps: gaps }] of Object.entries(greedy)) {
          const unclear = gaps.findIndex((gap) => gap < CLEAR_GAP);
          const wanted = unclear < 0 ? ids : ids.slice(0, unclear);
          const result = await engine.call('generateFromIds', prompts[name], {
            temperature: 0,
            repetitionPenalty: 1,
            maxTokens: ids.length,
            ignoreEos: true,
          });
          assert.deepEqual(result.ids.slice(0, wanted.length), wanted, name);
          compared += wanted.length;
        }
        assert.ok(compared > 20, `only ${compared} tokens were clear enough to compare`);
        await engine.end();
      });
    }
  }
});

describe('every architecture and every weight format', () => {
  for (const model of readdirSync(join(fixtures, 'models'))) {
    it(`${model}: the logits of transformers`, async () => {
      const { engine } = await opened(model);
      await agree(engine, model, join(fixtures, 'expected', model, 'expected.safetensors'), 1e-6);
      await engine.end();
    });
  }

  for (const file of readdirSync(join(fixtures, 'gguf')).filter((name) => name.endsWith('.gguf'))) {
    it(`${file}: the logits of its dequantized weights`, async () => {
      const [name, model] = [file.slice(0, -'.gguf'.length), file.split('-')[0]];
      made.one = folder({ [file]: readFileSync(join(fixtures, 'gguf', file)) });
      const engine = await newEngine(site.page);
      await engine.call('create', {});
      const info = await engine.call('open', 'one/', made.one.sizes, {
        format: 'f32',
        cache: 'f32',
      });
      assert.ok(info.hasChatTemplate);
      await agree(engine, model, join(fixtures, 'gguf', `${name}.expected.safetensors`), 1e-8);
      const cases = join(fixtures, 'expected', model, 'tokenizer_cases.json');
      if (existsSync(cases)) {
        const { text, ids } = json('expected', model, 'tokenizer_cases.json').cases.find((c) => /[ء-ي]/.test(c.text));
        assert.deepEqual(await engine.call('tokenize', text), ids);
      }
      await engine.end();
    });
  }

  it('pytorch_model.bin: the logits of transformers', async () => {
    const model = 'phi3_longrope';
    const from = join(fixtures, 'models', model);
    const files = Object.fromEntries(
      readdirSync(from)
        .filter((name) => name !== 'model.safetensors')
        .map((name) => [name, readFileSync(join(from, name))]),
    );
    made.one = folder({
      ...files,
      'pytorch_model.bin': readFileSync(join(fixtures, 'packed', `${model}.bin`)),
    });
    const engine = await newEngine(site.page);
    await engine.call('create', {});
    await engine.call('open', 'one/', made.one.sizes, {
      format: 'stored',
      cache: 'f32',
    });
    await agree(engine, model, join(fixtures, 'expected', model, 'expected.safetensors'), 1e-6);
    await engine.end();
  });
});

/** A checkpoint of files in memory, as `made` serves it. */
function folder(files) {
  return {
    sizes: Object.fromEntries(Object.entries(files).map(([name, bytes]) => [name, bytes.length])),
    read: (file, from, to) => files[file].subarray(from, to),
  };
}

/** Whether the engine's logits after a prompt of 33 tokens are those of a file. */
async function agree(engine, model, file, bound) {
  const error = nmse(
    tensor(file, 'r33.last_logits'),
    await engine.call('logits', json('expected', model, 'prompts.json').r33),
  );
  assert.ok(error < bound, `NMSE ${error}`);
}

describe('adapters', () => {
  for (const [name, model] of [
    ['llama3_r8_all', 'llama3_gqa'],
    ['qwen2_r4_rslora', 'qwen2_bias'],
  ]) {
    it(`${name} gives PEFT's logits; the base is unchanged after it`, async () => {
      const { engine } = await opened(model);
      const prompt = json('expected', model, 'prompts.json').r33;
      const [base, folder] = [await engine.call('logits', prompt), join(fixtures, 'lora', name)];
      const load = (options) =>
        engine.call('loadAdapter', `lora/${name}/adapter_final/`, filesOf(join(folder, 'adapter_final')), options);
      const tuned = tensor(join(folder, 'logits.safetensors'), 'final.r33.last_logits');
      const info = await load({ name: 'whole' });
      assert.equal(info.rank, json('lora', name, 'expected.json').r);
      assert.ok(nmse(tuned, base) > 1e-4, 'the adapter changes something');
      const error = nmse(tuned, await engine.call('logits', prompt));
      assert.ok(error < 1e-8, `NMSE ${error}`);
      await engine.call('unloadAdapter', 'whole');
      assert.deepEqual(await engine.call('logits', prompt), base);
      await load({ name: 'one', scale: 0.5 });
      await load({ name: 'two', scale: 0.5 });
      assert.ok(nmse(tuned, await engine.call('logits', prompt)) < 1e-8, 'two halves are a whole');
      assert.deepEqual(
        (await engine.call('info')).adapters.map((a) => [a.name, a.scale]),
        [
          ['one', 0.5],
          ['two', 0.5],
        ],
      );
      await engine.call('unloadAdapter');
      assert.deepEqual(await engine.call('logits', prompt), base);
      await engine.end();
    });
  }

  it('refuses an adapter of another model, and still answers', async () => {
    const { engine } = await opened('qwen3_qknorm');
    const foreign = await engine.attempt(
      'loadAdapter',
      'lora/llama3_r8_all/adapter_final/',
      filesOf(join(fixtures, 'lora/llama3_r8_all/adapter_final')),
      {},
    );
    assert.equal(foreign.error?.code, 'BadCheckpoint', JSON.stringify(foreign));
    const none = await engine.attempt(
      'loadAdapter',
      'models/qwen3_qknorm/',
      filesOf(join(fixtures, 'models/qwen3_qknorm')),
      {},
    );
    assert.equal(none.error?.code, 'BadCheckpoint', JSON.stringify(none));
    assert.deepEqual((await engine.call('info')).adapters, []);
    assert.equal(
      (
        await engine.call('generate', 'مرحبا', {
          maxTokens: 3,
          ignoreEos: true,
        })
      ).usage.completionTokens,
      3,
    );
    await engine.end();
  });
});

it('native and browser agree: prompts, ids, greedy answers', async () => {
  const program = process.env.BAYAN_NATIVE ?? join(root, 'target/debug/bayan');
  const folder = mkdtempSync(join(tmpdir(), 'bayan-'));
  const native = (model, requests) => {
    const file = join(folder, 'requests.json');
    writeFileSync(
      file,
      JSON.stringify({
        version: 1,
        model,
        adapter: null,
        requests: requests.map((request, id) => ({
          id: String(id),
          ...request,
        })),
      }),
    );
    const output = execFileSync(program, ['conformance', '--request', file, '--cache', 'f32', '--disable', 'f16'], {
      encoding: 'utf8',
      maxBuffer: 1 << 26,
    });
    return JSON.parse(output.trim().split('\n').at(-1)).responses;
  };
  const embedded = join(root, 'crates/embedded/checkpoint');
  const questions = ['السلام عليكم', 'ما عاصمة الأردن؟', 'كيف أصنع القهوة؟', 'كم يساوي ٩ - ٤؟'];
  for (const [model, served, files] of [
    [embedded, 'embedded/', filesOf(embedded)],
    [join(fixtures, 'models/qwen3_qknorm'), 'models/qwen3_qknorm/', filesOf(join(fixtures, 'models/qwen3_qknorm'))],
  ]) {
    const rendered = native(
      model,
      questions.map((content) => ({
        op: 'chat',
        messages: [{ role: 'user', content }],
        add_generation_prompt: true,
      })),
    ).map(({ text }) => text);
    const engine = await newEngine(site.page);
    await engine.call('create', {});
    await engine.call('open', served, files, {
      format: 'stored',
      cache: 'f32',
    });
    const ids = [];
    for (const text of rendered) ids.push(await engine.call('tokenize', text));
    const length = 24;
    const wanted = native(model, [
      ...rendered.map((text) => ({
        op: 'encode',
        text,
        add_special_tokens: false,
      })),
      ...ids.map((list) => ({
        op: 'generate',
        ids: list,
        max_new_tokens: length,
        greedy: true,
        ignore_eos: true,
      })),
    ]).map((response) => response.ids);
    assert.deepEqual(ids, wanted.slice(0, ids.length));
    for (const [i, prompt] of ids.entries()) {
      const answer = await engine.call('generateFromIds', prompt, {
        temperature: 0,
        repetitionPenalty: 1,
        maxTokens: length,
        ignoreEos: true,
      });
      assert.deepEqual(answer.ids, wanted[ids.length + i], questions[i]);
    }
    await engine.end();
  }
  rmSync(folder, { recursive: true });
});

describe('GPU work per token', () => {
  it('a token creates no GPU object and does not block the next', async () => {
    const engine = await newEngine(site.page);
    await engine.call('watch');
    await engine.call('create', {});
    await engine.call('open', 'embedded/', filesOf(join(root, 'crates/embedded/checkpoint')), { format: 'stored' });
    const prompt = Array.from({ length: 20 }, (_, i) => 100 + i);
    const sampling = { temperature: 0, maxTokens: 32, ignoreEos: true };
    await engine.call('generateFromIds', prompt, sampling);
    await engine.call('asked');
    await engine.call('generateFromIds', prompt, sampling);
    const asked = await engine.call('asked');
    assert.deepEqual([...new Set(asked)].sort(), ['mapAsync', 'mapped', 'submit'], 'only submissions and reads');
    assert.equal(asked.filter((name) => name === 'mapAsync').length, 32, 'one read a token');
    // When the token of step n arrives, steps n + 1 and n + 2 have been submitted.
    let [submitted, arrived, late] = [0, 0, 0];
    for (const name of asked) {
      if (name === 'mapAsync') submitted++;
      if (name === 'mapped' && ++arrived < 30 && submitted - arrived < 2) late++;
    }
    assert.equal(late, 0, asked.join(' '));
    await engine.end();
  });
});

it('a checkpoint larger than memory is quantized as it streams', async () => {
  const embedded = join(root, 'crates/embedded/checkpoint');
  made.large = synthetic(embedded, {
    hidden: 1024,
    intermediate: 2816,
    layers: 4,
    heads: 16,
    vocabulary: 96_000,
  });
  const { sizes, largestTensorBytes } = made.large;
  assert.ok(sizes['model.safetensors'] > 256e6 && largestTensorBytes > 180e6);
  const engine = await newEngine(site.page);
  await engine.call('create', {});
  const start = (await engine.call('info')).wasmBytes;
  await engine.call('open', 'large/', sizes, {
    format: 'q4',
    contextLength: 64,
  });
  const { wasmBytes, gpuBytes } = await engine.call('info');
  const megabytes = (bytes) => `${(bytes / 1e6).toFixed(0)} MB`;
  console.log(
    `  ${megabytes(sizes['model.safetensors'])} of weights, ${megabytes(gpuBytes)} on the device, ` +
      `${megabytes(wasmBytes)} of wasm memory, ${megabytes(start)} before`,
  );
  // WebAssembly memory never shrinks, so its size now is its peak. The limit is 256 MB; a copy of one tensor alone
  // would be visible far below that.
  assert.ok(wasmBytes < 128e6, `${wasmBytes} bytes`);
  assert.equal(
    (
      await engine.call('generateFromIds', [1, 2, 3], {
        temperature: 0,
        maxTokens: 2,
        ignoreEos: true,
      })
    ).ids.length,
    2,
  );
  await engine.end();
  delete made.large;
});

describe('a session', () => {
  const say = [{ role: 'user', content: 'مرحبا، كيف حالك؟' }];

  it('streams, reports, reuses the cache, aborts, answers again', async () => {
    const { engine, device, info } = await opened('qwen3_qknorm');
    assert.ok(
      device.missing.some((m) => m.startsWith('shader-f16')),
      'SwiftShader has no f16, and that is said',
    );
    assert.equal(info.architecture, 'qwen3');
    assert.ok(info.hasChatTemplate && info.parameters > 100_000 && info.weightBytes > 0 && info.cacheBytes > 0);
    assert.equal((await engine.events()).progress.at(-1)[0], (await engine.events()).progress.at(-1)[1]);
    const sampling = {
      temperature: 0.8,
      topK: 20,
      seed: 7,
      maxTokens: 96,
      ignoreEos: true,
    };
    const first = await engine.call('chat', say, sampling);
    assert.equal(first.usage.completionTokens, 96);
    assert.equal(first.finishReason, 'length');
    assert.ok(first.pieces.length > 1, JSON.stringify(first));
    assert.ok(first.usage.prefillMs > 0 && first.usage.decodeMs > 0, JSON.stringify(first.usage));
    const second = await engine.call('chat', say, sampling);
    assert.equal(second.text, first.text, 'the same seed gives the same answer');
    assert.ok(second.usage.cachedTokens > 0);
    const aborted = await engine.attempt('chat', say, { ...sampling, maxTokens: 500 }, 5);
    assert.equal(aborted.error?.code, 'Aborted');
    assert.equal((await engine.call('chat', say, sampling)).text, first.text, 'an abort leaves a usable cache');
    const live = await engine.call('info');
    assert.ok(live.speed.decodeTokensPerSecond > 0 && live.wasmBytes < 256e6);
    await engine.end();
  });

  it('penalties change the choice of tokens that occurred', async () => {
    const { engine } = await opened('qwen3_qknorm');
    const ids = async (more) => {
      const settings = { temperature: 0, repetitionPenalty: 1, maxTokens: 24, ignoreEos: true, ...more };
      return (await engine.call('generateFromIds', [5, 6, 7], settings)).ids;
    };
    const repeats = (list) => list.length - new Set(list).size;
    const plain = await ids({});
    for (const name of ['presencePenalty', 'frequencyPenalty']) {
      assert.deepEqual(await ids({ [name]: 0 }), plain, name);
      assert.ok(repeats(await ids({ [name]: 2 })) < repeats(plain), `${name}: ${plain}`);
    }
    await engine.end();
  });

  it('tokenizes as the fixtures say', async () => {
    const { engine } = await opened('qwen3_qknorm');
    const { cases } = json('expected', 'qwen3_qknorm', 'chat_cases.json');
    const plain = cases.find((c) => c.rendered && c.ids && !c.rendered.includes('<|'));
    const text = 'مرحبا بالعالم 123';
    const ids = await engine.call('tokenize', text);
    assert.ok(ids.length > 0);
    assert.equal(await engine.call('detokenize', ids), text);
    if (plain) assert.deepEqual(await engine.call('tokenize', plain.rendered), plain.ids);
    await engine.end();
  });

  it('says when the conversation does not fit', async () => {
    const { engine, info } = await opened('qwen3_qknorm', {}, { contextLength: 32 });
    assert.equal(info.contextLength, 32);
    const { error } = await engine.attempt('generate', 'كلمة '.repeat(100), {
      maxTokens: 4,
    });
    assert.equal(error?.code, 'ContextFull');
    assert.equal(error.details.contextLength, 32);
    assert.ok(error.details.tokens > 32);
    const full = await engine.call('generate', 'كلمة', {
      temperature: 0,
      ignoreEos: true,
    });
    assert.equal(full.finishReason, 'context');
    await engine.end();
  });

  it('refuses damaged checkpoints, then opens a good one', async () => {
    const engine = await newEngine(site.page);
    await engine.call('create', {});
    assert.equal((await engine.attempt('open', 'models/none/', {}, {})).error?.code, 'BadCheckpoint');
    const files = filesOf(join(fixtures, 'models/qwen3_qknorm'));
    const shrunk = { ...files, 'model-00002-of-00002.safetensors': 1000 };
    assert.equal((await engine.attempt('open', 'models/qwen3_qknorm/', shrunk, {})).error?.code, 'BadCheckpoint');
    assert.equal(
      (await engine.attempt('open', 'models/nowhere/', files, {})).error?.code,
      'Network',
      "the reader's own error arrives unchanged",
    );
    await engine.call('open', 'models/qwen3_qknorm/', files, {});
    assert.ok(
      (
        await engine.call('generate', 'مرحبا', {
          maxTokens: 3,
          ignoreEos: true,
        })
      ).usage.completionTokens === 3,
    );
    await engine.end();
  });

  it('reports a lost device once; a new engine works', async () => {
    const { engine } = await opened('qwen3_qknorm');
    await engine.call('destroyDevice');
    const { error } = await engine.attempt('chat', say, { maxTokens: 3 });
    assert.equal(error?.code, 'DeviceLost');
    const { lost } = await engine.events();
    assert.equal(lost.length, 1);
    assert.equal(lost[0].code, 'DeviceLost');
    await engine.end();
    const again = await opened('qwen3_qknorm');
    assert.equal((await again.engine.call('chat', say, { maxTokens: 3, ignoreEos: true })).usage.completionTokens, 3);
    await again.engine.call('dispose');
    assert.equal((await again.engine.events()).lost.length, 0, 'disposing is no loss');
    await again.engine.end();
  });

  it('quantizes while it loads and still answers', async () => {
    for (const format of ['q4', 'q8', 'f16']) {
      const { engine, info } = await opened('llama3_gqa', {}, { format });
      assert.equal(info.format, { q4: 'q4_0', q8: 'q8_0', f16: 'f16' }[format]);
      assert.equal(
        (
          await engine.call('generate', 'مرحبا', {
            temperature: 0,
            maxTokens: 8,
            ignoreEos: true,
          })
        ).usage.completionTokens,
        8,
      );
      await engine.end();
    }
  });

  it('gives the same ids for a prompt as a whole or in parts', async () => {
    const prompt = json('expected', 'qwen3_qknorm', 'prompts.json').r129;
    const answers = [];
    for (const prefillChunk of [512, 16, 7, null]) {
      const { engine } = await opened('qwen3_qknorm', {}, { prefillChunk });
      answers.push(
        (
          await engine.call('generateFromIds', prompt, {
            temperature: 0,
            repetitionPenalty: 1,
            maxTokens: 8,
            ignoreEos: true,
          })
        ).ids,
      );
      await engine.end();
    }
    for (const ids of answers) assert.deepEqual(ids, answers[0]);
  });
});

it('refuses a feature that does not exist', async () => {
  const engine = await newEngine(site.page);
  const { error } = await engine.attempt('create', { disable: ['nothing'] });
  assert.match(error.message, /unknown feature `nothing`/);
  await engine.end();
});
