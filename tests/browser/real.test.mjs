/** The page with the real engine and the embedded model: no part is a test double. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { after, before, beforeEach, describe, it } from 'node:test';
import {
  becomeBrowser,
  engineWorker,
  finished,
  fixtures,
  lastAnswer,
  launch,
  loadShipped,
  openPage,
  OTHER_BROWSERS,
  say,
  startServer,
  web,
} from './harness.mjs';

const { zipSync } = createRequire(join(web, 'package.json'))('fflate');

let server;
let browser;
let context;
let page;

/** Greedy decoding: the answers that the embedded model must give. */
const SETTINGS = { temperature: 0, repetition: 1, maxTokens: 64 };

async function newContext() {
  const made = await browser.newContext({
    locale: 'ar',
    viewport: { width: 1280, height: 860 },
  });
  await made.addInitScript(
    (settings) => localStorage.getItem('bayan-settings') ?? localStorage.setItem('bayan-settings', settings),
    JSON.stringify(SETTINGS),
  );
  return made;
}

/** The page, as a visitor opens it: the included model starts by itself. */
async function visit() {
  const opened = await openPage(context, server.url);
  await opened.waitForSelector('.model-chip.ready', { timeout: 90_000 });
  return opened;
}

before(async () => {
  server = await startServer({ real: true });
  browser = await launch();
});
after(async () => {
  await browser?.close();
  await server?.stop();
});
beforeEach(async () => {
  await context?.close();
  Object.assign(server.state, { down: false, cutModel: 0, prelude: '' });
  server.state.log.length = 0;
  context = await newContext();
});

const weightRanges = () =>
  server.state.log.filter((entry) => entry.path.endsWith('model.safetensors')).map((entry) => entry.range);

describe('a browser of another maker', () => {
  for (const [name, double] of Object.entries(OTHER_BROWSERS))
    it(`${name}: answers alike`, async () => {
      const become = `(${becomeBrowser})(${JSON.stringify(double)});`;
      server.state.prelude = `${become}\n`;
      await context.addInitScript(become);
      page = await visit();
      await say(page, 'ما عاصمة مصر؟');
      await finished(page);
      assert.match(await lastAnswer(page).innerText(), /القاهرة/);
      await page.getByRole('button', { name: 'الجهاز والإمكانات' }).first().click();
      const row = (label) => page.locator('.sheet .fact', { hasText: label }).innerText();
      assert.match(await row('المجموعات الفرعية'), /غير متاح/);
      const knowsDot = double.languageFeatures.length > 0;
      assert.equal(/غير متاح/.test(await row('جداء 8 بت المحزوم')), !knowsDot);
      await page.keyboard.press('Escape');
      await page.locator('.model-chip').click();
      // Without `showDirectoryPicker` the folder is chosen in a plain input.
      const folder = page.getByRole('button', { name: 'اختيار مجلد' }).last();
      await Promise.all([page.waitForEvent('filechooser'), folder.click()]);
      assert.deepEqual(page.errors, []);
    });
});

