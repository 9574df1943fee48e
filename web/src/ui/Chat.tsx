/** The conversation: welcome, turns, troubles. */
import type { BayanError } from 'bayan-web';
import { Fragment } from 'preact';
import { useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks';
import { regenerate } from '../state/answers';
import { startConversation } from '../state/conversations';
import { fetchAgain, lastModel, loadModel, reloadModel, shippedSource } from '../state/model';
import { formats, set, type SourceKind, strings } from '../state/store';
import { shownTurns } from '../state/turns';
import { plainName } from '../text/hidden';
import { rawCode } from '../text/markdown';
import { useApp } from './hooks';
import { Icon, Mark } from './icons';
import { errorText } from './progress';
import { type Remedy, remedyOf } from './remedy';
import { AnswerTurn, ReadingMark, UserTurn } from './Turns';

export function Chat() {
  const state = useApp();
  const t = strings();
  const scroller = useRef<HTMLDivElement>(null);
  const [away, setAway] = useState(false);
  const pinned = useRef(true);
  const { current } = state;
  const shown = shownTurns(current);
  const lastTurn = shown.at(-1)?.turn;
  // Where the model's reading begins, as of the last answer that had to leave turns out.
  const readFrom = shown.findLast(({ turn }) => turn.role === 'assistant')?.turn.readFrom;
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
  }, [current.id, shown.length]);
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
          {shown.map((each) => (
            <Fragment key={each.turn.id}>
              {each.turn.id === readFrom && <ReadingMark />}
              {each.turn.role === 'user' ? (
                <UserTurn shown={each} />
              ) : (
                <AnswerTurn shown={each} last={each.turn === lastTurn} />
              )}
            </Fragment>
          ))}
          {!error &&
            !failed &&
            state.model.kind === 'ready' &&
            state.answering === null &&
            lastTurn?.role === 'user' && (
              <div class="actions">
                <button type="button" class="button" onClick={() => void regenerate()}>
                  <Icon name="retry" size={17} />
                  {t.regenerate}
                </button>
              </div>
            )}
          {error && !failed && (
            <Trouble
              {...wordsOf(error)}
              actions={[
                error.code === 'ContextFull' ? [t.newChat, startConversation] : [t.regenerate, () => void regenerate()],
              ]}
            />
          )}
        </div>
      )}
      {failed && (
        <div class="turns">
          <Trouble
            {...wordsOf(failed.error, failed.from)}
            actions={[actionOf(remedyOf(failed.error, failed.from, state.settings.device === 'cpu'))]}
          />
        </div>
      )}
      {state.loadError && (
        <div class="turns">
          <Trouble
            {...wordsOf(state.loadError.error, state.loadError.from)}
            about={state.loadError.label}
            more={t.oldModelStays}
            actions={[
              [t.models, () => set({ panel: 'models', loadError: null })],
              [t.close, () => set({ loadError: null })],
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

/** The button of a remedy: its words, and what it does. */
function actionOf(remedy: Remedy): [string, () => void] {
  const t = strings();
  switch (remedy) {
    case 'models':
      return [t.models, () => set({ panel: 'models' })];
    case 'device':
      return [t.device, () => set({ panel: 'device' })];
    case 'reload':
      return [t.reloadModel, () => void reloadModel()];
    case 'retry':
      return [t.retryLoad, () => void reloadModel()];
    case 'fetchAgain':
      return [t.fetchAgain, () => void fetchAgain()];
  }
}

function wordsOf(error: BayanError, from: SourceKind = null) {
  return { ...errorText(error, strings(), formats(), from), detail: error.message };
}

function Trouble({
  title,
  about,
  text,
  more,
  detail,
  actions,
}: {
  title: string;
  /** The name of what failed. */
  about?: string;
  text: string;
  more?: string;
  detail: string;
  actions: [string, () => void][];
}) {
  const t = strings();
  return (
    <div class="trouble" role="alert">
      <Icon name="warn" />
      <div>
        <strong>
          {title}
          {about && (
            <>
              : <bdi>{about}</bdi>
            </>
          )}
        </strong>
        <p>
          {text} {more}
        </p>
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
