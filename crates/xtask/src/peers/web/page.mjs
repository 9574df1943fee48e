/** Each runtime by its own public interface: `{loadMs, promptTokens, prefillMs, tokens, decodeMs, note}`. A warm-up of the same length comes first. */
const now = () => performance.now();

/** Plain single-byte tokens; the same text is the same number of tokens for every tokenizer of this checkpoint. */
const promptOf = (count) => Array.from({ length: count }, (_, i) => 65 + ((i * 7) % 26));
/** Ids of the bytes A to Z in the checkpoint's vocabulary, whose ids are the bytes. */
const textOf = (ids) => String.fromCharCode(...ids);

async function timed(run, { promptTokens, generate, limitSeconds }) {
  // The same sizes once, not counted: kernels are compiled for them. Other tokens, so that nothing is answered from a cache.
  await run(promptOf(promptTokens).map((id) => 65 + ((id + 5) % 26)), 2, Infinity, () => {});
  await mark('prompt');
  const start = now();
  const times = [];
  const own = await run(promptOf(promptTokens), generate + 1, start + limitSeconds * 1000, () => {
    times.push(now());
    if (times.length === 1) void mark('first');
  });
  await mark('end');
  return { promptTokens, prefillMs: times[0] - start, tokens: times.length - 1, decodeMs: times.at(-1) - times[0], ...own };
}

async function transformers(device, settings) {
  const { AutoModelForCausalLM, StoppingCriteria, Tensor, env } = await import('/npm/@huggingface/transformers/dist/transformers.min.js');
  Object.assign(env, { allowRemoteModels: false, allowLocalModels: true, localModelPath: '/onnx/', useBrowserCache: false });
  env.backends.onnx.wasm.wasmPaths = new URL('/npm/onnxruntime-web/dist/', location.href).href;
  const start = now();
  const model = await AutoModelForCausalLM.from_pretrained('model', { device, dtype: 'q4' });
  const loadMs = now() - start;
  class Deadline extends StoppingCriteria {
    constructor(at) { super(); this.at = at; }
    _call(ids) { return ids.map(() => now() > this.at); }
  }
  const run = async (ids, count, deadline, onToken) => {
    let isPrompt = true;
    const tensor = (values) => new Tensor('int64', BigInt64Array.from(values, BigInt), [1, ids.length]);
    await model.generate({
      input_ids: tensor(ids), attention_mask: tensor(ids.map(() => 1)), max_new_tokens: count, do_sample: false, eos_token_id: -1, stopping_criteria: new Deadline(deadline),
      streamer: { put() { if (isPrompt) isPrompt = false; else onToken(); }, end() {} },
    });
  };
  return { loadMs, ...(await timed(run, settings)), note: `threads ${env.backends.onnx.wasm.numThreads ?? 'auto'}` };
}

async function wllama(gpuLayers, settings) {
  const { Wllama } = await import('/npm/@wllama/wllama/esm/index.js');
  const it = new Wllama({ default: new URL('/npm/@wllama/wllama/esm/wasm/wllama.wasm', location.href).href }, { suppressNativeLog: true });
  const start = now();
  const blob = await (await fetch(`/gguf/${settings.gguf}`)).blob();
  await it.loadModel([blob], { n_ctx: 512, n_batch: 128, n_gpu_layers: gpuLayers });
  const loadMs = now() - start;
  const run = async (ids, count, deadline, onToken) => {
    const stop = new AbortController();
    try {
      for await (const piece of await it.createCompletion({ prompt: textOf(ids), max_tokens: count, temperature: 0, cache_prompt: false, ignore_eos: true, stream: true, abortSignal: stop.signal })) {
        if (piece.choices?.[0] && !piece.choices[0].finish_reason) onToken();
        if (now() > deadline) stop.abort();
      }
    } catch (error) {
      if (!stop.signal.aborted) throw error;
    }
  };
  return { loadMs, ...(await timed(run, settings)), note: `threads ${it.getNumThreads()}` };
}

/** On the GPU from the checkpoint, on the CPU from the same GGUF file as wllama. */
async function bayan(settings, onCpu) {
  const worker = new Worker('/tests/worker.mjs', { type: 'module' });
  const waiting = new Map();
  let [next, onPiece] = [0, () => {}];
  worker.onmessage = ({ data }) => {
    if (data.event === 'token') onPiece(data.value);
    if (data.event) return;
    const { resolve, reject } = waiting.get(data.id);
    waiting.delete(data.id);
    if (data.error) reject(new Error(`${data.error.code}: ${data.error.message}`));
    else resolve(data.value);
  };
  const call = (name, ...values) => new Promise((resolve, reject) => {
    waiting.set(next, { resolve, reject });
    worker.postMessage({ id: next++, call: name, arguments: values });
  });
  const start = now();
  await call('load', '/engine/');
  const device = await call('create', { device: onCpu ? 'cpu' : 'gpu', threads: 1 });
  const [folder, files, format] = onCpu
    ? ['/gguf/', { [settings.gguf]: settings.ggufBytes }, 'stored']
    : ['/checkpoint/', settings.files, 'q4'];
  await call('open', folder, files, { format, contextLength: 512 });
  const loadMs = now() - start;
  const run = async (ids, count, _deadline, onToken) => {
    let seen = 0;
    onPiece = (tokens) => { for (; seen < tokens; seen++) onToken(); };
    const { usage } = await call('generateFromIds', ids, { temperature: 0, repetitionPenalty: 1, maxTokens: count, ignoreEos: true }, true);
    for (; seen < count; seen++) onToken();
    // Text comes out a little after its token; the engine's own clock reads the token.
    return { prefillMs: usage.prefillMs, tokens: usage.completionTokens - 1, decodeMs: usage.decodeMs };
  };
  return { loadMs, ...(await timed(run, settings)), note: device.path };
}

const RUNTIMES = {
  bayan: (s) => bayan(s, false), 'bayan-wasm': (s) => bayan(s, true), 'transformers-wasm': (s) => transformers('wasm', s), 'transformers-webgpu': (s) => transformers('webgpu', s), 'wllama-wasm': (s) => wllama(0, s), 'wllama-webgpu': (s) => wllama(99, s),
};
window.measure = (name, settings) => RUNTIMES[name](settings);
