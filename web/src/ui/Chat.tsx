import { useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks';
import { editTurn, regenerate, send } from '../state/answers';
import { startConversation } from '../state/conversations';
import { live, onLive } from '../state/live';
import { lastModel, loadModel, reloadModel, shippedSource } from '../state/model';
import { baseDirection, formats, getState, set, strings } from '../state/store';
import type { Turn } from '../state/database';
import { directionOf, languageOf } from '../text/direction';
import { plainName } from '../text/hidden';
import { rawCode } from '../text/markdown';
import { Sentences } from '../text/sentences';
import { StreamingText } from '../text/streaming';
import { useApp } from './hooks';
import { Icon, Mark } from './icons';
import { Lines } from './Directed';
import { errorText } from './progress';

export function Chat() {
  const state = useApp();
  const t = strings();
  const scroller = useRef<HTMLDivElement>(null);
  const [away, setAway] = useState(false);
  const pinned = useRef(true);
  const { current } = state;
  const toEnd = (smooth = false) =>
    scroller.current?.scrollTo({
      top: scroller.current.scrollHeight,
      behavior: smooth && !matchMedia('(prefers-reduced-motion: reduce)').matches ? 'smooth' : 'instant',
    });
  useLayoutEffect(() => {
    pinned.current = true;
    // The welcome screen starts at its top.
    if (current.turns.length > 0) toEnd();
    else scroller.current?.scrollTo({ top: 0 });
  }, [current.id, current.turns.length]);
  useEffect(() => {
    const inner = scroller.current?.firstElementChild;
    if (!inner || current.turns.length === 0) return;
    const grows = new ResizeObserver(() => pinned.current && toEnd());
    grows.observe(inner);
    return () => grows.disconnect();
  }, [current.id, current.turns.length === 0]);
  const onScroll = () => {
    const box = scroller.current!;
    const near = box.scrollHeight - box.scrollTop - box.clientHeight < 80;
    pinned.current = near;
    if (near === away) setAway(!near);
  };
  const onClick = (event: MouseEvent) => {
    const button = (event.target as Element).closest('.code-copy');
    const frame = button?.closest('.code-frame');
    if (!button || !frame) return;
    void navigator.clipboard.writeText(rawCode.get(frame) ?? '').then(() => {
      button.textContent = t.copied;
      setTimeout(() => (button.textContent = t.copyCode), 1600);
    });
  };
  const error = state.answerError?.conversation === current.id ? state.answerError.error : null;
  const failed = state.model.kind === 'failed' ? state.model : null;
  return (
    <div class="scroller" ref={scroller} onScroll={onScroll} onClick={onClick} tabIndex={-1}>
      {current.turns.length === 0 ? (
        <Welcome />
      ) : (
        <div class="turns" role="log" aria-live="off" aria-label={t.conversations}>
          <h1 class="sr-only">{current.title}</h1>
          {current.turns.map((turn, i) =>
            turn.role === 'user' ? (
              <UserTurn key={turn.id} turn={turn} />
            ) : (
              <AnswerTurn key={turn.id} turn={turn} last={i === current.turns.length - 1} />
            ),
          )}
          {!error &&
            !failed &&
            state.model.kind === 'ready' &&
            state.answering === null &&
            current.turns.at(-1)?.role === 'user' && (
              <div class="actions">
                <button type="button" class="button" onClick={() => void regenerate()}>
                  <Icon name="retry" size={17} />
                  {t.regenerate}
                </button>
              </div>
            )}
          {error && !failed && (
            <Trouble
              title={errorText(error, t, formats()).title}
              text={errorText(error, t, formats()).text}
              detail={error.message}
              actions={
                error.code === 'ContextFull'
                  ? [
                      [t.newChat, startConversation],
                      [t.settings, () => set({ panel: 'settings' })],
                    ]
                  : [[t.regenerate, () => void regenerate()]]
              }
            />
          )}
        </div>
      )}
      {failed && (
        <div class="turns">
          <Trouble
            title={errorText(failed.error, t, formats()).title}
            text={errorText(failed.error, t, formats()).text}
            detail={failed.error.message}
            actions={[
              [t.reloadModel, () => void reloadModel()],
              [t.models, () => set({ panel: 'models' })],
            ]}
          />
        </div>
      )}
      {away && (
        <button
          type="button"
          class="jump"
          onClick={() => {
            pinned.current = true;
            toEnd(true);
          }}
        >
          <Icon name="down" size={18} />
          {t.jump}
        </button>
      )}
    </div>
  );
}

function Trouble({
  title,
  text,
  detail,
  actions,
}: {
  title: string;
  text: string;
  detail: string;
  actions: [string, () => void][];
}) {
  const t = strings();
  return (
    <div class="trouble" role="alert">
      <Icon name="warn" />
      <div>
        <strong>{title}</strong>
        <p>{text}</p>
        <div class="actions">
          {actions.map(([label, run], i) => (
            <button type="button" key={label} class={i === 0 ? 'button primary' : 'button'} onClick={run}>
              {label}
            </button>
          ))}
        </div>
        <details>
          <summary>{t.details}</summary>
          <p dir="ltr" lang="en" class="detail">
            {detail}
          </p>
        </details>
      </div>
    </div>
  );
}

function Welcome() {
  const t = strings();
  const state = useApp();
  const last = lastModel();
  // The small included model can answer these suggestions, but not the usual ones.
  const small =
    state.shipped !== null &&
    (state.model.kind === 'ready' || state.model.kind === 'loading') &&
    state.model.label === plainName(state.shipped.name);
  return (
    <div class="welcome">
      <Mark size={54} />
      <h1>{t.greeting}</h1>
      <p class="lead">{t.greetingSub}</p>
      {state.model.kind === 'none' && (
        <div class="first-model">
          <div>
            <strong>{t.noModelTitle}</strong>
            <p>{t.noModelText}</p>
          </div>
          <div class="actions">
            {last.kind === 'other' && (
              <button type="button" class="button primary" onClick={() => void loadModel(last.source, last.label)}>
                {t.loadModel}: <bdi>{last.label}</bdi>
              </button>
            )}
            {last.kind !== 'other' && state.shipped && (
              <button
                type="button"
                class="button primary"
                onClick={() => void loadModel(shippedSource(), plainName(state.shipped!.name))}
              >
                {t.startShipped}
              </button>
            )}
            <button
              type="button"
              class={last.kind !== 'other' && !state.shipped ? 'button primary' : 'button'}
              onClick={() => set({ panel: 'models' })}
            >
              {t.chooseModel}
            </button>
          </div>
        </div>
      )}
      <div class="suggestions">
        {(small ? t.smallSuggestions : t.suggestions).map((s) => (
          <button
            type="button"
            key={s.title}
            onClick={() => {
              const box = document.getElementById('composer') as HTMLTextAreaElement | null;
              if (!box) return;
              box.value = s.text;
              box.dispatchEvent(new Event('input', { bubbles: true }));
              box.focus();
            }}
          >
            <strong>{s.title}</strong>
            <span>{s.text.trim()}</span>
          </button>
        ))}
      </div>
      {small && (
        <p class="small-note dim small-text">
          {t.smallNote}{' '}
          <button type="button" class="text-button" onClick={() => set({ panel: 'models' })}>
            {t.chooseModel}
          </button>
        </p>
      )}
    </div>
  );
}

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

function UserTurn({ turn }: { turn: Turn }) {
  const t = strings();
  const state = useApp();
  const [draft, setDraft] = useState<string | null>(null);
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
          dir="auto"
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
      <div class="bubble" dir={direction} lang={languageOf(direction)}>
        <Lines text={long ? `${turn.content.slice(0, 20_000)}…` : turn.content} base={direction} />
      </div>
      <div class="tools">
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

function AnswerTurn({ turn, last }: { turn: Turn; last: boolean }) {
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
      if (live?.turn !== turn.id) return;
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
          <div class="tools">
            <CopyButton text={turn.content} />
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
            {last && turn.end === 'length' && (
              <button type="button" class="text-button" onClick={() => void send(t.continueAnswer)}>
                {t.continueAnswer}
              </button>
            )}
            {turn.tokensPerSecond !== undefined && Number.isFinite(turn.tokensPerSecond) && (
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
