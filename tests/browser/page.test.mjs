/** What a person does on the page, in real Chromium, with a test double of the engine: all but a model's words. */
import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, it } from 'node:test';
import {
  finished,
  lastAnswer,
  launch,
  loadShipped,
  openPage,
  say,
  seriousViolations,
  startServer,
} from './harness.mjs';

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
  server.state.down = false;
  context = await browser.newContext({
    locale: 'ar',
    viewport: { width: 1280, height: 860 },
    permissions: ['clipboard-read', 'clipboard-write'],
  });
  // As if the person had stopped the included model: each test starts it when it wants it.
  await context.addInitScript(
    () => localStorage.getItem('bayan-last-model') ?? localStorage.setItem('bayan-last-model', '{"kind":"stopped"}'),
  );
  page = await openPage(context, server.url);
});

const WITHOUT_GPU = () => Object.defineProperty(Navigator.prototype, 'gpu', { get: () => undefined });

const clean = () => assert.deepEqual(page.errors, []);

describe('a conversation', () => {
  it('needs nothing but opening the page and writing', async () => {
    const fresh = await browser.newContext({ locale: 'ar' });
    try {
      const first = await openPage(fresh, server.url);
      await say(first, 'مرحبا');
      await finished(first);
      assert.match(await lastAnswer(first).innerText(), /أهلًا وسهلًا/);
    } finally {
      await fresh.close();
    }
  });

  it('is typed in Arabic, streamed, kept over a reload', async () => {
    await loadShipped(page);
    await say(page, 'كيف أحضّر القهوة العربية؟');
    await page.waitForSelector('.send.stop');
    assert.equal(await page.locator('article[aria-busy="true"]').count(), 1);
    await finished(page);
    assert.match(await lastAnswer(page).innerText(), /القهوة العربية[\s\S]*المقادير/);
    assert.equal(await lastAnswer(page).locator('ol li').count(), 3);
    assert.equal(await lastAnswer(page).locator('p').first().getAttribute('dir'), 'rtl');
    assert.match(await page.locator('.answer-turn .tools').last().innerText(), /رمز\/ث/);
    await page.reload();
    await page.waitForSelector('.answer');
    assert.match(await lastAnswer(page).innerText(), /القهوة العربية/);
    assert.equal(await page.locator('.row.open').innerText(), 'كيف أحضّر القهوة العربية؟');
    clean();
  });

  it('stops, regenerates and edits', async () => {
    await loadShipped(page);
    await say(page, 'اكتب قصة طويلة');
    await page.waitForFunction(() => (document.querySelector('.answer')?.textContent.length ?? 0) > 60);
    await page.locator('.send.stop').click();
    await finished(page);
    const length = (await lastAnswer(page).innerText()).length;
    assert.ok(length > 40 && length < 15_000, `stopped after ${length} characters`);
    assert.match(await page.locator('.note').innerText(), /أُوقفت/);
    await page.getByRole('button', { name: 'محادثة جديدة' }).first().click();
    await say(page, 'أعطني الإصدار');
    await finished(page);
    const first = await lastAnswer(page).innerText();
    await page.getByRole('button', { name: 'إعادة المحاولة' }).click();
    await page.waitForFunction((old) => document.querySelector('.answer')?.textContent !== old, first);
    await finished(page);
    const second = await lastAnswer(page).innerText();
    assert.notEqual(first, second);
    assert.equal(await page.locator('.answer-turn').count(), 1);
    await page.locator('.turn.user').hover();
    await page.getByRole('button', { name: 'تعديل' }).click();
    await page.locator('.editing textarea').fill('مرة أخرى من فضلك');
    await page.keyboard.press('Enter');
    await page.waitForFunction((old) => {
      const a = document.querySelectorAll('.answer');
      return a.length === 1 && a[0].textContent !== old && a[0].textContent.includes('.');
    }, second);
    assert.equal(await page.locator('.bubble').innerText(), 'مرة أخرى من فضلك');
    clean();
  });

  it('stops within 300 ms though a token takes seconds', async () => {
    await loadShipped(page);
    const times = [];
    for (let i = 0; i < 3; i++) {
      const before = await page.locator('.answer').count();
      await say(page, 'أجب ببطء');
      // The text of the answer before this one says nothing about this one.
      await page.waitForFunction((before) => {
        const answers = [...document.querySelectorAll('.answer')];
        return document.querySelector('.send.stop') && answers.length > before && answers.at(-1).textContent.length > 0;
      }, before);
      times.push(
        await page.evaluate(async () => {
          const start = performance.now();
          document.querySelector('.send.stop').click();
          while (document.querySelector('.send.stop')) await new Promise(requestAnimationFrame);
          return performance.now() - start;
        }),
      );
      await finished(page);
    }
    // The best of three, because the machine may be busy.
    assert.ok(Math.min(...times) < 300, `${times.map(Math.round)} ms`);
    await say(page, 'مرحبا');
    await finished(page);
    assert.match(await lastAnswer(page).innerText(), /أهلًا/);
    clean();
  });

  it('Shift+Enter breaks the line, composing Enter does not send', async () => {
    await page.locator('#composer').click();
    await page.keyboard.type('سطر');
    await page.keyboard.press('Shift+Enter');
    await page.keyboard.type('ثان');
    assert.equal(await page.locator('#composer').inputValue(), 'سطر\nثان');
    await page.locator('#composer').evaluate((box) =>
      box.dispatchEvent(
        new KeyboardEvent('keydown', {
          key: 'Enter',
          isComposing: true,
          bubbles: true,
          cancelable: true,
        }),
      ),
    );
    assert.equal(await page.locator('.turn').count(), 0);
  });

  it('a message written before a model is loaded gets its answer', async () => {
    await say(page, 'سؤال مبكر');
    await page.getByRole('button', { name: 'تشغيل' }).first().click();
    await page.waitForSelector('.answer-turn');
    await finished(page);
    assert.match(await lastAnswer(page).innerText(), /أهلًا/);
    await page.waitForSelector('.model-chip.quick');
  });

  it('keeps text in the same Text node while a paragraph grows', async () => {
    await loadShipped(page);
    await say(page, 'اكتب قصة طويلة');
    await page.waitForFunction(() => (document.querySelector('.answer p')?.firstChild?.data?.length ?? 0) > 30);
    const same = await page.evaluate(async () => {
      const node = document.querySelector('.answer p').firstChild;
      const before = node.data.length;
      await new Promise((done) => setTimeout(done, 300));
      return (
        node.isConnected && node.data.length > before && document.querySelector('.answer p').childNodes.length === 1
      );
    });
    assert.ok(same);
    await page.locator('.send.stop').click();
    await finished(page);
  });

  it('directs mixed text block by block', async () => {
    await loadShipped(page);
    await say(page, 'نص عربي ومختلط');
    await finished(page);
    const dirs = await page.evaluate(() => {
      const a = document.querySelector('.answer');
      const of = (s) => a.querySelector(s)?.getAttribute('dir');
      return {
        first: of('p'),
        code: of('p code'),
        list: of('ul'),
        table: of('table'),
        pre: of('pre'),
        english: [...a.querySelectorAll('p')].at(-1).getAttribute('dir'),
        numbers: [...a.querySelectorAll('bdi')].map((b) => b.textContent),
        link: a.querySelector('a').dir,
      };
    });
    assert.deepEqual(dirs, {
      first: 'rtl',
      code: 'ltr',
      list: 'rtl',
      table: 'rtl',
      pre: 'ltr',
      english: 'ltr',
      numbers: ['120 GB/s', '25 USD'],
      link: 'ltr',
    });
    await page.locator('.code-copy').click();
    assert.equal(
      await page.evaluate(() => navigator.clipboard.readText()),
      'def salam(name):\n    return f"مرحبا {name}"\n',
    );
  });
});

