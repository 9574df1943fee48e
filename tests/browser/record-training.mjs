/**
 * Trains the ready example on the embedded model in the page, as a person does, and writes what is seen:
 * `node record-training.mjs FOLDER [STEPS]`. Prints the time, the loss of every step and the answers before and after.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { launch, longestFrame, openPage, startServer, watchFrames } from './harness.mjs';

const [folder, steps] = process.argv.slice(2);
if (!folder) throw new Error('which folder? node record-training.mjs FOLDER [STEPS]');
mkdirSync(folder, { recursive: true });
const server = await startServer({ real: true });
const browser = await launch();
const patience = { timeout: 900_000 };
try {
  const context = await browser.newContext({ locale: 'ar', viewport: { width: 1000, height: 1100 } });
  const page = await openPage(context, server.url);
  await page.waitForSelector('.model-chip.ready', { timeout: 120_000 });
  await page.locator('.model-chip').click();
  await page.getByRole('button', { name: 'تدريب مهايئ جديد' }).click();
  await page.locator('input[name="way"][value="file"]').check();
  await page.getByRole('button', { name: 'مثال جاهز' }).click();
  if (steps) await page.getByLabel('الخطوات').fill(steps);
  await page.getByRole('button', { name: 'فحص الأمثلة', exact: true }).click();
  await page.waitForSelector('.sheet .facts', patience);
  const facts = await page.locator('.sheet .facts').innerText();
  await watchFrames(page);
  const start = performance.now();
  await page.getByRole('button', { name: 'بدء التدريب', exact: true }).click();
  await page.waitForSelector('.answers .after', patience);
  const seconds = (performance.now() - start) / 1000;
  const text = (selector) => page.locator(selector).innerText();
  const record = {
    seconds: Math.round(seconds),
    longestFrameMs: Math.round(await longestFrame(page)),
    facts: facts.split('\n'),
    before: await text('.answers .before'),
    after: await text('.answers .after'),
    curve: await page.locator('.loss-curve').getAttribute('aria-label'),
  };
  writeFileSync(join(folder, 'training.json'), `${JSON.stringify(record, null, 2)}\n`);
  await page.locator('.loss-curve').scrollIntoViewIfNeeded();
  await page.screenshot({ path: join(folder, 'training.png') });
  console.log(JSON.stringify(record, null, 2));
} finally {
  await browser.close();
  await server.stop();
}
