/** Nothing is lost: two tabs, versions, drafts, the running model, long conversations, sorting and exports. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, beforeEach, describe, it } from 'node:test';
import { finished, lastAnswer, launch, loadShipped, openPage, say, startServer } from './harness.mjs';

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
  context = await browser.newContext({ locale: 'ar', viewport: { width: 1280, height: 860 } });
  page = await openPage(context, server.url);
  await page.waitForSelector('.model-chip.ready', { timeout: 60_000 });
});

const bubbles = (tab = page) => tab.locator('.bubble').allInnerTexts();
const arrow = (name, place = page) => place.getByRole('button', { name });
const previous = (place) => arrow('النسخة السابقة', place);
const next = (place) => arrow('النسخة التالية', place);
const reload = async () => {
  await page.reload();
  await page.waitForSelector('.model-chip.ready', { timeout: 60_000 });
};

describe('two tabs on one conversation', () => {
  it('keep what both write at the same time', async () => {
    await page.evaluate(() => localStorage.setItem('bayan-settings', JSON.stringify({ contextLength: 32768 })));
    await reload();
    await say(page, 'مرحبا');
    await finished(page);
    const other = await openPage(context, page.url());
    await other.waitForSelector('.model-chip.ready', { timeout: 60_000 });
    await other.waitForSelector('.bubble');
    await Promise.all([say(page, 'قصة متوسطة من الأولى'), say(other, 'قصة متوسطة من الثانية')]);
    // Both are writing at once.
    await Promise.all([page.waitForSelector('.send.stop'), other.waitForSelector('.send.stop')]);
    await Promise.all([finished(page), finished(other)]);
    for (const tab of [page, other]) {
      await tab.waitForFunction(() => document.querySelectorAll('.bubble').length === 3);
      await tab.waitForFunction(() => document.querySelectorAll('.answer-turn').length === 3);
    }
    await Promise.all([page.reload(), other.reload()]);
    for (const tab of [page, other]) {
      await tab.waitForSelector('.bubble');
      const texts = await bubbles(tab);
      assert.equal(texts.length, 3, String(texts));
      assert.equal(texts[0], 'مرحبا');
      assert.ok(texts.includes('قصة متوسطة من الأولى') && texts.includes('قصة متوسطة من الثانية'), String(texts));
      const answers = await tab.locator('.answer').allInnerTexts();
      assert.deepEqual(
        answers.slice(1).map((text) => text.length > 2000),
        [true, true],
        'both answers are whole',
      );
    }
    assert.deepEqual(await bubbles(page), await bubbles(other));
    // The next message follows all of them.
    await page.waitForSelector('.model-chip.ready', { timeout: 60_000 });
    await say(page, 'أعد العدد');
    await finished(page);
    assert.match(await lastAnswer(page).innerText(), /رسائل: 7/);
  });

  it('show a notice when the other one adds a message', async () => {
    await say(page, 'مرحبا');
    await finished(page);
    const other = await openPage(context, page.url());
    await other.waitForSelector('.bubble');
    await say(page, 'الإصدار');
    await other.waitForSelector('.notice:has-text("من نافذة أخرى")');
    await finished(page);
    await other.waitForSelector('.bubble >> nth=1');
  });
});

describe('versions', () => {
  it('of an answer stay behind the arrows', async () => {
    await say(page, 'أعطني الإصدار');
    await finished(page);
    const first = await lastAnswer(page).innerText();
    assert.equal(await page.locator('.versions').count(), 0);
    await page.getByRole('button', { name: 'إعادة المحاولة' }).click();
    await page.waitForFunction((old) => document.querySelector('.answer')?.textContent !== old, first);
    await finished(page);
    const second = await lastAnswer(page).innerText();
    assert.equal(await page.locator('.versions').innerText(), '2 / 2');
    await previous().click();
    await page.waitForFunction((text) => document.querySelector('.answer').textContent === text, first);
    await reload();
    await page.waitForFunction((text) => document.querySelector('.answer')?.textContent === text, first);
    assert.equal(await page.locator('.versions').innerText(), '1 / 2');
    await next().click();
    await page.waitForFunction((text) => document.querySelector('.answer').textContent === text, second);
    assert.ok(await next().isDisabled());
  });

  it('of a message bring back what followed, also after a reload', async () => {
    await say(page, 'الإصدار الأول');
    await finished(page);
    await say(page, 'سؤال ثان');
    await finished(page);
    const old = await page.locator('.answer').allInnerTexts();
    await page.locator('.turn.user').first().hover();
    await page.getByRole('button', { name: 'تعديل' }).first().click();
    await page.locator('.editing textarea').fill('مرة أخرى من فضلك');
    await page.keyboard.press('Enter');
    await page.waitForFunction(() => document.querySelector('.bubble')?.textContent === 'مرة أخرى من فضلك');
    await finished(page);
    assert.deepEqual(await bubbles(), ['مرة أخرى من فضلك']);
    await reload();
    await page.waitForSelector('.bubble');
    await page.locator('.turn.user').first().hover();
    await previous(page.locator('.turn.user').first()).click();
    await page.waitForFunction(() => document.querySelectorAll('.bubble').length === 2);
    assert.deepEqual(await bubbles(), ['الإصدار الأول', 'سؤال ثان']);
    assert.deepEqual(await page.locator('.answer').allInnerTexts(), old);
  });
});

describe('drafts', () => {
  it('survive a reload: a new conversation, an open one, an edit', async () => {
    await page.locator('#composer').fill('مسودة لم تُرسل');
    await page.reload();
    await page.waitForSelector('#composer');
    assert.equal(await page.locator('#composer').inputValue(), 'مسودة لم تُرسل');
    await page.waitForSelector('.model-chip.ready', { timeout: 60_000 });
    await page.locator('#composer').press('Enter');
    await page.waitForSelector('.bubble');
    await finished(page);
    assert.equal(await page.locator('#composer').inputValue(), '');
    await page.locator('#composer').fill('مسودة ثانية');
    await page.locator('.turn.user').hover();
    await page.getByRole('button', { name: 'تعديل' }).click();
    await page.locator('.editing textarea').fill('نص معدّل');
    await page.reload();
    await page.waitForSelector('.editing textarea');
    assert.equal(await page.locator('.editing textarea').inputValue(), 'نص معدّل');
    assert.equal(await page.locator('#composer').inputValue(), 'مسودة ثانية');
    await page.locator('.editing').getByRole('button', { name: 'إلغاء' }).click();
    await page.reload();
    await page.waitForSelector('.bubble');
    assert.equal(await page.locator('.editing').count(), 0);
    await page.getByRole('button', { name: 'محادثة جديدة' }).first().click();
    await page.waitForSelector('.welcome');
    assert.equal(await page.locator('#composer').inputValue(), '');
  });

  it('survive closing the tab', async () => {
    await page.locator('#composer').fill('مسودة باقية');
    await page.close();
    const again = await openPage(context, server.url);
    assert.equal(await again.locator('#composer').inputValue(), 'مسودة باقية');
  });
});

describe('the running model', () => {
  const pick = async (files) => {
    await page.locator('.model-chip').click();
    await page.locator('#pick-files').setInputFiles(files);
  };

  it('stays where another file is no model', async () => {
    const label = await page.locator('.model-chip').innerText();
    await pick([{ name: 'note.pdf', mimeType: 'application/pdf', buffer: Buffer.from('%PDF-1.4') }]);
    await page.waitForSelector('.trouble:has-text("note.pdf")');
    assert.match(await page.locator('.trouble').innerText(), /بقي النموذج السابق يعمل/);
    await page.waitForSelector('.model-chip.ready');
    assert.equal(await page.locator('.model-chip').innerText(), label);
    await page.getByRole('button', { name: 'إغلاق' }).last().click();
    await page.waitForSelector('.trouble', { state: 'detached' });
    await say(page, 'مرحبا');
    await finished(page);
    assert.match(await lastAnswer(page).innerText(), /أهلًا/);
  });

  it('finishes its answer before another one takes its place', async () => {
    await say(page, 'قصة متوسطة');
    await page.waitForSelector('.send.stop');
    await pick([{ name: 'other.gguf', mimeType: 'application/octet-stream', buffer: Buffer.alloc(2000, 'GGUF') }]);
    await page.waitForSelector('.model-chip.ready:has-text("other.gguf")', { timeout: 60_000 });
    await finished(page);
    assert.ok((await lastAnswer(page).innerText()).length > 2000);
    assert.equal(await page.locator('.note').count(), 0);
  });
});

describe('a conversation longer than the context', () => {
  it('continues with a mark, which stays', async () => {
    await page.evaluate(() => localStorage.setItem('bayan-settings', JSON.stringify({ contextLength: 512 })));
    await reload();
    const question = (n) => `سؤال رقم ${n} عن الإصدار: ${'كلمة '.repeat(20)}`;
    for (let n = 1; n <= 4; n++) {
      await say(page, question(n));
      await finished(page);
    }
    assert.equal(await page.locator('.trouble').count(), 0);
    await page.waitForSelector('.reading-mark');
    await say(page, 'أعد العدد');
    await finished(page);
    const read = Number(/رسائل: (\d+)/.exec(await lastAnswer(page).innerText())[1]);
    assert.ok(read > 1 && read < 9, `${read} of 9 messages were read`);
    // The mark stands before the first message that was read.
    const below = () =>
      page.evaluate(() => {
        const parts = [...document.querySelectorAll('.turns > .turn, .turns > .reading-mark')];
        return parts.length - 1 - parts.findIndex((part) => part.matches('.reading-mark'));
      });
    assert.equal(await below(), read + 1);
    await reload();
    await page.waitForSelector('.reading-mark');
    assert.equal(await below(), read + 1);
    assert.equal((await bubbles()).length, 5);
    await page.getByRole('button', { name: 'سياق أطول' }).click();
    await page.waitForSelector('#context-length');
  });

  it('continues as well where the engine finds it too long', async () => {
    await say(page, 'مرحبا');
    await finished(page);
    await say(page, 'سياق ضيق');
    await finished(page);
    assert.match(await lastAnswer(page).innerText(), /أهلًا/);
    assert.equal(await page.locator('.trouble').count(), 0);
    assert.equal(await page.locator('.reading-mark').count(), 1);
  });
});

describe('many conversations', () => {
  const menu = async (title, entry) => {
    await page.getByRole('button', { name: `خيارات: ${title}` }).click();
    await page.locator('.row-menu').getByRole('button', { name: entry, exact: true }).click();
  };
  const begin = async (text) => {
    await page.getByRole('button', { name: 'محادثة جديدة' }).first().click();
    await say(page, text);
    await finished(page);
  };
  const headings = () => page.locator('.chat-list h2').allInnerTexts();

  it('are pinned and sorted into folders, and stay there', async () => {
    for (const text of ['الإصدار أ', 'الإصدار ب', 'الإصدار ج']) await begin(text);
    await menu('الإصدار أ', 'تثبيت');
    await page.waitForFunction(() => document.querySelector('.chat-list h2').textContent === 'المثبّتة');
    await menu('الإصدار ب', 'مجلد…');
    await page.locator('.rename').fill('العمل');
    await page.keyboard.press('Enter');
    await page.waitForSelector('.chat-list h2:has-text("العمل")');
    assert.deepEqual(await headings(), ['المثبّتة', 'العمل', 'اليوم']);
    await reload();
    await page.waitForSelector('.row');
    assert.deepEqual(await headings(), ['المثبّتة', 'العمل', 'اليوم']);
    assert.deepEqual(await page.locator('.row-title').allInnerTexts(), ['الإصدار أ', 'الإصدار ب', 'الإصدار ج']);
    await menu('الإصدار أ', 'إلغاء التثبيت');
    await menu('الإصدار ب', 'مجلد…');
    await page.locator('.rename').fill('');
    await page.keyboard.press('Enter');
    await page.waitForFunction(() => document.querySelectorAll('.chat-list h2').length === 1);
  });

  it('are exported as Markdown and JSON, and printed', async () => {
    await page.evaluate(() => (window.print = () => (window.printed = true)));
    await begin('الإصدار د');
    const exported = async (entry) => {
      const download = page.waitForEvent('download');
      await menu('الإصدار د', entry);
      const file = await download;
      return [file.suggestedFilename(), readFileSync(await file.path(), 'utf8')];
    };
    const [markdownName, markdown] = await exported('تصدير Markdown');
    assert.match(markdownName, /\.md$/);
    assert.match(markdown, /^# الإصدار د\n\n## أنت\n\nالإصدار د\n\n## بيان الصغير\n\nإجابة رقم \d+\.\n$/);
    const [jsonName, json] = await exported('تصدير JSON');
    assert.match(jsonName, /\.json$/);
    assert.equal(JSON.parse(json).conversations[0].turns.length, 2);
    await menu('الإصدار د', 'طباعة أو PDF');
    await page.waitForFunction(() => window.printed);
    await page.emulateMedia({ media: 'print' });
    for (const part of ['.sidebar', '.top', '.composer', '.tools'])
      assert.ok(!(await page.locator(part).first().isVisible()), part);
    assert.ok(await page.locator('.bubble').isVisible());
    const colours = () =>
      page.locator('.bubble').evaluate((bubble) => {
        const { color, backgroundColor } = getComputedStyle(bubble);
        return [color, backgroundColor];
      });
    const light = await colours();
    await page.emulateMedia({ media: 'print', colorScheme: 'dark' });
    assert.deepEqual(await colours(), light, 'on paper, a dark page is light');
  });
});