describe('hostile output', () => {
  it('is inert: no script, no request, no live link but http', async () => {
    await loadShipped(page);
    const outside = [];
    page.on('request', (request) => {
      if (!request.url().startsWith(server.url)) outside.push(request.url());
    });
    await say(page, 'جرّب هجوم');
    await finished(page);
    await page.waitForTimeout(300);
    assert.equal(await page.evaluate(() => window.hacked), undefined);
    assert.deepEqual(outside, []);
    const found = await lastAnswer(page).evaluate((a) => ({
      bad: [...a.querySelectorAll('script, img, iframe, style, form, input, svg, object, embed, link, meta')].length,
      handlers: [...a.querySelectorAll('*')]
        .flatMap((e) => [...e.attributes])
        .filter((x) => x.name.startsWith('on') || x.name === 'style' || x.name === 'srcdoc').length,
      links: [...a.querySelectorAll('a')].map((l) => [l.getAttribute('href'), l.rel]),
    }));
    assert.equal(found.bad, 0);
    assert.equal(found.handlers, 0);
    assert.ok(
      found.links.every(([href, rel]) => /^https?:/.test(href) && rel.includes('noopener')),
      JSON.stringify(found.links),
    );
    assert.ok(found.links.some(([href]) => href === 'https://ok.example/page'));
    clean();
  });

  it('shows characters that reorder text, not in titles', async () => {
    await loadShipped(page);
    await say(page, 'اتجاه\u202Eمقلوب');
    await finished(page);
    assert.deepEqual(await page.locator('.hidden-mark').allInnerTexts(), [
      'U+202E',
      'U+202E',
      'U+202C',
      'U+202E',
      'U+2066',
      'U+2069',
    ]);
    await page.locator('.code-copy').click();
    assert.ok((await page.evaluate(() => navigator.clipboard.readText())).includes('\u202E'));
    assert.ok(!(await page.locator('.row-title').innerText()).includes('\u202E'));
    assert.match(await lastAnswer(page).innerText(), /نص بعده ظاهر/);
  });

  it('a line of ten megabytes does not freeze the page', async () => {
    await loadShipped(page);
    await page.evaluate(() => {
      window.longest = 0;
      let last = performance.now();
      setInterval(() => {
        const now = performance.now();
        window.longest = Math.max(window.longest, now - last);
        last = now;
      }, 20);
    });
    await say(page, 'سطر طويل جدا');
    await finished(page);
    await page.waitForSelector('.show-more');
    const shown = await lastAnswer(page).evaluate((a) => a.textContent.length);
    assert.ok(shown < 200_000, `${shown} characters shown`);
    const longest = await page.evaluate(() => window.longest);
    assert.ok(longest < 3000, `the page stood still for ${longest} ms`);
    await page.locator('.show-more').click();
    assert.ok((await lastAnswer(page).evaluate((a) => a.textContent.length)) > shown);
  });
});

