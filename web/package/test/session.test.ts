import { createHash } from 'node:crypto';
import { MessageChannel } from 'node:worker_threads';
import { describe, expect, it, vi } from 'vitest';
import type { EngineModule } from '../src/engine';
import { checkDownload } from '../src/cpu';
import { asBayanError, BayanError, DeviceLost, fromWire, toWire } from '../src/errors';
import { LocalBackend } from '../src/local';
import { AsyncQueue } from '../src/queue';
import { RemoteBackend } from '../src/remote';
import { serve } from '../src/serve';
import { loadWith, type LoadOptions } from '../src/session';
import { Sha256 } from '../src/source/sha256';
import type { DeviceInfo, DownloadPlan, Source } from '../src/types';
import type { FromWorker, Port, ToWorker } from '../src/wire';

const source: Source = { kind: 'files', files: [{ path: 'model.gguf', file: new Blob([new Uint8Array(3_000_000)]) }] };
const user = (content: string) => [{ role: 'user' as const, content }];

async function fakeEngine(): Promise<EngineModule> {
  vi.resetModules();
  return (await import('./engine-fake')) as unknown as EngineModule;
}

/** The whole path: session, wire, channel, serve, local, engine. */
async function session(from: Source = source, options: LoadOptions = {}) {
  const engine = await fakeEngine();
  const { port1, port2 } = new MessageChannel();
  serve(
    port1 as unknown as Port<FromWorker, ToWorker>,
    new LocalBackend(
      async () => engine,
      async () => null,
    ),
  );
  const remote = new RemoteBackend(port2 as unknown as Port<ToWorker, FromWorker>, () => port2.close());
  port1.start();
  port2.start();
  const progress: string[] = [];
  const opened = await loadWith(remote, from, { onProgress: (p) => progress.push(p.phase), ...options });
  return { session: opened, progress, remote, engine };
}

async function collect(pieces: AsyncIterable<{ text: string }>): Promise<string> {
  let text = '';
  for await (const piece of pieces) text += piece.text;
  return text;
}

