/*
 * Text of messages as nodes: a small part of Markdown, with a direction for each paragraph. All text becomes text nodes,
 * never HTML. `page` is the direction of the page, for text without letters.
 */

import { directionOf, languageOf } from './direction.js';

/** The direction of a text; `page` is that of the page. */
export const direction = (text, page) => directionOf(text, page).direction;

export function element(name, className, ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

/** Code, strong text, and runs of the other script, which are isolated so that punctuation stays in its place. */
function inline(target, text, dir) {
  const parts = text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/);
  for (const part of parts) {
    if (part === '') continue;
    if (part.length > 2 && part.startsWith('`') && part.endsWith('`')) {
      const code = element('code', '', part.slice(1, -1));
      code.dir = 'ltr';
      target.append(code);
    } else if (part.length > 4 && part.startsWith('**') && part.endsWith('**')) {
      const strong = element('strong', '');
      isolate(strong, part.slice(2, -2), dir);
      target.append(strong);
    } else isolate(target, part, dir);
  }
}

/** Words of the other direction: they begin and end with a letter or digit, or with a sign that belongs to them. */
const OTHER = {
  rtl: /<\/?[A-Za-z][^<>\u0600-\u06ff]*>|https?:\/\/[^\s\u0600-\u06ff]+|[A-Za-z](?:[\w.+#@/:'&=-]|[ ,](?=[A-Za-z]))*[\w+#]|[A-Za-z]/g,
  ltr: /[\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufeff](?:[\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufeff]|[ ](?=[\u0600-\u06ff]))*/g,
};
function isolate(target, text, dir) {
  let at = 0;
  for (const match of text.matchAll(OTHER[dir])) {
    target.append(text.slice(at, match.index));
    const run = element('bdi', '', match[0]);
    run.dir = dir === 'rtl' ? 'ltr' : 'rtl';
    target.append(run);
    at = match.index + match[0].length;
  }
  target.append(text.slice(at));
}

function block(name, text, page) {
  const node = element(name, '');
  node.dir = direction(text, page);
  node.lang = languageOf(node.dir);
  inline(node, text, node.dir);
  return node;
}

const ITEM = /^\s{0,3}(?:([-*•])|(\d{1,3}|[٠-٩]{1,3})[.)])\s+(.*)$/;
const latin = (digits) => digits.replace(/[٠-٩]/g, (digit) => String(digit.charCodeAt(0) - 0x660));

/** Fills `body` with the text: fenced code, headings, lists, paragraphs. */
export function render(body, text, page) {
  const nodes = [];
  const lines = text.split('\n');
  let paragraph = [];
  const flush = () => {
    if (paragraph.length > 0) nodes.push(block('p', paragraph.join('\n'), page));
    paragraph = [];
  };
  for (let at = 0; at < lines.length; at++) {
    const line = lines[at];
    const fence = /^\s{0,3}(```+|~~~+)/.exec(line);
    if (fence) {
      flush();
      const code = [];
      while (++at < lines.length && !lines[at].trimStart().startsWith(fence[1])) code.push(lines[at]);
      const pre = element('pre', '', element('code', '', code.join('\n')));
      pre.tabIndex = 0;
      nodes.push(pre);
      continue;
    }
    const heading = /^#{1,6}\s+(.*)$/.exec(line);
    if (heading) {
      flush();
      nodes.push(block(line.startsWith('###') ? 'h4' : 'h3', heading[1], page));
      continue;
    }
    let item = ITEM.exec(line);
    if (item) {
      flush();
      const list = element(item[1] ? 'ul' : 'ol', '');
      if (item[2]) {
        list.start = Number(latin(item[2]));
        if (latin(item[2]) !== item[2]) list.className = 'indic';
      }
      const texts = [];
      for (; item && Boolean(item[1]) === (list.tagName === 'UL'); item = ITEM.exec(lines[++at] ?? ''))
        texts.push(item[3]);
      at--;
      list.dir = direction(texts.join(' '), page);
      list.append(
        ...texts.map((each) => {
          const holder = block('div', each, page);
          holder.className = 'item';
          return element('li', '', holder);
        }),
      );
      nodes.push(list);
      continue;
    }
    if (line.trim() === '') flush();
    else paragraph.push(line);
  }
  flush();
  body.replaceChildren(...nodes);
}