describe('loss and recovery', () => {
  for (const [words, title] of [
    ['افقد الجهاز', /انقطع الاتصال بمعالج/],
    ['املأ الذاكرة', /لم تكفِ الذاكرة/],
  ]) {
    it(`${words}: the conversation stays and one button reloads`, async () => {
      await loadShipped(page);
      await say(page, words);
      await page.waitForSelector('.trouble');
      assert.match(await page.locator('.trouble').innerText(), title);
      assert.equal(await page.locator('.bubble').innerText(), words);
      await page.getByRole('button', { name: 'إعادة تشغيل النموذج' }).click();
      await page.waitForSelector('.model-chip.ready');
      await page.waitForTimeout(200);
      await page.getByRole('button', { name: 'محادثة جديدة' }).first().click();
      await say(page, 'مرحبا');
      await finished(page);
      assert.match(await lastAnswer(page).innerText(), /أهلًا/);
    });
  }

  it('a full context is explained', async () => {
    await loadShipped(page);
    await say(page, 'سياق ممتلئ');
    await page.waitForSelector('.trouble');
    assert.match(await page.locator('.trouble').innerText(), /طالت المحادثة/);
  });

  it('an interrupted download is resumed and verified', async () => {
    server.state.cutModel = 5_000_000;
    server.state.log.length = 0;
    await loadShipped(page);
    const ranges = server.state.log.filter((entry) => entry.path.endsWith('model.gguf')).map((entry) => entry.range);
    assert.equal(ranges.length, 2);
    assert.match(ranges[1], /^bytes=(4194304|5000000)-$/);
  });

  it('a corrupted cache file is noticed and fetched again', async () => {
    await loadShipped(page);
    await page.evaluate(async () => {
      const root = await (await navigator.storage.getDirectory()).getDirectoryHandle('bayan-models');
      for await (const [, folder] of root.entries()) {
        const writable = await (await folder.getFileHandle('f0')).createWritable({ keepExistingData: true });
        await writable.write({
          type: 'write',
          position: 4_500_000,
          data: new Uint8Array([1, 2, 3]),
        });
        await writable.close();
      }
    });
    server.state.log.length = 0;
    await page.reload();
    // The model that ran before starts by itself.
    await page.waitForSelector('.model-chip.ready');
    const ranges = server.state.log.filter((entry) => entry.path.endsWith('model.gguf')).map((entry) => entry.range);
    assert.deepEqual(ranges, ['bytes=4194304-8388607']);
  });

  it('a model is listed with its size and deleted', async () => {
    await loadShipped(page);
    await page.locator('.model-chip').click();
    const card = page.locator('.sheet .cards').first().locator('.card');
    await card.waitFor();
    assert.match(await card.innerText(), /9\sم\.ب/);
    await card.getByRole('button', { name: /حذف/ }).click();
    await card.getByRole('button', { name: 'حذف', exact: true }).click();
    await page.waitForSelector('text=لا نماذج محفوظة بعد.');
  });
});

