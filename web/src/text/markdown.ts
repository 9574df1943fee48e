/**
 * Turns a model's Markdown into safe DOM with the right text directions.
 *
 * markdown-it parses with raw HTML off; DOMPurify then keeps an allow-list of tags and attributes. There are two
 * filters because a model's output is hostile input and each filter has had vulnerabilities. Images become links,
 * because fetching an image could send the conversation to a remote server. Directions, code headers and colours,
 * formulas, boxes of task lists and isolation are added to the finished nodes.
 */
import DOMPurify from 'dompurify';
import MarkdownIt from 'markdown-it';
import { coloured } from './colours';
import { type Direction, directionOf, languageOf, type StickyDirection } from './direction';
import { isolateRuns, showHidden } from './isolate';
import { maths, showMaths } from './maths';

const markdown = new MarkdownIt({ html: false, linkify: true, typographer: false, maxNesting: 40 });
markdown.disable('image');
maths(markdown);
for (const rule of ['th_open', 'td_open']) {
  markdown.renderer.rules[rule] = (tokens, at, options, _env, self) => {
    const token = tokens[at]!;
    // Inline styles are forbidden on the page: alignment becomes a class.
    const align = /text-align:(\w+)/.exec(String(token.attrGet('style') ?? ''))?.[1];
    token.attrs = align ? [['class', `align-${align}`]] : [];
    return self.renderToken(tokens, at, options);
  };
}
markdown.validateLink = (url) => /^(https?:|mailto:)/i.test(url.trim());

const TAGS = [
  'p',
  'br',
  'hr',
  'h1',
  'h2',
  'h3',
  'h4',
  'h5',
  'h6',
  'ul',
  'ol',
  'li',
  'blockquote',
  'pre',
  'code',
  'strong',
  'em',
  's',
  'a',
  'table',
  'thead',
  'tbody',
  'tr',
  'th',
  'td',
  '#text',
];
const purify = {
  ALLOWED_TAGS: TAGS,
  ALLOWED_ATTR: ['href', 'class', 'start'],
  ALLOWED_URI_REGEXP: /^(https?:|mailto:)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true as const,
};

export interface Block {
  /** Source lines [from, to) of this top-level block. */
  from: number;
  to: number;
}

/** Top-level blocks of a text, by source line. */
export function blocksOf(text: string): Block[] {
  const blocks: Block[] = [];
  let depth = 0;
  for (const token of markdown.parse(text, {})) {
    if (depth === 0 && token.map && token.nesting >= 0) blocks.push({ from: token.map[0], to: token.map[1] });
    depth += token.nesting;
  }
  return blocks;
}

export interface Words {
  copyCode: string;
  hiddenMark: string;
  taskDone: string;
  taskOpen: string;
}

/** `first` fixes the direction of the first block, which may still grow. */
export function renderMarkdown(
  text: string,
  fallback: Direction,
  words: Words,
  first?: StickyDirection,
): DocumentFragment {
  const fragment = DOMPurify.sanitize(markdown.render(text), purify);
  finish(fragment, fallback, words, first);
  return fragment;
}

function finish(root: DocumentFragment, fallback: Direction, words: Words, first?: StickyDirection): void {
  showMaths(root);
  for (const item of root.querySelectorAll('li')) {
    wrapItem(item);
    showTask(item, words);
  }
  let last = fallback;
  for (const child of root.children) {
    const text = textForDirection(child);
    const grows = first !== undefined && child === root.firstElementChild && child.matches('p, h1, h2, h3, h4, h5, h6');
    const direction =
      child.tagName === 'TABLE'
        ? directionOfMost(child.querySelectorAll('th'), last)
        : child.matches('ul, ol')
          ? directionOfMost(child.querySelectorAll('.item, li > p'), last)
          : grows
            ? first.update(text, last)
            : directionOf(text, last).direction;
    if (child.tagName !== 'PRE') last = direction;
    setDirection(child, direction);
  }
  for (const leaf of root.querySelectorAll('.item, td, th, blockquote > p, li > p')) {
    const around = leaf.parentElement?.closest('[dir]')?.getAttribute('dir') as Direction | null;
    const own = directionOf(textForDirection(leaf), around ?? last);
    setDirection(leaf, own.letters > 0 ? own.direction : (around ?? last));
  }
  for (const pre of root.querySelectorAll('pre')) finishCode(pre, words);
  showHidden(root, words.hiddenMark);
  for (const frame of root.querySelectorAll('.code-frame')) colourCode(frame, words);
  for (const link of root.querySelectorAll('a')) finishLink(link);
  for (const code of root.querySelectorAll(':not(pre) > code')) code.setAttribute('dir', 'ltr');
  for (const table of root.querySelectorAll('table')) {
    const frame = document.createElement('div');
    frame.className = 'table-frame';
    frame.tabIndex = 0;
    frame.dir = table.dir;
    table.replaceWith(frame);
    frame.append(table);
  }
  isolateRuns(root);
}

