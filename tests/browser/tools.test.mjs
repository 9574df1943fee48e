/** What people expect of a chat: formulas, code colours, task lists, files, writing tools, voices. */
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { after, before, beforeEach, describe, it } from 'node:test';
import { finished, lastAnswer, launch, openPage, say, seriousViolations, startServer, web } from './harness.mjs';

const require = createRequire(join(web, 'package.json'));
const { zipSync, strToU8 } = require('fflate');

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

/** Opens the page; `setUp` runs in it first, in the place of what a system has. */
async function visit(setUp) {
  await context?.close();
  context = await browser.newContext({ locale: 'ar', viewport: { width: 1000, height: 860 } });
  if (setUp) await context.addInitScript(setUp);
  page = await openPage(context, server.url);
  await page.waitForSelector('.model-chip.ready', { timeout: 60_000 });
}
beforeEach(() => visit());

/** Has the test double answer with `markdown`. */
async function answerWith(markdown) {
  await page.locator('#composer').fill(`اعرض:\n${markdown}`);
  await page.keyboard.press('Enter');
  await page.waitForSelector('.answer-turn');
  await finished(page);
}

const attach = (...files) => page.locator('#attach').setInputFiles(files);
const file = (name, text, mimeType = 'text/plain') => ({ name, mimeType, buffer: Buffer.from(text) });
const chips = () => page.locator('.composer .file-chip .file-name').allInnerTexts();
const notice = () => page.locator('.notice').innerText();

/** A Word file with these paragraphs. */
function word(...paragraphs) {
  const body = paragraphs.map((text) => `<w:p><w:r><w:t xml:space="preserve">${text}</w:t></w:r></w:p>`).join('');
  const space = 'http://schemas.openxmlformats.org/wordprocessingml/2006/main';
  const xml = `<?xml version="1.0"?><w:document xmlns:w="${space}"><w:body>${body}</w:body></w:document>`;
  return Buffer.from(zipSync({ '[Content_Types].xml': strToU8('<Types/>'), 'word/document.xml': strToU8(xml) }));
}

/** A PDF file of this text, as Chromium prints it. */
async function pdf(html) {
  const printer = await (await browser.newContext()).newPage();
  await printer.setContent(`<html lang="ar" dir="rtl"><body>${html}</body></html>`);
  const bytes = await printer.pdf();
  await printer.context().close();
  return bytes;
}