describe('offline and tabs', () => {
  it('opens and answers without a network after one visit', async () => {
    await loadShipped(page);
    await page.evaluate(() => navigator.serviceWorker.ready);
    await page.waitForFunction(() => navigator.serviceWorker.controller !== null);
    server.state.down = true;
    await page.reload();
    await page.waitForSelector('.model-chip.ready');
    await say(page, 'هل تعمل دون شبكة؟');
    await finished(page);
    assert.match(await lastAnswer(page).innerText(), /أهلًا/);
  });

  it("two tabs share one download and each other's conversations", async () => {
    const other = await openPage(context, server.url);
    server.state.log.length = 0;
    await Promise.all([loadShipped(page), loadShipped(other)]);
    assert.equal(server.state.log.filter((entry) => entry.path.endsWith('model.gguf')).length, 1);
    await say(page, 'من النافذة الأولى');
    await finished(page);
    await other.waitForSelector('.row-title:has-text("من النافذة الأولى")');
    await say(other, 'من النافذة الثانية');
    await finished(other);
    await page.waitForSelector('.row-title:has-text("من النافذة الثانية")');
    assert.equal(await page.locator('.bubble').innerText(), 'من النافذة الأولى');
  });

  it('searches folded letters, renames, undoes, exports, imports', async () => {
    await loadShipped(page);
    await say(page, 'أَهْلًا بالمكتبةِ');
    await finished(page);
    await page.locator('#search').fill('اهلا بالمكتبه');
    assert.equal(await page.locator('.row').count(), 1);
    await page.locator('#search').fill('لا وجود له');
    await page.waitForSelector('text=لا نتائج.');
    await page.locator('#search').fill('');
    await page.locator('.row-more').click();
    await page.getByRole('button', { name: 'إعادة تسمية' }).click();
    await page.locator('.rename').fill('عنوان جديد');
    await page.keyboard.press('Enter');
    await page.waitForSelector('.row-title:has-text("عنوان جديد")');
    const download = page.waitForEvent('download');
    await page.getByRole('button', { name: 'تصدير كل المحادثات' }).click();
    const file = await (await download).path();
    await page.locator('.row-more').click();
    await page.locator('.row-menu .danger').click();
    await page.waitForSelector('.notice');
    assert.equal(await page.locator('.row').count(), 0);
    await page.locator('input[type=file][accept*=json]').setInputFiles(file);
    await page.waitForSelector('.row-title:has-text("عنوان جديد")');
    await page.locator('input[type=file][accept*=json]').setInputFiles({
      name: 'x.json',
      mimeType: 'application/json',
      buffer: Buffer.from('{"kind":"other"}'),
    });
    await page.waitForSelector('text=هذا الملف ليس تصديرًا من بيان.');
  });

  it('reads a model from files on disk', async () => {
    await page.locator('.model-chip').click();
    await page.locator('#pick-files').setInputFiles({
      name: 'mine.gguf',
      mimeType: 'application/octet-stream',
      buffer: Buffer.alloc(2_000_000, 7),
    });
    await page.waitForSelector('.model-chip.ready');
  });
});

