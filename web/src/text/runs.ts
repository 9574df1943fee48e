/**
 * Runs of the other direction inside a block of text: what must be isolated (`<bdi>`) to be read in the right order.
 *
 * The Unicode bidirectional algorithm alone orders letters well, but signs and digits at the edge of a run follow the
 * block: `C++` shows as `++C`, `+5 %` as `% 5+`, `120 km/h` as `km/h 120`, and Latin names between Arabic commas come
 * in reverse. So a run is a whole unit: a word with its signs (`.NET`, `x86-64`), a number with its sign and unit, a
 * phone number, a calculation, or a phrase of such units. Inside the run the order is the algorithm's own.
 */
import { type Direction, RTL_LETTER } from './direction';

export interface Run {
  from: number;
  to: number;
  /** Arabic-Indic digits in groups keep their order only under an override (`<bdo>`). */
  override?: boolean;
}

/** A word or a number of a run. A number with a unit counts as a word. */
interface Unit extends Run {
  isWord: boolean;
}

const LTR_LETTER = `(?:(?!${RTL_LETTER})\\p{L}\\p{M}*)`;
const SCRIPT_DIGIT = '[\\u00b2\\u00b3\\u00b9\\u2070-\\u209c]';
const WORD_CHARACTER = `(?:${LTR_LETTER}|${SCRIPT_DIGIT}|[0-9_])`;
/** European and Persian digits. Arabic-Indic ones take their signs in the direction of the block, as CLDR does. */
const DIGIT = '[0-9\\u06f0-\\u06f9]';
const ANY_DIGIT = '[0-9\\u0660-\\u0669\\u06f0-\\u06f9]';

const PREFIX =
  '(?:(?<=^|[\\s([{«“"\'])(?:--?|[.@#$~/\\\\&])+' +
  // `.NET` after an attached Arabic conjunction or article.
  '|(?<=(?:^|[\\s([{«“"\'])[وفبلك]?(?:ال)?)\\.(?=\\p{Lu}))?';
const INNER = "[-\\u2010\\u2011.,:/@+*=&'’~^%\\\\#?!|<>(){}\\[\\];]{1,4}";
const WORD = new RegExp(
  `${PREFIX}${WORD_CHARACTER}+(?:${INNER}${WORD_CHARACTER}+)*(?:\\+\\+|[#+*%°](?![\\p{L}\\p{N}])|\\(\\))?`,
  'uy',
);
const HAS_LTR_LETTER = new RegExp(LTR_LETTER, 'u');

const NUMBER =
  `(?:(?<=^|[\\s([{«“"'=]|(?:^|\\s)[وفبلك])[+\\-−±~≈])?[#$€£¥₪₺₹]?${DIGIT}(?:(?:${DIGIT}|[.,:/٫٬])*${DIGIT})?` +
  '(?:\\s?[%‰](?![\\p{L}\\p{N}])|[°+″′$€£¥₪](?![\\p{L}\\p{N}]))?';
const OPERATOR = '(?:\\s?[+\\-−–—×÷*/=<>≤≥≈^]\\s?|\\s[xX]\\s)';
const UNIT = [
  '(?:[kKMGTPEµμmncdh]?(?:Bytes|B|bits?|b|Hz|Wh?|m|g|s|[lL]|V|Ah?|Ω|N|J|Pa|bps|iB|mol|cal|px)(?:[²³]|\\^[23])?' +
    '(?:/(?:s|h|m|kg))?)',
  '°[CF]|[CF]°|(?<=°\\s?)[NSEW]|km/h|mph|fps|FPS|rpm|dB|ppm|em|rem|in|ft|lb|oz|hp|AM|PM|am|pm',
  'tok(?:en)?s?(?:/s)?|min|ms|h',
  'mmHg|(?:Jan|Feb|Mar|Apr|May|June?|July?|Aug|Sept?|Oct|Nov|Dec)\\.?',
  'January|February|March|April|August|September|October|November|December',
  'USD|EUR|GBP|SAR|EGP|AED|KWD|QAR|BHD|OMR|JOD|IQD|LYD|MAD|TND|DZD|SYP|LBP|YER|SDG|TRY|JPY|CNY|INR|CHF|CAD|AUD',
].join('|');
const CALCULATION = new RegExp(`${NUMBER}(?:${OPERATOR}${NUMBER})*(?<unit>\\s?(?:${UNIT})(?![\\p{L}\\p{N}]))?`, 'uy');
const D = ANY_DIGIT;
const PHONE = new RegExp(
  `\\+${D}{1,4}(?:[ \\-.]?\\(?${D}{1,4}\\)?){2,6}(?!${D})` +
    `|\\(?0${D}{1,4}\\)?(?:[ \\-]${D}{2,5}){2,}(?!${D})|0${D}{1,3}[- ]${D}{6,8}(?!${D})|${D}{4}(?: ${D}{4}){3}(?!${D})`,
  'uy',
);

