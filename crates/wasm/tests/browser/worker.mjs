/**
 * The engine in a worker, driven by messages `{id, call, arguments}` from the page. Every function that the engine
 * exports can be called.
 */
let engine;

/** A checkpoint on the page's server, as the `ByteSource` of the engine: each read is one range request. */
function served(base, files) {
  return {
    files: () => Object.keys(files),
    size: (file) => files[file] ?? -1,
    async read(file, offset, length) {
      if (length === 0) return new Uint8Array(0);
      const response = await fetch(base + file, {
        headers: { Range: `bytes=${offset}-${offset + length - 1}` },
      });
      if (response.status !== 206)
        throw Object.assign(new Error(`${file}: status ${response.status}`), {
          code: 'Network',
        });
      return new Uint8Array(await response.arrayBuffer());
    },
  };
}

/** Files as base64, from and to the page. */
const decoded = (files) =>
  Object.fromEntries(Object.entries(files).map(([name, text]) => [name, Uint8Array.fromBase64(text)]));
const encoded = (files) => Object.fromEntries(Object.entries(files).map(([name, bytes]) => [name, bytes.toBase64()]));

/** Files in memory, as the `ByteSource` of the engine. */
function held(files) {
  return {
    files: () => Object.keys(files),
    size: (file) => files[file]?.length ?? -1,
    read: async (file, offset, length) => files[file].slice(offset, offset + length),
  };
}

/** Records the names of all later WebGPU calls, in order. `mapped` is a buffer whose `mapAsync` has resolved. */
let asked = [];
function note(prototype, method, after) {
  const original = prototype[method];
  prototype[method] = function (...values) {
    asked?.push(method);
    const result = original.apply(this, values);
    if (after)
      Promise.resolve(result).then(
        () => asked?.push(after),
        () => {},
      );
    return result;
  };
}

/** The helper workers that the engine has started, and how many of them it has ended. */
const helpers = { started: [], ended: 0 };