describe('a session over the wire', () => {
  it('loads, reports progress and describes itself', async () => {
    const { session: s, progress } = await session();
    expect(progress[0]).toBe('device');
    expect(progress.filter((p) => p === 'weights').length).toBe(3);
    expect(progress.at(-1)).toBe('ready');
    expect(s.info.model.weightBytes).toBe(3_000_000);
    expect(s.info.device.missing[0]).toContain('shader-f16');
    expect([...(await s.tokenize('سلام'))]).toEqual([...'سلام'].map((c) => c.codePointAt(0)));
    await s.dispose();
  });

  it('computes on the CPU when asked, and compiles nothing there', async () => {
    const { session: s, engine } = await session(source, { device: 'cpu' });
    expect(s.info.device.kind).toBe('cpu');
    const run = vi.spyOn(engine, 'generateFromIds');
    await s.warmUp();
    await expect(s.warmUp(0)).rejects.toThrow('warmUp: expected a whole number');
    expect(await collect(s.generate('سلام'))).toContain('أهلًا');
    await s.dispose();
    const { session: other, engine: second } = await session();
    expect(other.info.device.kind).toBe('gpu');
    const compile = vi.spyOn(second, 'generateFromIds');
    await other.warmUp();
    expect([run.mock.calls.length, compile.mock.calls.length]).toEqual([0, 1]);
    await other.dispose();
    await expect(session(source, { device: 'tpu' as 'cpu' })).rejects.toThrow('expected auto, gpu or cpu, got tpu');
  });

  it('refuses a model too large for the CPU before its download', () => {
    const cpu = { kind: 'cpu', adapter: 'CPU', paths: {}, missing: [], maxBufferBytes: 3e9, maxWeightBytes: 640e6 };
    const asked: number[] = [];
    const ask = (totalBytes: number, path: string, format: 'auto' | 'q8' = 'auto', device = cpu) => {
      const confirm = (plan: DownloadPlan) => asked.push(plan.neededBytes) > 0;
      const hooks = checkDownload(
        { source, options: { format }, confirmAboveBytes: 50e6 },
        { confirm },
        device as DeviceInfo,
      );
      const sizes = { totalBytes, presentBytes: 0, neededBytes: totalBytes, freeBytes: null };
      return hooks.confirm!({ label: 'm', files: [{ path, sizeBytes: totalBytes }], ...sizes });
    };
    // 0.6B parameters in 16 bits.
    expect(ask(1.2e9, 'model.safetensors')).toBe(true);
    expect(ask(4e8, 'model.gguf')).toBe(true);
    expect(ask(1e6, 'model.gguf')).toBe(true);
    expect(asked).toEqual([1.2e9, 4e8]);
    const refused = (...values: Parameters<typeof ask>) => {
      try {
        ask(...values);
      } catch (error) {
        return (error as BayanError).details;
      }
      return null;
    };
    expect(refused(3.4e9, 'model.safetensors')).toEqual({
      device: 'cpu',
      neededBytes: 956_250_000,
      availableBytes: 640e6,
    });
    expect(refused(1.4e9, 'model.safetensors', 'q8')?.neededBytes).toBe(743_750_000);
    expect(refused(1.2e9, 'model.gguf')?.neededBytes).toBe(1.2e9);
    expect(refused(3.4e9, 'model.safetensors', 'auto', { ...cpu, maxWeightBytes: undefined! })).toBe(null);
    expect(asked.length).toBe(3);
  });

  it('streams an answer with usage at the end', async () => {
    const { session: s } = await session();
    const pieces = [];
    for await (const piece of s.chat(user('مرحبا'), { sampling: { maxTokens: 4 } })) pieces.push(piece);
    expect(pieces.length).toBe(5);
    expect(pieces.at(-1)).toMatchObject({
      done: true,
      finishReason: 'length',
      tokens: 4,
      usage: { completionTokens: 4 },
    });
    expect((await s.refreshInfo()).speed!.decodeTokensPerSecond).toBeGreaterThan(0);
    await s.dispose();
  });

  it('stops by signal or by leaving the loop, then answers again', async () => {
    const { session: s } = await session();
    const abort = new AbortController();
    let count = 0;
    const run = (async () => {
      for await (const piece of s.chat(user('قصة طويلة'), { signal: abort.signal }))
        if (piece && ++count === 3) abort.abort();
    })();
    await expect(run).rejects.toMatchObject({ code: 'Aborted' });
    expect(count).toBeLessThan(50);
    for await (const piece of s.chat(user('قصة طويلة'))) if (piece.tokens === 2) break;
    expect(await collect(s.chat(user('الإصدار')))).toMatch(/^إجابة رقم/);
    await s.dispose();
  });

  it('runs answers one after another', async () => {
    const { session: s } = await session();
    const [a, b] = await Promise.all([collect(s.chat(user('الإصدار'))), collect(s.chat(user('الإصدار')))]);
    expect([a, b].sort()).toEqual(['إجابة رقم 1.', 'إجابة رقم 2.']);
    await s.dispose();
  });

  it('carries typed errors and a lost device across', async () => {
    const { session: s } = await session();
    await expect(collect(s.chat(user('سياق ممتلئ')))).rejects.toMatchObject({ code: 'ContextFull' });
    await expect(collect(s.chat(user('x'), { sampling: { temperature: 99 } }))).rejects.toThrow(/temperature/);
    await expect(collect(s.chat([]))).rejects.toThrow(/at least one/);
    const lost = new Promise<BayanError>((done) => (s.onLost = done));
    const error = await collect(s.chat(user('افقد الجهاز'))).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(DeviceLost);
    expect((await lost).code).toBe('DeviceLost');
    await expect(collect(s.chat(user('مرحبا')))).rejects.toBeInstanceOf(DeviceLost);
    await s.dispose();
  });

  it('loads adapters and refuses what is none', async () => {
    const { session: s } = await session();
    await expect(s.loadAdapter(source)).rejects.toMatchObject({ code: 'BadCheckpoint' });
    const files: Source = { kind: 'files', files: [{ path: 'adapter_config.json', file: new Blob(['{}']) }] };
    expect(await s.loadAdapter(files, { name: 'أ', scale: 0.5 })).toMatchObject({
      name: 'أ',
      scale: 0.5,
      parameters: 2,
    });
    await s.loadAdapter(files, { name: 'ب' });
    expect(s.info.adapters.map((adapter) => adapter.name)).toEqual(['أ', 'ب']);
    await s.unloadAdapter('أ');
    expect(s.info.adapters.map((adapter) => adapter.name)).toEqual(['ب']);
    await s.unloadAdapter();
    expect(s.info.adapters).toEqual([]);
    await s.dispose();
  });

  it('saves the cache and puts it back', async () => {
    const { session: s } = await session();
    await expect(s.saveState()).rejects.toThrow(BayanError);
    await collect(s.chat(user('مرحبا')));
    const bytes = await s.saveState();
    const { session: other } = await session();
    expect(await other.restoreState(new Blob([bytes as Uint8Array<ArrayBuffer>]))).toBe(2);
    expect(await other.saveState()).toEqual(bytes);
    const refused = await other.restoreState(Uint8Array.of(1, 2)).catch((error: BayanError) => error.code);
    expect(refused).toBe('BadInput');
    const large = other.restoreState(new Uint8Array(2e6)).catch((error: BayanError) => error.message);
    expect(await large).toMatch(/2000000 bytes: expected at most 1008192/);
    await Promise.all([s.dispose(), other.dispose()]);
  });

  it('fails every open call when the worker dies', async () => {
    const { session: s, remote } = await session();
    const answer = collect(s.chat(user('قصة طويلة')));
    const seen = vi.fn();
    s.onLost = seen;
    remote.fail(new DeviceLost('gone'));
    await expect(answer).rejects.toBeInstanceOf(DeviceLost);
    expect(seen).toHaveBeenCalledOnce();
    await expect(s.tokenize('x')).rejects.toBeInstanceOf(DeviceLost);
  });
});

