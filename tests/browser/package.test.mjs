/**
 * The npm package as its users get it: the packed tarball, installed in a fresh Vite project, a fresh webpack project
 * and a page without a bundler, each answering with the real engine and the embedded model; and its types under `tsc
 * --strict`. Needs the built engine (BAYAN_ENGINE) and package (`npm run build:package`).
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, it } from 'node:test';
import { pathToFileURL } from 'node:url';
import { engineFolder, launch, root, serveFolder, shippedManifest, web } from './harness.mjs';

const require = createRequire(join(web, 'package.json'));
const APP = `
import { load } from 'bayan-web';
const show = (name, value) => (document.body.dataset[name] = String(value));
try {
  const session = await load('./model/', { contextLength: 512 });
  const request = { messages: [{ role: 'user', content: [{ type: 'text', text: 'ما عاصمة مصر؟' }] }], temperature: 0 };
  const answer = await session.chat.completions.create({ ...request, top_k: 1, min_p: 0, max_tokens: 24 });
  const refusal = (field) => session.chat.completions.create({ ...request, ...field }).catch((error) => error.message);
  show('refused', await refusal({ functions: [] }));
  show('badFormat', await refusal({ response_format: {} }));
  const schema = { type: 'object', properties: { city: { enum: ['القاهرة', 'الرباط'] } }, required: ['city'] };
  const response_format = { type: 'json_schema', json_schema: { schema: { ...schema, additionalProperties: false } } };
  const constrained = await session.chat.completions.create({ ...request, response_format, max_tokens: 200 });
  show('city', JSON.parse(constrained.choices[0].message.content).city);
  const tool = { type: 'function', function: { name: 'capital', parameters: schema } };
  const calling = { ...request, tools: [tool], tool_choice: 'required', logprobs: true };
  const called = await session.chat.completions.create(calling);
  const { message, logprobs, finish_reason } = called.choices[0];
  const [call] = message.tool_calls;
  const result = { role: 'tool', tool_call_id: call.id, content: 'القاهرة' };
  const messages = [...request.messages, message, result];
  const next = await session.chat.completions.create({ messages, max_tokens: 4 });
  const state = await session.saveState();
  const restored = await session.restoreState(state);
  const numbers = [logprobs.content.length, next.usage.prompt_tokens, restored];
  show('tools', JSON.stringify([call.function, finish_reason, ...numbers]));
  state[state.length >> 1] ^= 1;
  show('damaged', await session.restoreState(state).catch((error) => error.code));
  show('again', await session.detokenize(await session.tokenize('القاهرة')));
  await session.dispose();
  show('answer', answer.choices[0].message.content);
} catch (error) {
  show('answer', 'failed: ' + error.message);
}
`;
const TYPES = `
import { load, StateStore, type BayanError, type Completion, type Piece, type Session, type Tool } from 'bayan-web';
export async function ask(): Promise<string> {
  const session: Session = await load('owner/name', { format: 'q4', onProgress: (progress) => progress.phase });
  const done: Completion = await session.chat.completions.create({
    messages: [{ role: 'user', content: 'x' }],
    top_k: 40,
    min_p: 0.05,
  });
  const tools: Tool[] = [{ type: 'function', function: { name: 'f', parameters: { type: 'object' } } }];
  const { message, logprobs } = (
    await session.chat.completions.create({ messages: [], tools, tool_choice: 'auto', logprobs: true })
  ).choices[0]!;
  const results = message.tool_calls?.map(({ id }) => ({ role: 'tool' as const, tool_call_id: id, content: 'x' }));
  await session.chat.completions.create({ messages: [message, ...(results ?? [])] });
  logprobs?.content[0]?.top_logprobs[0]?.logprob.toFixed();
  await (await StateStore.open())?.write('x', await session.saveState());
  // @ts-expect-error: not a field of the request
  await session.chat.completions.create({ messages: [], respnse_format: {} });
  let text = done.choices[0]?.message.content ?? '';
  for await (const piece of session.chat([{ role: 'user', content: 'x' }])) text += (piece satisfies Piece).text;
  session.onLost = (error: BayanError) => error.details.neededBytes?.toFixed();
  return text;
}
`;

let folder;
let tarball;
let browser;

before(async () => {
  if (!existsSync(join(engineFolder, 'bayan_bg.wasm')))
    throw new Error(`${engineFolder} holds no engine: build it first (cargo xtask web --release-dir DIR)`);
  folder = mkdtempSync(join(tmpdir(), 'bayan-package-'));
  npm(join(web, 'package'), 'pack', '--pack-destination', folder);
  const packed = readdirSync(folder).filter((name) => name.endsWith('.tgz'));
  assert.equal(packed.length, 1, String(packed));
  tarball = join(folder, packed[0]);
  browser = await launch();
});
after(async () => {
  await browser?.close();
  if (folder) rmSync(folder, { recursive: true });
});

function npm(cwd, ...commands) {
  const env = { ...process.env, BAYAN_ENGINE: engineFolder };
  return execFileSync('npm', commands, { cwd, env, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

/** A new project with the tarball installed, the app's source and the embedded model in `public/model`. */
function project(name, files) {
  const path = join(folder, name);
  mkdirSync(join(path, 'public/model'), { recursive: true });
  writeFileSync(join(path, 'package.json'), JSON.stringify({ name, private: true, type: 'module' }));
  for (const [file, text] of Object.entries(files)) writeFileSync(join(path, file), text);
  npm(path, 'install', '--offline', '--no-audit', '--no-fund', tarball);
  shippedManifest(join(root, 'crates/embedded/checkpoint'), join(path, 'public/model'));
  return path;
}