const calls = {
  /** From now on helpers are counted; with `script`, they run that file instead. */
  watchHelpers(script) {
    self.Worker = class extends Worker {
      constructor(url, options) {
        super(script ? new URL(script, url) : url, options);
        helpers.started.push(this);
      }
      terminate() {
        helpers.ended++;
        super.terminate();
      }
    };
  },
  helpers: () => [helpers.started.length, helpers.ended],
  /** As if the browser had ended the helpers. Chromium lets a worker that waits go on for up to two seconds. */
  async loseHelpers() {
    for (const helper of helpers.started) Object.getPrototypeOf(Object.getPrototypeOf(helper)).terminate.call(helper);
    await new Promise((resolve) => setTimeout(resolve, 4000));
  },
  async watch() {
    for (const method of [
      'createBuffer',
      'createBindGroup',
      'createComputePipeline',
      'createComputePipelineAsync',
      'createShaderModule',
      'createPipelineLayout',
      'createBindGroupLayout',
    ])
      note(GPUDevice.prototype, method);
    note(GPUQueue.prototype, 'submit');
    note(GPUBuffer.prototype, 'mapAsync', 'mapped');
  },
  /** From now on this browser's WGSL lacks a language feature. */
  withoutLanguageFeature(name) {
    const rest = new Set([...navigator.gpu.wgslLanguageFeatures].filter((feature) => feature !== name));
    Object.defineProperty(GPU.prototype, 'wgslLanguageFeatures', { get: () => rest });
  },
  asked() {
    const list = asked;
    asked = [];
    return list;
  },
  async load(folder = 'engine/') {
    const base = new URL(folder, self.location.href);
    engine = await import(new URL('bayan.js', base).href);
    await engine.default({ module_or_path: new URL('bayan_bg.wasm', base) });
  },
  create: (options) =>
    engine
      .create(JSON.stringify(options), (json) => self.postMessage({ event: 'lost', value: JSON.parse(json) }))
      .then(JSON.parse),
  open: (base, files, options) =>
    engine
      .open(served(base, files), JSON.stringify(options), (done, total) =>
        self.postMessage({ event: 'progress', value: [done, total] }),
      )
      .then(JSON.parse),
  generateFromIds: (ids, sampling, live) =>
    streamed((on) => engine.generateFromIds(new Uint32Array(ids), JSON.stringify(sampling), on), undefined, live),
  generate: (prompt, sampling) => streamed((on) => engine.generate(prompt, JSON.stringify(sampling), on)),
  chat: (messages, sampling, abortAfter) =>
    streamed((on) => engine.chat(JSON.stringify(messages), JSON.stringify(sampling), on), abortAfter),
  logits: async (ids) => Array.from(await engine.logits(new Uint32Array(ids))),
  loadAdapter: (base, files, options) =>
    engine.loadAdapter(served(base, files), JSON.stringify(options)).then(JSON.parse),
  loadHeldAdapter: (files) => engine.loadAdapter(held(decoded(files)), '{}').then(JSON.parse),
  unloadAdapter: (name) => engine.unloadAdapter(name),
  prepareTraining: (base, files, examples, options) =>
    engine.prepareTraining(served(base, files), held(decoded(examples)), JSON.stringify(options)).then(JSON.parse),
  measureTraining: () => engine.measureTraining(() => {}),
  /** Trains, and pauses after `pauseAfter` steps. */
  async train(checkpoint, pauseAfter) {
    const events = [];
    let saved = null;
    const from = checkpoint ? held(decoded(checkpoint)) : undefined;
    const { report, files } = await engine.train(from, (json, written) => {
      const event = JSON.parse(json);
      events.push(event);
      if (written) saved = encoded(written);
      if (event.kind === 'step' && event.steps === pauseAfter) engine.abort();
    });
    return { report: JSON.parse(report), files: encoded(files), events, saved };
  },
  async loraSteps(base, files, initialBase, initialFiles, request) {
    const of = [served(base, files), served(initialBase, initialFiles)];
    const { losses, files: adapter } = await engine.loraSteps(...of, JSON.stringify(request));
    return { losses: JSON.parse(losses), files: encoded(adapter) };
  },
  saveState: async () => (await engine.saveState()).toBase64(),
  restoreState: (text) => engine.restoreState(Uint8Array.fromBase64(text)),
  tokenize: (text) => Array.from(engine.tokenize(text)),
  detokenize: (ids) => engine.detokenize(Uint32Array.from(ids)),
  info: () => JSON.parse(engine.info()),
  runSuite: (options) =>
    engine
      .runSuite(JSON.stringify(options), (name, done, total) =>
        self.postMessage({ event: 'case', value: [name, done, total] }),
      )
      .then(JSON.parse),
  abort: () => engine.abort(),
  destroyDevice: () => engine.destroyDevice(),
  dispose: () => engine.dispose(),
};

async function streamed(run, abortAfter, live = false) {
  const pieces = [];
  const more = { toolCalls: [], logprobs: [] };
  const json = await run((text, tokens, moreJson) => {
    pieces.push([text, tokens]);
    for (const [name, list] of Object.entries(JSON.parse(moreJson ?? '{}'))) more[name].push(...list);
    if (live) self.postMessage({ event: 'token', value: tokens });
    if (tokens >= abortAfter) engine.abort();
  });
  return {
    ...JSON.parse(json),
    text: pieces.map((piece) => piece[0]).join(''),
    pieces,
    ...more,
  };
}

self.onmessage = async ({ data: { id, call, arguments: values } }) => {
  try {
    self.postMessage({ id, value: await calls[call](...values) });
  } catch (error) {
    self.postMessage({
      id,
      error: {
        code: error?.code ?? null,
        message: String(error?.message ?? error),
        details: error?.details ?? null,
        stack: error?.stack,
      },
    });
  }
};