describe('the OpenAI shape', () => {
  it('answers whole and streamed', async () => {
    const { session: s } = await session();
    const whole = await s.chat.completions.create({ messages: user('الإصدار'), max_tokens: 100 });
    expect(whole.choices[0]).toMatchObject({
      message: { role: 'assistant', content: 'إجابة رقم 1.' },
      finish_reason: 'stop',
    });
    expect(whole.usage.total_tokens).toBe(whole.usage.prompt_tokens + whole.usage.completion_tokens);
    let text = '';
    const finishes = [];
    for await (const chunk of await s.chat.completions.create({
      messages: user('الإصدار'),
      stream: true,
      stream_options: { include_usage: true },
    })) {
      text += chunk.choices[0]?.delta.content ?? '';
      if (chunk.choices[0]?.finish_reason) finishes.push(chunk.choices[0].finish_reason);
      if (chunk.usage) finishes.push(chunk.usage.completion_tokens);
    }
    expect(text).toBe('إجابة رقم 2.');
    expect(finishes).toEqual(['stop', 3]);
    await s.dispose();
  });

  it('passes every sampling setting on', async () => {
    const { session: s } = await session();
    const { choices } = await s.chat.completions.create({
      messages: [
        {
          role: 'user',
          content: [
            { type: 'text', text: 'أعد ' },
            { type: 'text', text: 'الإعدادات' },
          ],
        },
      ],
      model: 'any',
      temperature: 0.5,
      top_p: 0.9,
      top_k: 40,
      min_p: 0.05,
      repetition_penalty: 1.1,
      presence_penalty: 0.5,
      frequency_penalty: -0.5,
      max_tokens: 1000,
      seed: 7,
      stop: 'x',
      n: 1,
      parallel_tool_calls: false,
      logit_bias: { 7: -100 },
      chat_template_kwargs: { enable_thinking: false },
    });
    expect(JSON.parse(choices[0]!.message.content!)).toEqual({
      temperature: 0.5,
      topP: 0.9,
      topK: 40,
      minP: 0.05,
      repetitionPenalty: 1.1,
      presencePenalty: 0.5,
      frequencyPenalty: -0.5,
      maxTokens: 1000,
      seed: 7,
      stop: ['x'],
      parallelToolCalls: false,
      logitBias: { 7: -100 },
      templateVariables: { enable_thinking: false },
    });
    await s.dispose();
  });

  it('calls tools, whole and streamed, and takes their results', async () => {
    const { session: s, engine } = await session();
    const tools = ['طقس', 'add'].map((name) => ({ type: 'function' as const, function: { name } }));
    const request = { messages: user('ما الطقس؟'), tools, tool_choice: 'required' as const };
    const { message, finish_reason } = (await s.chat.completions.create(request)).choices[0]!;
    expect(message).toEqual({
      role: 'assistant',
      content: null,
      tool_calls: [
        { id: 'call_0', type: 'function', function: { name: 'طقس', arguments: '{"letters":3}' } },
        { id: 'call_1', type: 'function', function: { name: 'add', arguments: '{"letters":3}' } },
      ],
    });
    expect(finish_reason).toBe('tool_calls');
    const deltas = [];
    for await (const { choices } of await s.chat.completions.create({ ...request, stream: true }))
      deltas.push(...(choices[0]?.delta.tool_calls ?? []));
    expect(deltas.map(({ index, id }) => [index, id])).toEqual([
      [0, 'call_0'],
      [0, undefined],
      [0, undefined],
      [1, 'call_1'],
      [1, undefined],
      [1, undefined],
    ]);
    // The answer is a message of the next request as it is.
    const chat = vi.spyOn(engine, 'chat');
    const results = message.tool_calls!.map(({ id }) => ({ role: 'tool' as const, tool_call_id: id, content: 'مشمس' }));
    const next = [...request.messages, message, ...results];
    expect((await s.chat.completions.create({ messages: next, tools })).choices[0]!.finish_reason).toBe('stop');
    expect(JSON.parse(chat.mock.calls[0]![0])).toEqual(next);
    await s.dispose();
  });

  it('reports log-probabilities with the text', async () => {
    const { session: s } = await session();
    const request = { messages: user('الإصدار'), logprobs: true, top_logprobs: 2 };
    const whole = (await s.chat.completions.create(request)).choices[0]!;
    expect(whole.logprobs!.content.map(({ token }) => token).join('')).toBe(whole.message.content);
    expect(whole.logprobs!.content[0]!.top_logprobs.map(({ logprob }) => logprob)).toEqual([-1, -2]);
    const streamed = [];
    for await (const { choices } of await s.chat.completions.create({ ...request, stream: true }))
      for (const { delta, logprobs } of choices)
        if (logprobs) streamed.push([delta.content, logprobs.content[0]!.token]);
    expect(streamed.length).toBe(3);
    expect(streamed.every(([text, token]) => text === token)).toBe(true);
    expect((await s.chat.completions.create({ messages: user('الإصدار') })).choices[0]!.logprobs).toBe(null);
    await s.dispose();
  });

  it('refuses fields that it would have to ignore', async () => {
    const { session: s } = await session();
    const ask = (more: object) => s.chat.completions.create({ messages: user('x'), ...more });
    for (const [more, message] of [
      [{ functions: [] }, /functions is not supported; supported: messages/],
      [{ store: true }, /store is not supported/],
      [{ tools: 'f' }, /tools: expected a list of functions, got f/],
      [{ tool_choice: 3 }, /toolChoice: expected none, auto, required or an object/],
      [{ logprobs: 1 }, /logprobs: expected true or false, got 1/],
      [{ top_logprobs: 21 }, /topLogprobs: expected a whole number from 0 to 20/],
      [{ n: 2 }, /n: expected 1, got 2/],
      [{ stream_options: { include_obfuscation: true } }, /stream_options\.include_obfuscation is not supported/],
      [{ top_k: -1 }, /topK: expected a whole number from 0/],
      [{ messages: [{ role: 'robot', content: 'x' }] }, /role: expected one of system, .*, tool, got robot/],
      [{ messages: [{ role: 'assistant', content: null }] }, /content: expected text or parts of text, got null/],
      [
        { messages: [{ role: 'user', content: 'x', tool_call_id: 'y' }] },
        /tool_call_id is not a known field of the role/,
      ],
      [
        { messages: [{ role: 'user', content: [{ type: 'image_url' }] }] },
        /expected a part of type text, got image_url/,
      ],
      [{ messages: [{ role: 'user', content: 'x', weight: 1 }] }, /messages\[0\]\.weight is not a known field/],
    ] as [object, RegExp][])
      await expect(ask(more)).rejects.toThrow(message);
    // OpenAI's client sends null for what is not set.
    await ask({ tools: null, logprobs: undefined });
    await expect(loadWith({ dispose: async () => {} } as never, 'a/b', { formt: 'q4' } as never)).rejects.toThrow(
      /load: formt is not a known option; known: format/,
    );
    await s.dispose();
  });
});