describe('another origin', () => {
  it('only the worker downloads from it, resumed after a break', async () => {
    const elsewhere = server.url.replace('localhost', '127.0.0.1');
    server.state.cutModel = 5_000_000;
    await page.locator('.model-chip').click();
    await page.locator('#address').fill(`${elsewhere}model/model.gguf`);
    await page.locator('form.source button[type=submit]').click();
    await page.waitForSelector('.model-chip.ready', { timeout: 60_000 });
    const refused = await page.evaluate(
      (url) =>
        fetch(url).then(
          () => false,
          () => true,
        ),
      `${elsewhere}model/manifest.json`,
    );
    assert.ok(refused);
  });

  it('a name that is not there is explained', async () => {
    await page.locator('.model-chip').click();
    await page.locator('#address').fill(`${server.url}model/none.gguf`);
    await page.locator('form.source button[type=submit]').click();
    await page.waitForSelector('.trouble');
    assert.match(await page.locator('.trouble').innerText(), /لا يوجد بهذا الاسم/);
  });
});

describe('without WebGPU', () => {
  it('answers on the CPU, says so once, and explains what to do', async () => {
    const plain = await launch(['--disable-features=WebGPU', '--disable-blink-features=WebGPU']);
    try {
      const bare = await plain.newContext({ locale: 'ar' });
      await bare.addInitScript(WITHOUT_GPU);
      const p = await openPage(bare, server.url);
      await p.waitForSelector('.model-chip.ready');
      assert.match(await p.locator('.strip').innerText(), /على المعالج المركزي لا على معالج الرسوم، فهي أبطأ/);
      await say(p, 'مرحبا');
      await finished(p);
      assert.match(await lastAnswer(p).innerText(), /أهلًا وسهلًا/);
      assert.deepEqual(await seriousViolations(p), []);
      await p.locator('.strip').getByRole('button', { name: 'السبب وما يمكن فعله' }).click();
      assert.match(await p.locator('.no-gpu').innerText(), /WebGPU[\s\S]*Safari[\s\S]*Firefox/);
      assert.match(await p.locator('.sheet').innerText(), /SIMD128/);
      assert.match(await p.locator('.sheet').innerText(), /خيط واحد/);
      assert.ok(!(await p.locator('.sheet [lang=en]').isVisible()), 'sentences for developers are under details');
      assert.equal(await p.locator('input[name=device]').count(), 0, 'there is nothing to choose');
      assert.deepEqual(await seriousViolations(p), []);
      await p.keyboard.press('Escape');
      await p.locator('.model-chip').click();
      await p.getByRole('button', { name: 'تدريب مهايئ جديد' }).click();
      assert.match(await p.locator('.sheet .callout').innerText(), /يحتاج التدريب إلى WebGPU/);
      assert.equal(await p.locator('.sheet form').count(), 0, 'no form is filled in vain');
      await p.keyboard.press('Escape');
      await p.locator('.strip').getByRole('button', { name: 'إغلاق' }).click();
      await p.reload();
      await p.waitForSelector('.model-chip.ready');
      assert.equal(await p.locator('.strip').count(), 0);
      assert.deepEqual(p.errors, []);
    } finally {
      await plain.close();
    }
  });

  it('the person may choose the CPU where there is a GPU', async () => {
    await loadShipped(page);
    const path = async () => {
      await page.locator('.top').getByRole('button', { name: 'الجهاز والإمكانات' }).click();
      return page.locator('.facts.mono');
    };
    assert.match(await (await path()).innerText(), /workgroup/);
    // The name that the person saw, and what the checkpoint says of itself.
    assert.match(await page.locator('.fact', { hasText: '· test' }).innerText(), /بيان الصغير · test/);
    assert.equal(await page.locator('.strip').count(), 0);
    await page.locator('input[name=device][value=cpu]').check();
    await page.waitForFunction(() => /SIMD128/.test(document.querySelector('.facts.mono')?.textContent ?? ''));
    await page.keyboard.press('Escape');
    assert.match(await page.locator('.strip').innerText(), /المعالج المركزي/);
    await say(page, 'مرحبا');
    await finished(page);
    assert.match(await lastAnswer(page).innerText(), /أهلًا وسهلًا/);
    clean();
  });
});

