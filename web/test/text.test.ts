import { describe, expect, it } from 'vitest';
import { type Conversation, titleFrom } from '../src/state/database';
import { exportText, importText, markdownText } from '../src/state/transfer';
import { merged, shownTurns, type Turn, withTurn } from '../src/state/turns';
import { cleanSettings, DEFAULTS, samplingOf } from '../src/state/settings';
import { ar } from '../src/strings/ar';
import { en } from '../src/strings/en';
import { directionOf, StickyDirection } from '../src/text/direction';
import { fieldDirection } from '../src/text/field';
import { plainName, splitHidden } from '../src/text/hidden';
import { runsOf } from '../src/text/runs';
import { Formats } from '../src/text/format';
import { fold, matches } from '../src/text/search';
import { Sentences } from '../src/text/sentences';
import { downloadBytes, fits, memoryBytes } from '../src/data/memory';
import catalogue from '../src/data/catalogue.json';

describe('direction of a block', () => {
  it('counts letters, outside code and addresses', () => {
    expect(directionOf('GPU هو معالج رسوميات', 'ltr').direction).toBe('rtl');
    expect(directionOf('This is English with كلمة', 'rtl').direction).toBe('ltr');
    expect(directionOf('`const a = 1` قيمة', 'ltr').direction).toBe('rtl');
    expect(directionOf('https://example.com/very/long/path مصدر', 'ltr').direction).toBe('rtl');
    expect(directionOf('123 …!? 😀', 'rtl')).toEqual({ direction: 'rtl', letters: 0 });
    expect(directionOf('٣ تفاحات', 'ltr').direction).toBe('rtl');
    expect(directionOf('שלום', 'ltr').direction).toBe('rtl');
    expect(directionOf('H2O وCO2 وMP3 وWi-Fi 6E و5G', 'rtl').direction).toBe('rtl');
    expect(directionOf('Visual Studio Code و PyCharm', 'rtl').direction).toBe('rtl');
    expect(directionOf('كلمة means word in Arabic', 'rtl').direction).toBe('ltr');
  });

  it('stays once 24 letters were seen, whatever follows', () => {
    const sticky = new StickyDirection();
    expect(sticky.update('A', 'rtl')).toBe('ltr');
    const arabic = 'هذا نص عربي طويل بما يكفي ليثبت اتجاهه';
    expect(sticky.update(arabic, 'ltr')).toBe('rtl');
    expect(sticky.update(`${arabic} ${'english words '.repeat(50)}`, 'ltr')).toBe('rtl');
  });

  it('isolates runs that would reorder, and leaves plain numbers', () => {
    const runs = (text: string) => runsOf(text, 'rtl').map(({ from, to }) => text.slice(from, to));
    expect(runs('السعر 25 USD يوم 10/12/2024 من 1-5')).toEqual(['25 USD', '10/12/2024', '1-5']);
    expect(runs('هاتف +966501234567 ونسبة 50%')).toEqual(['+966501234567', '50%']);
    expect(runs('أعراض COVID-19 وx86-64 في 2024.')).toEqual(['COVID-19', 'x86-64']);
    expect(runs('C++ وC# و.NET 8 وf(x)')).toEqual(['C++', 'C#', '.NET 8', 'f(x)']);
    expect(runs('قال "Open the file (now)" ثم')).toEqual(['Open the file (now)']);
    expect(runs('iOS، Android، Windows 11')).toEqual(['iOS', 'Android', 'Windows 11']);
    expect(runs('عندي 3 كتب')).toEqual([]);
    const inEnglish = 'The word كتاب 5 times';
    expect(runsOf(inEnglish, 'ltr').map(({ from, to }) => inEnglish.slice(from, to))).toEqual(['كتاب']);
  });

  it('of a field is by line only where the first letters are right', () => {
    expect(fieldDirection('', 'rtl')).toEqual({ dir: 'rtl' });
    expect(fieldDirection('GPU هو معالج رسوميات', 'rtl')).toEqual({ dir: 'rtl' });
    expect(fieldDirection('COVID-19 مرض معدٍ جدًّا\nHello', 'rtl')).toEqual({ dir: 'rtl' });
    expect(fieldDirection('ترجم:\n\nHello, my friend.', 'rtl')).toEqual({ dir: 'rtl', class: 'each-line' });
    expect(fieldDirection('ترجم:\n1.', 'rtl')).toEqual({ dir: 'rtl' });
    expect(fieldDirection('The word كتاب means book', 'rtl')).toEqual({ dir: 'ltr', class: 'each-line' });
  });

  it('drops reordering characters from names only', () => {
    expect(plainName('a\u202Ecod.exe\u0007')).toBe('acod.exe');
    expect(titleFrom('  \n# عنوان\u202E طويل\nسطر')).toBe('عنوان طويل');
    expect(titleFrom('## دروس **C#** و`my_var`')).toBe('دروس C# وmy_var');
    expect(titleFrom('كلمة '.repeat(30)).length).toBeLessThanOrEqual(47);
  });
});

