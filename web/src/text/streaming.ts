/**
 * Renders a message while it streams.
 *
 * Finished top-level blocks are rendered once and then left alone. The last, unfinished block is rendered again in each
 * frame and merged into the nodes on the page: existing nodes stay, and new text is appended to its Text node. So
 * Arabic letters keep joining, nothing flickers, and a selection survives. The block's direction is fixed once it is
 * known. Two limits keep the page responsive: a block longer than `PLAIN_ABOVE` characters is shown as plain text in
 * pieces, and text beyond `SHOWN_AT_FIRST` characters is shown after a press of a button.
 */
import { type Direction, StickyDirection } from './direction';
import { lineNodes } from './isolate';
import { blocksOf, renderMarkdown, rawCode, type Words } from './markdown';

const PLAIN_ABOVE = 12_000;
const PLAIN_PIECE = 4_000;
export const SHOWN_AT_FIRST = 120_000;

export class StreamingText {
  /** Index in the text at which the unfinished block starts. */
  private settled = 0;
  private settledNodes = 0;
  private sticky = new StickyDirection();
  private last: Direction;
  private shown = SHOWN_AT_FIRST;
  private text = '';
  private more: HTMLButtonElement | null = null;

  constructor(
    private readonly root: HTMLElement,
    private readonly base: Direction,
    private readonly words: Words & { showMore: string },
  ) {
    this.last = base;
  }

  /** Shows `text`. Where it does not continue the text shown before, everything is rendered again. */
  update(text: string, done: boolean): void {
    if (!text.startsWith(this.text.slice(0, Math.min(this.text.length, 64))) || text.length < this.text.length)
      this.reset();
    this.text = text;
    const visible = text.length > this.shown ? cut(text, this.shown) : text;
    const whole = done || visible.length < text.length;
    this.grow(visible, whole);
    this.offerMore(text.length > visible.length);
  }

  private reset(): void {
    this.root.replaceChildren();
    this.settled = 0;
    this.settledNodes = 0;
    this.sticky = new StickyDirection();
    this.last = this.base;
    this.more = null;
    this.text = '';
  }

  private grow(text: string, whole: boolean): void {
    for (;;) {
      const rest = text.slice(this.settled);
      const open = this.openBlock(rest);
      if (open > 0) {
        this.settle(rest.slice(0, open));
        this.settled += open;
        continue;
      }
      if (rest.length > PLAIN_ABOVE) {
        const piece = cut(rest, PLAIN_PIECE);
        this.settlePlain(piece);
        this.settled += piece.length;
        continue;
      }
      if (whole) {
        this.settle(rest);
        this.settled = text.length;
      } else this.tail(rest);
      return;
    }
  }

  /** Characters of `rest` before its last top-level block; 0 where there is only one. */
  private openBlock(rest: string): number {
    const look = rest.length > PLAIN_ABOVE * 4 ? rest.slice(0, PLAIN_ABOVE * 4) : rest;
    if (look.indexOf('\n') < 0) return 0;
    const blocks = blocksOf(look);
    const last = blocks.at(-1);
    if (!last || blocks.length < 2) return 0;
    let at = 0;
    for (let line = 0; line < last.from; line++) at = look.indexOf('\n', at) + 1;
    return at;
  }

  private settle(source: string): void {
    if (source.length > PLAIN_ABOVE * 2) {
      for (let at = 0; at < source.length;) {
        const piece = cut(source.slice(at, at + PLAIN_PIECE + 2), PLAIN_PIECE);
        this.settlePlain(piece);
        at += piece.length;
      }
      return;
    }
    this.tail(source);
    this.settledNodes = this.root.childNodes.length - (this.more ? 1 : 0);
    this.last = this.lastDirection();
    this.sticky = new StickyDirection();
  }

  private settlePlain(piece: string): void {
    this.dropTail();
    const block = document.createElement('div');
    block.className = 'plain-piece';
    block.dir = this.sticky.update(piece, this.last);
    block.append(...lineNodes(piece, block.dir as Direction, this.words.hiddenMark));
    this.root.insertBefore(block, this.more);
    this.settledNodes = this.root.childNodes.length - (this.more ? 1 : 0);
  }

  private tail(source: string): void {
    const fragment = renderMarkdown(source, this.last, this.words, this.sticky);
    merge(this.root, fragment, this.settledNodes, this.more);
  }

  private dropTail(): void {
    while (this.root.childNodes.length - (this.more ? 1 : 0) > this.settledNodes)
      this.root.childNodes[this.settledNodes]!.remove();
  }

  private lastDirection(): Direction {
    for (let i = this.settledNodes - 1; i >= 0; i--) {
      const node = this.root.childNodes[i];
      if (node instanceof HTMLElement && node.dir && !node.matches('.code-frame, pre')) return node.dir as Direction;
    }
    return this.last;
  }

  private offerMore(wanted: boolean): void {
    if (!wanted) {
      this.more?.remove();
      this.more = null;
      return;
    }
    if (this.more) return;
    this.more = document.createElement('button');
    this.more.type = 'button';
    this.more.className = 'show-more';
    this.more.textContent = this.words.showMore;
    this.more.addEventListener('click', () => {
      this.shown += SHOWN_AT_FIRST;
      this.update(this.text, true);
    });
    this.root.append(this.more);
  }
}

/** The first `count` characters, not splitting a surrogate pair, ending at a space where one is near. */
function cut(text: string, count: number): string {
  if (text.length <= count) return text;
  const space = text.lastIndexOf(' ', count);
  if (space > count - 200 && space > 0) return text.slice(0, space + 1);
  const code = text.charCodeAt(count - 1);
  return text.slice(0, code >= 0xd800 && code < 0xdc00 ? count - 1 : count);
}

/** Makes the children of `root` from index `from` (up to `end`) equal to `fragment` and keeps the nodes that match. */
function merge(root: Node, fragment: Node, from: number, end: Node | null): void {
  const wanted = [...fragment.childNodes].filter(
    (node) =>
      !(
        root instanceof HTMLElement &&
        root.classList.contains('answer') &&
        node.nodeType === Node.TEXT_NODE &&
        !node.textContent!.trim()
      ),
  );
  for (let i = 0; i < wanted.length; i++) {
    const old = root.childNodes[from + i] ?? null;
    const next = wanted[i]!;
    if (old === null || old === end) root.insertBefore(next, end);
    else if (!mergeNode(old, next)) root.replaceChild(next, old);
  }
  let extra = root.childNodes[from + wanted.length] ?? null;
  while (extra !== null && extra !== end) {
    const following: ChildNode | null = extra.nextSibling;
    extra.remove();
    extra = following;
  }
}

function mergeNode(old: ChildNode, next: ChildNode): boolean {
  if (old.nodeType === Node.TEXT_NODE && next.nodeType === Node.TEXT_NODE) {
    const before = (old as Text).data;
    const after = (next as Text).data;
    if (after === before) return true;
    if (after.startsWith(before)) (old as Text).appendData(after.slice(before.length));
    else (old as Text).data = after;
    return true;
  }
  if (
    !(old instanceof HTMLElement) ||
    !(next instanceof HTMLElement) ||
    old.tagName !== next.tagName ||
    old.className !== next.className
  )
    return false;
  for (const name of ['dir', 'lang', 'href', 'start', 'title', 'target', 'rel']) {
    const value = next.getAttribute(name);
    if (value === null) old.removeAttribute(name);
    else if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const raw = rawCode.get(next);
  if (raw !== undefined) rawCode.set(old, raw);
  merge(old, next, 0, null);
  return true;
}
