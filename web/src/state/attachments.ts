/** Files that are added to the next message. */
import type { Session } from 'bayan-web';
import { type Attachment, DocumentError, readDocument } from '../text/documents';
import { plainName } from '../text/hidden';
import { getState, set, strings } from './store';
import { contentOf, type Turn } from './turns';

/** Adds the text of a file to the next message; a notice says why where there is none. */
export async function attach(file: File): Promise<void> {
  const name = plainName(file.name);
  const words = strings().attachments;
  set({ reading: getState().reading + 1 });
  try {
    const read = { ...(await readDocument(file)), name };
    set({ attachments: [...getState().attachments, read] });
    if (read.cut) set({ notice: { text: words.cut.replace('{name}', name) } });
  } catch (error) {
    const fault = error instanceof DocumentError ? error.fault : 'damaged';
    set({ notice: { text: words.faults[fault].replace('{name}', name) } });
  } finally {
    set({ reading: getState().reading - 1 });
  }
}

export function removeAttachment(at: number): void {
  set({ attachments: getState().attachments.filter((_, i) => i !== at) });
}

/** Takes the files for a message that is being sent. */
export function takeAttachments(): Attachment[] {
  const { attachments } = getState();
  set({ attachments: [] });
  return attachments;
}

/** Letters that a token holds at most in any ordinary text; longer files are cut before they are counted. */
const LETTERS_OF_A_TOKEN = 8;
/** Shortened messages by turn, for one length of context: the same beginning is read by every answer. */
const shortened = new Map<string, { contextLength: number; turn: Turn }>();

/**
 * The message with files that take at most half of the context, so that questions about them and answers fit beside
 * them: the beginning of each file, in proportion to its length. The stored message keeps the whole files.
 */
export async function fitted(session: Session, turn: Turn): Promise<Turn> {
  if (!turn.files?.length) return turn;
  const { contextLength } = session.info.model;
  const known = shortened.get(turn.id);
  if (known?.contextLength === contextLength) return known.turn;
  const letters = turn.files.reduce((sum, file) => sum + file.text.length, 0);
  const room = Math.floor(contextLength / 2);
  let share = Math.min(1, (room * LETTERS_OF_A_TOKEN) / letters);
  let now = cutTo(turn, share);
  for (let tokens = await count(session, now); tokens > room && share > 0.001; tokens = await count(session, now)) {
    share *= Math.min(0.97, (room / tokens) * 0.98);
    now = cutTo(turn, share);
  }
  shortened.set(turn.id, { contextLength, turn: now });
  return now;
}

const count = async (session: Session, turn: Turn) => (await session.tokenize(contentOf(turn))).length;

function cutTo(turn: Turn, share: number): Turn {
  if (share === 1) return turn;
  const files = turn.files!.map((file) => ({
    ...file,
    text: file.text.slice(0, Math.floor(file.text.length * share)),
  }));
  return { ...turn, files };
}

/** The part of the files that a model reads, from 0 to 1. */
export function shareOfFiles(whole: Turn[], read: Turn[]): number {
  const letters = (turns: Turn[]) =>
    turns.flatMap((turn) => turn.files ?? []).reduce((sum, file) => sum + file.text.length, 0);
  const all = letters(whole);
  return all === 0 ? 1 : letters(read) / all;
}