describe('search', () => {
  it('finds what people type differently', () => {
    expect(matches('الحَمْدُ لِلَّهِ', 'الحمد لله')).toBe(true);
    expect(matches('مكتبة أحمد إلى', 'مكتبه احمد الي')).toBe(true);
    expect(matches('العـــربية ١٢٣', 'العربية 123')).toBe(true);
    expect(matches('کتاب فارسی', 'كتاب فارسي')).toBe(true);
    expect(matches('قهوة', 'شاي')).toBe(false);
    expect(fold('ﷺ')).not.toBe('');
  });
});

describe('sentences for screen readers', () => {
  it('come whole, and the rest at the end', () => {
    const s = new Sentences();
    expect(s.take('أهلًا. كيف', false)).toBe('أهلًا.');
    expect(s.take('أهلًا. كيف الحال؟ **أنا', false)).toBe('كيف الحال؟');
    expect(s.take('أهلًا. كيف الحال؟ **أنا** بخير', true)).toBe('أنا بخير');
  });
});

describe('numbers', () => {
  it('use the chosen digits and Arabic plurals', () => {
    const f = new Formats('ar', 'arab');
    expect(f.number(1234)).toBe('١٬٢٣٤');
    expect(f.bytes(1_470_000_000)).toBe('١٫٤٧\u00a0غ.ب');
    const l = new Formats('ar', 'latn');
    expect([1, 2, 3, 11, 100].map((n) => l.plural(n, ar.minutes))).toEqual([
      'دقيقة واحدة',
      'دقيقتين',
      '3 دقائق',
      '11 دقيقة',
      '100 دقيقة',
    ]);
    expect(l.date(Date.UTC(2026, 0, 5, 12))).toMatch(/2026/);
    expect(new Formats('en', 'arab').number(5)).toBe('5');
  });
});

const turn = (id: string, parent: string | null, more: Partial<Turn> = {}): Turn => ({
  id,
  role: /^[b-z]*[bdf]$/.test(id) ? 'assistant' : 'user',
  content: id,
  at: id.charCodeAt(0),
  parent,
  ...more,
});
const path = (tree: Parameters<typeof shownTurns>[0]) => shownTurns(tree).map((each) => each.turn.id);

describe('the tree of turns', () => {
  it('reads records without parents as a list', () => {
    const turns = ['a', 'b', 'c', 'd'].map((id) => ({ ...turn(id, null), parent: undefined }) as unknown as Turn);
    expect(path({ turns: turns.map(({ parent: _, ...rest }) => rest) })).toEqual(['a', 'b', 'c', 'd']);
  });

  it('shows the newest version, or the chosen one and its answers', () => {
    const turns = [turn('a', null), turn('b', 'a'), turn('d', 'a'), turn('e', 'b')];
    const edited = [...turns, turn('g', null, { versionOf: 'a' })];
    expect(path({ turns })).toEqual(['a', 'd']);
    expect(path({ turns, chosen: { 'answer a': 'b' } })).toEqual(['a', 'b', 'e']);
    expect(path({ turns: edited })).toEqual(['g']);
    expect(path({ turns: edited, chosen: { a: 'a' } })).toEqual(['a', 'd']);
    expect(shownTurns({ turns: edited })[0]!.versions.map(({ id }) => id)).toEqual(['a', 'g']);
  });

  it('shows all that two tabs added at once', () => {
    const start = { turns: [turn('a', null), turn('b', 'a')] };
    const one = withTurn(withTurn(start, turn('c', 'b')), turn('d', 'c'));
    const two = withTurn(withTurn(start, turn('e', 'b')), turn('f', 'e'));
    expect(path(merged(one, two))).toEqual(['a', 'b', 'c', 'd', 'e', 'f']);
    expect(path(merged(two, one))).toEqual(['a', 'b', 'c', 'd', 'e', 'f']);
  });

  it('ends where a damaged record goes in a circle', () => {
    expect(path({ turns: [turn('a', 'c'), turn('c', 'a')] })).toEqual([]);
    expect(path({ turns: [turn('a', null), turn('a', 'a')] })).toEqual(['a']);
  });
});

