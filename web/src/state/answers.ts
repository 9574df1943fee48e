/** Answers: sending, editing, regenerating and answering. */
import { BayanError, type Message, type Session } from 'bayan-web';
import { fitted, shareOfFiles, takeAttachments } from './attachments';
import { firstToRead } from './context';
import { change, show } from './conversations';
import { type Conversation, titleFrom } from './database';
import { keepCache } from './kept-cache';
import { finishLive, type Live, liveChanged, startLive } from './live';
import { currentSession, loseModel, plainLabel } from './session';
import { samplingOf } from './settings';
import { getState, set } from './store';
import { contentOf, shownTurns, type Turn, withTurn } from './turns';

/** The answer so far is stored this often, and up to this length. */
const SAVE_EVERY_MS = 2000;
const SAVE_UP_TO = 1e6;

export async function send(text: string): Promise<void> {
  const { current } = getState();
  await say(text, { parent: shownTurns(current).at(-1)?.turn.id ?? null, files: takeAttachments() });
}

/** Sends another version of a message; the first one stays. */
export async function editTurn(turnId: string, text: string): Promise<void> {
  const found = shownTurns(getState().current).find(({ turn }) => turn.id === turnId);
  if (!found) return;
  const { parent = null, versionOf = turnId, files } = found.turn;
  await say(text, { parent, versionOf, files });
}

async function say(text: string, { files, ...place }: Pick<Turn, 'parent' | 'versionOf' | 'files'>): Promise<void> {
  const content = text.replace(/\s+$/u, '');
  const { current, answering, model, panel } = getState();
  if ((content.trim() === '' && !files?.length) || answering) return;
  const turn: Turn = {
    id: crypto.randomUUID(),
    role: 'user',
    content,
    at: Date.now(),
    ...place,
    ...(files?.length ? { files } : {}),
  };
  set({ answerError: null });
  const saved = change(current.id, (c) => newest(withTurn(c, turn), turn), current);
  history.replaceState(null, '', `#${encodeURIComponent(current.id)}`);
  await saved;
  if (currentSession()) await answer(current.id, turn.id);
  else set({ panel: model.kind === 'loading' ? panel : 'models' });
}

/** The conversation with `turn` as its newest: shown, and the first one gives the title. */
function newest(conversation: Conversation, turn: Turn): Conversation {
  const chosen = { ...conversation.chosen };
  delete chosen[turn.versionOf ?? turn.id];
  delete chosen[`answer ${turn.parent ?? ''}`];
  const title = conversation.title || titleFrom(turn.content || (turn.files?.[0]?.name ?? ''));
  return { ...conversation, title, updatedAt: Date.now(), chosen };
}

/** Writes another answer to the last message; the first one stays as a version. */
export async function regenerate(): Promise<void> {
  if (getState().answering) return;
  const { current } = getState();
  const message = shownTurns(current).findLast(({ turn }) => turn.role === 'user')?.turn;
  if (!message) return;
  set({ answerError: null });
  if (currentSession()) await answer(current.id, message.id);
  else set({ panel: 'models' });
}

/** Answers a message that was written before a model was loaded; whether there was one. */
export async function answerWaiting(): Promise<boolean> {
  const { current, answering, answerError } = getState();
  const last = shownTurns(current).at(-1)?.turn;
  if (last?.role !== 'user' || answering || answerError) return false;
  await answer(current.id, last.id);
  return true;
}

