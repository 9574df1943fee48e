/** Errors by their cause, each with the button that helps. */
import assert from 'node:assert/strict';
import { after, before, beforeEach, it } from 'node:test';
import { launch, openPage, startServer } from './harness.mjs';

let server;
let browser;
let context;
let page;
before(async () => {
  server = await startServer();
  browser = await launch();
});
after(async () => {
  await browser?.close();
  await server?.stop();
});
beforeEach(async () => {
  await context?.close();
  context = await browser.newContext({ locale: 'ar' });
  await context.addInitScript(() => localStorage.setItem('bayan-last-model', '{"kind":"stopped"}'));
  page = await openPage(context, server.url);
  await page.locator('.model-chip').click();
});

const trouble = () => page.locator('.trouble');
const buttons = () => trouble().getByRole('button').allInnerTexts();

it('a file that is no model: another one is to be chosen', async () => {
  const file = { name: 'note.pdf', mimeType: 'application/pdf', buffer: Buffer.from('%PDF-1.4') };
  await page.locator('#pick-files').setInputFiles([file]);
  await trouble().waitFor();
  assert.match(await trouble().innerText(), /اختر مجلدًا فيه config\.json/);
  assert.doesNotMatch(await trouble().innerText(), /أعد التنزيل/);
  assert.deepEqual(await buttons(), ['النماذج والتخزين']);
});

for (const address of ['not a url', 'C:\\models\\x.gguf', 'ahmed/نموذج'])
  it(`a mistyped address: ${address}`, async () => {
    await page.locator('#address').fill(address);
    await page.locator('form.source').getByRole('button').click();
    await trouble().waitFor();
    assert.match(await trouble().innerText(), /العنوان غير صحيح/);
    assert.deepEqual(await buttons(), ['النماذج والتخزين']);
  });

it('a folder that is not there: the name is to be checked', async () => {
  await page.locator('#address').fill(new URL('nowhere/x.gguf', server.url).href);
  await page.locator('form.source').getByRole('button').click();
  await trouble().waitFor({ timeout: 60_000 });
  assert.match(await trouble().innerText(), /لا يوجد بهذا الاسم/);
  assert.deepEqual(await buttons(), ['النماذج والتخزين']);
});

/** Opens an address whose server answers every request so; the number of requests for its bytes. */
async function openAddress(name, answer) {
  const asked = { bytes: 0 };
  await context.route(`**/${name}`, (route) => {
    if (route.request().method() !== 'HEAD') asked.bytes++;
    return route.fulfill(answer);
  });
  await page.locator('#address').fill(new URL(name, server.url).href);
  await page.locator('form.source').getByRole('button').click();
  await trouble().waitFor({ timeout: 60_000 });
  return asked;
}

it('files that are damaged: deleted and fetched again', async () => {
  const asked = await openAddress('damaged.gguf', { status: 200, body: 'damaged weights' });
  assert.match(await trouble().innerText(), /ناقصة أو تالفة/);
  assert.deepEqual(await buttons(), ['حذف المحفوظ وإعادة التنزيل']);
  const { bytes } = asked;
  await trouble().getByRole('button').click();
  await page.waitForFunction(() => document.querySelector('.trouble') === null);
  await trouble().waitFor({ timeout: 60_000 });
  assert.equal(asked.bytes, 2 * bytes, 'the whole file was fetched once more');
});

it('a kind that is not supported: another model', async () => {
  await openAddress('kind.gguf', { status: 200, body: 'unknown kind' });
  assert.match(await trouble().innerText(), /نوع هذا النموذج غير مدعوم/);
  assert.deepEqual(await buttons(), ['النماذج والتخزين']);
});

it('a gated model: where the token is entered', async () => {
  await openAddress('gated.gguf', { status: 403, body: 'x' });
  assert.match(await trouble().innerText(), /رمز الوصول/);
  assert.deepEqual(await buttons(), ['النماذج والتخزين']);
});

it('a server that does not answer: the load goes on', async () => {
  await openAddress('broken.gguf', { status: 500, body: 'x' });
  assert.match(await trouble().innerText(), /تعذّر الاتصال/);
  assert.deepEqual(await buttons(), ['إعادة المحاولة']);
});

it('a model too large for the CPU is refused undownloaded', async () => {
  await context.addInitScript(() => Object.defineProperty(Navigator.prototype, 'gpu', { get: () => undefined }));
  let asked = 0;
  await context.route('**/large.gguf', (route) => {
    if (route.request().method() === 'HEAD')
      return route.fulfill({ status: 200, headers: { 'x-linked-size': '1000000000' } });
    asked++;
    return route.abort();
  });
  await page.reload();
  await page.locator('.model-chip').click();
  const card = page.locator('.card.tall').filter({ hasText: 'كبير على المعالج المركزي' }).first();
  assert.ok(await card.getByRole('button').isDisabled());
  await page.locator('#address').fill(new URL('large.gguf', server.url).href);
  await page.locator('form.source').getByRole('button').click();
  await trouble().waitFor();
  assert.match(await trouble().innerText(), /كبير على المعالج المركزي[\s\S]*1[\s\S]*640[\s\S]*0\.6 مليار/);
  assert.deepEqual(await buttons(), ['النماذج والتخزين']);
  assert.equal(asked, 0, 'no byte of it was downloaded');
});