describe('answers', () => {
  it('show formulas, and leave prices and damaged ones as text', async () => {
    await answerWith(
      'المساحة \\(\\pi r^2\\) والجذر $\\sqrt{x}$ والسعر $5 ثم $10.\n\n' +
        '$$\nx = \\frac{-b \\pm \\sqrt{b^2-4ac}}{2a}\n$$\n\nومعطوبة \\(\\frac{1\\) هنا، و\\[E = mc^2\\] في السطر.',
    );
    await page.waitForSelector('.answer math');
    const answer = lastAnswer(page);
    assert.equal(await answer.locator('math').count(), 4);
    assert.equal(await answer.locator('.maths.block math[display="block"] mfrac').count(), 1);
    const text = await answer.locator('p').first().innerText();
    assert.ok(text.includes('$5 ثم $10'), text);
    assert.match(await answer.locator('p').last().innerText(), /\\frac\{1/);
    assert.equal(await answer.locator('p').first().getAttribute('dir'), 'rtl');
    assert.equal(await answer.locator('.maths').first().getAttribute('dir'), 'ltr');
    assert.deepEqual(page.errors, []);
  });

  it('never run or load anything from a formula', async () => {
    await answerWith(
      '\\(\\href{javascript:window.hacked=1}{x}\\) \\(\\includegraphics{https://evil.example/a.png}\\) ' +
        '$$\\htmlClass{a}{x}$$ و\\(\\def\\a{\\a\\a}\\a\\) و<math><mi onclick="window.hacked=2">x</mi></math>',
    );
    assert.equal(await page.evaluate(() => window.hacked), undefined);
    assert.equal(await lastAnswer(page).locator('[href^="javascript"], img, [onclick]').count(), 0);
    assert.deepEqual(page.errors, []);
  });

  it('colour code and keep its text', async () => {
    const code = 'def salam(name):\n    # تحية\n    return f"مرحبا {name}" + "<b>"';
    await answerWith(`\`\`\`python\n${code}\n\`\`\`\n\n\`\`\`لغة\nx\n\`\`\``);
    await page.waitForSelector('.hljs-keyword');
    const frame = lastAnswer(page).locator('.code-frame').first();
    assert.equal(await frame.locator('pre').evaluate((pre) => pre.textContent), `${code}\n`);
    assert.ok((await frame.locator('.hljs-string').count()) >= 2);
    const colours = await frame.evaluate((node) =>
      ['keyword', 'string', 'comment'].map((kind) => getComputedStyle(node.querySelector(`.hljs-${kind}`)).color),
    );
    assert.equal(new Set(colours).size, 3, String(colours));
    assert.deepEqual(await seriousViolations(page), []);
  });

  it('show hidden characters in coloured code', async () => {
    await answerWith('```js\nif (admin\u202e) { ok("a") }\n```');
    await page.waitForSelector('.hljs-keyword');
    assert.equal(await lastAnswer(page).locator('.hidden-mark').innerText(), 'U+202E');
  });

  it('show task lists with boxes', async () => {
    await answerWith('- [x] شراء الخبز\n- [ ] كتابة الرسالة\n- بند بلا مربع');
    const boxes = lastAnswer(page).locator('.task');
    assert.deepEqual(await boxes.evaluateAll((all) => all.map((box) => box.getAttribute('aria-label'))), [
      'بند منجز',
      'بند لم يُنجز',
    ]);
    assert.equal(await lastAnswer(page).locator('li').first().innerText(), 'شراء الخبز');
  });
});

describe('files', () => {
  it('of text, Word and PDF are read and asked about', async () => {
    await attach(
      file('ملاحظات.md', '# عنوان\nنص الملاحظات'),
      // «مرحبا بك» in Windows-1256.
      { name: 'قديم.txt', mimeType: '', buffer: Buffer.from('e3d1cdc8c720c8df', 'hex') },
      { name: 'تقرير.docx', mimeType: '', buffer: word('فقرة أولى', 'فقرة ثانية') },
      {
        name: 'ورقة.pdf',
        mimeType: 'application/pdf',
        buffer: await pdf('<p>سلام على القارئ في 2024 (GPU).</p><p>Page two: 42</p>'),
      },
    );
    await page.waitForFunction(() => document.querySelectorAll('.composer .file-chip button').length === 4);
    assert.deepEqual(await chips(), ['ملاحظات.md', 'قديم.txt', 'تقرير.docx', 'ورقة.pdf']);
    await say(page, 'أعد ما قرأت');
    await finished(page);
    const read = await lastAnswer(page).innerText();
    for (const part of [
      'نص الملاحظات',
      'مرحبا بك',
      'فقرة أولى\nفقرة ثانية',
      'سلام على القارئ في 2024 (GPU).',
      'Page two: 42',
    ])
      assert.ok(read.includes(part), `${part} is missing in:\n${read}`);
    assert.ok(read.includes('<file name="تقرير.docx">'));
    assert.deepEqual(await chips(), []);
    assert.equal(await page.locator('.turn.user .file-chip').count(), 4);
    assert.deepEqual(page.errors, []);
    // They are part of the conversation, also for the next message and after a reload.
    await page.reload();
    await page.waitForSelector('.model-chip.ready', { timeout: 60_000 });
    assert.equal(await page.locator('.turn.user .file-chip').count(), 4);
    await page.locator('.turn.user .file-chip summary').nth(2).click();
    assert.match(await page.locator('.file-text').nth(2).innerText(), /فقرة ثانية/);
  });

  it('that cannot be read say why and change nothing', async () => {
    const empty = Buffer.from(zipSync({ 'x.txt': strToU8('x') }));
    for (const [name, buffer, why] of [
      ['صورة.png', Buffer.from([0x89, 0x50, 0x4e, 0x47, 0, 1, 2]), /لا يُقرأ «صورة.png»/],
      ['أرشيف.zip', empty, /لا يُقرأ «أرشيف.zip»/],
      ['فارغ.txt', Buffer.from('  \n'), /لا نص/],
      ['معطوب.docx', Buffer.from('PK\u0003\u0004 broken'), /تالف/],
      ['معطوب.pdf', Buffer.from('%PDF-1.7 broken'), /تالف/],
      ['مصوّر.pdf', await pdf('<div style="width:100px;height:100px;background:red"></div>'), /صور بلا نص/],
    ]) {
      await attach({ name, mimeType: '', buffer });
      const shown = (text) => new RegExp(text).test(document.querySelector('.notice')?.textContent);
      await page.waitForFunction(shown, why.source);
      assert.match(await notice(), why);
      assert.deepEqual(await chips(), []);
    }
    assert.ok(await page.locator('.send').isDisabled());
  });

  it('longer than the context are read from the start, and say so', async () => {
    await attach(file('كتاب.txt', `البداية ${'كلمة '.repeat(20_000)} النهاية`));
    await page.waitForSelector('.composer .file-chip button');
    await say(page, 'أعد ما قرأت');
    await finished(page);
    const note = await page.locator('.answer-turn .note').innerText();
    assert.match(note, /قُرئ منه [12٠-٩]/u);
    const read = await lastAnswer(page).innerText();
    assert.ok(read.includes('البداية') && !read.includes('النهاية'));
  });

  it('are dropped or pasted; a model that is dropped is opened', async () => {
    const transfer = (name, text) =>
      page.evaluateHandle(
        ([name, text]) => {
          const data = new DataTransfer();
          data.items.add(new File([text], name));
          return data;
        },
        [name, text],
      );
    const note = await transfer('مسقط.txt', 'نص أُفلت');
    await page.dispatchEvent('body', 'dragenter', { dataTransfer: note });
    await page.waitForSelector('.drop-place');
    await page.dispatchEvent('body', 'drop', { dataTransfer: note });
    await page.waitForSelector('.composer .file-chip button');
    assert.equal(await page.locator('.drop-place').count(), 0);
    const pasted = await transfer('ملصق.txt', 'نص أُلصق');
    await page.evaluate((data) => {
      const event = new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true });
      document.querySelector('#composer').dispatchEvent(event);
    }, pasted);
    await page.waitForFunction(() => document.querySelectorAll('.composer .file-chip button').length === 2);
    await page.locator('.composer .file-chip button').first().click();
    assert.deepEqual(await chips(), ['ملصق.txt']);
    // Over an open panel a file is that panel's.
    await page.locator('.model-chip').click();
    await page.dispatchEvent('.sheet', 'drop', { dataTransfer: note });
    await page.keyboard.press('Escape');
    assert.deepEqual(await chips(), ['ملصق.txt']);
    await page.dispatchEvent('body', 'drop', { dataTransfer: await transfer('other.gguf', 'GGUF نموذج') });
    await page.waitForSelector('.model-chip.ready:has-text("other.gguf")', { timeout: 60_000 });
  });
});