describe('accessibility and layout', () => {
  it('axe finds nothing serious on welcome, chat, sheets, dark', async () => {
    const check = async (name) => assert.deepEqual(await seriousViolations(page), [], name);
    await page.evaluate(() => document.fonts.ready);
    await check('welcome');
    await loadShipped(page);
    await say(page, 'نص عربي ومختلط');
    await finished(page);
    await check('conversation');
    for (const [name, button] of [
      ['settings', 'الإعدادات'],
      ['device', 'الجهاز والإمكانات'],
    ]) {
      await page.locator('.top').getByRole('button', { name: button }).click();
      await page.waitForSelector('.sheet');
      await check(name);
      await page.keyboard.press('Escape');
      await page.waitForSelector('.sheet', { state: 'detached' });
    }
    await page.locator('.model-chip').click();
    await page.waitForSelector('.sheet');
    await check('models');
    await page.keyboard.press('Escape');
    await page.emulateMedia({ colorScheme: 'dark' });
    await check('dark');
  });

  it('an empty field takes one line on a phone', async () => {
    await page.setViewportSize({ width: 390, height: 844 });
    await page.reload();
    await page.waitForSelector('#composer');
    await loadShipped(page);
    const height = await page.locator('.composer-box').evaluate((box) => box.getBoundingClientRect().height);
    assert.ok(height < 75, `${height} px`);
  });

  for (const width of [320, 360, 768, 1440]) {
    it(`nothing overflows sideways at ${width} px`, async () => {
      await page.setViewportSize({ width, height: 740 });
      await loadShipped(page);
      await say(page, 'نص عربي ومختلط');
      await finished(page);
      const wide = await page.evaluate(() => ({
        page: document.documentElement.scrollWidth - innerWidth,
        box: document.querySelector('.scroller').scrollWidth - document.querySelector('.scroller').clientWidth,
      }));
      assert.ok(wide.page <= 0 && wide.box <= 0, JSON.stringify(wide));
    });
  }

  it('announces whole sentences, not tokens', async () => {
    await loadShipped(page);
    await page.evaluate(() => {
      window.said = [];
      new MutationObserver((records) => {
        for (const r of records)
          for (const n of r.addedNodes)
            if (r.target.getAttribute?.('aria-live') === 'polite' && r.target.closest('.answer-turn'))
              window.said.push(n.textContent);
      }).observe(document.body, { childList: true, subtree: true });
    });
    await say(page, 'مرحبا بك');
    await finished(page);
    await page.waitForTimeout(200);
    const said = await page.evaluate(() => window.said);
    assert.ok(said.length >= 3 && said.length < 20, JSON.stringify(said));
    assert.match(said.join(' '), /أهلًا وسهلًا!/);
    assert.equal(said.at(-1), 'اكتملت الإجابة');
  });

  it('no part of the address submits a prompt', async () => {
    await page.goto(`${server.url}?q=${encodeURIComponent('نفذ')}&prompt=x#${encodeURIComponent('نفذ')}`);
    await page.waitForSelector('#composer');
    await page.waitForTimeout(300);
    assert.equal(await page.locator('.turn').count(), 0);
    assert.equal(await page.locator('#composer').inputValue(), '');
  });

  it('is interactive in under two seconds', async () => {
    const ms = await page.evaluate(() => performance.getEntriesByType('navigation')[0].domInteractive);
    assert.ok(ms < 2000, `${ms} ms`);
  });
});