describe('stored data', () => {
  it('settings keep what is valid and drop the rest', () => {
    expect(cleanSettings(null)).toEqual(DEFAULTS);
    const clean = cleanSettings({
      temperature: 99,
      topP: 0.5,
      theme: 'dark',
      language: 'fr',
      seed: null,
      extra: 1,
      system: 5,
    });
    expect(clean).toEqual({ ...DEFAULTS, topP: 0.5, theme: 'dark' });
    expect(samplingOf({ ...DEFAULTS, seed: 7 })).toMatchObject({ seed: 7, maxTokens: 1024 });
    // The rest is the checkpoint's own.
    expect(Object.keys(samplingOf(DEFAULTS))).toEqual(['maxTokens']);
    expect(samplingOf({ ...DEFAULTS, temperature: 0 })).toEqual({ temperature: 0, maxTokens: 1024 });
  });

  it('conversations survive export and import; others are refused', () => {
    const one: Conversation = {
      id: 'a',
      title: 'عنوان',
      createdAt: 1,
      updatedAt: 2,
      system: 's',
      turns: [{ id: 't', role: 'user', content: 'نص\u200Cمع‌ فاصل', at: 1 }],
    };
    const [back] = importText(exportText([one]))!;
    expect(back).toMatchObject({ id: 'a', title: 'عنوان', system: 's', updatedAt: 2 });
    expect(back!.turns[0]!.content).toBe(one.turns[0]!.content);
    const full: Conversation = {
      ...one,
      turns: [turn('a', null), turn('b', 'a'), { ...turn('c', null), versionOf: 'a' }],
      chosen: { a: 'a' },
      pinned: true,
      folder: 'عمل',
    };
    expect(importText(exportText([full]))).toEqual([full]);
    expect(markdownText(full, ar)).toBe('# عنوان\n\n## أنت\n\na\n\n## بيان\n\nb\n');
    for (const bad of [
      '',
      '[]',
      'null',
      '{"kind":"x"}',
      '{"kind":"bayan-conversations","version":1,"conversations":[{"title":1}]}',
      '{"kind":"bayan-conversations","version":1,"conversations":' +
        '[{"title":"x","turns":[{"role":"system","content":"x"}]}]}',
    ])
      expect(importText(bad)).toBeNull();
  });
});

describe('the catalogue', () => {
  it('is complete and its sums are those of the arithmetic', () => {
    for (const model of catalogue.models) {
      expect(model.repo).toMatch(/^[\w.-]+\/[\w.-]+$/);
      expect(model.note.ar).toMatch(/[\u0600-\u06ff]/);
      expect(downloadBytes(model)).toBeGreaterThan(1e8);
      // What one press downloads is quantized already.
      if ('file' in model) expect(downloadBytes(model) / model.parameters).toBeLessThan(0.9);
      expect(memoryBytes(model, 'q4', 4096)).toBeLessThan(memoryBytes(model, 'f16', 4096));
    }
    expect(catalogue.models.filter((m) => 'file' in m).length).toBeGreaterThanOrEqual(5);
    expect(downloadBytes(catalogue.models[0]!)).toBeLessThan(0.45e9);
    const qwen = catalogue.models.find((m) => m.repo === 'Qwen/Qwen2.5-1.5B-Instruct-GGUF')!;
    expect(memoryBytes(qwen, 'q4', 4096) / 1e9).toBeCloseTo(0.868 + 0.117 + 0.25, 2);
    expect([fits(1e9, 4e9), fits(4e9, 4e9), fits(9e9, 4e9)]).toEqual(['yes', 'tight', 'no']);
  });

  it('has both languages whole', () => {
    const keys = (o: object, path = ''): string[] =>
      Object.entries(o).flatMap(([k, v]) =>
        typeof v === 'object' && !Array.isArray(v) && !('other' in v)
          ? keys(v as object, `${path}${k}.`)
          : [`${path}${k}`],
      );
    expect(keys(en)).toEqual(expect.arrayContaining(keys(ar)));
    for (const [key, value] of Object.entries(ar))
      if (typeof value === 'string' && !['addressPlaceholder'].includes(key))
        expect(value, key).toMatch(/[\u0600-\u06ff]/);
  });
});