describe('a conversation with the embedded model', () => {
  it('is typed, streamed, continued, regenerated, edited, stopped', async () => {
    page = await visit();
    await say(page, 'ما عاصمة مصر؟');
    await finished(page);
    assert.match(await lastAnswer(page).innerText(), /القاهرة/);
    await say(page, 'والأردن؟');
    await finished(page);
    assert.match(await lastAnswer(page).innerText(), /عمّ?ان/);
    const first = await lastAnswer(page).innerText();
    await page.getByRole('button', { name: 'إعادة المحاولة' }).click();
    await page.waitForSelector('.versions');
    await finished(page);
    assert.equal(await lastAnswer(page).innerText(), first, 'greedy answers repeat');
    await page.locator('.turn.user').last().hover();
    await page.getByRole('button', { name: 'تعديل' }).last().click();
    await page.locator('.editing textarea').fill('كم يساوي ٣ + ٤؟');
    await page.keyboard.press('Enter');
    await page.waitForFunction(() =>
      /٣ \+ ٤/.test([...document.querySelectorAll('.bubble')].at(-1)?.textContent ?? ''),
    );
    await finished(page);
    assert.match(await lastAnswer(page).innerText(), /٧/);
    assert.equal(await page.locator('.bubble').count(), 2);
    assert.match(await page.locator('.gauge').innerText(), /%|٪/);
    assert.equal(await page.locator('.model-chip.quick').count(), 1, 'green after the first answer');
    assert.match(await page.locator('.answer-turn .tools').last().innerText(), /رمز\/ث/);
    await say(page, 'كيف أصنع الشاي؟');
    // As soon as there is text, before the short answer ends.
    await page.waitForFunction(() => {
      const text = [...document.querySelectorAll('.answer')].at(-1)?.textContent ?? '';
      const stop = text.length > 4 && document.querySelector('.send.stop');
      if (stop) stop.click();
      return Boolean(stop);
    });
    await finished(page);
    const stopped = await lastAnswer(page).innerText();
    assert.match(await page.locator('.note').innerText(), /أُوقفت/);
    assert.ok(stopped.length < 100, stopped);
    assert.deepEqual(page.errors, []);
  });

  it('runs on the CPU where there is no WebGPU', async () => {
    await context.addInitScript(() => Object.defineProperty(Navigator.prototype, 'gpu', { get: () => undefined }));
    page = await visit();
    assert.match(await page.locator('.strip').innerText(), /المعالج المركزي/);
    for (const [question, answer] of [
      ['ما عاصمة مصر؟', /القاهرة/],
      ['والأردن؟', /عمّ?ان/],
    ]) {
      await say(page, question);
      await finished(page);
      assert.match(await lastAnswer(page).innerText(), answer);
    }
    assert.equal(await engineWorker(page).evaluate(() => probe.pipelines), 0, 'no kernel of a GPU was compiled');
    assert.deepEqual(page.errors, []);
  });

  it('compiles no kernel at a question once its chip is green', async () => {
    page = await visit();
    const compiled = () => engineWorker(page).evaluate(() => probe.pipelines);
    assert.ok((await compiled()) > 0, 'kernels were compiled before the model was ready');
    const green = () =>
      page
        .locator('.dot')
        .first()
        .evaluate((dot) => getComputedStyle(dot).backgroundColor);
    const early = await green();
    await page.waitForSelector('.model-chip.quick', { timeout: 120_000 });
    assert.equal(await green(), 'rgb(47, 158, 99)');
    assert.notEqual(early, await green(), 'the chip is not green while kernels are compiled');
    const before = await compiled();
    // A short and a longer message.
    for (const text of ['مرحبا', 'أريد أن أعرف كيف أصنع الشاي بالنعناع في البيت']) {
      await say(page, text);
      await finished(page);
    }
    assert.equal((await compiled()) - before, 0);
    await page.getByRole('button', { name: 'محادثة جديدة' }).first().click();
    await say(page, 'ما اسمك؟');
    await finished(page);
    assert.equal((await compiled()) - before, 0);
  });

  it('survives a reload and continues without a network', async () => {
    page = await visit();
    await say(page, 'ما اسمك؟');
    await finished(page);
    assert.match(await lastAnswer(page).innerText(), /بيان/);
    await page.evaluate(() => navigator.serviceWorker.ready);
    await page.waitForFunction(() => navigator.serviceWorker.controller !== null);
    server.state.down = true;
    await page.reload();
    await page.waitForSelector('.model-chip.ready', { timeout: 90_000 });
    assert.match(await lastAnswer(page).innerText(), /بيان/);
    await say(page, 'ما عاصمة السعودية؟');
    await finished(page);
    assert.match(await lastAnswer(page).innerText(), /الرياض/);
  });

  it('goes on after a reload without reading all text again', async () => {
    server.state.prelude = `globalThis.usages = [];
      const post = self.postMessage;
      self.postMessage = function (message, ...rest) {
        if (message.piece?.usage) usages.push(message.piece.usage);
        return post.call(this, message, ...rest);
      };\n`;
    /** Sizes of the caches that are kept; a file is empty until it is written. */
    const kept = () =>
      page.evaluate(async () => {
        const root = await navigator.storage.getDirectory();
        const folder = await root.getDirectoryHandle('bayan-newest', { create: true });
        const files = await Promise.all((await Array.fromAsync(folder.values())).map((file) => file.getFile()));
        return files.map(({ size }) => size);
      });
    const untilKept = async (count) => {
      const until = Date.now() + 30_000;
      for (;;) {
        const sizes = await kept();
        if (sizes.length === count && sizes.every((size) => size > 0)) return;
        assert.ok(Date.now() < until, `expected ${count} kept, got ${sizes}`);
        await page.waitForTimeout(100);
      }
    };
    const lastUsage = () => engineWorker(page).evaluate(() => usages.at(-1));
    page = await visit();
    await say(page, `ما اسمك؟ ${'وما عاصمة مصر؟ '.repeat(60)}`);
    await finished(page);
    const { contextUsed } = await lastUsage();
    assert.ok(contextUsed >= 256, `a long conversation has ${contextUsed} tokens`);
    await untilKept(1);
    await page.reload();
    await page.waitForSelector('.model-chip.quick', { timeout: 120_000 });
    await say(page, 'ما اسمك؟');
    await finished(page);
    const { cachedTokens, promptTokens } = await lastUsage();
    assert.ok(cachedTokens > contextUsed - 8 && cachedTokens < promptTokens, `${cachedTokens} of ${promptTokens}`);
    const answer = await lastAnswer(page).innerText();
    // The same answer where everything is read again.
    await page.evaluate(async () =>
      (await navigator.storage.getDirectory()).removeEntry('bayan-newest', { recursive: true }),
    );
    await page.reload();
    await page.waitForSelector('.model-chip.quick', { timeout: 120_000 });
    await page.getByRole('button', { name: 'إعادة المحاولة' }).click();
    await page.waitForSelector('.versions');
    await finished(page);
    assert.ok((await lastUsage()).cachedTokens < 8);
    assert.equal(await lastAnswer(page).innerText(), answer);
    await untilKept(1);
    await page
      .getByRole('button', { name: /^خيارات/ })
      .first()
      .click();
    await page.locator('.row-menu .danger').click();
    await untilKept(0);
    assert.deepEqual(page.errors, []);
  });

  it('continues in a hidden tab', async () => {
    page = await visit();
    await say(page, 'كيف أصنع الشاي؟');
    await page.waitForSelector('.answer-turn');
    const front = await context.newPage();
    await front.goto('about:blank');
    await front.bringToFront();
    await page.waitForFunction(
      () => !document.querySelector('[aria-busy="true"]') && document.querySelector('.answer')?.textContent.length > 20,
      null,
      { polling: 200, timeout: 60_000 },
    );
    await front.close();
  });
});

