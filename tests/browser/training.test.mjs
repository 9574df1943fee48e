/** The page trains the embedded model: no part is a test double. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { after, before, it } from 'node:test';
import { launch, longestFrame, openPage, root, seriousViolations, startServer, watchFrames, web } from './harness.mjs';

const { strFromU8, unzipSync } = createRequire(join(web, 'package.json'))('fflate');

/** Kernels are compiled before the first step, which takes a software GPU most of a minute. */
const PATIENCE = { timeout: 300_000 };
let server;
let browser;
let context;

before(async () => {
  server = await startServer({ real: true });
  browser = await launch();
  context = await browser.newContext({ locale: 'ar', viewport: { width: 1280, height: 860 } });
  await context.addInitScript(offerHiding);
});
after(async () => {
  await browser?.close();
  await server?.stop();
});

/**
 * A headless browser shows every tab. `hideTab()` gives a page what browsers give a hidden one: no frames, and timers
 * that end once a second at most. Timers of workers go on in a hidden tab.
 */
function offerHiding() {
  window.hideTab = () => {
    Object.defineProperty(document, 'visibilityState', { value: 'hidden' });
    Object.defineProperty(document, 'hidden', { value: true });
    window.requestAnimationFrame = () => 0;
    const timer = window.setTimeout;
    window.setTimeout = (action, delay, ...rest) => timer(action, Math.max(delay ?? 0, 1000), ...rest);
    document.dispatchEvent(new Event('visibilitychange'));
  };
}

async function visit() {
  const page = await openPage(context, server.url);
  page.setDefaultTimeout(PATIENCE.timeout);
  await page.waitForSelector('.model-chip.ready', PATIENCE);
  return page;
}

async function openPanel(page) {
  await page.locator('.model-chip').click();
  await page.getByRole('button', { name: 'تدريب مهايئ جديد' }).click();
}

const button = (page, name) => page.getByRole('button', { name, exact: true });
const stepsOf = (page) => page.evaluate(() => document.querySelector('.sheet progress.bar')?.value ?? 0);

it('pairs train, pause, go on in a hidden tab, change answers', async () => {
  const page = await visit();
  await openPanel(page);
  await button(page, 'فحص الأمثلة').click();
  assert.match(await page.locator('.sheet [role=alert]').innerText(), /مثالًا واحدًا/);
  const pairs = [
    ['من أنت؟', 'أنا عم رضا يا غالي.'],
    ['ما اسمك؟', 'اسمي رضا.'],
  ];
  for (const [at, [question, answer]] of pairs.entries()) {
    await page.getByLabel(`سؤال ${at + 1}`).fill(question);
    await page.getByLabel(`جواب ${at + 1}`).fill(answer);
  }
  await page.getByLabel('الخطوات').fill('12');
  await page.getByLabel('سرعة التعلّم').fill('0.005');
  await page.getByLabel('اسم المهايئ').fill('رضا');
  await button(page, 'فحص الأمثلة').click();
  await page.waitForSelector('.sheet .facts', PATIENCE);
  const facts = await page.locator('.sheet .facts').innerText();
  assert.match(facts, /أمثلة التدريب\s*2/);
  assert.deepEqual(await seriousViolations(page), []);
  await watchFrames(page);
  await button(page, 'بدء التدريب').click();
  await page.waitForFunction(() => (document.querySelector('.sheet progress.bar')?.value ?? 0) >= 3, null, PATIENCE);
  await button(page, 'إيقاف مؤقت').click();
  await page.getByText('يمكنك إغلاق الصفحة').waitFor(PATIENCE);
  const gap = await longestFrame(page);
  console.log(`  the longest time between two frames: ${gap.toFixed(0)} ms`);
  const paused = await stepsOf(page);
  assert.ok(paused >= 3 && paused < 12, `${paused} steps`);
  assert.match(await page.locator('.answers .before').innerText(), /بيان/);
  assert.equal(await page.locator('.loss-curve').count(), 1);
  assert.deepEqual(await seriousViolations(page), []);
  await page.close();

  const later = await visit();
  await openPanel(later);
  assert.match(await later.locator('.card', { hasText: 'رضا' }).innerText(), new RegExp(`${paused} من 12`));
  await later.locator('.card', { hasText: 'رضا' }).getByRole('button', { name: 'متابعة' }).click();
  await later.evaluate(() => window.hideTab());
  // Playwright's own waiting needs frames, unless it polls.
  const done = () => document.querySelector('.answers .after') !== null;
  await later.waitForFunction(done, null, { ...PATIENCE, polling: 1000 });
  assert.match(await later.locator('.answers .after').innerText(), /رضا/);
  const curve = await later.locator('.loss-curve').getAttribute('aria-label');
  assert.match(curve, /12 خطوة/);
  const names = await later.locator('a[download]').evaluateAll((links) => links.map((link) => link.download));
  assert.deepEqual(names.sort(), ['adapter_config.json', 'adapter_model.safetensors']);
  const arriving = later.waitForEvent('download');
  await later.locator('a[download="adapter_config.json"]').click();
  const config = JSON.parse(readFileSync(await (await arriving).path(), 'utf8'));
  assert.equal(config.peft_type, 'LORA');
  const packed = later.waitForEvent('download');
  await later.getByRole('button', { name: 'ملف واحد' }).click();
  const archive = await packed;
  assert.equal(archive.suggestedFilename(), 'رضا.zip');
  const parts = unzipSync(readFileSync(await archive.path()));
  assert.deepEqual(Object.keys(parts).sort(), ['adapter_config.json', 'adapter_model.safetensors']);
  assert.deepEqual(JSON.parse(strFromU8(parts['adapter_config.json'])), config);
  assert.deepEqual(await seriousViolations(later), []);
  await later.getByRole('button', { name: 'إغلاق', exact: true }).click();
  await later.locator('.model-chip').click();
  const card = later.locator('.adapters .card', { hasText: 'رضا' });
  assert.equal(await card.count(), 1, 'it is in the list of adapters');
  await card.getByRole('button', { name: 'إزالة' }).click();
  await card.waitFor({ state: 'detached' });
  assert.deepEqual([...page.errors, ...later.errors], []);

  // Examples that cannot be used are explained, in a table too.
  await later.getByRole('button', { name: 'تدريب مهايئ جديد' }).click();
  await button(later, 'تدريب آخر').click();
  await later.locator('input[name="way"][value="paste"]').check();
  await later.getByLabel('الأمثلة نصًّا').fill('a,b\n1,2\n');
  await button(later, 'فحص الأمثلة').click();
  await later.waitForSelector('.sheet .trouble', PATIENCE);
  assert.match(await later.locator('.sheet .trouble').innerText(), /لا تصلح هذه الأمثلة/);
  // The run is kept until it is deleted.
  const stored = later.locator('.card', { hasText: 'رضا' });
  assert.match(await stored.innerText(), /اكتمل/);
  await stored.getByRole('button', { name: 'حذف التدريب رضا' }).click();
  await stored.getByRole('button', { name: 'حذف', exact: true }).click();
  await stored.waitFor({ state: 'detached' });
});

it('the ready example is a part of the one of the command line', () => {
  const linesOf = (...path) =>
    readFileSync(join(root, ...path), 'utf8')
      .trimEnd()
      .split('\n');
  const all = new Set(linesOf('examples/finetune/train.jsonl'));
  const ready = linesOf('web/public/training/am-rida.jsonl');
  assert.equal(ready.length, 40);
  assert.deepEqual(
    ready.filter((line) => !all.has(line)),
    [],
  );
});
