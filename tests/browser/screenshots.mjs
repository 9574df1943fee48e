/**
 * Screenshots of the page with an Arabic conversation: `node screenshots.mjs FOLDER`. The engine and the embedded model
 * write the answers; with `--mixed` a test double writes them, with lists, tables, code and two scripts.
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { finished, launch, openPage, say, startServer } from './harness.mjs';

const folder = process.argv[2];
if (!folder) throw new Error('which folder? node screenshots.mjs FOLDER');
mkdirSync(folder, { recursive: true });
const mixed = process.argv.includes('--mixed');
const server = await startServer({ real: !mixed });
const questions = mixed
  ? ['كيف أحضّر القهوة العربية الأصيلة في البيت؟', 'أعطني مثالًا فيه نص عربي ومختلط وجدول وبرنامج']
  : ['السلام عليكم', 'ما اسمك؟', 'ما عاصمة المغرب؟', 'ما جمع كتاب؟'];
const browser = await launch();
try {
  for (const theme of ['light', 'dark']) {
    const context = await browser.newContext({
      locale: 'ar',
      colorScheme: theme,
      viewport: { width: 1440, height: 900 },
    });
    await context.addInitScript(() =>
      localStorage.setItem('bayan-settings', JSON.stringify({ temperature: 0, repetition: 1, maxTokens: 96 })),
    );
    const page = await openPage(context, server.url);
    const shot = (name) => page.screenshot({ path: join(folder, `${name}-${theme}.png`) });
    const widths = [
      [360, 740],
      [768, 1024],
      [1440, 900],
    ];
    await page.evaluate(() => document.fonts.ready);
    for (const [width, height] of widths) {
      await page.setViewportSize({ width, height });
      await page.waitForTimeout(500);
      await shot(`welcome-${width}`);
    }
    await page.waitForSelector('.model-chip.ready', { timeout: 120_000 });
    for (const question of questions) {
      await say(page, question);
      await finished(page);
    }
    for (const [width, height] of widths) {
      await page.setViewportSize({ width, height });
      await page.waitForTimeout(150);
      await page.locator('.scroller').evaluate((box) => box.scrollTo(0, box.scrollHeight));
      await page.waitForTimeout(350);
      await shot(`chat-${width}`);
      await page.locator('.scroller').evaluate((box) => box.scrollTo(0, 0));
      await shot(`chat-top-${width}`);
    }
    for (const [width, height] of [widths[0], widths[2]]) {
      await page.setViewportSize({ width, height });
      await page.locator('.model-chip').click();
      await page.waitForSelector('.sheet .cards .card');
      await shot(`models-${width}`);
      await page.keyboard.press('Escape');
      await page.locator('.top').getByRole('button', { name: 'الإعدادات' }).click();
      await page.waitForSelector('#temperature');
      await page.waitForTimeout(150);
      await shot(`settings-${width}`);
      await page.keyboard.press('Escape');
      await page.locator('.top').getByRole('button', { name: 'الجهاز والإمكانات' }).click();
      await page.waitForSelector('.facts');
      await page.waitForTimeout(150);
      await shot(`device-${width}`);
      await page.keyboard.press('Escape');
    }
    await page.setViewportSize({ width: 360, height: 740 });
    await page.locator('.top').getByRole('button', { name: 'القائمة' }).click();
    await page.waitForTimeout(350);
    await shot('menu-360');
    await context.close();
  }
} finally {
  await browser.close();
  await server.stop();
}