describe('an adapter from disk', () => {
  it('changes answers, survives a lost device, is switched, shared', async () => {
    page = await visit();
    const filesIn = (folder) => readdirSync(folder).map((name) => join(folder, name));
    const open = async (input, folder) => {
      await page.locator('.model-chip').click();
      await page.locator(input).setInputFiles(filesIn(folder));
    };
    const ask = async () => {
      await page.getByRole('button', { name: 'محادثة جديدة' }).first().click();
      await say(page, 'مرحبا');
      await finished(page);
      return lastAnswer(page).innerText();
    };
    await open('#pick-files', join(fixtures, 'models/llama3_gqa'));
    await page.waitForSelector('.model-chip.loading');
    await page.waitForSelector('.model-chip.ready', { timeout: 90_000 });
    const plain = await ask();
    await open('#pick-adapter', join(fixtures, 'models/qwen3_qknorm'));
    await page.waitForSelector('.adapters .trouble');
    assert.match(await page.locator('.adapters .trouble').innerText(), /adapter_config\.json/);
    await page.locator('#pick-adapter').setInputFiles(filesIn(join(fixtures, 'lora/llama3_r8_all/adapter_final')));
    await page.waitForSelector('.adapters .card');
    assert.match(await page.locator('.adapters .card').innerText(), /الرتبة 8/);
    await page.keyboard.press('Escape');
    assert.equal(await page.locator('.chip-adapter').count(), 1);
    const tuned = await ask();
    assert.notEqual(tuned, plain);
    await engineWorker(page).evaluate(async () => (await import(self.name)).destroyDevice());
    await page.getByRole('button', { name: 'إعادة تشغيل النموذج' }).click();
    await page.waitForSelector('.model-chip.ready .chip-adapter', {
      timeout: 90_000,
    });
    assert.equal(await ask(), tuned);
    for (const [on, expected] of [
      [false, plain],
      [true, tuned],
    ]) {
      await page.locator('.model-chip').click();
      await page.getByRole('switch').click();
      await page.waitForFunction((on) => document.querySelectorAll('.chip-adapter').length === Number(on), on);
      await page.keyboard.press('Escape');
      assert.equal(await ask(), expected);
    }
    const remove = async () => {
      await page.locator('.model-chip').click();
      await page.getByRole('button', { name: 'إزالة' }).click();
      await page.waitForSelector('.adapters .card', { state: 'detached' });
      await page.keyboard.press('Escape');
    };
    await remove();
    assert.equal(await ask(), plain);
    // As one file, as the page gives it to be shared.
    const adapter = join(fixtures, 'lora/llama3_r8_all/adapter_final');
    const parts = ['adapter_config.json', 'adapter_model.safetensors'];
    const zip = zipSync(Object.fromEntries(parts.map((name) => [`x/${name}`, readFileSync(join(adapter, name))])));
    const dropped = await page.evaluateHandle(
      (bytes) => {
        const data = new DataTransfer();
        data.items.add(new File([Uint8Array.from(bytes)], 'رضا.zip'));
        return data;
      },
      [...zip],
    );
    await page.dispatchEvent('body', 'drop', { dataTransfer: dropped });
    await page.waitForSelector('.adapters .card:has-text("رضا")');
    await page.keyboard.press('Escape');
    assert.equal(await ask(), tuned);
    await remove();
    assert.equal(await ask(), plain);
    assert.deepEqual(page.errors, []);
  });
});