/** `e.g`, `Ph.D`, `U.S`: a dot after them is their own. */
const DOTTED = /^(?:\p{L}{1,2}\.)+\p{L}{1,2}$/u;
/** Words before a dot that ends no sentence: `Fig. 3`, `Dr. Smith`, `J. Smith`. */
const SHORTENED = new RegExp(
  `(?<!${LTR_LETTER})(?:[Dd]r|Mrs?|Ms|Prof|St|[Nn]os?|[Ff]igs?|[Vv]ols?|[Cc]h|[Ss]ec|[Ee]q|[Pp]p?|vs|cf|\\p{Lu})$`,
  'u',
);

function matchAt(pattern: RegExp, text: string, at: number): RegExpExecArray | null {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

/** The unit that starts at `at`. */
function unitAt(text: string, at: number): Unit | null {
  const phone = matchAt(PHONE, text, at);
  if (phone) return { from: at, to: at + phone[0].length, isWord: false };
  const word = matchAt(WORD, text, at);
  const number = matchAt(CALCULATION, text, at);
  const isName = word !== null && HAS_LTR_LETTER.test(word[0]);
  // The longer one: `12(b)` is a word, `16 GB` a number with its unit.
  if (number && !(isName && word[0].length > number[0].length))
    return { from: at, to: at + number[0].length, isWord: number.groups?.['unit'] !== undefined };
  if (!isName) return null;
  let to = at + word[0].length;
  if (DOTTED.test(word[0]) && text[to] === '.') to++;
  // Of an address or a folder: `https://example.com/`, `src/app/`.
  if (text[to] === '/' && /[./]/.test(word[0])) to++;
  // The closing brackets of `f(x)` and `a[i]`.
  for (const [open, close] of ['()', '[]', '{}'] as const)
    if (text[to] === close && word[0].split(open!).length > word[0].split(close!).length) to++;
  return { from: at, to, isWord: true };
}

/** Characters at which no unit starts; most of an Arabic text. Its digits may start a phone number. */
const STARTS_NOTHING = /[\s\u0590-\u065f\u066a-\u06ef\u06fa-\u08ff]/;

function unitsOf(text: string): Unit[] {
  const units: Unit[] = [];
  for (let at = 0; at < text.length;) {
    const unit = STARTS_NOTHING.test(text[at]!) ? null : unitAt(text, at);
    if (unit && unit.to > at) {
      units.push(unit);
      at = unit.to;
    } else at += text.codePointAt(at)! > 0xffff ? 2 : 1;
  }
  return units;
}

const RTL = new RegExp(`${RTL_LETTER}|[\\u0660-\\u0669]`, 'u');
const CLOSING: Record<string, string> = { '(': ')', '[': ']', '{': '}', '"': '"', '“': '”', '«': '»' };

/** Where the bracket or quotation mark that opens in `gap` closes, if all it encloses belongs to the run. */
function groupEnd(text: string, from: number, to: number): number | null {
  for (let at = from; at < to; at++) {
    const close = CLOSING[text[at]!];
    if (!close || (text[at] === '"' && at > from && !/\s/.test(text[at - 1]!))) {
      if (/\s/.test(text[at]!)) continue;
      return null;
    }
    const end = text.indexOf(close, at + 1);
    if (end < 0 || end - at > 200) return null;
    const inside = text.slice(at + 1, end);
    return RTL.test(inside) || inside.includes('\n') ? null : end + 1;
  }
  return null;
}

/** Where a run ends that fills its quotation marks or brackets: the sign at its end belongs to it. */
function endInQuotes(text: string, { from, to }: Run): number {
  const close = CLOSING[text[from - 1] ?? ''];
  const signs = /^[.!?…]{1,3}/.exec(text.slice(to, to + 3))?.[0].length ?? 0;
  return close !== undefined && text[to + signs] === close ? to + signs : to;
}

/** Whether the algorithm would keep `before` and `after` in one run of letters, and a reader would, too. */
function belongTogether(text: string, before: Unit, after: Unit, words: number, next: Unit | undefined): boolean {
  const gap = text.slice(before.to, after.from);
  if (gap === '') return true;
  if (!before.isWord || gap.length > 6 || RTL.test(gap) || /[\n،؛؟«»“”„"()[\]{}]/.test(gap)) return false;
  if (!/[.!?]\s/.test(gap) || (/^\.\s$/.test(gap) && SHORTENED.test(text.slice(0, before.to)))) return true;
  // One sentence after another: single names on both sides are two Arabic sentences that end and begin with a name.
  return words >= 2 && next !== undefined && /^\s+$/.test(text.slice(after.to, next.from));
}

/** Runs of left-to-right units inside right-to-left text. */
function ltrRuns(text: string): Run[] {
  const units = unitsOf(text);
  const runs: Run[] = [];
  for (let i = 0; i < units.length; i++) {
    const first = units[i]!;
    const run = { from: first.from, to: first.to };
    let last = first;
    let words = 1;
    let hasWord = first.isWord;
    for (; i + 1 < units.length; i++) {
      const after = units[i + 1]!;
      const end = last.isWord ? groupEnd(text, run.to, after.from) : null;
      if (end !== null && end >= after.to && end - run.to < 200) {
        while (i + 1 < units.length && units[i + 1]!.to <= end) i++;
        i--;
        last = { from: run.from, to: end, isWord: true };
      } else if (belongTogether(text, last, after, words, units[i + 2]))
        // After a word, a number is part of the phrase: `Windows 11 Pro`.
        last = { ...after, isWord: hasWord || after.isWord };
      else break;
      words++;
      hasWord ||= last.isWord;
      run.to = last.to;
    }
    run.to = endInQuotes(text, run);
    if (needsIsolation(text, run, hasWord))
      runs.push(/[\u0660-\u0669]/.test(text.slice(run.from, run.to)) ? { ...run, override: true } : run);
  }
  return runs;
}

const ONE_LETTER = new RegExp(RTL_LETTER, 'u');
/** Plain numbers order themselves, and so does one word of letters between words of the other script. */
function needsIsolation(text: string, run: Run, hasWord: boolean): boolean {
  const content = text.slice(run.from, run.to);
  if (!hasWord) return !/^[0-9\u06f0-\u06f9]+(?:[.,:٫٬][0-9\u06f0-\u06f9]+)*$/.test(content);
  if (!/^\p{L}+$/u.test(content)) return true;
  const before = text.slice(0, run.from).trimEnd().at(-1) ?? '';
  const after = text.slice(run.to).trimStart()[0] ?? '';
  return !((before === '' || ONE_LETTER.test(before)) && (after === '' || ONE_LETTER.test(after)));
}

const RTL_WORD = `(?:${RTL_LETTER}[\\p{M}\\u0640\\u200c\\u200d]*)+`;
const RTL_PHRASE = new RegExp(
  `${RTL_WORD}(?:[ \\u00a0\\-–/]{1,3}(?:${RTL_WORD}|[\\u0660-\\u0669]+))*|[\\u0660-\\u0669]+`,
  'gu',
);

/** Phrases of right-to-left letters inside left-to-right text: without isolation they pull numbers after them over. */
function rtlRuns(text: string): Run[] {
  return [...text.matchAll(RTL_PHRASE)].map((match) => ({ from: match.index, to: match.index + match[0].length }));
}

/** The runs of `text`, a block of the given direction, that must be isolated; in order, without overlap. */
export function runsOf(text: string, direction: Direction): Run[] {
  if (direction === 'ltr') return RTL.test(text) ? rtlRuns(text) : [];
  return /[\p{L}\p{N}]/u.test(text) ? ltrRuns(text) : [];
}
