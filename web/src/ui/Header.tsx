import { startConversation } from '../state/conversations';
import { cancelLoading } from '../state/model';
import { formats, onCpu, set, strings } from '../state/store';
import { plainName } from '../text/hidden';
import { useApp } from './hooks';
import { Icon } from './icons';
import { phaseText } from './progress';

export function Header() {
  const state = useApp();
  const t = strings();
  const f = formats();
  const { model, training, panel } = state;
  const usage = state.usage?.conversation === state.current.id ? state.usage.usage : null;
  return (
    <header class="top">
      <button
        type="button"
        class="icon-button only-narrow"
        aria-label={t.menu}
        aria-expanded={state.sidebar}
        onClick={() => set({ sidebar: true })}
      >
        <Icon name="menu" flip />
      </button>
      <button
        type="button"
        class={`model-chip ${model.kind}${state.quick ? ' quick' : ''}`}
        title={model.kind === 'ready' && !state.quick ? t.phaseCompile : undefined}
        onClick={() => set({ panel: 'models' })}
      >
        <span class="dot" aria-hidden="true" />
        <span class="model-name">
          <bdi>{model.kind === 'none' ? t.chooseModel : model.label}</bdi>
          {state.adapters.list
            .filter(({ on }) => on)
            .map((adapter) => (
              <bdi key={adapter.name} class="chip-adapter">
                {plainName(adapter.name)}
              </bdi>
            ))}
        </span>
      </button>
      {training.phase !== 'idle' && panel !== 'training' && (
        <button type="button" class="training-chip" onClick={() => set({ panel: 'training' })}>
          {training.totalSteps > 0 && ['running', 'pausing', 'paused'].includes(training.phase)
            ? t.training.chip.replace('{percent}', f.percent(training.steps / training.totalSteps))
            : training.phase === 'done'
              ? t.training.done
              : t.training.title}
        </button>
      )}
      <span class="spacer" />
      {usage && (
        <div class="gauge" title={t.contextOf}>
          <span class="gauge-label">{t.context}</span>
          <progress max={usage.contextLength} value={usage.contextUsed} aria-label={t.contextOf} />
          <bdi class="num">{f.percent(usage.contextUsed / Math.max(1, usage.contextLength))}</bdi>
        </div>
      )}
      <button type="button" class="icon-button only-narrow" aria-label={t.newChat} onClick={startConversation}>
        <Icon name="plus" />
      </button>
      <button type="button" class="icon-button" aria-label={t.device} onClick={() => set({ panel: 'device' })}>
        <Icon name="chip" />
      </button>
      <button type="button" class="icon-button" aria-label={t.settings} onClick={() => set({ panel: 'settings' })}>
        <Icon name="settings" />
      </button>
      {model.kind === 'loading' && (
        <div class="loading">
          <div class="loading-row">
            <span>{phaseText(model.progress, t, onCpu())}</span>
            {model.totals.total > 0 && (
              <bdi class="num">
                {f.bytes(model.totals.done)} / {f.bytes(model.totals.total)}
              </bdi>
            )}
            {model.progress.phase === 'download' && (
              <bdi class="num dim">
                {f.bytes(model.progress.bytesPerSecond)}/{state.settings.language === 'ar' ? 'ث' : 's'}
              </bdi>
            )}
            {model.progress.phase === 'download' && (
              <Remaining left={model.totals.total - model.totals.done} speed={model.progress.bytesPerSecond} />
            )}
            <span class="spacer" />
            <button type="button" class="text-button" onClick={cancelLoading}>
              {t.cancel}
            </button>
          </div>
          <progress
            class="bar"
            aria-label={phaseText(model.progress, t, onCpu())}
            {...(model.totals.total > 0 ? { max: model.totals.total, value: model.totals.done } : {})}
          />
        </div>
      )}
    </header>
  );
}

function Remaining({ left, speed }: { left: number; speed: number }) {
  const t = strings();
  const f = formats();
  const seconds = left / Math.max(1, speed);
  if (!Number.isFinite(seconds) || seconds < 5) return null;
  const time = seconds < 60 ? f.plural(Math.round(seconds), t.seconds) : f.plural(Math.round(seconds / 60), t.minutes);
  return <span class="dim wide-only">{t.remaining.replace('{time}', time)}</span>;
}
