/**
 * Text in two directions: the visual order of more than 100 mixed lines, read from the rectangles of their characters.
 */
import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { LTR, RTL } from './directions.mjs';
import { finished, lastAnswer, launch, loadShipped, openPage, startServer } from './harness.mjs';

const WIDTHS = [360, 768, 1440];
const plain = (line) => line.replaceAll('|', '');
/** Where screenshots go, for a person to look at. */
const shots = process.env.BAYAN_SHOTS;

let server;
let browser;
before(async () => {
  server = await startServer();
  browser = await launch();
});
after(async () => {
  await browser?.close();
  await server?.stop();
});

/** A page with `text` as message and, by the test double, as answer. */
async function shown(text, options = {}) {
  const context = await browser.newContext({ locale: 'ar', viewport: { width: 1280, height: 860 }, ...options });
  const page = await openPage(context, server.url);
  await loadShipped(page);
  await page.locator('#composer').fill(`اعرض:\n${text}`);
  await page.locator('#composer').press('Enter');
  await page.waitForSelector('.answer > *');
  await finished(page);
  await page.evaluate(() => document.fonts.ready);
  return page;
}

/** Faults in the visual order of `lines` inside the elements of `selector`; runs in the page. */
function faultsIn({ selector, lines, direction }) {
  const elements = [...document.querySelectorAll(selector)];
  const faults = [];
  for (const marked of lines) {
    const line = marked.replaceAll('|', '');
    const element = elements.find((each) => each.textContent === line);
    if (!element) {
      faults.push(`${line}: not on the page`);
      continue;
    }
    // Each character with its rectangle and the piece it belongs to: even pieces run with the line, odd ones against.
    const characters = [];
    const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    const range = document.createRange();
    const pieces = marked.split('|').flatMap((part, piece) => [...part].map((character) => ({ character, piece })));
    let at = 0;
    while (walker.nextNode()) {
      for (let i = 0; i < walker.currentNode.data.length;) {
        const { character, piece } = pieces[at++];
        range.setStart(walker.currentNode, i);
        range.setEnd(walker.currentNode, (i += character.length));
        const box = range.getBoundingClientRect();
        if (box.width > 0 && !/[\p{M}\s]/u.test(character))
          characters.push({
            character,
            piece,
            x: box.left + box.width / 2,
            from: box.left,
            to: box.right,
            y: box.bottom,
          });
      }
    }
    const say = (what) => faults.push(`${line}: ${what}`);
    const leftward = (piece) => (piece % 2 === 0) === (direction === 'rtl');
    for (let i = 1; i < characters.length; i++) {
      const [a, b] = [characters[i - 1], characters[i]];
      if (Math.abs(a.y - b.y) > 12) {
        if (b.y < a.y) say(`${b.character} is above ${a.character}`);
        continue;
      }
      let wrong;
      if (a.piece === b.piece) wrong = leftward(a.piece) ? a.x < b.x - 1 : a.x > b.x + 1;
      else {
        // Whole pieces follow each other in the direction of the line.
        const box = (piece) => characters.filter((c) => c.piece === piece && Math.abs(c.y - a.y) <= 12);
        const [first, second] = direction === 'rtl' ? [box(b.piece), box(a.piece)] : [box(a.piece), box(b.piece)];
        wrong = Math.max(...first.map((c) => c.to)) > Math.min(...second.map((c) => c.from)) + 1.5;
      }
      if (wrong) say(`«${b.character}» is on the wrong side of «${a.character}»`);
    }
  }
  return [...new Set(faults)];
}

async function noFaults(page, selector, lines, direction) {
  const faults = await page.evaluate(faultsIn, { selector, lines, direction });
  assert.deepEqual(faults, [], `${faults.length} faults of ${lines.length} lines in ${selector}`);
}

