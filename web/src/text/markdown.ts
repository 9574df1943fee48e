/**
 * Turns a model's Markdown into safe DOM with the right text directions.
 *
 * markdown-it parses with raw HTML off; DOMPurify then keeps an allow-list of tags and attributes. There are two
 * filters because a model's output is hostile input and each filter has had vulnerabilities. Images become links,
 * because fetching an image could send the conversation to a remote server. Directions, code headers and isolation are
 * added to the finished nodes.
 */
import DOMPurify from 'dompurify';
import MarkdownIt from 'markdown-it';
import { type Direction, directionOf, languageOf, LTR_RUN, needsIsolation } from './direction';

const markdown = new MarkdownIt({ html: false, linkify: true, typographer: false, maxNesting: 40 });
markdown.disable('image');
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
}

export function renderMarkdown(text: string, fallback: Direction, words: Words): DocumentFragment {
  const fragment = DOMPurify.sanitize(markdown.render(text), purify);
  finish(fragment, fallback, words);
  return fragment;
}

function finish(root: DocumentFragment, fallback: Direction, words: Words): void {
  let last = fallback;
  for (const child of root.children) {
    const direction =
      child.tagName === 'TABLE' ? tableDirection(child, last) : directionOf(textForDirection(child), last).direction;
    if (child.tagName !== 'PRE') last = direction;
    setDirection(child, direction);
  }
  for (const leaf of root.querySelectorAll('li, td, th, blockquote > *, li > *')) {
    if (leaf.matches('pre, code')) continue;
    const own = directionOf(
      textForDirection(leaf),
      (leaf.parentElement?.closest('[dir]')?.getAttribute('dir') as Direction | null) ?? last,
    );
    if (own.letters > 0 && leaf.matches('td, th, p')) setDirection(leaf, own.direction);
  }
  for (const link of root.querySelectorAll('a')) {
    link.setAttribute('target', '_blank');
    link.setAttribute('rel', 'noopener noreferrer nofollow');
    if (/^https?:/.test(link.textContent ?? '')) link.setAttribute('dir', 'ltr');
  }
  for (const code of root.querySelectorAll(':not(pre) > code')) {
    code.setAttribute('dir', 'ltr');
    showHidden(code, words.hiddenMark);
  }
  for (const pre of root.querySelectorAll('pre')) finishCode(pre, words);
  for (const table of root.querySelectorAll('table')) {
    const frame = document.createElement('div');
    frame.className = 'table-frame';
    frame.tabIndex = 0;
    table.replaceWith(frame);
    frame.append(table);
  }
  isolateRuns(root);
}

function setDirection(element: Element, direction: Direction): void {
  element.setAttribute('dir', element.tagName === 'PRE' ? 'ltr' : direction);
  if (element.tagName !== 'PRE') element.setAttribute('lang', languageOf(direction));
}

function textForDirection(element: Element): string {
  if (!element.querySelector('code, pre, a')) return element.textContent ?? '';
  const copy = element.cloneNode(true) as Element;
  for (const code of copy.querySelectorAll('code, pre')) code.remove();
  return copy.textContent ?? '';
}

/** The direction of most header cells: it orders the columns. */
function tableDirection(table: Element, fallback: Direction): Direction {
  let rtl = 0;
  let ltr = 0;
  for (const cell of table.querySelectorAll('th')) {
    const { direction, letters } = directionOf(cell.textContent ?? '', fallback);
    if (letters > 0) direction === 'rtl' ? rtl++ : ltr++;
  }
  return rtl === ltr ? fallback : rtl > ltr ? 'rtl' : 'ltr';
}

function finishCode(pre: HTMLPreElement, words: Words): void {
  const code = pre.querySelector('code');
  const language = /^language-([\w+#.-]{1,30})$/.exec(code?.className ?? '')?.[1] ?? '';
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
  if (code) showHidden(code, words.hiddenMark);
  frame.append(head, pre);
  rawCode.set(frame, raw);
}

/** The exact text of each code frame, for copying; the displayed text marks hidden characters. */
export const rawCode = new WeakMap<Element, string>();

/** Shows characters that reorder text by their code points, so that code reads as it would run. */
function showHidden(code: Element, title: string): void {
  const walker = document.createTreeWalker(code, NodeFilter.SHOW_TEXT);
  const texts: Text[] = [];
  while (walker.nextNode()) texts.push(walker.currentNode as Text);
  for (const text of texts) {
    if (!/[\u202a-\u202e\u2066-\u2069]/.test(text.data)) continue;
    const parts = text.data.split(/([\u202a-\u202e\u2066-\u2069])/);
    text.replaceWith(
      ...parts.filter(Boolean).map((part) => {
        if (part.length > 1 || !/[\u202a-\u202e\u2066-\u2069]/.test(part)) return document.createTextNode(part);
        const mark = document.createElement('span');
        mark.className = 'hidden-mark';
        mark.title = title;
        mark.textContent = `U+${part.codePointAt(0)!.toString(16).toUpperCase()}`;
        return mark;
      }),
    );
  }
}

/** Numbers with units, ranges and dates inside right-to-left text keep their own order. */
function isolateRuns(root: DocumentFragment): void {
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT, (node) =>
    node.parentElement?.closest('pre, code, a, bdi, .code-head') || !node.parentElement?.closest('[dir="rtl"]')
      ? NodeFilter.FILTER_REJECT
      : NodeFilter.FILTER_ACCEPT,
  );
  const texts: Text[] = [];
  while (walker.nextNode()) if (/\d/.test((walker.currentNode as Text).data)) texts.push(walker.currentNode as Text);
  for (const text of texts) {
    const parts: (Node | string)[] = [];
    let at = 0;
    for (const match of text.data.matchAll(LTR_RUN)) {
      if (!needsIsolation(match[0])) continue;
      parts.push(text.data.slice(at, match.index));
      const bdi = document.createElement('bdi');
      bdi.dir = 'ltr';
      bdi.textContent = match[0];
      parts.push(bdi);
      at = match.index + match[0].length;
    }
    if (at > 0) text.replaceWith(...parts, text.data.slice(at));
  }
}
