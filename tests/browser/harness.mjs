/**
 * What the browser tests share: a static server that serves the built page under a sub-path, as any host would, and
 * Chromium driven by playwright-core. The server sends a test double in place of the engine or, with `real`, the engine
 * itself and the embedded model. Dependencies are those of `web/package.json`: the tests need `npm ci` and
 * `npm run build` there, and Chromium (BAYAN_CHROMIUM, else /usr/bin/chromium).
 */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { dirname, extname, join, normalize } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
export const web = join(here, '../../web');
const require = createRequire(join(web, 'package.json'));
const { chromium } = require('playwright-core');
export const axeSource = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');

const TYPES = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript',
  '.css': 'text/css',
  '.svg': 'image/svg+xml',
  '.png': 'image/png',
  '.woff2': 'font/woff2',
  '.webmanifest': 'application/manifest+json',
  '.json': 'application/json',
  '.wasm': 'application/wasm',
};
export const PREFIX = '/any/sub-path/';

async function fakeEngine() {
  const { transformWithOxc } = await import(
    pathToFileURL(require.resolve('vite')).href.replace(/index\.cjs$/, 'dist/node/index.js')
  );
  const path = join(web, 'package/test/engine-fake.ts');
  return (await transformWithOxc(readFileSync(path, 'utf8'), path)).code;
}

export const root = join(here, '../..');
export const fixtures = join(root, 'tests/fixtures');
export const engineFolder =
  process.env.BAYAN_ENGINE ?? join(process.env.CARGO_TARGET_DIR ?? join(root, 'target'), 'wasm/engine');

/**
 * Runs first in the worker of the real engine: `probe.pipelines` counts compiled kernels; with `probe.spoil` set, the
 * next buffers are too large to allocate.
 */
const PRELUDE = `globalThis.probe = { spoil: false, pipelines: 0 };
for (const name of ['createComputePipeline', 'createComputePipelineAsync']) {
  const create = GPUDevice.prototype[name];
  GPUDevice.prototype[name] = function (descriptor) {
    probe.pipelines++;
    return create.call(this, descriptor);
  };
}
const { createBuffer } = GPUDevice.prototype;
GPUDevice.prototype.createBuffer = function (descriptor) {
  // More than the driver can give at a time: a real error of a real allocator.
  return createBuffer.call(this, probe.spoil ? { ...descriptor, size: this.limits.maxBufferSize } : descriptor);
};
`;

/** The limits that the standard guarantees (WebGPU, section 3.6.2). */
const GUARANTEED = {
  maxBufferSize: 268435456,
  maxStorageBufferBindingSize: 134217728,
  maxStorageBuffersPerShaderStage: 8,
  maxComputeWorkgroupStorageSize: 16384,
  maxComputeInvocationsPerWorkgroup: 256,
  maxComputeWorkgroupSizeX: 256,
  maxComputeWorkgroupSizeY: 256,
  maxComputeWorkgroupSizeZ: 64,
  maxComputeWorkgroupsPerDimension: 65535,
  minStorageBufferOffsetAlignment: 256,
  minUniformBufferOffsetAlignment: 256,
  maxBindGroups: 4,
};

/**
 * What other browsers lack or do otherwise. Their APIs and language features are those of MDN's browser-compat-data
 * 8.1.9 (November 2026). No double has `shader-f16`, which Safari has and the software device here lacks.
 */
export const OTHER_BROWSERS = {
  // The least that the standard permits, with the one language feature that the kernels use.
  standard: {
    lacks: ['Navigator.deviceMemory', 'showDirectoryPicker', 'SpeechRecognition'],
    languageFeatures: ['packed_4x8_integer_dot_product'],
    limits: GUARANTEED,
  },
  // Firefox 141. It looks for finished GPU work every 100 ms. With `privacy.resistFingerprinting`, its limits are the
  // guaranteed ones.
  firefox: {
    lacks: [
      'Navigator.deviceMemory',
      'Navigator.userAgentData',
      'DataTransferItem.getAsFileSystemHandle',
      'showDirectoryPicker',
      'SpeechRecognition',
    ],
    languageFeatures: [],
    limits: GUARANTEED,
    pollMs: 100,
  },
  // Safari 26 on a phone: WebKit's HardwareCapabilities.mm, where a binding may be as large as a buffer.
  safari: {
    lacks: [
      'Navigator.deviceMemory',
      'Navigator.userAgentData',
      'Navigator.connection',
      'DataTransferItem.getAsFileSystemHandle',
      'requestIdleCallback',
      'scheduler',
      'showDirectoryPicker',
      'SpeechRecognition',
    ],
    languageFeatures: [],
    limits: {
      maxBufferSize: 268435456,
      maxStorageBufferBindingSize: 268435456,
      maxStorageBuffersPerShaderStage: 44,
      maxComputeWorkgroupStorageSize: 32768,
      maxComputeInvocationsPerWorkgroup: 1024,
      maxComputeWorkgroupSizeX: 1024,
      maxComputeWorkgroupSizeY: 1024,
      maxComputeWorkgroupSizeZ: 1024,
      maxBindGroups: 11,
    },
  },
};

