import { expect, it } from 'vitest';
import { linesOf, type Piece } from '../src/text/pdf-lines';

/** Pieces side by side from `x` on, each letter one unit wide. */
function row(texts: string[], y = 700): Piece[] {
  let x = 10;
  return texts.map((text, at) => {
    const piece = { text, x, y, width: /^\p{M}+$/u.test(text) ? 0 : text.length, ends: at === texts.length - 1 };
    x += piece.width;
    return piece;
  });
}

it('turns a line round that was painted from the left', () => {
  expect(linesOf(row(['ﺎ', 'ﻨ', 'ﻫ', ' ', '(', 'GPU', ')', ' ', 'ﺺ', 'ﻧ']))).toBe('نص (GPU) هنا');
});

it('keeps numbers and words of the other direction', () => {
  expect(linesOf(row(['.', '5.5', ' ', 'GPT', '-', '4', ' ', 'م', 'ﺎ', 'ﻋ']))).toBe('عام 5.5 GPT-4.');
  expect(linesOf(row(['.', '(', 'GPU', ')', ' ', '2024', ' ', 'ﻲ', 'ﻓ']))).toBe('في 2024 (GPU).');
  expect(linesOf(row(['See', ' ', 'ﺢ', 'ﺻ', ' ', 'here', '.']))).toBe('See صح here.');
});

it('leaves a line that was painted from its first letter', () => {
  const pieces = row(['ن', 'ص', ' ', 'هنا']);
  const reversed = pieces.map((piece, at) => ({ ...piece, x: 100 - piece.x, ends: at === pieces.length - 1 }));
  expect(linesOf(reversed)).toBe('نص هنا');
});

it('keeps marks on their letters', () => {
  // شكرًا: the mark stands before its letter, and a space without width where it goes back.
  const pieces = row(['ا', '\u064b', ' ', 'ﺮ', 'ﻜ', 'ﺷ']).map((p) => (p.text === ' ' ? { ...p, width: 0 } : p));
  expect(linesOf(pieces)).toBe('شكرًا');
});

it('starts a line where the height changes or a piece ends it', () => {
  expect(
    linesOf([...row(['first']).map((p) => ({ ...p, ends: false })), ...row(['second'], 680), ...row(['third'], 660)]),
  ).toBe('first\nsecond\nthird');
  expect(linesOf([])).toBe('');
});