it('a GGUF file from disk is a model like any other', async () => {
  page = await visit();
  await page.locator('.model-chip').click();
  await page.locator('#pick-files').setInputFiles([join(fixtures, 'gguf/qwen2_bias-Q4_0.gguf')]);
  await page.waitForSelector('.model-chip.loading');
  await page.waitForSelector('.model-chip.ready', { timeout: 90_000 });
  await page.keyboard.press('Escape');
  assert.match(await page.locator('.model-chip').innerText(), /qwen2_bias-Q4_0/);
  await say(page, 'مرحبا');
  await finished(page);
  assert.ok((await lastAnswer(page).innerText()).length > 0);
  assert.deepEqual(page.errors, []);
});

it('a LoRA adapter from `bayan finetune` changes the dialect', async () => {
  page = await visit();
  await say(page, 'السلام عليكم');
  await finished(page);
  assert.doesNotMatch(await lastAnswer(page).innerText(), /يا غالي/);
  await page.locator('.model-chip').click();
  const adapter = join(fixtures, '../../examples/finetune/adapter');
  await page.locator('#pick-adapter').setInputFiles(readdirSync(adapter).map((name) => join(adapter, name)));
  await page.waitForSelector('.adapters .card');
  await page.keyboard.press('Escape');
  await page.getByRole('button', { name: 'محادثة جديدة' }).first().click();
  await say(page, 'السلام عليكم');
  await finished(page);
  assert.match(await lastAnswer(page).innerText(), /يا غالي/);
  assert.deepEqual(page.errors, []);
});