async function answers(url) {
  const page = await browser.newPage();
  await page.goto(url);
  await page.waitForFunction(() => document.body.dataset.answer !== undefined, null, { timeout: 120_000 });
  const { answer, refused, badFormat, city, tools, damaged, again } = await page.evaluate(() => ({
    ...document.body.dataset,
  }));
  await page.close();
  assert.match(answer, /القاهرة/);
  assert.match(refused, /functions is not supported; supported: messages/);
  assert.match(badFormat, /`type`: expected text, json_object or json_schema/);
  assert.match(city, /^(القاهرة|الرباط)$/);
  const [called, finish, scored, prompt, restored] = JSON.parse(tools);
  assert.match(JSON.parse(called.arguments).city, /^(القاهرة|الرباط)$/);
  assert.deepEqual([called.name, finish, damaged], ['capital', 'tool_calls', 'BadInput']);
  assert.ok(scored > 5 && restored >= prompt, tools);
  assert.equal(again, 'القاهرة');
}

const html = (script) => `<!doctype html><meta charset="utf-8"><body>${script}</body>`;

it('holds code, types, engine, headers and licences, no source', () => {
  const files = execFileSync('tar', ['-tzf', tarball], { encoding: 'utf8' }).trim().split('\n');
  for (const name of ['dist/index.js', 'dist/index.d.ts', 'dist/worker.js', 'dist/types.d.ts', 'engine/bayan.js'])
    assert.ok(files.includes(`package/${name}`), `${name} is missing in ${files.join(', ')}`);
  for (const name of ['engine/bayan_bg.wasm', 'LICENSE-MIT', 'LICENSE-APACHE', 'README.md', 'package.json'])
    assert.ok(files.includes(`package/${name}`), `${name} is missing in ${files.join(', ')}`);
  for (const name of [...readdirSync(join(web, 'hosting')), '_headers'])
    assert.ok(files.includes(`package/hosting/${name}`), `hosting/${name} is missing in ${files.join(', ')}`);
  assert.deepEqual(
    files.filter((name) => /\/(src|test)\/|(?<!\.d)\.ts$/.test(name)),
    [],
  );
  const { license, repository } = JSON.parse(readFileSync(join(web, 'package/package.json'), 'utf8'));
  assert.ok(license && repository.url);
});

for (const moduleResolution of ['bundler', 'nodenext']) {
  it(`its types pass tsc --strict with ${moduleResolution}`, () => {
    const path = project(`types-${moduleResolution}`, { 'app.ts': TYPES });
    const module = moduleResolution === 'bundler' ? 'esnext' : 'nodenext';
    const lib = 'es2023,dom,dom.iterable,dom.asynciterable';
    const options = ['--strict', '--noEmit', '--target', 'es2022', '--lib', lib];
    const how = ['--module', module, '--moduleResolution', moduleResolution, '--skipLibCheck', 'false'];
    const tsc = join(web, 'node_modules/typescript/bin/tsc');
    try {
      execFileSync('node', [tsc, ...options, ...how, 'app.ts'], { cwd: path, encoding: 'utf8' });
    } catch (error) {
      assert.fail(error.stdout || String(error));
    }
  });
}

it('answers on a page without a bundler', async () => {
  const map = JSON.stringify({ imports: { 'bayan-web': './node_modules/bayan-web/dist/index.js' } });
  const scripts = `<script type="importmap">${map}</script><script type="module" src="app.js"></script>`;
  const path = project('plain', { 'app.js': APP, 'index.html': html(scripts) });
  cpSync(join(path, 'public/model'), join(path, 'model'), { recursive: true });
  const server = await serveFolder(path);
  await answers(server.url).finally(server.stop);
});

it('answers in a fresh Vite project, built and in development', async () => {
  const files = { 'app.js': APP, 'index.html': html('<script type="module" src="/app.js"></script>') };
  const path = project('vite', files);
  const vite = await import(pathToFileURL(join(web, 'node_modules/vite/dist/node/index.js')).href);
  const config = { root: path, base: './', configFile: false, logLevel: 'error' };
  await vite.build(config);
  const server = await serveFolder(join(path, 'dist'));
  await answers(server.url).finally(server.stop);
  const development = await vite.createServer({ ...config, base: '/', server: { port: 0, host: 'localhost' } });
  await development.listen();
  await answers(development.resolvedUrls.local[0]).finally(() => development.close());
});

it('answers in a fresh webpack project', async () => {
  const path = project('webpack', { 'app.js': APP });
  const webpack = require('webpack');
  const compiler = webpack({
    context: path,
    mode: 'production',
    entry: './app.js',
    output: { path: join(path, 'dist'), filename: 'main.js' },
    performance: { hints: false },
  });
  const stats = await new Promise((done, fail) =>
    compiler.run((error, result) => (error ? fail(error) : done(result))),
  );
  assert.equal(stats.hasErrors() || stats.hasWarnings(), false, stats.toString({ colors: false }));
  writeFileSync(join(path, 'dist/index.html'), html('<script src="main.js"></script>'));
  cpSync(join(path, 'public/model'), join(path, 'dist/model'), { recursive: true });
  const server = await serveFolder(join(path, 'dist'));
  await answers(server.url).finally(server.stop);
});
