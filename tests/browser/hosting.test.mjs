/** The response headers for hosts: the files agree, and under them the page works with the real engine. */
import assert from 'node:assert/strict';
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, it } from 'node:test';
import { engineFolder, finished, lastAnswer, launch, openPage, root, say } from './harness.mjs';
import { serveFolder, shippedManifest, web } from './harness.mjs';

const HEADERS = readFileSync(join(web, 'public/_headers'), 'utf8')
  .split('\n')
  .filter((line) => line.startsWith('  '))
  .map((line) => /^ {2}([\w-]+): (.+)$/.exec(line).slice(1));

let site;
let browser;
before(async () => {
  if (!existsSync(join(engineFolder, 'bayan_bg.wasm')))
    throw new Error(`${engineFolder} holds no engine: build it first`);
  site = mkdtempSync(join(tmpdir(), 'bayan-site-'));
  cpSync(join(web, 'dist'), site, { recursive: true });
  cpSync(engineFolder, join(site, 'engine'), { recursive: true });
  shippedManifest(join(root, 'crates/embedded/checkpoint'), join(site, 'model'));
  browser = await launch();
});
after(async () => {
  await browser?.close();
  if (site) rmSync(site, { recursive: true });
});

it('every file for a host sets the same headers', () => {
  assert.ok(HEADERS.length >= 6);
  assert.match(HEADERS.find(([name]) => name === 'Content-Security-Policy')[1], /frame-ancestors 'none'/);
  for (const file of readdirSync(join(web, 'hosting'))) {
    const text = readFileSync(join(web, 'hosting', file), 'utf8');
    for (const [name, value] of HEADERS) assert.ok(text.includes(name) && text.includes(value), `${file}: ${name}`);
  }
});

it('the page answers under them, isolated and not to be framed', async () => {
  const server = await serveFolder(site, Object.fromEntries(HEADERS));
  const context = await browser.newContext({ locale: 'ar' });
  await context.addInitScript(() => localStorage.setItem('bayan-settings', '{"temperature":0,"repetition":1}'));
  const page = await openPage(context, server.url);
  await page.waitForSelector('.model-chip.ready', { timeout: 90_000 });
  assert.equal(await page.evaluate(() => crossOriginIsolated), true);
  await say(page, 'ما عاصمة مصر؟');
  await finished(page);
  assert.match(await lastAnswer(page).innerText(), /القاهرة/);
  assert.deepEqual(page.errors, []);
  const outer = await serveFolder(site);
  await page.goto(outer.url);
  await page.setContent(`<iframe src="${server.url}"></iframe>`);
  await page.waitForFunction(() => frames.length === 1);
  const framed = await page
    .frames()[1]
    .evaluate(() => document.querySelector('#app') !== null)
    .catch(() => false);
  assert.equal(framed, false);
  await context.close();
  await Promise.all([server.stop(), outer.stop()]);
});