async function answer(id: string, messageId: string): Promise<void> {
  const using = currentSession();
  const conversation = getState().conversations.find((c) => c.id === id);
  if (!using || !conversation) return;
  const path = shownTurns(conversation).map(({ turn }) => turn);
  const read = path.slice(0, path.findIndex((turn) => turn.id === messageId) + 1);
  if (read.length === 0) return;
  const place = { parent: messageId, model: plainLabel() };
  let turn: Turn = { id: crypto.randomUUID(), role: 'assistant', content: '', at: Date.now(), ...place };
  const live: Live = { conversation: id, turn: turn.id, text: '', tokens: 0, startedAt: performance.now(), firstAt: 0 };
  const signal = startLive(live);
  show(newest(withTurn(conversation, turn), turn));
  set({ answering: { conversation: id, turn: turn.id } });
  let failure: BayanError | null = null;
  try {
    const fitting = await Promise.all(read.map((each) => fitted(using, each)));
    const filesRead = shareOfFiles(read, fitting);
    if (filesRead < 1) turn = { ...turn, filesRead };
    const end = await write(using, systemOf(conversation), fitting, live, signal, {
      onShortened: (readFrom) => {
        turn = { ...turn, readFrom };
        const now = getState().conversations.find((c) => c.id === id);
        if (now) show(withTurn(now, turn));
      },
      save: () => void change(id, (c) => withTurn(c, { ...turn, content: live.text, end: 'stopped' })),
    });
    if (end) turn = { ...turn, end };
  } catch (error) {
    const known = error instanceof BayanError ? error : new BayanError('Internal', String(error));
    turn = { ...turn, end: known.code === 'Aborted' ? 'stopped' : 'error' };
    if (known.code !== 'Aborted') failure = known;
  }
  const seconds = Math.max(0.001, (performance.now() - (live.firstAt || live.startedAt)) / 1000);
  const speed = { tokensPerSecond: live.tokens / seconds, charsPerSecond: live.text.length / seconds };
  const done: Turn = { ...turn, content: live.text, ...speed };
  const keep = live.text !== '' || !failure;
  finishLive();
  set({ answering: null, answerError: failure ? { conversation: id, error: failure } : null });
  await change(id, (c) =>
    keep ? newest(withTurn(c, done), done) : { ...c, turns: c.turns.filter((each) => each.id !== done.id) },
  );
  if (!failure) keepCache(id);
  if (failure && (failure.code === 'DeviceLost' || failure.code === 'OutOfMemory' || failure.code === 'Internal'))
    loseModel(failure);
}

/**
 * Streams the answer into `live`; the reason for an early end. Where the context does not hold all turns, the oldest
 * are left out and `onShortened` gets the first that is read.
 */
async function write(
  session: Session,
  system: string,
  turns: Turn[],
  live: Live,
  signal: AbortSignal,
  { onShortened, save }: { onShortened: (readFrom: string) => void; save: () => void },
): Promise<Turn['end']> {
  let first = await firstToRead(session, turns, system, getState().settings.maxTokens);
  for (;;) {
    if (first > 0) onShortened(turns[first]!.id);
    try {
      return await stream(session, promptOf(system, turns.slice(first)), live, signal, save);
    } catch (error) {
      // The estimate was too low: again without the oldest message and its answer.
      const full = error instanceof BayanError && error.code === 'ContextFull' && live.text === '';
      const next = turns.findIndex((each, at) => at > first && each.role === 'user');
      if (!full || next < 0) throw error;
      first = next;
    }
  }
}

function systemOf(conversation: Conversation): string {
  const parts = [getState().settings.system, conversation.system].map((text) => text.trim());
  return parts.filter(Boolean).join('\n\n');
}

function promptOf(system: string, turns: Turn[]): Message[] {
  return [
    ...(system ? [{ role: 'system' as const, content: system }] : []),
    ...turns.map((turn) => ({ role: turn.role, content: contentOf(turn) })),
  ];
}

async function stream(
  session: Session,
  messages: Message[],
  live: Live,
  signal: AbortSignal,
  save: () => void,
): Promise<Turn['end']> {
  let end: Turn['end'];
  let lastSave = performance.now();
  // Otherwise some models (Qwen3) write a long train of thought before they answer; other templates ignore it.
  const templateVariables = { enable_thinking: false };
  const sampling = { ...samplingOf(getState().settings), templateVariables };
  for await (const piece of session.chat(messages, { sampling, signal })) {
    if (live.firstAt === 0) live.firstAt = performance.now();
    live.text += piece.text;
    live.tokens = piece.tokens;
    if (piece.finishReason === 'length' || piece.finishReason === 'context') end = piece.finishReason;
    if (piece.usage) set({ usage: { conversation: live.conversation, usage: piece.usage } });
    liveChanged();
    if (performance.now() - lastSave > SAVE_EVERY_MS && live.text.length < SAVE_UP_TO) {
      lastSave = performance.now();
      save();
    }
  }
  return end;
}
