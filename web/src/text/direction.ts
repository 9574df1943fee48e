/**
 * Direction of a block of text, from its strong letters.
 *
 * The browser's `dir=auto` takes the first strong letter, so an Arabic sentence that begins with "GPU" runs left to
 * right, and a paragraph may change its direction while it streams. This function counts letters: right to left where
 * at least 40 % of them belong to a right-to-left script, else by the first strong letter. `StickyDirection` keeps the
 * result once it has seen enough letters.
 */
export type Direction = 'rtl' | 'ltr';

const RTL = /\p{Script=Arabic}|\p{Script=Hebrew}|\p{Script=Syriac}|\p{Script=Thaana}|\p{Script=Nko}/u;
const LETTER = /\p{L}/gu;
/** Code spans and addresses: they do not show the language of the text around them. */
const SKIP = /```[\s\S]*?(```|$)|`[^`\n]*`|https?:\/\/\S+/g;
/** Only this many characters are counted, to save time on long texts. */
const LOOK_AT = 2000;

export function directionOf(text: string, fallback: Direction): { direction: Direction; letters: number } {
  let rtl = 0;
  let letters = 0;
  let first: Direction | null = null;
  for (const match of text.slice(0, LOOK_AT).replace(SKIP, ' ').matchAll(LETTER)) {
    letters++;
    const isRtl = RTL.test(match[0]);
    if (isRtl) rtl++;
    first ??= isRtl ? 'rtl' : 'ltr';
  }
  if (letters === 0) return { direction: fallback, letters: 0 };
  return { direction: rtl * 10 >= letters * 4 ? 'rtl' : first!, letters };
}

const FREEZE_AFTER = 24;

export class StickyDirection {
  private frozen: Direction | null = null;

  update(text: string, fallback: Direction): Direction {
    if (this.frozen) return this.frozen;
    const { direction, letters } = directionOf(text, fallback);
    if (letters >= FREEZE_AFTER) this.frozen = direction;
    return direction;
  }
}

/** `ar` or `en`, by which screen readers choose their voice. */
export function languageOf(direction: Direction): 'ar' | 'en' {
  return direction === 'rtl' ? 'ar' : 'en';
}

const HIDDEN = /[\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]/g;

/** A title, file or model name without characters that reorder text. Never applied to a model's answer. */
export function plainName(text: string): string {
  return text
    .replace(HIDDEN, '')
    .replace(/[\u0000-\u001f\u007f]/g, ' ')
    .trim();
}

/** Runs that keep their order inside right-to-left text: numbers with units or signs, ranges, dates, times. */
const NUMBER = /[+\-−]?[#$€£]?\d[\d.,:/\-–×x*^%+]*\d?%?/;
const UNIT = /(?:[kKMGTµm]?(?:B|b|Hz|W|Wh|m|g|s|L|V|A|bps|iB)(?:\/s)?|°[CF]|tok\/s|px|km\/h|USD|EUR|SAR|EGP|AED)\b/;
export const LTR_RUN = new RegExp(`${NUMBER.source}(?:\\s?${UNIT.source})?`, 'g');

/** Whether a run is worth isolating: plain integers order themselves. */
export function needsIsolation(run: string): boolean {
  return !/^\d+$/.test(run);
}
