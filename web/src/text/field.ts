/** The direction of the text in a field that is being written. */
import { type Direction, directionOf, RTL_LETTER } from './direction';

const FIRST_LETTER = /\p{L}/u;
const RTL = new RegExp(RTL_LETTER, 'u');

/**
 * A field cannot give each of its lines a direction, but the browser can, by the line's first letter (`unicode-bidi:
 * plaintext`, here `each-line`). Where this is wrong for a line («GPU هو معالج»), all lines have that of the text.
 */
export function fieldDirection(text: string, base: Direction): { dir: Direction; class?: 'each-line' } {
  const dir = directionOf(text, base).direction;
  const byFirstLetter = (line: string): Direction | null => {
    const letter = FIRST_LETTER.exec(line)?.[0];
    return letter === undefined ? null : RTL.test(letter) ? 'rtl' : 'ltr';
  };
  const right = text.split('\n').every((line) => {
    const first = byFirstLetter(line);
    return first === null ? line.trim() === '' : first === directionOf(line, dir).direction;
  });
  return right && text.trim() !== '' ? { dir, class: 'each-line' } : { dir };
}
