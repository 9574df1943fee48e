/** Plain text with the right order of its runs, for messages, titles and headings. */
import type { Direction } from '../text/direction';
import { directionOf, languageOf } from '../text/direction';
import { piecesOf } from '../text/isolate';
import { strings } from '../state/store';

/** One line in the given direction; the caller's element has that `dir`. */
export function Line({ text, direction }: { text: string; direction: Direction }) {
  const t = strings();
  return (
    <>
      {piecesOf(text, direction).map((piece, at) => {
        const parts = piece.parts.map((part, i) =>
          part.hidden ? (
            <span key={i} class="hidden-mark" title={t.hiddenMark}>
              {part.text}
            </span>
          ) : (
            part.text
          ),
        );
        const Tag = piece.isolated;
        return Tag ? (
          <Tag key={at} dir={direction === 'rtl' ? 'ltr' : 'rtl'}>
            {parts}
          </Tag>
        ) : (
          parts
        );
      })}
    </>
  );
}

/** Each line of a message in its own direction; a line without letters takes that of the line before. */
export function Lines({ text, base }: { text: string; base: Direction }) {
  let last = directionOf(text, base).direction;
  return (
    <>
      {text.split('\n').map((line, at) => {
        last = directionOf(line, last).direction;
        return (
          <div key={at} class="line" dir={last} lang={languageOf(last)}>
            {line === '' ? <br /> : <Line text={line} direction={last} />}
          </div>
        );
      })}
    </>
  );
}