describe('writing tools', () => {
  const open = () => page.getByRole('button', { name: 'أدوات الكتابة' }).click();
  const task = (name) => page.locator('.writing-menu').getByRole('button', { name, exact: true }).click();

  it('work on what is written, on a file and on the last answer', async () => {
    await open();
    assert.match(await page.locator('.writing-menu').innerText(), /اكتب نصًّا/);
    await page.keyboard.press('Escape');
    assert.equal(await page.locator('.writing-menu').count(), 0);
    await page.locator('#composer').fill('ذهب الولد الى المدرسه');
    await open();
    assert.equal(await page.locator('.writing-menu button').count(), 8);
    assert.deepEqual(await seriousViolations(page), []);
    await task('تشكيل');
    await page.waitForSelector('.bubble');
    await finished(page);
    assert.match(await page.locator('.bubble').innerText(), /^شكّل النص الآتي[\s\S]*:\s+ذهب الولد الى المدرسه$/);
    assert.equal(await page.locator('#composer').inputValue(), '');
    await open();
    await task('إلى المصرية');
    await page.waitForSelector('.bubble >> nth=1');
    await finished(page);
    assert.match(await page.locator('.bubble').nth(1).innerText(), /باللهجة المصرية[\s\S]*القهوة العربية/);
    await attach(file('مقال.txt', 'نص المقال'));
    await page.waitForSelector('.composer .file-chip button');
    await open();
    await task('تلخيص');
    await page.waitForSelector('.bubble >> nth=2');
    await finished(page);
    assert.equal(await page.locator('.bubble').nth(2).innerText(), 'لخّص نص الملف في نقاط قصيرة.');
  });
});

