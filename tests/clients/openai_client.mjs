/**
 * Asks a running `bayan serve` with the official `openai` package, as its users do.
 *
 *     node openai_client.mjs http://127.0.0.1:8080/v1 FOLDER [KEY]
 *
 * FOLDER is where `npm install openai` was run. Every check fails loudly; the last line counts them. The package is
 * unmodified and has default settings.
 */
import { check, load, refused, summary } from './checks.mjs';

const [url, folder, key = 'none'] = process.argv.slice(2);
const { module, version } = await load(folder, 'openai');
const OpenAI = module.default;
const client = new OpenAI({ baseURL: url, apiKey: key });

const models = [];
for await (const each of client.models.list()) models.push(each.id);
check(`models.list gives ${models}`, models.length === 1);
const model = models[0];
check('models.retrieve', (await client.models.retrieve(model)).id === model);

const messages = [{ role: 'user', content: 'السلام عليكم' }];
const common = { model, messages, temperature: 0, max_tokens: 40 };
const chat = (more = {}) => client.chat.completions.create({ ...common, ...more });
const whole = await chat();
const text = whole.choices[0].message.content;
check(`a chat is answered: ${text}`, text && ['stop', 'length'].includes(whole.choices[0].finish_reason));
check('usage adds up', whole.usage.total_tokens === whole.usage.prompt_tokens + whole.usage.completion_tokens);

const pieces = [];
let usage = null;
for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) {
  usage = chunk.usage ?? usage;
  pieces.push(...chunk.choices.map((choice) => choice.delta.content ?? ''));
}
check(`a stream of ${pieces.length} pieces is the same text`, pieces.join('') === text);
check("the stream's usage is the same", usage.completion_tokens === whole.usage.completion_tokens);
check(
  'the stream helper collects the same text',
  (await client.chat.completions.stream(common).finalContent()) === text,
);

const drawn = { temperature: 1.2, n: 3, seed: 7 };
const many = await chat({ ...drawn, logprobs: true, top_logprobs: 2 });
check('three choices', many.choices.map((choice) => choice.index).join() === '0,1,2');
const scores = many.choices[0].logprobs.content;
check('log-probabilities with two alternatives', scores.length > 0 && scores.every((e) => e.top_logprobs.length === 2));
const texts = (answer) => answer.choices.map((choice) => choice.message.content).join('\0');
check('the same seed gives the same choices', texts(many) === texts(await chat(drawn)));

const stop = text.slice(4, 7);
const stopped = await chat({ stop: [stop] });
check(`the text ${stop} ends the answer`, stopped.choices[0].message.content === text.split(stop)[0]);

const plain = await client.completions.create({
  model,
  prompt: 'عاصمة فرنسا',
  max_tokens: 4,
  temperature: 0,
  echo: true,
  logprobs: 1,
});
const [first, ...rest] = plain.choices[0].logprobs.token_logprobs;
check('completions echo the prompt', plain.choices[0].text.startsWith('عاصمة فرنسا'));
check('the prompt is scored', first === null && rest.every((value) => value <= 0));

const cities = ['القاهرة', 'دمشق'];
const schema = {
  type: 'object',
  properties: { city: { enum: cities }, hot: { type: 'boolean' } },
  required: ['city', 'hot'],
  additionalProperties: false,
};
const form = { type: 'json_schema', json_schema: { name: 'weather', schema, strict: true } };
const value = JSON.parse((await chat({ max_tokens: 400, response_format: form })).choices[0].message.content);
check(`a schema is followed: ${JSON.stringify(value)}`, cities.includes(value.city) && typeof value.hot === 'boolean');

const definition = { name: 'get_weather', description: 'حالة الطقس في مدينة', parameters: schema, strict: true };
const asked = {
  max_tokens: 450,
  tools: [{ type: 'function', function: definition }],
  tool_choice: 'required',
  parallel_tool_calls: false,
};
const called = (await chat(asked)).choices[0];
const call = called.message.tool_calls[0];
check(
  `a tool is called: ${call.function.name}(${call.function.arguments})`,
  called.finish_reason === 'tool_calls' && cities.includes(JSON.parse(call.function.arguments).city),
);
const streamed = (await client.chat.completions.stream({ ...common, ...asked }).finalMessage()).tool_calls[0];
check('the streamed call is the same', streamed.function.arguments === call.function.arguments);
const result = { role: 'tool', tool_call_id: call.id, content: 'مشمس' };
const after = await chat({
  ...asked,
  messages: [...messages, called.message, result],
  tool_choice: 'none',
  max_tokens: 10,
});
check('the conversation goes on after the result', after.usage.completion_tokens > 0);

const responding = { model, input: 'السلام عليكم', temperature: 0, max_output_tokens: 40 };
check('responses give the same text', (await client.responses.create(responding)).output_text === text);
const deltas = [];
for await (const event of await client.responses.create({ ...responding, stream: true }))
  if (event.type === 'response.output_text.delta') deltas.push(event.delta);
check(`a streamed response of ${deltas.length} pieces too`, deltas.join('') === text);
const response = await client.responses.create({
  ...responding,
  tools: [{ type: 'function', ...definition }],
  tool_choice: 'required',
  max_output_tokens: 450,
});
const item = response.output.find((each) => each.type === 'function_call');
check(`a response calls ${item.name}(${item.arguments})`, typeof JSON.parse(item.arguments).hot === 'boolean');

await refused('an unknown model', OpenAI.NotFoundError, () => chat({ model: 'x' }));
await refused('a wrong value', OpenAI.BadRequestError, () => chat({ top_p: 7 }));
await refused('a schema', OpenAI.BadRequestError, () =>
  chat({ response_format: { type: 'json_schema', json_schema: { name: 'x', schema: { type: 'y' } } } }),
);

// A stream that is left half read.
const left = await chat({ stream: true, max_tokens: 100, ignore_eos: true });
for await (const _ of left) break;
check('after a stream that was left, the next is answered', (await chat()).choices[0].message.content === text);
summary('openai', version);