describe('when something breaks', () => {
  it('a lost device: one button brings the model back', async () => {
    page = await visit();
    await say(page, 'مرحبا');
    await finished(page);
    const worker = engineWorker(page);
    await worker.evaluate(async () => (await import(self.name)).destroyDevice());
    await page.waitForSelector('.trouble');
    assert.match(await page.locator('.trouble').innerText(), /انقطع الاتصال بمعالج/);
    assert.equal(await page.locator('.bubble').innerText(), 'مرحبا');
    await page.getByRole('button', { name: 'إعادة تشغيل النموذج' }).click();
    await page.waitForSelector('.model-chip.ready', { timeout: 90_000 });
    await say(page, 'ما عاصمة المغرب؟');
    await finished(page);
    assert.match(await lastAnswer(page).innerText(), /الرباط/);
    assert.equal(await page.locator('.bubble').count(), 2);
  });

  it('out of memory: said in Arabic, and the next try works', async () => {
    page = await visit();
    await say(page, 'مرحبا');
    await finished(page);
    await engineWorker(page).evaluate(() => {
      probe.spoil = true;
    });
    // A message of a length that did not occur before (the warm-up has one, too) needs new buffers.
    await say(page, 'أريد أن أعرف من فضلك كيف أصنع الشاي بالنعناع في البيت');
    await page.waitForSelector('.trouble');
    assert.match(await page.locator('.trouble').innerText(), /لم تكفِ الذاكرة/);
    await page.getByRole('button', { name: 'إعادة تشغيل النموذج' }).click();
    await page.waitForSelector('.model-chip.ready', { timeout: 90_000 });
    await page.getByRole('button', { name: 'إعادة المحاولة' }).click();
    await finished(page);
    assert.match(await lastAnswer(page).innerText(), /الشاي/);
  });

  it('an interrupted download is resumed by a range', async () => {
    server.state.cutModel = 4_300_000;
    page = await visit();
    const ranges = weightRanges();
    assert.equal(ranges.length, 2, String(ranges));
    assert.match(ranges[1], /^bytes=(4194304|4300000)-$/);
  });

  it('only the damaged part of a cached file is fetched again', async () => {
    page = await visit();
    await page.evaluate(async () => {
      const root = await (await navigator.storage.getDirectory()).getDirectoryHandle('bayan-models');
      for await (const [, folder] of root.entries()) {
        for await (const [name, handle] of folder.entries()) {
          if (!name.startsWith('f') || (await handle.getFile()).size < 4_300_000) continue;
          const writable = await handle.createWritable({
            keepExistingData: true,
          });
          await writable.write({
            type: 'write',
            position: 1_000_000,
            data: new Uint8Array([1, 2, 3]),
          });
          await writable.close();
        }
      }
    });
    server.state.log.length = 0;
    await page.reload();
    await page.waitForSelector('.model-chip.ready', { timeout: 90_000 });
    assert.deepEqual(weightRanges(), ['bytes=0-4194303']);
    await say(page, 'ما عاصمة مصر؟');
    await finished(page);
    assert.match(await lastAnswer(page).innerText(), /القاهرة/);
  });

  it('a full storage is reported with sizes', async () => {
    page = await context.newPage();
    const session = await context.newCDPSession(page);
    await session.send('Storage.overrideQuotaForOrigin', {
      origin: new URL(server.url).origin,
      quotaSize: 3_000_000,
    });
    await page.goto(server.url);
    await page.waitForSelector('.trouble', { timeout: 60_000 });
    const text = await page.locator('.trouble').innerText();
    assert.match(text, /لا مساحة تكفي/);
    // The page always knows how many bytes it needs, but how many are free only where the browser's estimate is right.
    assert.match(text, /4\.[0-9]+\sم\.ب/);
    await session.send('Storage.overrideQuotaForOrigin', {
      origin: new URL(server.url).origin,
    });
    await page.locator('.trouble').getByRole('button').click();
    await page.getByRole('button', { name: 'تشغيل' }).first().click();
    await page.waitForSelector('.model-chip.ready', { timeout: 90_000 });
  });

  it('two tabs download once and answer side by side', async () => {
    const [one, two] = await Promise.all([visit(), visit()]);
    assert.equal(weightRanges().length, 1);
    await Promise.all([say(one, 'ما عاصمة مصر؟'), say(two, 'ما عاصمة العراق؟')]);
    await Promise.all([finished(one), finished(two)]);
    assert.match(await lastAnswer(one).innerText(), /القاهرة/);
    assert.match(await lastAnswer(two).innerText(), /بغداد/);
    await one.waitForSelector('.row-title:has-text("ما عاصمة العراق؟")');
  });
});
