/** Colours of code by highlight.js, which is loaded with the first block whose language is named. */
import DOMPurify from 'dompurify';

type Highlighter = typeof import('highlight.js/lib/common').default;

/** Longer code stays without colours, so that the page does not stand still. */
const LONGEST = 20_000;
const purify = { ALLOWED_TAGS: ['span', '#text'], ALLOWED_ATTR: ['class'], RETURN_DOM_FRAGMENT: true as const };

let highlighter: Highlighter | null = null;
let loading: Promise<void> | null = null;

/**
 * `code` as coloured nodes; null where the language is unknown, the code too long or the library not loaded. In the
 * last case `onLoad` is called once it is.
 */
export function coloured(code: string, language: string, onLoad: () => void): DocumentFragment | null {
  if (language === '' || code.length > LONGEST) return null;
  if (highlighter) {
    if (!highlighter.getLanguage(language)) return null;
    return DOMPurify.sanitize(highlighter.highlight(code, { language, ignoreIllegals: true }).value, purify);
  }
  loading ??= import('highlight.js/lib/common').then(
    (module) => {
      highlighter = module.default;
      onLoad();
    },
    // Without a network the code stays as it is; the next block tries again.
    () => void (loading = null),
  );
  return null;
}
