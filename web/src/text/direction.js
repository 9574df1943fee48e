// @ts-check
/**
 * Direction of a block of text.
 *
 * The browser's `dir=auto` takes the first strong letter, so an Arabic sentence that begins with "GPU" runs left to
 * right, and a paragraph may change its direction while it streams. This function counts letters and words: right to
 * left where at least 40 % of either belong to a right-to-left script, or where Arabic words join Latin names (`H2O
 * وCO2 وMP3`); left to right where English words join Arabic ones. Else the first strong letter decides.
 * `StickyDirection` keeps the result once it has seen enough letters.
 *
 * The page of `bayan serve`, which is built without Node, has this file too: it is JavaScript, with types in comments.
 */

/** @typedef {'rtl' | 'ltr'} Direction */

/** One letter of a right-to-left script, as source of a regular expression with the flag `u`. */
export const RTL_LETTER =
  '(?:(?=\\p{L})[\\p{Script=Arabic}\\p{Script=Hebrew}\\p{Script=Syriac}\\p{Script=Thaana}\\p{Script=Nko}\u0640])';

const RTL = new RegExp(RTL_LETTER, 'u');
const LETTER = /\p{L}/gu;
/** Code spans and addresses: they do not show the language of the text around them. */
const SKIP = /```[\s\S]*?(```|$)|`[^`\n]*`|https?:\/\/\S+/g;
/** Only this many characters are counted, to save time on long texts. */
const LOOK_AT = 2000;
/** Arabic words that join others, alone or attached to a Latin word. */
const JOINING =
  /(?:^|\s)(?:[وفبلك](?:ال)?(?=[A-Za-z\d.])|ال(?=[A-Za-z\d])|(?:و|أو|ثم|في|من|إلى|على|مع|عن|بين|مثل|هو|هي)(?=\s|$))/u;
const ENGLISH = /\b(?:the|is|are|of|and|a|an|as|at|be|by|or|not|on|to|in|for|from|with|this|that|it|you)\b/;

/**
 * @param {string} text
 * @param {Direction} fallback for text without letters
 * @returns {{ direction: Direction, letters: number }}
 */
export function directionOf(text, fallback) {
  const looked = text.slice(0, LOOK_AT).replace(SKIP, ' ');
  let rtl = 0;
  let letters = 0;
  /** @type {Direction | undefined} */
  let first;
  for (const match of looked.matchAll(LETTER)) {
    letters++;
    const isRtl = RTL.test(match[0]);
    if (isRtl) rtl++;
    first ??= isRtl ? 'rtl' : 'ltr';
  }
  if (!first) return { direction: fallback, letters: 0 };
  if (rtl === 0 || rtl === letters) return { direction: first, letters };
  const words = looked.split(/\s+/).filter((word) => /\p{L}/u.test(word));
  const rtlWords = words.filter((word) => RTL.test(word)).length;
  const isEnglish = ENGLISH.test(looked);
  // An English sentence that quotes Arabic, up to half of its words.
  if (isEnglish && first === 'ltr' && rtlWords * 2 < words.length) return { direction: 'ltr', letters };
  const isRtl = rtl * 10 >= letters * 4 || rtlWords * 10 >= words.length * 4 || (!isEnglish && JOINING.test(looked));
  return { direction: isRtl ? 'rtl' : isEnglish ? 'ltr' : first, letters };
}

const FREEZE_AFTER = 24;

export class StickyDirection {
  /** @type {Direction | null} */
  #frozen = null;

  /**
   * @param {string} text
   * @param {Direction} fallback for text without letters
   * @returns {Direction}
   */
  update(text, fallback) {
    if (this.#frozen) return this.#frozen;
    const { direction, letters } = directionOf(text, fallback);
    if (letters >= FREEZE_AFTER) this.#frozen = direction;
    return direction;
  }
}

/**
 * `ar` or `en`, by which screen readers choose their voice.
 *
 * @param {Direction} direction
 * @returns {'ar' | 'en'}
 */
export function languageOf(direction) {
  return direction === 'rtl' ? 'ar' : 'en';
}