describe('the visual order of mixed lines', () => {
  it('has at least 100 different lines', () => {
    assert.ok(new Set([...RTL, ...LTR].map(plain)).size >= 100);
  });

  for (const colorScheme of ['light', 'dark']) {
    it(`is right in answers and messages, ${colorScheme}, all widths`, async () => {
      const text = [...RTL, ...LTR].map(plain).join('\n\n');
      const page = await shown(text, { colorScheme });
      for (const width of WIDTHS) {
        await page.setViewportSize({ width, height: 900 });
        await noFaults(page, '.answer > p', RTL, 'rtl');
        await noFaults(page, '.answer > p', LTR, 'ltr');
        await noFaults(page, '.bubble > .line', RTL, 'rtl');
        await noFaults(page, '.bubble > .line', LTR, 'ltr');
        if (shots) await photograph(page, `lines-${colorScheme}-${width}`);
      }
      await page.context().close();
    });
  }

  it('is right in lists, tables, quotes and headings', async () => {
    const lines = RTL.filter((line) => !/^\d|^\W*#/.test(line));
    const list = lines.map((line) => `- ${plain(line)}`).join('\n');
    const numbered = LTR.map((line, at) => `${at + 1}. ${plain(line)}`).join('\n');
    const table = ['| الوصف | القيمة |', '|---|:---:|', ...lines.map((line) => `| ${plain(line)} | 1 |`)].join('\n');
    const quote = lines.map((line) => `> ${plain(line)}\n>\n`).join('');
    const page = await shown(
      `${list}\n\nنص فاصل\n\n${numbered}\n\nنص فاصل\n\n${table}\n\n${quote}\n\n## ${plain(RTL[0])}`,
    );
    for (const width of WIDTHS) {
      await page.setViewportSize({ width, height: 900 });
      await noFaults(page, '.answer ul .item', lines, 'rtl');
      await noFaults(page, '.answer ol .item', LTR, 'ltr');
      await noFaults(page, '.answer td', lines, 'rtl');
      await noFaults(page, '.answer blockquote p', lines, 'rtl');
      await noFaults(page, '.answer h2', [RTL[0]], 'rtl');
      if (shots) await photograph(page, `blocks-${width}`);
    }
    await page.context().close();
  });

  it('keeps emphasis inside a phrase in its place', async () => {
    const page = await shown('يعمل مع **WebGPU** API 2.0 و*Rust* 1.95 جيدًا');
    await noFaults(page, '.answer > p', ['يعمل مع |WebGPU API 2.0| و|Rust 1.95| جيدًا'], 'rtl');
    await page.context().close();
  });
});

async function photograph(page, name) {
  mkdirSync(shots, { recursive: true });
  await page.evaluate(() =>
    document.querySelector('.scroller').scrollTo(0, document.querySelector('.bubble').clientHeight),
  );
  await page.screenshot({ path: join(shots, `${name}.png`) });
}

describe('lists and tables', () => {
  it('an English item of an Arabic list reads from left to right', async () => {
    const page = await shown('- افتح الصفحة\n- Open the Settings page (now).\n- Done!\n- تمّ');
    const list = lastAnswer(page).locator('ul');
    assert.equal(await list.getAttribute('dir'), 'rtl');
    assert.deepEqual(await list.locator('.item').evaluateAll((all) => all.map((e) => e.dir)), [
      'rtl',
      'ltr',
      'ltr',
      'rtl',
    ]);
    // All items begin at the marker's side.
    const rights = await list.locator('.item').evaluateAll((all) =>
      all.map((element) => {
        const range = document.createRange();
        range.selectNodeContents(element);
        return Math.round(range.getBoundingClientRect().right);
      }),
    );
    assert.ok(Math.max(...rights) - Math.min(...rights) <= 2, String(rights));
    await page.context().close();
  });

  it('a column has one edge, and its alignment is kept', async () => {
    const table = '| الاسم | Size | النسبة |\n|---|:---:|---:|\n| نموذج | 4 GB | 50% |\n| Llama 3 | كبير | ربع |';
    const page = await shown(table);
    const aligns = await lastAnswer(page)
      .locator('tr')
      .evaluateAll((rows) => rows.map((row) => [...row.cells].map((cell) => getComputedStyle(cell).textAlign)));
    for (const row of aligns) assert.deepEqual(row, ['right', 'center', 'left']);
    await page.context().close();
  });
});

describe('hidden characters', () => {
  const name = 'photo_\u202Egnp.exe';
  it('are shown in prose and in messages, and reorder nothing', async () => {
    const page = await shown(`افتح الملف ${name} الآن، ثم pay\u200Bpal وa\u2066b`);
    for (const place of ['.answer > p', '.bubble > .line >> nth=1']) {
      const marks = await page.locator(place).locator('.hidden-mark').allInnerTexts();
      assert.deepEqual(marks, ['U+202E', 'U+200B', 'U+2066'], place);
    }
    const selector = '.answer > p';
    await noFaults(page, selector, [`افتح الملف |photo_U+202Egnp.exe| الآن، ثم |payU+200Bpal| و|aU+2066b|`], 'rtl');
    await page.context().close();
  });

  it('joiners of Persian words and emoji stay', async () => {
    const page = await shown('می\u200Cخواهم 👩\u200D💻 را');
    assert.equal(await page.locator('.hidden-mark').count(), 0);
    assert.equal(await page.locator('.answer > p').evaluate((p) => p.textContent), 'می\u200Cخواهم 👩\u200D💻 را');
    await page.context().close();
  });
});

describe('links', () => {
  it('say their own site where their text names another', async () => {
    const links = [
      '[paypal.com](https://evil.example/login)',
      '[https://bank.example](https://evil.example/)',
      '[الموقع](https://ok.example/)',
      '[ok.example](https://www.ok.example/page)',
      'https://ok.example/a',
    ];
    const page = await shown(links.map((link) => `زر ${link} الآن`).join('\n\n'));
    const sites = await lastAnswer(page)
      .locator('p')
      .evaluateAll((all) => all.map((p) => p.querySelector('.link-site')?.textContent ?? null));
    assert.deepEqual(sites, ['(evil.example)', '(evil.example)', null, null, null]);
    const titles = await lastAnswer(page)
      .locator('a')
      .evaluateAll((all) => all.map((a) => a.title));
    assert.equal(titles[0], 'https://evil.example/login');
    await page.context().close();
  });
});

it('a message has its direction while it is written', async () => {
  const context = await browser.newContext({ locale: 'ar' });
  const page = await openPage(context, server.url);
  const field = page.locator('#composer');
  const layout = async (text) => {
    await field.fill(text);
    return field.evaluate((box) => [box.dir, getComputedStyle(box).unicodeBidi]);
  };
  assert.deepEqual(await layout('GPU هو معالج رسوميات.'), ['rtl', 'isolate']);
  assert.deepEqual(await layout('ترجم:\nHello, my friend.'), ['rtl', 'plaintext']);
  await context.close();
});

it('the form of examples to paste is in order', async () => {
  const context = await browser.newContext({ locale: 'ar' });
  const page = await openPage(context, server.url);
  await loadShipped(page);
  await page.locator('.model-chip').click();
  await page.getByRole('button', { name: 'تدريب مهايئ جديد' }).click();
  await page.locator('input[name="way"][value="paste"]').check();
  const [pairs, messages] = ['\u2066{"prompt": "…", "response": "…"}\u2069', '\u2066{"messages": […]}\u2069'];
  const line = `سطر |JSON| لكل مثال: |${pairs}| أو |${messages}|، أو جدول |csv| له سطر عناوين.`;
  await noFaults(page, '#train-text-note', [line], 'rtl');
  await context.close();
});

it('headings of the device panel without WebGPU are in order', async () => {
  const context = await browser.newContext({ locale: 'ar' });
  await context.addInitScript(() => Object.defineProperty(Navigator.prototype, 'gpu', { value: undefined }));
  const page = await openPage(context, server.url);
  await page.locator('.top').getByRole('button', { name: 'الجهاز والإمكانات' }).click();
  await noFaults(page, '.browsers h4', ['|Chrome| و|Edge|'], 'rtl');
  await context.close();
});