/** The text of a list item in an element of its own: it has a direction, while the marker stays on the list's side. */
function wrapItem(item: Element): void {
  const inline: Node[] = [];
  for (const node of [...item.childNodes]) {
    if (node instanceof Element && node.matches('p, ul, ol, pre, blockquote, table, h1, h2, h3, h4, h5, h6, hr')) break;
    inline.push(node);
  }
  if (inline.every((node) => (node.textContent ?? '').trim() === '')) return;
  const text = document.createElement('div');
  text.className = 'item';
  item.insertBefore(text, inline[0]!);
  text.append(...inline);
}

/** `[ ]` and `[x]` at the start of an item become a box with a name; nobody can change it. */
function showTask(item: Element, words: Words): void {
  const text = item.querySelector(':scope > .item, :scope > p')?.firstChild;
  const found = text instanceof Text ? /^\[([ xX])\]\s+/.exec(text.data) : null;
  if (!found) return;
  const done = found[1] !== ' ';
  const box = document.createElement('span');
  box.className = done ? 'task done' : 'task';
  box.setAttribute('role', 'img');
  box.setAttribute('aria-label', done ? words.taskDone : words.taskOpen);
  (text as Text).data = (text as Text).data.slice(found[0].length);
  (text as Text).before(box);
  item.classList.add('task-item');
}

/** A link whose text looks like an address of another site than its own shows its own site beside it. */
function finishLink(link: HTMLAnchorElement): void {
  const text = link.textContent ?? '';
  link.target = '_blank';
  link.rel = 'noopener noreferrer nofollow';
  link.title = link.href;
  const around = (link.parentElement?.closest('[dir]')?.getAttribute('dir') as Direction | null) ?? 'rtl';
  link.dir = /^(https?:|www\.)/i.test(text) ? 'ltr' : directionOf(text, around).direction;
  const named = /^\s*(?:[a-z][a-z\d+.-]*:\/*)?(?:[^\s/@]*@)?((?:[\p{L}\p{N}-]+\.)+[\p{L}\p{N}-]{2,})/iu.exec(text)?.[1];
  if (!named || !/^https?:$/.test(link.protocol)) return;
  const plain = (host: string) => host.toLowerCase().replace(/^www\./, '');
  if (plain(named) === plain(link.hostname)) return;
  const site = document.createElement('bdi');
  site.className = 'link-site';
  site.dir = 'ltr';
  site.textContent = `(${link.hostname})`;
  link.after(' ', site);
}

function setDirection(element: Element, direction: Direction): void {
  element.setAttribute('dir', element.tagName === 'PRE' ? 'ltr' : direction);
  if (element.tagName !== 'PRE') element.setAttribute('lang', languageOf(direction));
}

function textForDirection(element: Element): string {
  if (!element.querySelector('code, pre, a, .maths')) return element.textContent ?? '';
  const copy = element.cloneNode(true) as Element;
  for (const code of copy.querySelectorAll('code, pre, .maths')) code.remove();
  return copy.textContent ?? '';
}

/** The direction of most parts of a block: header cells order the columns of a table, items place a list's markers. */
function directionOfMost(parts: Iterable<Element>, fallback: Direction): Direction {
  let balance = 0;
  for (const part of parts) {
    const { direction, letters } = directionOf(textForDirection(part), fallback);
    if (letters > 0) balance += direction === 'rtl' ? 1 : -1;
  }
  return balance === 0 ? fallback : balance > 0 ? 'rtl' : 'ltr';
}

const languageIn = (code: Element | null) => /^language-([\w+#.-]{1,30})$/.exec(code?.className ?? '')?.[1] ?? '';

function finishCode(pre: HTMLPreElement, words: Words): void {
  const code = pre.querySelector('code');
  const language = languageIn(code);
  const frame = document.createElement('div');
  frame.className = 'code-frame';
  frame.dir = 'ltr';
  const head = document.createElement('div');
  head.className = 'code-head';
  const name = document.createElement('span');
  name.textContent = language;
  const copy = document.createElement('button');
  copy.type = 'button';
  copy.className = 'code-copy';
  copy.textContent = words.copyCode;
  copy.lang = 'ar';
  copy.dir = 'auto';
  head.append(name, copy);
  const raw = code?.textContent ?? pre.textContent ?? '';
  pre.replaceWith(frame);
  pre.tabIndex = 0;
  pre.dir = 'ltr';
  frame.append(head, pre);
  rawCode.set(frame, raw);
}

function colourCode(frame: Element, words: Words): void {
  const code = frame.querySelector('pre code');
  const everything = () => document.querySelectorAll('.answer .code-frame').forEach((each) => colourCode(each, words));
  const nodes = coloured(rawCode.get(frame) ?? '', languageIn(code), everything);
  if (!code || !nodes) return;
  code.replaceChildren(nodes);
  showHidden(code, words.hiddenMark);
}

/** The exact text of each code frame, for copying; the displayed text marks hidden characters. */
export const rawCode = new WeakMap<Element, string>();