describe('voices', () => {
  it('without voices of the system there are no buttons', async () => {
    await say(page, 'مرحبا');
    await finished(page);
    assert.equal(await page.getByRole('button', { name: 'قراءة بصوت عالٍ' }).count(), 0);
    assert.equal(await page.getByRole('button', { name: 'إملاء بالصوت' }).count(), 0);
  });

  it('read an answer aloud with local voices only', async () => {
    await visit(() => {
      window.said = [];
      const voices = [
        { lang: 'ar-SA', localService: false, name: 'remote' },
        { lang: 'ar-EG', localService: true, name: 'local' },
      ];
      class Utterance extends EventTarget {
        constructor(text) {
          super();
          this.text = text;
        }
      }
      window.SpeechSynthesisUtterance = Utterance;
      const synthesis = Object.assign(new EventTarget(), {
        getVoices: () => voices,
        cancel: () => window.said.push('cancel'),
        speak: (utterance) => {
          window.said.push([utterance.voice.name, utterance.text]);
          window.last = utterance;
        },
      });
      Object.defineProperty(window, 'speechSynthesis', { value: synthesis });
    });
    await answerWith('فقرة أولى.\n\n```js\nlet x;\n```\n\nفقرة ثانية.\n\nEnglish only.');
    await page.getByRole('button', { name: 'قراءة بصوت عالٍ' }).click();
    const said = await page.evaluate(() => window.said.filter((each) => each !== 'cancel'));
    assert.deepEqual(said, [
      ['local', 'فقرة أولى.'],
      ['local', 'فقرة ثانية.'],
    ]);
    const stop = page.getByRole('button', { name: 'إيقاف القراءة' });
    await stop.waitFor();
    await page.evaluate(() => window.last.dispatchEvent(new Event('end')));
    await stop.waitFor({ state: 'detached' });
  });

  it('dictation is offered where the device recognizes speech', async () => {
    await visit(() => {
      window.SpeechRecognition = class extends EventTarget {
        static async available({ langs, processLocally }) {
          return processLocally && langs[0] === 'ar-SA' ? 'available' : 'unavailable';
        }
        start() {
          window.recognizer = this;
        }
        stop() {
          this.dispatchEvent(new Event('end'));
        }
      };
    });
    await page.locator('#composer').fill('أكتب');
    await page.getByRole('button', { name: 'إملاء بالصوت' }).click();
    const local = await page.evaluate(() => {
      const result = Object.assign([{ transcript: ' ثم أتكلم ' }], { isFinal: true });
      window.recognizer.dispatchEvent(Object.assign(new Event('result'), { resultIndex: 0, results: [result] }));
      return window.recognizer.processLocally;
    });
    assert.equal(local, true);
    await page.waitForFunction(() => document.querySelector('#composer').value === 'أكتب ثم أتكلم');
    await page.getByRole('button', { name: 'إيقاف الإملاء' }).click();
    await page.getByRole('button', { name: 'إملاء بالصوت' }).waitFor();
  });
});
