/** Puts the runs of `runs.ts` into `<bdi>` elements and shows hidden characters, on nodes that are already safe. */
import type { Direction } from './direction';
import { hasHidden, splitHidden } from './hidden';
import { type Run, runsOf } from './runs';

/** Elements that end a run. */
const SEPARATE = 'pre, code, bdi, a, br, .maths';
const BLOCK = 'p, li, .item, h1, h2, h3, h4, h5, h6, td, th, blockquote, div, a';

/** Shows each hidden character below `root` by its code point, in a marked element. */
export function showHidden(root: Element | DocumentFragment, title: string): void {
  for (const text of textsOf(root, () => true)) {
    if (!hasHidden(text.data)) continue;
    text.replaceWith(...splitHidden(text.data).map((part) => (part.hidden ? mark(part.text, title) : part.text)));
  }
}

function mark(name: string, title: string): HTMLElement {
  const element = document.createElement('span');
  element.className = 'hidden-mark';
  element.title = title;
  element.textContent = name;
  return element;
}

function textsOf(root: Node, wanted: (parent: Element | null) => boolean): Text[] {
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  const texts: Text[] = [];
  while (walker.nextNode()) {
    const text = walker.currentNode as Text;
    if (wanted(text.parentElement)) texts.push(text);
  }
  return texts;
}

/** Isolates runs in every block below `root`. A block's text is one line of runs, over the elements inside it. */
export function isolateRuns(root: DocumentFragment): void {
  const blocks = new Map<Element, Text[]>();
  for (const text of textsOf(
    root,
    (parent) => parent !== null && !parent.closest('pre, code, bdi, bdo, .code-head, .hidden-mark, .maths'),
  )) {
    const block = text.parentElement!.closest(BLOCK);
    if (!block) continue;
    const texts = blocks.get(block) ?? [];
    blocks.set(block, texts);
    texts.push(text);
  }
  for (const [block, texts] of blocks) {
    const direction = block.closest('[dir]')?.getAttribute('dir') as Direction | null | undefined;
    if (direction === 'rtl' || direction === 'ltr') isolateIn(texts, direction);
  }
}

function isolateIn(texts: Text[], direction: Direction): void {
  let whole = '';
  const starts: number[] = [];
  let last: Text | null = null;
  for (const text of texts) {
    if (last && separated(last, text)) whole += '\n';
    starts.push(whole.length);
    whole += text.data;
    last = text;
  }
  for (const run of runsOf(whole, direction).reverse()) {
    const first = nodeAt(starts, run.from);
    const end = nodeAt(starts, run.to - 1);
    const bdi = document.createElement(tagOf(run));
    bdi.dir = direction === 'rtl' ? 'ltr' : 'rtl';
    const range = document.createRange();
    range.setStart(texts[first]!, run.from - starts[first]!);
    range.setEnd(texts[end]!, run.to - starts[end]!);
    bdi.append(range.extractContents());
    range.insertNode(bdi);
  }
}

function separated(before: Text, after: Text): boolean {
  const range = document.createRange();
  range.setStartAfter(before);
  range.setEndBefore(after);
  return range.cloneContents().querySelector(SEPARATE) !== null;
}

function nodeAt(starts: number[], at: number): number {
  let found = 0;
  while (found + 1 < starts.length && starts[found + 1]! <= at) found++;
  return found;
}

/** Part of a line: text of the line's own direction, or a run to isolate; hidden characters stand as code points. */
export interface Piece {
  isolated: 'bdi' | 'bdo' | null;
  parts: { text: string; hidden: boolean }[];
}

/** A line of plain text in pieces. */
export function piecesOf(line: string, direction: Direction): Piece[] {
  const parts = splitHidden(line);
  const clean = parts.map((part) => (part.hidden ? '' : part.text)).join('');
  const pieces: Piece[] = [];
  const cuts = runsOf(clean, direction);
  let at = 0;
  const put = (text: string, hidden: boolean, isolated: Piece['isolated']) => {
    const last = pieces.at(-1);
    if (last && last.isolated === isolated) last.parts.push({ text, hidden });
    else pieces.push({ isolated, parts: [{ text, hidden }] });
  };
  for (const part of parts) {
    if (part.hidden) {
      const around = cuts.find((run) => run.from < at && at < run.to);
      put(part.text, true, around ? tagOf(around) : null);
      continue;
    }
    for (let rest = part.text; rest !== '';) {
      const run = cuts.find((each) => each.to > at);
      const inside = run !== undefined && run.from <= at;
      const until = run === undefined ? Infinity : inside ? run.to : run.from;
      const taken = rest.slice(0, until - at);
      // Two runs side by side are two pieces.
      if (inside && run.from === at) pieces.push({ isolated: tagOf(run), parts: [{ text: taken, hidden: false }] });
      else put(taken, false, inside ? tagOf(run) : null);
      at += taken.length;
      rest = rest.slice(taken.length);
    }
  }
  return pieces;
}

const tagOf = (run: Run) => (run.override ? 'bdo' : 'bdi');

/** The nodes of a line of plain text. */
export function lineNodes(line: string, direction: Direction, title: string): Node[] {
  return piecesOf(line, direction).map((piece) => {
    const nodes = piece.parts.map((part) =>
      part.hidden ? mark(part.text, title) : document.createTextNode(part.text),
    );
    if (!piece.isolated && nodes.length === 1) return nodes[0]!;
    const holder = document.createElement(piece.isolated ?? 'span');
    if (piece.isolated) holder.dir = direction === 'rtl' ? 'ltr' : 'rtl';
    holder.append(...nodes);
    return holder;
  });
}
