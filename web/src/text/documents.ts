/**
 * The text of files that a person adds to a message, read in the tab: plain text in UTF-8 or Windows-1256, PDF by
 * pdf.js, Word (`.docx`) from its XML. The kind is known from the first bytes, not from the name.
 */
import { linesOf } from './pdf-lines';

export interface Attachment {
  name: string;
  text: string;
  /** Whether the file holds more than `text`. */
  cut: boolean;
}

export type DocumentFault = 'large' | 'kind' | 'empty' | 'scanned' | 'damaged' | 'locked';

/** Why a file gives no text. */
export class DocumentError extends Error {
  constructor(
    readonly fault: DocumentFault,
    message: string,
  ) {
    super(message);
  }
}

const MOST_BYTES = 50e6;
const MOST_LETTERS = 1e6;
const MOST_PAGES = 2000;
/** A Word file may unpack to far more than its size. */
const MOST_XML = 100e6;

/** Reads the text of a file; throws a `DocumentError`. */
export async function readDocument(file: File): Promise<Attachment> {
  if (file.size > MOST_BYTES) throw new DocumentError('large', `${file.size} bytes, at most ${MOST_BYTES} are read`);
  const bytes = new Uint8Array(await file.arrayBuffer());
  const starts = (text: string) => [...text].every((letter, at) => bytes[at] === letter.charCodeAt(0));
  let text: string;
  let more = false;
  if (starts('%PDF-')) [text, more] = await readPdf(bytes);
  else if (starts('PK\u0003\u0004')) text = await readWord(bytes);
  else text = readText(bytes);
  text = text.replace(/\r\n?/g, '\n').trim();
  if (text === '') throw new DocumentError('empty', 'the file holds no text');
  return { name: file.name, text: text.slice(0, MOST_LETTERS), cut: more || text.length > MOST_LETTERS };
}

function readText(bytes: Uint8Array): string {
  const utf16 = (bytes[0] === 0xff && bytes[1] === 0xfe) || (bytes[0] === 0xfe && bytes[1] === 0xff);
  if (utf16) return new TextDecoder(bytes[0] === 0xff ? 'utf-16le' : 'utf-16be').decode(bytes);
  if (bytes.includes(0)) throw new DocumentError('kind', 'the bytes are no text');
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    const old = new TextDecoder('windows-1256').decode(bytes);
    const arabic = old.match(/[\u0621-\u064a]/g)?.length ?? 0;
    if (arabic * 4 < old.length) throw new DocumentError('kind', 'the bytes are neither UTF-8 nor Windows-1256');
    return old;
  }
}

async function readPdf(bytes: Uint8Array): Promise<[string, boolean]> {
  const [{ getDocument, GlobalWorkerOptions }, { default: worker }] = await Promise.all([
    import('pdfjs-dist'),
    import('pdfjs-dist/build/pdf.worker.min.mjs?worker&url'),
  ]);
  GlobalWorkerOptions.workerSrc = worker;
  const task = getDocument({ data: bytes, isEvalSupported: false, useWasm: false, stopAtErrors: false });
  try {
    const pdf = await task.promise;
    const pages: string[] = [];
    let letters = 0;
    const count = Math.min(pdf.numPages, MOST_PAGES);
    let number = 1;
    for (; number <= count && letters <= MOST_LETTERS; number++) {
      const { items } = await (await pdf.getPage(number)).getTextContent();
      const pieces = items.flatMap((item) => {
        if (!('str' in item)) return [];
        const [, , , , x, y] = item.transform as number[];
        return [{ text: item.str, x: x!, y: y!, width: item.width, ends: item.hasEOL }];
      });
      const text = linesOf(pieces);
      pages.push(text);
      letters += text.length;
    }
    const text = pages.filter(Boolean).join('\n\n');
    if (text === '') throw new DocumentError('scanned', `${pdf.numPages} pages without text`);
    return [text, number <= pdf.numPages];
  } catch (error) {
    if (error instanceof DocumentError) throw error;
    const name = error instanceof Error ? error.name : '';
    throw new DocumentError(name === 'PasswordException' ? 'locked' : 'damaged', String(error));
  } finally {
    await task.destroy().catch(() => {});
  }
}

const WORD = 'http://schemas.openxmlformats.org/wordprocessingml/2006/main';

async function readWord(bytes: Uint8Array): Promise<string> {
  const { unzipSync } = await import('fflate');
  let part: Uint8Array | undefined;
  try {
    const name = 'word/document.xml';
    part = unzipSync(bytes, {
      filter: (file) => {
        if (file.name !== name) return false;
        if (file.originalSize > MOST_XML) throw new DocumentError('large', `${file.originalSize} bytes of XML`);
        return true;
      },
    })[name];
  } catch (error) {
    if (error instanceof DocumentError) throw error;
    throw new DocumentError('damaged', String(error));
  }
  if (!part) throw new DocumentError('kind', 'an archive without word/document.xml');
  const xml = new DOMParser().parseFromString(new TextDecoder().decode(part), 'application/xml');
  if (xml.querySelector('parsererror')) throw new DocumentError('damaged', 'word/document.xml is no XML');
  return [...xml.getElementsByTagNameNS(WORD, 'p')].map(paragraph).join('\n');
}

function paragraph(element: Element): string {
  let text = '';
  const walk = (node: Element) => {
    for (const child of node.children) {
      // A paragraph inside this one, as in a text box, is a paragraph of its own; deleted text is not part of the text.
      if (child.namespaceURI === WORD && (child.localName === 'p' || child.localName === 'del')) continue;
      if (child.namespaceURI !== WORD) walk(child);
      else if (child.localName === 't') text += child.textContent ?? '';
      else if (child.localName === 'tab') text += '\t';
      else if (child.localName === 'br' || child.localName === 'cr') text += '\n';
      else walk(child);
    }
  };
  walk(element);
  return text;
}
