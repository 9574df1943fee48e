/**
 * Tools, log-probabilities and saved states in real Chromium, on the CPU, which compiles no shaders. What the shared
 * code does is tested natively; here is what crosses into JavaScript.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, it } from 'node:test';
import { filesOf, fixtures, newEngine, root, start } from './harness.mjs';

const embedded = join(root, 'crates/embedded/checkpoint');
const user = (content) => ({ role: 'user', content });
const city = {
  type: 'object',
  properties: { city: { enum: ['القاهرة', 'الرباط'] } },
  required: ['city'],
  additionalProperties: false,
};
const tools = [{ type: 'function', function: { name: 'weather', description: 'الطقس', parameters: city } }];

let site;
let engine;
async function opened(folder, files, options = {}) {
  const made = await newEngine(site.page);
  await made.call('create', { device: 'cpu' });
  await made.call('open', folder, files, { contextLength: 512, ...options });
  return made;
}
const openEmbedded = (options) => opened('embedded/', filesOf(embedded), options);

before(async () => {
  site = await start();
  engine = await openEmbedded();
});
after(async () => {
  await site?.stop();
});

it('calls a tool and goes on with its result', async () => {
  const asked = [user('ما الطقس في القاهرة؟')];
  const first = await engine.call('chat', asked, { tools, toolChoice: 'required', parallelToolCalls: false });
  assert.deepEqual([first.finishReason, first.text], ['tool_calls', '']);
  const [{ index, id, type, function: begun }, ...rest] = first.toolCalls;
  assert.deepEqual([index, type, begun], [0, 'function', { name: 'weather', arguments: '' }]);
  const written = rest.map((delta) => delta.function.arguments).join('');
  assert.match(JSON.parse(written).city, /^(القاهرة|الرباط)$/);
  const calls = [{ id, type, function: { name: 'weather', arguments: written } }];
  const turns = [...asked, { role: 'assistant', content: null, tool_calls: calls }];
  const result = { role: 'tool', tool_call_id: id, content: 'مشمس' };
  const answer = await engine.call('chat', [...turns, result], { tools, maxTokens: 5 });
  assert.ok(answer.usage.promptTokens > first.usage.promptTokens && answer.usage.completionTokens > 0);
  for (const [messages, sampling, field] of [
    [turns, {}, 'messages'],
    [asked, { tools: [{ type: 'function', function: { name: 'a b' } }] }, 'tools[0].function'],
    [asked, { tools, responseFormat: { type: 'json_object' } }, 'tools'],
    [asked, { toolChoice: 'required' }, 'tool_choice'],
    [asked, { topLogprobs: 2 }, 'top_logprobs'],
    [asked, { logitBias: { x: 1 } }, 'logit_bias'],
    [asked, { responseFormat: { type: 'yaml' } }, 'response_format'],
  ]) {
    const { error } = await engine.attempt('chat', messages, sampling);
    assert.deepEqual([error?.code, error?.details?.field], ['BadInput', field], JSON.stringify(error));
  }
});

it('scores the tokens of an answer as the logits say', async () => {
  const sampling = { temperature: 0, maxTokens: 4, ignoreEos: true, logprobs: true, topLogprobs: 3 };
  const ids = await engine.call('tokenize', 'ما عاصمة مصر؟');
  const { ids: answer, logprobs } = await engine.call('generateFromIds', ids, sampling);
  assert.equal(logprobs.length, 4);
  const logits = await engine.call('logits', ids);
  const peak = Math.max(...logits);
  const sum = logits.reduce((total, logit) => total + Math.exp(logit - peak), 0);
  const expected = logits[answer[0]] - peak - Math.log(sum);
  assert.ok(Math.abs(logprobs[0].logprob - expected) < 1e-3, `${logprobs[0].logprob} and ${expected}`);
  assert.deepEqual(logprobs[0].top_logprobs[0].token, logprobs[0].token);
  assert.equal(logprobs[0].top_logprobs.length, 3);
  // A token that is banned is not chosen.
  const banned = await engine.call('generateFromIds', ids, { ...sampling, logitBias: { [answer[0]]: -100 } });
  assert.notEqual(banned.ids[0], answer[0]);
});

it('a saved conversation goes on in an engine with its model', async () => {
  const settings = { temperature: 0, maxTokens: 12 };
  const asked = [user('السلام عليكم')];
  const first = await engine.call('chat', asked, settings);
  const state = await engine.call('saveState');
  const next = [...asked, { role: 'assistant', content: first.text }, user('ما عاصمة مصر؟')];
  const expected = await engine.call('chat', next, settings);
  const other = await openEmbedded();
  const held = await other.call('restoreState', state);
  assert.ok(held >= first.usage.promptTokens, String(held));
  const again = await other.call('chat', next, settings);
  assert.deepEqual([again.text, again.usage.cachedTokens], [expected.text, expected.usage.cachedTokens]);
  assert.ok(again.usage.cachedTokens >= first.usage.promptTokens);
  const damaged = `${state.slice(0, 2000)}AAAA${state.slice(2004)}`;
  assert.match((await other.attempt('restoreState', damaged)).error.message, /damaged/);
  await other.end();
  const folder = 'qwen3_qknorm';
  const stranger = await opened(`models/${folder}/`, filesOf(join(fixtures, 'models', folder)));
  const { error } = await stranger.attempt('restoreState', state);
  assert.equal(error?.code, 'BadInput');
  assert.match(error.message, /saved from another model/);
  assert.equal((await stranger.attempt('saveState')).error?.code, 'BadInput');
  await stranger.end();
});
