/**
 * The engine in real Chromium (WebGPU on SwiftShader): a static server, a page with one worker, and calls into it.
 * Chromium is BAYAN_CHROMIUM or /usr/bin/chromium; playwright-core comes from `web/node_modules`; the built engine is
 * in BAYAN_ENGINE (a folder with `bayan.js` and `bayan_bg.wasm`; default `target/wasm/engine`).
 */
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { dirname, extname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
export const root = join(here, '../../../..');
const { chromium } = createRequire(join(root, 'web/package.json'))('playwright-core');

export const fixtures = join(root, 'tests/fixtures');
const engine = process.env.BAYAN_ENGINE ?? join(process.env.CARGO_TARGET_DIR ?? join(root, 'target'), 'wasm/engine');
const TYPES = {
  '.js': 'text/javascript',
  '.mjs': 'text/javascript',
  '.wasm': 'application/wasm',
  '.json': 'application/json',
};

/** What each folder of the site is served from. */
const FOLDERS = {
  'engine/': engine,
  'models/': join(fixtures, 'models'),
  'lora/': join(fixtures, 'lora'),
  'embedded/': join(root, 'crates/embedded/checkpoint'),
  ...(process.env.BAYAN_CHECKPOINTS ? { 'checkpoints/': process.env.BAYAN_CHECKPOINTS } : {}),
};

/** Checkpoints whose bytes are computed when they are read, by the name of their folder. */
export const made = {};

function answer(request, response) {
  const path = decodeURIComponent(new URL(request.url, 'http://x').pathname).slice(1);
  const [folderName, madeFile] = path.split('/');
  if (made[folderName]) {
    const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range);
    return void response.writeHead(206).end(made[folderName].read(madeFile, Number(from), Number(to) + 1));
  }
  if (path === '')
    return void response.writeHead(200, { 'Content-Type': 'text/html' }).end('<!doctype html><title>engine</title>');
  const folder = Object.keys(FOLDERS).find((prefix) => path.startsWith(prefix));
  const base = folder ? FOLDERS[folder] : here;
  const file = normalize(join(base, folder ? path.slice(folder.length) : path));
  if (!file.startsWith(base) || !existsSync(file) || !statSync(file).isFile())
    return void response.writeHead(404).end();
  const bytes = readFileSync(file);
  const headers = {
    'Content-Type': TYPES[extname(file)] ?? 'application/octet-stream',
  };
  const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '');
  if (!range) return void response.writeHead(200, headers).end(bytes);
  response.writeHead(206, headers).end(bytes.subarray(Number(range[1]), Number(range[2]) + 1));
}

/** Files of a served checkpoint with their sizes. */
export function filesOf(folder) {
  return Object.fromEntries(readdirSync(folder).map((name) => [name, statSync(join(folder, name)).size]));
}

/** Headers with which a page may have memory that its workers share. */
export const ISOLATED = {
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
};

/** The server, which sends these headers with every file, and a page of it in Chromium. */
export async function start(headers = {}) {
  if (!existsSync(join(engine, 'bayan.js')))
    throw new Error(`${engine} holds no bayan.js: build the engine first (cargo xtask web)`);
  const server = createServer((request, response) => {
    for (const [name, value] of Object.entries(headers)) response.setHeader(name, value);
    answer(request, response);
  });
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  const browser = await chromium.launch({
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
    ],
  });
  const page = await browser.newPage();
  page.setDefaultTimeout(0);
  page.on('console', (message) => {
    if (process.env.BAYAN_VERBOSE) console.log(`[page] ${message.text()}`);
  });
  await page.goto(`http://localhost:${server.address().port}/`);
  return {
    page,
    stop: async () => {
      await browser.close();
      server.closeAllConnections();
      server.close();
    },
  };
}

/** A new worker with a fresh engine: `call(name, …)` and the events that it posted. */
export async function newEngine(page) {
  const handle = await page.evaluateHandle(() => {
    const worker = new Worker('worker.mjs', { type: 'module' });
    const waiting = new Map();
    const events = { lost: [], progress: [], case: [], token: [] };
    let next = 0;
    worker.onerror = (event) => {
      for (const { reject } of waiting.values()) reject({ message: `worker: ${event.message}` });
    };
    worker.onmessage = ({ data }) => {
      if (data.event) {
        events[data.event].push(data.value);
        return;
      }
      const { resolve } = waiting.get(data.id);
      waiting.delete(data.id);
      resolve(data.error ? { error: data.error } : { value: data.value });
    };
    const call = (name, values) =>
      new Promise((resolve, reject) => {
        const id = next++;
        waiting.set(id, { resolve, reject: (error) => resolve({ error }) });
        worker.postMessage({ id, call: name, arguments: values });
      });
    return { worker, events, call };
  });
  const attempt = (name, ...values) => handle.evaluate((it, [name, values]) => it.call(name, values), [name, values]);
  const call = async (name, ...values) => {
    const { value, error } = await attempt(name, ...values);
    if (error) throw Object.assign(new Error(`${name}: ${error.code}: ${error.message}\n${error.stack ?? ''}`), error);
    return value;
  };
  await call('load');
  return {
    call,
    attempt,
    events: () => handle.evaluate((it) => it.events),
    end: () => handle.evaluate((it) => it.worker.terminate()),
  };
}

/** A tensor of f32 in a safetensors file. */
export function tensor(file, name) {
  const bytes = readFileSync(file);
  const start = 8 + Number(bytes.readBigUInt64LE(0));
  const [from, to] = JSON.parse(bytes.subarray(8, start).toString())[name].data_offsets;
  return Array.from({ length: (to - from) / 4 }, (_, i) => bytes.readFloatLE(start + from + 4 * i));
}

/** Squared error by squared size. */
export const nmse = (wanted, got) =>
  wanted.reduce((sum, w, i) => sum + (w - got[i]) ** 2, 0) / wanted.reduce((sum, w) => sum + w * w, 0);
