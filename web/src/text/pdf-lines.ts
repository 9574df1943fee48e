/**
 * Lines of text from the pieces of a PDF page, in the order of reading.
 *
 * A PDF stores glyphs where they are painted. Some programs write an Arabic line from its first letter on, many from
 * its left end on, letter by letter. Lines of the second kind are turned round here: the reverse of the Unicode
 * bidirectional algorithm (UAX #9) for one level of embedded words and numbers.
 */
import { directionOf } from './direction';

export interface Piece {
  /** Text in the order of reading, as far as one piece goes. */
  text: string;
  /** Left end and width on the page. */
  x: number;
  y: number;
  width: number;
  /** Whether the line ends after this piece. */
  ends: boolean;
}

const RTL = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/;
const LTR = /[A-Za-z\u00c0-\u024f\u0370-\u03ff\u0400-\u04ff0-9\u0660-\u0669\u06f0-\u06f9]/;
const MARKS = /^\p{M}+$/u;
const BRACKETS = '()[]{}<>«»';

/** The page's text, a line each. Arabic letters in the forms of their place in a word become plain ones. */
export function linesOf(pieces: Piece[]): string {
  const lines: Piece[][] = [[]];
  for (const piece of pieces) {
    const line = lines.at(-1)!;
    if (line.length > 0 && piece.text !== '' && Math.abs(piece.y - line[0]!.y) > 8) lines.push([]);
    if (piece.text !== '') lines.at(-1)!.push(piece);
    if (piece.ends) lines.push([]);
  }
  return lines
    .filter((line) => line.length > 0)
    .map((line) =>
      ordered(line)
        .normalize('NFKC')
        .replace(/[ \t]+/g, ' ')
        .trim(),
    )
    .join('\n');
}

const kindOf = (text: string) =>
  RTL.test(text) && !/^[\u0660-\u0669\u06f0-\u06f9]+$/.test(text) ? 'rtl' : LTR.test(text) ? 'ltr' : null;

function ordered(line: Piece[]): string {
  // A space without width is made where a mark stands back over its letter.
  const pieces = line.filter((piece, at) => piece.text.trim() !== '' || piece.width > 0 || !isMark(line[at - 1]));
  if (!isVisual(pieces)) return pieces.map((piece) => piece.text).join('');
  const kinds = pieces.map((piece) => kindOf(piece.text));
  const text = pieces.map((piece) => piece.text).join('');
  const base = directionOf(text, 'rtl').direction;
  const other = base === 'rtl' ? 'ltr' : 'rtl';
  // Runs of the other direction, from its first to its last piece with nothing of the base between.
  const parts: { pieces: Piece[]; run: boolean }[] = [];
  for (let at = 0; at < pieces.length;) {
    if (kinds[at] !== other) {
      parts.push({ pieces: [pieces[at]!], run: false });
      at++;
      continue;
    }
    let end = at;
    for (let next = at; next < pieces.length && kinds[next] !== base; next++) if (kinds[next] === other) end = next;
    end = at + balanced(pieces.slice(at, end + 1)) - 1;
    parts.push({ pieces: pieces.slice(at, end + 1), run: true });
    at = end + 1;
  }
  const written = (each: Piece[], rtl: boolean) =>
    (rtl ? [...each].reverse() : each).map((piece) => (rtl ? mirrored(piece.text) : piece.text)).join('');
  if (base === 'rtl') parts.reverse();
  return parts.map((part) => written(part.pieces, (base === 'rtl') !== part.run)).join('');
}

/** The number of pieces before the first bracket without a partner among them: it belongs to the line around. */
function balanced(run: Piece[]): number {
  const open: number[] = [];
  for (const [at, { text }] of run.entries()) {
    const bracket = text.length === 1 ? BRACKETS.indexOf(text) : -1;
    if (bracket < 0) continue;
    if (bracket % 2 === 0) open.push(at);
    else if (open.pop() === undefined) return run.slice(0, at).findLastIndex((piece) => piece.text.trim() !== '') + 1;
  }
  return open.length > 0 ? Math.max(1, open[0]!) : run.length;
}

const isMark = (piece: Piece | undefined) => piece !== undefined && MARKS.test(piece.text);

/** Whether the pieces of a line of Arabic are in the order of painting, from the left. */
function isVisual(pieces: Piece[]): boolean {
  let forward = 0;
  let last: Piece | null = null;
  for (const piece of pieces) {
    if (kindOf(piece.text) !== 'rtl' || isMark(piece)) continue;
    if (last) forward += Math.sign(piece.x - last.x);
    last = piece;
  }
  return forward > 0;
}

/** A bracket alone is stored as it is painted; in a line from the right it is the other one of its pair. */
function mirrored(text: string): string {
  if (text.length !== 1) return text;
  const at = BRACKETS.indexOf(text);
  return at < 0 ? text : BRACKETS[at ^ 1]!;
}
