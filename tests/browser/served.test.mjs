/**
 * The chat page of `bayan serve`, with the embedded model, in Chromium. Needs the program (BAYAN_NATIVE). Only what the
 * engine answers is real; texts that the model would not write come from a stand-in for /v1/chat/completions.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, beforeEach, it } from 'node:test';
import { launch, root, seriousViolations } from './harness.mjs';

const KEY = 'secret-key';
let server;
let url;
let browser;
let context;
let page;

before(async () => {
  const program = process.env.BAYAN_NATIVE ?? join(root, 'target/debug/bayan');
  const flags = ['serve', '--port', '0', '--no-warm-up', '--parallel', '2', '--context', '512', '--seed', '1'];
  server = spawn(program, flags, {
    env: { ...process.env, BAYAN_API_KEY: KEY },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  for await (const line of createInterface({ input: server.stdout })) {
    url = /http:\/\/\S+/.exec(line)?.[0];
    if (url) break;
  }
  browser = await launch();
});
after(async () => {
  await browser?.close();
  if (server?.exitCode === null) {
    server.kill('SIGTERM');
    await once(server, 'exit');
  }
});
beforeEach(async () => {
  await context?.close();
  context = await browser.newContext({ locale: 'ar', viewport: { width: 1100, height: 760 } });
  page = await context.newPage();
  page.errors = [];
  page.on('pageerror', (error) => page.errors.push(String(error)));
  page.on('console', (message) => {
    if (/Content Security Policy|Uncaught/.test(message.text())) page.errors.push(message.text());
  });
});

const shot = (name) =>
  process.env.BAYAN_SHOTS ? page.screenshot({ path: join(process.env.BAYAN_SHOTS, name) }) : null;

/** Opens the page and enters the key. */
async function enter() {
  await page.goto(url);
  await page.locator('#key').waitFor();
  await page.locator('#key').fill(KEY);
  await page.getByRole('button', { name: 'تمّ' }).click();
  await page.waitForFunction(() => document.querySelector('#model').options.length > 0);
}

async function say(text) {
  await page.locator('#text').fill(text);
  await page.keyboard.press('Enter');
}

const ended = () => page.waitForFunction(() => document.querySelector('#stop').hidden, null, { timeout: 90_000 });

/** Answers of the next requests, in pieces. */
async function answerWith(text) {
  const data = [...text].map((content) => `data: ${JSON.stringify({ choices: [{ delta: { content } }] })}\n\n`);
  const end = JSON.stringify({ choices: [{ delta: {}, finish_reason: 'stop' }] });
  const body = `${data.join('')}data: ${end}\n\ndata: [DONE]\n\n`;
  await page.route('**/v1/chat/completions', (route) => route.fulfill({ contentType: 'text/event-stream', body }));
}

it('asks for the key, answers, and keeps the conversation', async () => {
  await page.goto(url);
  await page.locator('#notice').waitFor();
  assert.match(await page.locator('#notice').innerText(), /مفتاح/);
  await enter();
  await say('السلام عليكم');
  await ended();
  const answer = await page.locator('.turn.answer .body').innerText();
  assert.match(answer, /وعليكم السلام/);
  assert.equal(await page.locator('.turn.answer .body > p').first().getAttribute('dir'), 'rtl');
  await shot('served-answer.png');
  assert.deepEqual(await seriousViolations(page), []);
  await page.reload();
  await page.waitForFunction(() => document.querySelectorAll('.turn').length === 2);
  assert.equal(await page.locator('.turn.answer .body').innerText(), answer);
  assert.equal(await page.evaluate(() => localStorage.getItem('bayan.key')), null, 'the key is not kept');
  await page.getByRole('button', { name: 'محادثة جديدة' }).click();
  assert.equal(await page.locator('.turn').count(), 0);
  assert.equal(await page.locator('#list li').count(), 1);
  assert.deepEqual(page.errors, []);
});

