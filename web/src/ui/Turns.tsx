/** A message and an answer, each with its versions and buttons. */
import { useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks';
import { editTurn, regenerate, send } from '../state/answers';
import { chooseVersion, startConversation } from '../state/conversations';
import { draftOf, keepDraft } from '../state/drafts';
import { live, onLive } from '../state/live';
import { onVoices, speak, stopSpeaking, voiceOf } from '../state/speech';
import { baseDirection, formats, getState, set, strings } from '../state/store';
import type { ShownTurn } from '../state/turns';
import { directionOf, languageOf } from '../text/direction';
import { fieldDirection } from '../text/field';
import { Sentences } from '../text/sentences';
import { StreamingText } from '../text/streaming';
import { SentFiles } from './Attachments';
import { Lines } from './Directed';
import { useApp } from './hooks';
import { Icon } from './icons';

function speedText(tokensPerSecond: number, charsPerSecond: number): string {
  const t = strings();
  const f = formats();
  return `${f.number(tokensPerSecond, 1)} ${t.tokensPerSecond} · ${f.number(charsPerSecond)} ${t.charsPerSecond}`;
}

function CopyButton({ text }: { text: string }) {
  const t = strings();
  const [done, setDone] = useState(false);
  return (
    <button
      type="button"
      class="mini"
      aria-label={done ? t.copied : t.copy}
      title={t.copy}
      onClick={() =>
        void navigator.clipboard.writeText(text).then(() => {
          setDone(true);
          setTimeout(() => setDone(false), 1600);
        })
      }
    >
      <Icon name={done ? 'check' : 'copy'} size={17} />
    </button>
  );
}

/** Shown where the system has an own voice for the language of the answer. */
function ListenButton({ turn, body }: { turn: string; body: { current: HTMLDivElement | null } }) {
  const t = strings();
  const { speaking } = useApp();
  const [, heard] = useState(0);
  useEffect(() => onVoices(() => heard((count) => count + 1)), []);
  useEffect(() => () => void (getState().speaking === turn && stopSpeaking()), [turn]);
  const paragraphs = () =>
    [...(body.current?.children ?? [])].flatMap((block) => {
      const text = block.matches('.code-frame') ? '' : (block.textContent ?? '').trim();
      return text === '' ? [] : [{ text, direction: (block.getAttribute('dir') ?? 'rtl') as 'rtl' | 'ltr' }];
    });
  if (!paragraphs().some(({ direction }) => voiceOf(languageOf(direction)))) return null;
  const on = speaking === turn;
  const label = on ? t.stopListening : t.listen;
  return (
    <button
      type="button"
      class="mini"
      aria-label={label}
      title={label}
      aria-pressed={on}
      onClick={() => (on ? stopSpeaking() : speak(turn, paragraphs()))}
    >
      <Icon name={on ? 'stop' : 'speaker'} size={17} />
    </button>
  );
}

/** What lies above is no longer read by the model. */
export function ReadingMark() {
  const t = strings();
  return (
    <div class="reading-mark" role="note">
      <p>{t.readingMark}</p>
      <div class="actions">
        <button type="button" class="text-button" onClick={() => set({ panel: 'settings' })}>
          {t.longerContext}
        </button>
        <button type="button" class="text-button" onClick={startConversation}>
          {t.newChat}
        </button>
      </div>
    </div>
  );
}

/** Arrows between the versions of a turn. */
function Versions({ shown: { turn, versions } }: { shown: ShownTurn }) {
  const t = strings();
  const f = formats();
  const { answering } = useApp();
  if (versions.length < 2) return null;
  const at = versions.indexOf(turn);
  const arrow = (label: string, to: number, icon: 'previous' | 'next') => (
    <button
      type="button"
      class="mini"
      aria-label={label}
      title={label}
      disabled={answering !== null || versions[to] === undefined}
      onClick={() => void chooseVersion(versions[to]!)}
    >
      <Icon name={icon} size={16} flip />
    </button>
  );
  return (
    <span class="versions" role="group" aria-label={t.versions}>
      {arrow(t.previousVersion, at - 1, 'previous')}
      <span class="num" dir="ltr">
        {f.number(at + 1)} / {f.number(versions.length)}
      </span>
      {arrow(t.nextVersion, at + 1, 'next')}
    </span>
  );
}

export function UserTurn({ shown }: { shown: ShownTurn }) {
  const { turn } = shown;
  const draftKey = `edit ${turn.id}`;
  const t = strings();
  const state = useApp();
  const [draft, setText] = useState(() => draftOf(draftKey));
  const setDraft = (text: string | null) => {
    keepDraft(draftKey, text);
    setText(text);
  };
  const { direction } = directionOf(turn.content, baseDirection());
  const busy = state.answering !== null;
  if (draft !== null) {
    const commit = () => {
      setDraft(null);
      void editTurn(turn.id, draft);
    };
    return (
      <article class="turn user editing">
        <textarea
          {...fieldDirection(draft, baseDirection())}
          aria-label={t.edit}
          value={draft}
          rows={Math.min(10, draft.split('\n').length + 1)}
          ref={(box) => {
            if (box && document.activeElement !== box) box.focus();
          }}
          onInput={(e) => setDraft(e.currentTarget.value)}
          onKeyDown={(e) => {
            if (e.key === 'Enter' && !e.shiftKey && !e.isComposing) {
              e.preventDefault();
              commit();
            } else if (e.key === 'Escape') setDraft(null);
          }}
        />
        <p class="dim small-text">{t.editNote}</p>
        <div class="actions">
          <button type="button" class="button primary" disabled={draft.trim() === '' || busy} onClick={commit}>
            {t.editSend}
          </button>
          <button type="button" class="button" onClick={() => setDraft(null)}>
            {t.cancel}
          </button>
        </div>
      </article>
    );
  }
  const long = turn.content.length > 20_000;
  return (
    <article class="turn user" aria-label={t.you}>
      {turn.files && <SentFiles files={turn.files} />}
      {turn.content !== '' && (
        <div class="bubble" dir={direction} lang={languageOf(direction)}>
          <Lines text={long ? `${turn.content.slice(0, 20_000)}…` : turn.content} base={direction} />
        </div>
      )}
      <div class="tools">
        <Versions shown={shown} />
        <CopyButton text={turn.content} />
        <button
          type="button"
          class="mini"
          aria-label={t.edit}
          title={t.edit}
          disabled={busy}
          onClick={() => setDraft(turn.content)}
        >
          <Icon name="edit" size={17} />
        </button>
      </div>
    </article>
  );
}

export function AnswerTurn({ shown, last }: { shown: ShownTurn; last: boolean }) {
  const { turn } = shown;
  const t = strings();
  const state = useApp();
  const body = useRef<HTMLDivElement>(null);
  const spoken = useRef<HTMLDivElement>(null);
  const speed = useRef<HTMLSpanElement>(null);
  const writer = useRef<StreamingText | null>(null);
  const streaming = state.answering?.turn === turn.id;
  const [empty, setEmpty] = useState(true);
  const language = state.settings.language;

  useLayoutEffect(() => {
    body.current!.replaceChildren();
    writer.current = new StreamingText(body.current!, directionOf(turn.content, baseDirection()).direction, {
      copyCode: t.copyCode,
      hiddenMark: t.hiddenMark,
      taskDone: t.taskDone,
      taskOpen: t.taskOpen,
      showMore: t.showMore,
    });
    if (!streaming) writer.current.update(turn.content, true);
  }, [turn.id, language]);

  useLayoutEffect(() => {
    if (!streaming) {
      writer.current!.update(turn.content, true);
      return;
    }
    const sentences = new Sentences();
    let frame = 0;
    const say = (text: string) => {
      if (text === '' || !spoken.current) return;
      const line = document.createElement('p');
      line.textContent = text;
      spoken.current.append(line);
      while (spoken.current.childElementCount > 6) spoken.current.firstElementChild!.remove();
    };
    const draw = () => {
      frame = 0;
      if (live === null || live.turn !== turn.id) return;
      if (live.text !== '') setEmpty(false);
      writer.current!.update(live.text, false);
      say(sentences.take(live.text, false));
      const seconds = (performance.now() - (live.firstAt || performance.now())) / 1000;
      if (speed.current && seconds > 0.2)
        speed.current.textContent = speedText(live.tokens / seconds, live.text.length / seconds);
    };
    const wake = () => {
      if (frame === 0) frame = requestAnimationFrame(draw);
    };
    say(t.answerStarted);
    const off = onLive(wake);
    wake();
    return () => {
      off();
      cancelAnimationFrame(frame);
      const text = getState()
        .conversations.find((c) => c.turns.some((other) => other.id === turn.id))
        ?.turns.find((other) => other.id === turn.id)?.content;
      say(sentences.take(text ?? '', true));
      say(t.answerDone);
    };
  }, [streaming, turn.content]);

  const note =
    turn.end === 'stopped'
      ? t.stopped
      : turn.end === 'length'
        ? t.cutLength
        : turn.end === 'context'
          ? t.cutContext
          : null;
  return (
    <article class="turn answer-turn" aria-label={t.assistant} aria-busy={streaming}>
      <div class="answer" ref={body} />
      {streaming && empty && (
        <p class="waiting">
          <span class="pulse" aria-hidden="true">
            <i />
            <i />
            <i />
          </span>
          {t.thinking}
        </p>
      )}
      <div class="sr-only" aria-live="polite" aria-atomic="false" ref={spoken} />
      {streaming ? (
        <div class="tools live">
          <span class="num dim" ref={speed} dir="auto" />
        </div>
      ) : (
        <>
          {note && <p class="note">{note}</p>}
          {turn.filesRead !== undefined && (
            <p class="note">{t.attachments.share.replace('{percent}', formats().percent(turn.filesRead))}</p>
          )}
          <div class="tools">
            <Versions shown={shown} />
            <CopyButton text={turn.content} />
            <ListenButton turn={turn.id} body={body} />
            {last && (
              <button
                type="button"
                class="mini"
                aria-label={t.regenerate}
                title={t.regenerate}
                disabled={state.answering !== null}
                onClick={() => void regenerate()}
              >
                <Icon name="retry" size={17} />
              </button>
            )}
            {last && (turn.end === 'length' || turn.end === 'context') && (
              <button type="button" class="text-button" onClick={() => void send(t.continueAnswer)}>
                {t.continueAnswer}
              </button>
            )}
            {turn.tokensPerSecond !== undefined &&
              turn.tokensPerSecond > 0 &&
              Number.isFinite(turn.tokensPerSecond) && (
                <span class="num dim" dir="auto">
                  {speedText(turn.tokensPerSecond, turn.charsPerSecond ?? 0)}
                </span>
              )}
          </div>
        </>
      )}
    </article>
  );
}