describe('small parts', () => {
  it('maps thrown values to typed errors and back', () => {
    expect(fromWire(toWire(new DeviceLost('x', { reason: 'r' })))).toMatchObject({
      code: 'DeviceLost',
      details: { reason: 'r' },
    });
    expect(asBayanError('{"code":"OutOfMemory","message":"m"}').code).toBe('OutOfMemory');
    expect(asBayanError(Object.assign(new Error('m'), { code: 'ContextFull' })).code).toBe('ContextFull');
    expect(asBayanError(new RangeError('Array buffer allocation failed')).code).toBe('OutOfMemory');
    expect(asBayanError(new Error('constructor')).code).toBe('Internal');
    expect(fromWire({ code: 'constructor' as never, message: 'm' }).code).toBe('Internal');
  });

  it('hashes as everyone does, at every split', () => {
    for (const length of [0, 1, 55, 56, 63, 64, 65, 119, 128, 1000]) {
      const bytes = Buffer.alloc(length, 'بيان');
      const want = createHash('sha256').update(bytes).digest('hex');
      expect(new Sha256().update(bytes).hex()).toBe(want);
      const cut = Math.floor(length / 3);
      expect(new Sha256().update(bytes.subarray(0, cut)).update(bytes.subarray(cut)).hex()).toBe(want);
    }
  });

  it('queues in order and reports leaving', async () => {
    const left = vi.fn();
    const queue = new AsyncQueue<number>(left);
    queue.push(1);
    queue.push(2);
    for await (const n of queue) if (n === 2) break;
    expect(left).toHaveBeenCalledOnce();
  });
});