it('stops an answer and goes on', async () => {
  await enter();
  // An answer that does not end by itself.
  await page.route('**/v1/chat/completions', async (route) => {
    const body = { ...route.request().postDataJSON(), ignore_eos: true, max_tokens: 400 };
    await route.continue({ postData: JSON.stringify(body) });
  });
  // The button is pressed in the page as soon as there is text: a fast answer would end before a click from here.
  await page.evaluate(() => {
    const watch = new MutationObserver(() => {
      const stop = [...document.querySelectorAll('button')].find((button) => button.textContent.trim() === 'إيقاف');
      const text = document.querySelector('.turn.answer .body')?.textContent ?? '';
      if (stop && text.length > 5) {
        watch.disconnect();
        stop.click();
      }
    });
    watch.observe(document.body, { childList: true, subtree: true, characterData: true });
  });
  await say('اذكر لي شيئًا عن القاهرة');
  await ended();
  assert.match(await page.locator('.turn.answer').innerText(), /أُوقفت/);
  await page.unroute('**/v1/chat/completions');
  await say('السلام عليكم');
  await ended();
  assert.equal(await page.locator('.turn.answer').count(), 2);
  assert.deepEqual(page.errors, []);
});

it('shows text as text, each paragraph in its direction', async () => {
  await enter();
  await answerWith(
    [
      'PyTorch هي مكتبة كتبت بلغة C++، وتعمل على GPU.',
      '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script> هذا نص.',
      'This paragraph is English.',
      '- البند الأول مع `cargo build`\n- **مهم**: البند الثاني',
      '١. واحد\n٢. اثنان',
      '```python\nprint("مرحبا")\n```',
    ].join('\n\n'),
  );
  assert.equal(await page.locator('#text').getAttribute('dir'), 'rtl', 'an empty field has the direction of its hint');
  await say('ما هي PyTorch؟');
  await ended();
  const body = page.locator('.turn.answer .body');
  assert.equal(await page.locator('.turn.user p').getAttribute('dir'), 'rtl', 'a Latin name among few Arabic letters');
  const directions = await body.locator(':scope > p').evaluateAll((all) => all.map((p) => p.dir));
  assert.deepEqual(directions, ['rtl', 'rtl', 'ltr']);
  assert.match(await body.innerText(), /<img src=x onerror/);
  assert.equal(await page.evaluate(() => window.hacked), undefined);
  assert.equal(await body.locator('img, script').count(), 0);
  assert.deepEqual(await body.locator('p').first().locator('bdi').allInnerTexts(), ['PyTorch', 'C++', 'GPU']);
  assert.deepEqual(await body.locator('ul > li').allInnerTexts(), ['البند الأول مع cargo build', 'مهم: البند الثاني']);
  assert.equal(await body.locator('ol').getAttribute('dir'), 'rtl');
  assert.equal(await body.locator('ol').evaluate((list) => getComputedStyle(list).listStyleType), 'arabic-indic');
  assert.equal((await body.locator('pre').innerText()).trim(), 'print("مرحبا")');
  const tags = await body.locator('p').nth(1).locator('bdi').allInnerTexts();
  assert.deepEqual(tags, ['<img src=x onerror="window.hacked=1">', '<script>', 'window.hacked=1', '</script>']);
  await shot('served-text.png');
  await page.emulateMedia({ colorScheme: 'dark' });
  await shot('served-dark.png');
  assert.deepEqual(await seriousViolations(page), []);
  await page.getByRole('button', { name: 'الإعدادات' }).click();
  await page.locator('#language').selectOption('en');
  await page.getByRole('button', { name: 'Done' }).click();
  assert.equal(await page.evaluate(() => document.documentElement.dir), 'ltr');
  await page.setViewportSize({ width: 390, height: 760 });
  await shot('served-narrow.png');
  const wide = await page.evaluate(() => document.documentElement.scrollWidth > window.innerWidth);
  assert.equal(wide, false, 'nothing is cut off on a phone');
  assert.deepEqual(page.errors, []);
});

it('says what failed and lets the reader try again', async () => {
  await enter();
  await page.route('**/v1/chat/completions', (route) => route.abort());
  await say('سؤال');
  await ended();
  assert.match(await page.locator('#notice').innerText(), /تعذّر الاتصال/);
  await page.unroute('**/v1/chat/completions');
  await page.getByRole('button', { name: 'إعادة المحاولة' }).click();
  await ended();
  assert.equal(await page.locator('.turn').count(), 2);
});
