/**
 * Formulas in TeX, shown as MathML by KaTeX, which is loaded with the first formula.
 *
 * `$$…$$` and `\[…\]` are blocks or parts of a line, `\(…\)` is part of a line. `$…$` is a formula only where it cannot
 * be prices: no space inside the signs, no digit after the closing one, and a letter or operator of TeX between them.
 * MathML needs no fonts and no inline styles, which the page's policy forbids.
 */
import MarkdownIt from 'markdown-it';
import { hasHidden } from './hidden';

type Katex = typeof import('katex').default;

const LONGEST = 4_000;
const PAIRS: [open: string, close: string][] = [
  ['\\(', '\\)'],
  ['\\[', '\\]'],
  ['$$', '$$'],
];

/** Adds tokens for formulas; they are rendered as `code.maths` and `pre.maths` with the TeX source. */
export function maths(markdown: InstanceType<typeof MarkdownIt>): void {
  const escape = markdown.utils.escapeHtml;
  markdown.inline.ruler.before('escape', 'maths', (state, silent) => {
    const found = formulaAt(state.src, state.pos);
    if (!found) return false;
    if (!silent) state.push('maths', 'code', 0).content = found.tex;
    state.pos = found.end;
    return true;
  });
  markdown.block.ruler.before(
    'fence',
    'maths_block',
    (state, startLine, endLine, silent) => {
      const line = (at: number) => state.src.slice(state.bMarks[at]! + state.tShift[at]!, state.eMarks[at]!);
      const first = line(startLine).trim();
      const close = first.startsWith('$$') ? '$$' : first.startsWith('\\[') ? '\\]' : null;
      if (close === null || state.sCount[startLine]! - state.blkIndent >= 4) return false;
      let text = first.slice(2);
      let last = startLine;
      while (!text.trimEnd().endsWith(close)) {
        // A formula that is not closed in its block is text, as with every other mark of Markdown.
        if (text.includes(close) || text.length > LONGEST || ++last >= endLine || line(last).trim() === '')
          return false;
        text += `\n${line(last)}`;
      }
      const tex = text.trimEnd().slice(0, -close.length).trim();
      if (tex === '' || tex.includes(close)) return false;
      if (silent) return true;
      const token = state.push('maths_block', 'pre', 0);
      token.content = tex;
      token.map = [startLine, last + 1];
      state.line = last + 1;
      return true;
    },
    { alt: ['paragraph', 'reference', 'blockquote', 'list'] },
  );
  markdown.renderer.rules['maths'] = (tokens, at) => `<code class="maths">${escape(tokens[at]!.content)}</code>`;
  markdown.renderer.rules['maths_block'] = (tokens, at) =>
    `<pre class="maths"><code>${escape(tokens[at]!.content)}</code></pre>`;
}

function formulaAt(text: string, at: number): { tex: string; end: number } | null {
  for (const [open, close] of PAIRS) {
    if (!text.startsWith(open, at)) continue;
    const end = text.indexOf(close, at + 2);
    const tex = end < 0 ? '' : text.slice(at + 2, end).trim();
    return tex === '' || tex.length > LONGEST ? null : { tex, end: end + 2 };
  }
  if (text[at] !== '$') return null;
  const found = /^\$(?![\s$])((?:\\.|[^\\$\n]){1,400})(?<!\s)\$(?!\d)/.exec(text.slice(at, at + 404));
  if (!found || !/[A-Za-z\\^_=]/.test(found[1]!) || /[\u0600-\u06ff]/.test(found[1]!.replace(/\\text\{[^}]*\}/g, '')))
    return null;
  return { tex: found[1]!, end: at + found[0].length };
}

let katex: Katex | null = null;
let loading: Promise<void> | null = null;

/** Replaces the `code` and `pre` of formulas by elements that hold MathML, or the source where it is no valid TeX. */
export function showMaths(root: DocumentFragment): void {
  for (const code of root.querySelectorAll<HTMLElement>('code.maths, pre.maths')) {
    const tex = code.textContent ?? '';
    const block = code.tagName === 'PRE';
    const element = document.createElement(block ? 'div' : 'span');
    element.className = block ? 'maths block' : 'maths';
    element.dir = 'ltr';
    element.title = tex;
    element.textContent = tex;
    if (block) element.tabIndex = 0;
    code.replaceWith(element);
    if (katex) show(katex, element);
    else
      loading ??= import('katex').then(
        (module) => {
          katex = module.default;
          // What is on the page by now.
          for (const each of document.querySelectorAll<HTMLElement>('.answer .maths')) show(katex, each);
        },
        // Without a network the source stays readable; the next formula tries again.
        () => void (loading = null),
      );
  }
}

function show(katex: Katex, element: HTMLElement): void {
  const tex = element.title;
  if (hasHidden(tex)) return;
  const limits = { maxExpand: 200, maxSize: 20, trust: false, strict: 'ignore' } as const;
  const displayMode = element.classList.contains('block');
  try {
    katex.render(tex, element, { output: 'mathml', displayMode, throwOnError: true, ...limits });
  } catch {
    element.textContent = tex;
  }
}
