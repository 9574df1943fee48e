/**
 * Asks a running `bayan serve` with the official `@anthropic-ai/sdk` package, as its users do.
 *
 *     node anthropic_client.mjs http://127.0.0.1:8080 FOLDER [KEY]
 *
 * FOLDER is where `npm install @anthropic-ai/sdk` was run. Every check fails loudly; the last line counts them. The
 * package is unmodified and has default settings.
 */
import { check, load, refused, summary } from './checks.mjs';

const [url, folder, key = 'none'] = process.argv.slice(2);
const { module, version } = await load(folder, '@anthropic-ai/sdk');
const Anthropic = module.default;
const client = new Anthropic({ baseURL: url, apiKey: key });

const model = 'embedded';
const messages = [{ role: 'user', content: 'السلام عليكم' }];
const common = { model, messages, temperature: 0, max_tokens: 40 };
const whole = await client.messages.create(common);
const text = whole.content[0].text;
check(`a question is answered: ${text}`, text && ['end_turn', 'max_tokens'].includes(whole.stop_reason));
const count = (await client.messages.countTokens({ model, messages })).input_tokens;
check(
  `countTokens is ${count}, as in the usage`,
  count === whole.usage.input_tokens + whole.usage.cache_read_input_tokens,
);

const pieces = [];
const stream = client.messages.stream(common).on('text', (piece) => pieces.push(piece));
const final = await stream.finalMessage();
check(
  `a stream of ${pieces.length} pieces is the same text`,
  pieces.join('') === text && final.content[0].text === text,
);
check("the stream's usage is the same", final.usage.output_tokens === whole.usage.output_tokens);
const events = [];
for await (const event of await client.messages.create({ ...common, stream: true })) events.push(event.type);
check('a raw stream begins and ends', events[0] === 'message_start' && events.at(-1) === 'message_stop');

const stop = text.slice(4, 7);
const stopped = await client.messages.create({ ...common, stop_sequences: [stop] });
check(`the text ${stop} ends the answer`, stopped.stop_reason === 'stop_sequence' && stopped.stop_sequence === stop);

const cities = ['القاهرة', 'دمشق'];
const schema = {
  type: 'object',
  properties: { city: { enum: cities } },
  required: ['city'],
  additionalProperties: false,
};
const asked = {
  ...common,
  tools: [{ name: 'get_weather', description: 'حالة الطقس في مدينة', input_schema: schema }],
  tool_choice: { type: 'any', disable_parallel_tool_use: true },
  max_tokens: 300,
};
const called = await client.messages.create(asked);
const block = called.content.at(-1);
check(
  `a tool is called: ${block.name}(${JSON.stringify(block.input)})`,
  called.stop_reason === 'tool_use' && cities.includes(block.input.city),
);
const streamed = (await client.messages.stream(asked).finalMessage()).content.at(-1);
check(
  'the streamed call is the same',
  streamed.name === block.name && JSON.stringify(streamed.input) === JSON.stringify(block.input),
);
const result = { type: 'tool_result', tool_use_id: block.id, content: 'مشمس' };
const turns = [...messages, { role: 'assistant', content: called.content }, { role: 'user', content: [result] }];
const after = await client.messages.create({
  ...asked,
  messages: turns,
  tool_choice: { type: 'none' },
  max_tokens: 10,
});
check('the conversation goes on after the result', after.usage.output_tokens > 0);

await refused('an unknown model', Anthropic.NotFoundError, () => client.messages.create({ ...common, model: 'x' }));
await refused('a wrong value', Anthropic.BadRequestError, () => client.messages.create({ ...common, top_p: 7 }));
const image = { type: 'image', source: { type: 'url', url: 'http://x' } };
await refused('an image', Anthropic.BadRequestError, () =>
  client.messages.create({ ...common, messages: [{ role: 'user', content: [image] }] }),
);
summary('@anthropic-ai/sdk', version);