/**
 * Makes Chromium offer what another browser offers, one of `OTHER_BROWSERS`: only its APIs, its language features and
 * its limits, and no optional feature of WebGPU. A device then really refuses more. Runs in the page and in the
 * engine's worker.
 */
export function becomeBrowser({ lacks, languageFeatures, limits, pollMs = 0 }) {
  for (const path of lacks) {
    const [name, type] = path.split('.').reverse();
    const place = type ? globalThis[type]?.prototype : globalThis;
    if (place) Object.defineProperty(place, name, { value: undefined, configurable: true });
  }
  const { get } = Object.getOwnPropertyDescriptor(GPUAdapter.prototype, 'limits');
  // An alignment may be larger than the device's, every other limit only smaller.
  const stricter = (name, own) => {
    if (limits[name] === undefined) return own;
    return name.startsWith('min') ? Math.max(limits[name], own) : Math.min(limits[name], own);
  };
  Object.defineProperty(GPUAdapter.prototype, 'limits', {
    get() {
      const read = (own, name) => stricter(name, Reflect.get(own, name, own));
      return new Proxy(get.call(this), { get: read });
    },
  });
  const features = new Set(['core-features-and-limits']);
  Object.defineProperty(GPUAdapter.prototype, 'features', { get: () => features });
  Object.defineProperty(GPU.prototype, 'wgslLanguageFeatures', { get: () => new Set(languageFeatures) });
  if (!pollMs) return;
  const atNextPoll = () => new Promise((resolve) => setTimeout(resolve, pollMs - (performance.now() % pollMs)));
  for (const [type, name] of [
    [GPUBuffer, 'mapAsync'],
    [GPUQueue, 'onSubmittedWorkDone'],
  ]) {
    const original = type.prototype[name];
    type.prototype[name] = async function (...values) {
      await original.apply(this, values);
      await atNextPoll();
    };
  }
}

/** The engine's script and wasm (or those of its test double) and the files of the included model. */
async function parts(real) {
  if (!real)
    return {
      script: await fakeEngine(),
      wasm: Buffer.from([0, 97, 115, 109, 1, 0, 0, 0]),
      model: { 'model.gguf': Buffer.alloc(9_000_000, 'نموذج صغير للاختبار ') },
    };
  if (!existsSync(join(engineFolder, 'bayan.js')))
    throw new Error(`${engineFolder} holds no bayan.js: build the engine first (cargo xtask web --release-dir DIR)`);
  const checkpoint = join(root, 'crates/embedded/checkpoint');
  const model = Object.fromEntries(readdirSync(checkpoint).map((name) => [name, readFileSync(join(checkpoint, name))]));
  return {
    script: PRELUDE + readFileSync(join(engineFolder, 'bayan.js'), 'utf8'),
    wasm: readFileSync(join(engineFolder, 'bayan_bg.wasm')),
    model,
  };
}

/**
 * Serves `dist` at PREFIX. `state.down`: every connection is closed without an answer. `state.cutModel`: the next
 * response with model bytes ends after that many bytes. `state.prelude` runs before the engine, in its worker.
 */
export async function startServer({ real = false } = {}) {
  if (!existsSync(join(web, 'dist/index.html')))
    throw new Error('web/dist is missing: run `npm run build` in web first');
  const { script, wasm, model } = await parts(real);
  const files = Object.entries(model).map(([path, bytes]) => ({
    path,
    size: bytes.length,
    sha256: createHash('sha256').update(bytes).digest('hex'),
  }));
  const manifest = JSON.stringify({ name: 'بيان الصغير', files });
  const state = { down: false, cutModel: 0, log: [], ships: true, prelude: '' };
  const send = (request, response, bytes, type) => {
    const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '');
    const headers = {
      'Content-Type': type,
      'Accept-Ranges': 'bytes',
      'Access-Control-Allow-Origin': '*',
      ETag: `"${bytes.length}"`,
    };
    let body = bytes;
    if (range) {
      const to = range[2] ? Number(range[2]) : bytes.length - 1;
      body = bytes.subarray(Number(range[1]), to + 1);
      response.writeHead(206, {
        ...headers,
        'Content-Range': `bytes ${range[1]}-${to}/${bytes.length}`,
        'Content-Length': body.length,
      });
    } else response.writeHead(200, { ...headers, 'Content-Length': body.length });
    if (type === 'application/octet-stream' && state.cutModel > 0 && body.length > state.cutModel) {
      const at = state.cutModel;
      state.cutModel = 0;
      response.write(body.subarray(0, at), () => setTimeout(() => response.destroy(), 30));
    } else response.end(body);
  };
  const server = createServer((request, response) => {
    const path = decodeURIComponent(new URL(request.url, 'http://x').pathname);
    state.log.push({ path, range: request.headers.range });
    if (state.down) return void request.socket.destroy();
    if (!path.startsWith(PREFIX)) return void response.writeHead(404).end();
    const name = path.slice(PREFIX.length) || 'index.html';
    if (name === 'engine/bayan.js')
      return send(request, response, Buffer.from(state.prelude + script), 'text/javascript');
    if (name === 'engine/bayan_bg.wasm') return send(request, response, wasm, 'application/wasm');
    if (state.ships && name === 'model/manifest.json')
      return send(request, response, Buffer.from(manifest), 'application/json');
    if (state.ships && name.startsWith('model/') && Object.hasOwn(model, name.slice(6)))
      return send(request, response, model[name.slice(6)], 'application/octet-stream');
    const file = normalize(join(web, 'dist', name));
    if (!file.startsWith(join(web, 'dist')) || !existsSync(file) || !statSync(file).isFile())
      return void response.writeHead(404).end();
    send(request, response, readFileSync(file), TYPES[extname(file)] ?? 'application/x-unknown');
  });
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  const url = `http://localhost:${server.address().port}${PREFIX}`;
  return {
    url,
    state,
    stop: () =>
      new Promise((done) => {
        server.closeAllConnections();
        server.close(done);
      }),
  };
}

