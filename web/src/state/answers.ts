/** Answers: sending, editing, regenerating and stopping. */
import { BayanError } from 'bayan-web';
import { store } from './conversations';
import { type Conversation, saveConversation, titleFrom, type Turn } from './database';
import { finishLive, type Live, liveChanged, startLive } from './live';
import { currentSession, loseModel, plainLabel } from './session';
import { samplingOf } from './settings';
import { getState, set } from './store';

export async function send(text: string): Promise<void> {
  const content = text.replace(/\s+$/u, '');
  if (content.trim() === '' || getState().answering) return;
  const turn: Turn = { id: crypto.randomUUID(), role: 'user', content, at: Date.now() };
  const { current } = getState();
  const next = {
    ...current,
    title: current.title || titleFrom(content),
    updatedAt: Date.now(),
    turns: [...current.turns, turn],
  };
  set({ current: next, answerError: null });
  history.replaceState(null, '', `#${encodeURIComponent(next.id)}`);
  await store(next);
  if (currentSession()) await answer(next);
  else set({ panel: getState().model.kind === 'loading' ? getState().panel : 'models' });
}

export async function editTurn(turnId: string, text: string): Promise<void> {
  const { current } = getState();
  const at = current.turns.findIndex((turn) => turn.id === turnId);
  if (at < 0 || text.trim() === '' || getState().answering) return;
  set({ current: { ...current, turns: current.turns.slice(0, at) } });
  await send(text);
}

/** Replaces the last answer, if there is one, by a new one. */
export async function regenerate(): Promise<void> {
  if (getState().answering) return;
  const { current } = getState();
  const turns = current.turns.at(-1)?.role === 'assistant' ? current.turns.slice(0, -1) : current.turns;
  if (turns.length === 0) return;
  const next = { ...current, turns };
  set({ current: next, answerError: null });
  if (currentSession()) await answer(next);
  else set({ panel: 'models' });
}

async function answer(conversation: Conversation): Promise<void> {
  const using = currentSession();
  if (!using) return;
  const turn: Turn = { id: crypto.randomUUID(), role: 'assistant', content: '', at: Date.now(), model: plainLabel() };
  let shown: Conversation = { ...conversation, turns: [...conversation.turns, turn] };
  const current: Live = {
    conversation: conversation.id,
    turn: turn.id,
    text: '',
    tokens: 0,
    startedAt: performance.now(),
    firstAt: 0,
  };
  const signal = startLive(current);
  set({
    answering: { conversation: conversation.id, turn: turn.id },
    ...(getState().current.id === conversation.id ? { current: shown } : {}),
  });
  const system = [getState().settings.system, conversation.system]
    .map((s) => s.trim())
    .filter(Boolean)
    .join('\n\n');
  const messages = [
    ...(system ? [{ role: 'system' as const, content: system }] : []),
    ...conversation.turns.map(({ role, content }) => ({ role, content })),
  ];
  let end: Turn['end'];
  let failure: BayanError | null = null;
  let lastSave = performance.now();
  try {
    for await (const piece of using.chat(messages, {
      sampling: samplingOf(getState().settings),
      signal,
    })) {
      if (current.firstAt === 0) current.firstAt = performance.now();
      current.text += piece.text;
      current.tokens = piece.tokens;
      if (piece.done) {
        if (piece.finishReason === 'length' || piece.finishReason === 'context') end = piece.finishReason;
        if (piece.usage) set({ usage: { conversation: conversation.id, usage: piece.usage } });
      }
      liveChanged();
      if (performance.now() - lastSave > 2000 && current.text.length < 1e6) {
        lastSave = performance.now();
        void saveConversation({
          ...shown,
          turns: [...conversation.turns, { ...turn, content: current.text, end: 'stopped' }],
        }).catch(() => {});
      }
    }
  } catch (error) {
    const known = error instanceof BayanError ? error : new BayanError('Internal', String(error));
    if (known.code === 'Aborted') end = 'stopped';
    else {
      end = 'error';
      failure = known;
    }
  }
  const seconds = Math.max(0.001, (performance.now() - (current.firstAt || current.startedAt)) / 1000);
  const done: Turn = {
    ...turn,
    content: current.text,
    ...(end ? { end } : {}),
    tokensPerSecond: current.tokens / seconds,
    charsPerSecond: current.text.length / seconds,
  };
  shown = {
    ...(getState().conversations.find((c) => c.id === conversation.id) ?? conversation),
    turns: current.text === '' && failure ? conversation.turns : [...conversation.turns, done],
    updatedAt: Date.now(),
  };
  finishLive();
  set({ answering: null, answerError: failure ? { conversation: conversation.id, error: failure } : null });
  const deleted = !getState().conversations.some((c) => c.id === conversation.id);
  if (!deleted) await store(shown);
  if (failure && (failure.code === 'DeviceLost' || failure.code === 'OutOfMemory' || failure.code === 'Internal'))
    loseModel(failure);
}

/** Answers a message that was written before a model was loaded. */
export async function answerWaiting(): Promise<void> {
  const { current } = getState();
  if (current.turns.at(-1)?.role === 'user' && !getState().answering && !getState().answerError) await answer(current);
}
