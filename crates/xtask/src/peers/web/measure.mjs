/**
 * The same checkpoint and work in the same Chromium, one runtime after the other, each in a browser of its own: load, a prompt, then tokens one
 * by one. Prints a JSON line for each. `node measure.mjs '{"packages", "checkpoint", "gguf", "engine", "tests", "chromium", "prompt", "generate", "limitSeconds", "only"}'`
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, copyFileSync, statSync, createReadStream } from 'node:fs';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { dirname, extname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';
import { writeOnnx } from './onnx.mjs';

const options = JSON.parse(process.argv[2]);
const here = dirname(fileURLToPath(import.meta.url));
const { chromium } = createRequire(join(options.web, 'package.json'))('playwright-core');

/** The checkpoint as transformers.js wants it. */
const exported = join(options.packages, 'onnx/model');
if (options.only.some((runtime) => runtime.startsWith('transformers')) && !existsSync(join(exported, 'onnx/model_q4.onnx'))) {
  mkdirSync(join(exported, 'onnx'), { recursive: true });
  for (const name of ['config.json', 'tokenizer.json', 'tokenizer_config.json', 'generation_config.json']) copyFileSync(join(options.checkpoint, name), join(exported, name));
  writeOnnx(options.checkpoint, join(exported, 'onnx/model_q4.onnx'));
}

const FOLDERS = { 'engine/': options.engine, 'checkpoint/': options.checkpoint, 'onnx/': join(options.packages, 'onnx'), 'npm/': join(options.packages, 'node_modules'), 'gguf/': dirname(options.gguf), 'tests/': options.tests };
const TYPES = { '.js': 'text/javascript', '.mjs': 'text/javascript', '.wasm': 'application/wasm', '.json': 'application/json', '.html': 'text/html' };
const server = createServer((request, response) => {
  const path = decodeURIComponent(new URL(request.url, 'http://x').pathname).slice(1);
  // With these headers pages may share memory between threads: the fast builds of the other runtimes need them.
  const headers = { 'Cross-Origin-Opener-Policy': 'same-origin', 'Cross-Origin-Embedder-Policy': 'require-corp', 'Cross-Origin-Resource-Policy': 'same-origin' };
  if (path === '') return void response.writeHead(200, { ...headers, 'Content-Type': 'text/html' }).end('<!doctype html><title>peers</title><script type="module" src="/page.mjs"></script>');
  const prefix = Object.keys(FOLDERS).find((start) => path.startsWith(start));
  const base = prefix ? FOLDERS[prefix] : here;
  const file = normalize(join(base, prefix ? path.slice(prefix.length) : path));
  if (!file.startsWith(base) || !existsSync(file) || !statSync(file).isFile()) return void response.writeHead(404, headers).end();
  const { size } = statSync(file);
  const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '');
  const [from, to] = range ? [Number(range[1]), Math.min(Number(range[2]), size - 1)] : [0, size - 1];
  response.writeHead(range ? 206 : 200, { ...headers, 'Content-Type': TYPES[extname(file)] ?? 'application/octet-stream', 'Content-Length': to - from + 1, ...(range ? { 'Content-Range': `bytes ${from}-${to}/${size}` } : {}) });
  createReadStream(file, { start: from, end: to }).pipe(response);
});
await new Promise((done) => server.listen(0, '127.0.0.1', done));

/** CPU seconds of a process and all below it. */
function cpuSeconds(root) {
  const all = readdirSync('/proc').filter((name) => /^\d+$/.test(name)).flatMap((pid) => {
    try {
      const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\) /s, '').split(' ');
      return [{ pid: Number(pid), parent: Number(fields[1]), ticks: Number(fields[11]) + Number(fields[12]) + Number(fields[13]) + Number(fields[14]) }];
    } catch {
      return []; // It has ended.
    }
  });
  const inside = new Set([root]);
  for (let grew = true; grew; ) {
    grew = false;
    for (const { pid, parent } of all) if (inside.has(parent) && !inside.has(pid)) grew = Boolean(inside.add(pid));
  }
  return all.filter(({ pid }) => inside.has(pid)).reduce((sum, { ticks }) => sum + ticks / 100, 0);
}

const settings = { promptTokens: options.prompt, generate: options.generate, limitSeconds: options.limitSeconds, gguf: options.gguf.split('/').at(-1), ggufBytes: statSync(options.gguf).size, files: Object.fromEntries(readdirSync(options.checkpoint).filter((name) => /\.(json|safetensors)$/.test(name)).map((name) => [name, statSync(join(options.checkpoint, name)).size])) };

for (const runtime of options.only) {
  const browserServer = await chromium.launchServer({
    executablePath: options.chromium,
    args: ['--headless', '--no-sandbox', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader', '--enable-features=WebAssemblyJSPromiseIntegration'],
  });
  const pid = browserServer.process().pid;
  try {
    const browser = await chromium.connect(browserServer.wsEndpoint());
    const page = await browser.newPage();
    page.setDefaultTimeout(0);
    if (options.verbose) page.on('console', (message) => console.error(`[${runtime}] ${message.text()}`));
    const marks = [];
    await page.exposeFunction('mark', (name) => { marks.push([name, performance.now(), cpuSeconds(pid)]); });
    await page.goto(`http://localhost:${server.address().port}/`);
    await page.waitForFunction(() => 'measure' in window);
    const result = await page.evaluate(([name, given]) => window.measure(name, given), [runtime, settings]);
    // Wall time from the page's own clock, CPU time from the marks.
    const cpu = (from, to) => marks.find((m) => m[0] === to)[2] - marks.find((m) => m[0] === from)[2];
    console.log(JSON.stringify({ runtime, ...result, prefillCpuSeconds: cpu('prompt', 'first'), decodeCpuSeconds: cpu('first', 'end') }));
    await browser.close();
  } catch (error) {
    console.log(JSON.stringify({ runtime, error: String(error?.message ?? error).split('\n')[0] }));
  } finally {
    await browserServer.close();
  }
}
server.closeAllConnections();
server.close();
