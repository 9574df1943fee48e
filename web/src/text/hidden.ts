/** Characters that cannot be seen and change what is read: marks of direction and of zero width. */

/**
 * Overrides, embeddings and isolates, which reorder what follows; spaces and joiners of zero width, which split or fake
 * words; tag characters. Not among them: the joiners U+200C and U+200D, which Persian and emoji need.
 */
const ALWAYS = '[\\u00ad\\u180e\\u200b\\u202a-\\u202e\\u2060-\\u2064\\u2066-\\u206f\\ufeff\\u{e0000}-\\u{e007f}]';
/** Marks of direction are common between words, but inside a Latin word or file name they only mislead. */
const MARK_INSIDE = '(?<=[A-Za-z0-9._/-])[\\u200e\\u200f\\u061c](?=[A-Za-z0-9._/-])';
const HIDDEN = new RegExp(`(${ALWAYS}|${MARK_INSIDE})`, 'u');
const IN_NAMES = new RegExp(`${ALWAYS}|[\\u200e\\u200f\\u061c]`, 'gu');

/** A title, file or model name without hidden characters. Never applied to a model's answer. */
export function plainName(text: string): string {
  return text
    .replace(IN_NAMES, '')
    .replace(/[\u0000-\u001f\u007f]/g, ' ')
    .trim();
}

export function hasHidden(text: string): boolean {
  return HIDDEN.test(text);
}

/** `text` in pieces: the hidden characters alone, as their code points, and the text between them. */
export function splitHidden(text: string): { text: string; hidden: boolean }[] {
  return text
    .split(HIDDEN)
    .map((part, at) => ({ text: part, hidden: at % 2 === 1 }))
    .filter((part) => part.text !== '')
    .map((part) => (part.hidden ? { text: codePoint(part.text), hidden: true } : part));
}

function codePoint(character: string): string {
  return `U+${character.codePointAt(0)!.toString(16).toUpperCase().padStart(4, '0')}`;
}