export function launch(extra = []) {
  return chromium.launch({
    executablePath: process.env.BAYAN_CHROMIUM ?? '/usr/bin/chromium',
    args: [
      '--headless',
      '--no-sandbox',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
      '--enable-unsafe-webgpu',
      '--use-webgpu-adapter=swiftshader',
      ...extra,
    ],
  });
}

/** A page whose errors and policy violations are collected. */
export async function openPage(context, url) {
  const page = await context.newPage();
  page.errors = [];
  page.on('pageerror', (error) => page.errors.push(String(error)));
  page.on('console', (message) => {
    if (message.type() === 'error' && /Content Security Policy|Uncaught/.test(message.text()))
      page.errors.push(message.text());
  });
  await page.goto(url);
  await page.waitForSelector('#composer, .no-gpu');
  return page;
}

export async function loadShipped(page) {
  await page.locator('.model-chip').click();
  await page.getByRole('button', { name: 'تشغيل' }).first().click();
  await page.waitForSelector('.model-chip.ready', { timeout: 60_000 });
}

/** The worker that holds the engine. */
export const engineWorker = (page) => page.workers().at(-1);

/** Type as a person does and send with Enter. */
export async function say(page, text) {
  const before = await page.locator('.bubble').count();
  await page.locator('#composer').click();
  await page.keyboard.type(text);
  await page.keyboard.press('Enter');
  await page.waitForFunction((count) => document.querySelectorAll('.bubble').length > count, before);
}

export async function finished(page) {
  await page.waitForSelector('.send:not(.stop)', { timeout: 60_000 });
  await page.waitForFunction(
    () =>
      !document.querySelector('[aria-busy="true"]') &&
      [...document.querySelectorAll('.turn')].at(-1)?.matches('.answer-turn'),
  );
}

export const lastAnswer = (page) => page.locator('.answer').last();

/** Violations that axe calls serious or critical. */
export async function seriousViolations(page) {
  return page.evaluate(async (source) => {
    // eslint-disable-next-line no-new-func
    if (!window.axe) (0, eval)(source);
    const { violations } = await window.axe.run(document, {
      resultTypes: ['violations'],
    });
    return violations
      .filter((v) => v.impact === 'serious' || v.impact === 'critical')
      .map(
        (v) =>
          `${v.id}: ${v.nodes
            .map((n) => n.target.join(' '))
            .slice(0, 4)
            .join(' | ')}`,
      );
  }, axeSource);
}

/** Serves the files of a folder; `headers` are added to each response. */
export async function serveFolder(folder, headers = {}) {
  const server = createServer((request, response) => {
    const name = decodeURIComponent(new URL(request.url, 'http://x').pathname).slice(1) || 'index.html';
    const file = normalize(join(folder, name));
    if (!file.startsWith(folder) || !existsSync(file) || !statSync(file).isFile())
      return void response.writeHead(404, headers).end();
    const type = TYPES[extname(file)] ?? 'application/octet-stream';
    response.writeHead(200, { ...headers, 'Content-Type': type }).end(readFileSync(file));
  });
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  const stop = () => new Promise((done) => (server.closeAllConnections(), server.close(done)));
  return { url: `http://localhost:${server.address().port}/`, stop };
}

/** Copies a checkpoint and writes the `manifest.json` of an included model. */
export function shippedManifest(checkpoint, folder) {
  mkdirSync(folder, { recursive: true });
  const files = readdirSync(checkpoint).map((path) => {
    const bytes = readFileSync(join(checkpoint, path));
    writeFileSync(join(folder, path), bytes);
    return { path, size: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') };
  });
  writeFileSync(join(folder, 'manifest.json'), JSON.stringify({ name: 'بيان الصغير', files }));
}

/** From now on, the page notes the longest time between two frames. */
export const watchFrames = (page) =>
  page.evaluate(() => {
    window.gap = 0;
    let last = performance.now();
    const look = (now) => {
      window.gap = Math.max(window.gap, now - last);
      last = now;
      requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
  });

/** The longest time between two frames since `watchFrames`, in milliseconds. */
export const longestFrame = (page) => page.evaluate(() => window.gap);
