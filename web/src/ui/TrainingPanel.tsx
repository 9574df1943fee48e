/** Trains an adapter: examples and settings, the estimate, the run with its curve, the result, and stored runs. */
import type { SourceFile } from 'bayan-web';
import { useEffect, useState } from 'preact/hooks';
import { packAdapter } from '../state/adapter-file';
import { saveFile } from '../state/conversations';
import { formats, set, strings } from '../state/store';
import { attachRun, begin, cancelTraining, changeDraft, deleteRun, measure, pause, resume } from '../state/training';
import type { Run, TrainingState } from '../state/training-state';
import { directionOf } from '../text/direction';
import { plainName } from '../text/hidden';
import { Sheet } from './Dialogs';
import { Lines } from './Directed';
import { useApp } from './hooks';
import { Icon } from './icons';
import { LossCurve } from './LossCurve';
import { errorText } from './progress';
import { TrainingForm } from './TrainingForm';

export function TrainingPanel() {
  const { training, model, probe } = useApp();
  const t = strings().training;
  const { phase } = training;
  const form = phase === 'idle' || phase === 'preparing';
  return (
    <Sheet title={t.title} onClose={() => set({ panel: null })}>
      {form && <p class="dim intro">{t.intro}</p>}
      <Trouble training={training} />
      {!training.kept && <p class="callout">{t.notKept}</p>}
      {form && (probe?.webgpu === false ? <NeedGpu /> : model.kind === 'ready' ? <TrainingForm /> : <NeedModel />)}
      {(phase === 'ready' || phase === 'measuring') && <Plan training={training} />}
      {['asking', 'loading', 'running', 'pausing', 'paused'].includes(phase) && <Running training={training} />}
      {phase === 'done' && <Done training={training} />}
      {form && <Runs runs={training.runs} />}
    </Sheet>
  );
}

function NeedGpu() {
  const t = strings();
  return (
    <>
      <p class="callout">{t.training.needsGpu}</p>
      <div class="actions">
        <button type="button" class="button primary" onClick={() => set({ panel: 'device' })}>
          {t.cpuMore}
        </button>
      </div>
    </>
  );
}

function NeedModel() {
  const t = strings();
  return (
    <div class="actions">
      <button type="button" class="button primary" onClick={() => set({ panel: 'models' })}>
        {t.chooseModel}
      </button>
    </div>
  );
}

function Trouble({ training }: { training: TrainingState }) {
  const t = strings();
  const { error, trouble } = training;
  if (trouble)
    return (
      <p class="callout" role="alert">
        {trouble}
      </p>
    );
  if (!error) return null;
  const { title, text } = errorText(error, t, formats());
  return (
    <div class="trouble" role="alert">
      <Icon name="warn" />
      <div>
        <strong>{error.code === 'BadInput' ? title : t.training.failed}</strong>
        <p>{text}</p>
        <details open={error.code === 'BadInput'}>
          <summary>{t.details}</summary>
          <p dir="ltr" lang="en" class="detail">
            {error.message}
          </p>
        </details>
      </div>
    </div>
  );
}

function Fact({ name, value }: { name: string; value: string }) {
  return (
    <div class="fact">
      <dt>{name}</dt>
      <dd>
        <bdi>{value}</bdi>
      </dd>
    </div>
  );
}

function time(seconds: number): string {
  const t = strings();
  const f = formats();
  const whole = Math.max(1, Math.round(seconds));
  return whole < 90 ? f.plural(whole, t.seconds) : f.plural(Math.round(whole / 60), t.minutes);
}

function Plan({ training }: { training: TrainingState }) {
  const t = strings().training;
  const f = formats();
  const { plan, seconds, phase } = training;
  if (!plan) return null;
  const measuring = phase === 'measuring';
  const left = plan.bad + plan.dropped + plan.truncated;
  return (
    <section class="block">
      <h3>{t.plan}</h3>
      <dl class="facts">
        <Fact name={t.planExamples} value={f.number(plan.examples)} />
        <Fact name={t.planTokens} value={f.number(plan.trainedTokens)} />
        {left > 0 && <Fact name={t.planDropped} value={f.number(left)} />}
        <Fact name={t.steps} value={f.number(plan.steps)} />
        <Fact name={t.planParameters} value={f.number(plan.trainedParameters)} />
        <Fact name={t.planMemory} value={f.bytes(plan.memory.total)} />
        <Fact
          name={t.planTime}
          value={seconds === null ? t.planTimeUnknown : strings().remaining.replace('{time}', time(seconds))}
        />
      </dl>
      <div class="actions">
        <button type="button" class="button primary" disabled={measuring} onClick={() => void begin()}>
          {t.start}
        </button>
        <button type="button" class="button" disabled={measuring} onClick={() => void measure()}>
          {measuring ? t.measuring : t.measure}
        </button>
        <button type="button" class="button" onClick={() => void changeDraft()}>
          {t.change}
        </button>
      </div>
    </section>
  );
}

/** Enough digits that a small loss is not shown as 0. */
const digits = (loss: number): number => (loss >= 0.1 ? 2 : 4);

function Curve({ training }: { training: TrainingState }) {
  const t = strings().training;
  const f = formats();
  const { losses, evaluated, totalSteps } = training;
  if (losses.length === 0) return null;
  const [first, last] = [losses[0]!.loss, losses.at(-1)!.loss];
  const label = t.lossAxis
    .replace('{first}', f.number(first, digits(first)))
    .replace('{last}', f.number(last, digits(last)))
    .replace('{steps}', f.number(losses.at(-1)!.step));
  return (
    <figure class="curve">
      <LossCurve
        losses={losses}
        evaluated={evaluated}
        totalSteps={totalSteps}
        label={label}
        number={(value, digits) => f.number(value, digits)}
      />
      <figcaption class="dim small-text meta">
        <span>
          {t.lossFirst} <bdi class="num">{f.number(first, digits(first))}</bdi>
        </span>
        <span>
          {t.lossNow} <bdi class="num">{f.number(last, digits(last))}</bdi>
        </span>
        {evaluated.length > 0 && (
          <span>
            {t.evaluated} <bdi class="num">{f.number(evaluated.at(-1)!.loss, 2)}</bdi>
          </span>
        )}
      </figcaption>
    </figure>
  );
}

function statusText(training: TrainingState): string {
  const t = strings().training;
  const f = formats();
  const at = (text: string) =>
    text.replace('{step}', f.number(training.steps)).replace('{total}', f.number(training.totalSteps));
  switch (training.phase) {
    case 'asking':
      return t.asking;
    case 'loading':
      return t.loading;
    case 'pausing':
      return t.pausing;
    case 'paused':
      return at(t.paused);
    default:
      return at(t.running);
  }
}

function Running({ training }: { training: TrainingState }) {
  const t = strings();
  const f = formats();
  const [asking, setAsking] = useState(false);
  const { phase, run, steps, totalSteps, secondsLeft, tokensPerSecond } = training;
  const counted = phase === 'running' || phase === 'pausing' || phase === 'paused';
  const status = statusText(training);
  return (
    <section class="block">
      <h3>
        <bdi>{plainName(training.name)}</bdi>
      </h3>
      <div class="loading-row">
        <span role="status">{status}</span>
        {phase === 'running' && secondsLeft !== null && (
          <span class="dim">{t.remaining.replace('{time}', time(secondsLeft))}</span>
        )}
        {phase === 'running' && tokensPerSecond !== null && (
          <bdi class="num dim">{t.training.speed.replace('{rate}', f.number(tokensPerSecond))}</bdi>
        )}
      </div>
      <progress class="bar" aria-label={status} {...(counted ? { max: totalSteps, value: steps } : {})} />
      <Curve training={training} />
      {training.before !== null && <Answers training={training} />}
      {asking && (
        <p class="ask" role="alert">
          {t.training.cancelAsk}
        </p>
      )}
      <div class="actions">
        {phase === 'running' && !asking && (
          <button type="button" class="button" onClick={pause}>
            {t.training.pause}
          </button>
        )}
        {phase === 'paused' && run && !asking && (
          <>
            <button type="button" class="button primary" onClick={() => void resume(run)}>
              {t.training.resume}
            </button>
            <button type="button" class="button" onClick={() => void changeDraft()}>
              {t.close}
            </button>
          </>
        )}
        {asking ? (
          <>
            <button type="button" class="button danger" onClick={() => void cancelTraining()}>
              {t.training.cancel}
            </button>
            <button type="button" class="button" onClick={() => setAsking(false)}>
              {t.back}
            </button>
          </>
        ) : (
          <button type="button" class="button" onClick={() => setAsking(true)}>
            {t.training.cancel}
          </button>
        )}
      </div>
    </section>
  );
}

function Answers({ training }: { training: TrainingState }) {
  const t = strings().training;
  const { question, before, after } = training;
  return (
    <dl class="answers">
      <dt class="asked">
        <Lines text={question} base="rtl" />
      </dt>
      {[
        [t.before, before],
        [t.after, after],
      ].map(
        ([name, text]) =>
          text !== null &&
          text !== undefined && (
            <dd key={name} class={name === t.after ? 'after' : 'before'}>
              <span class="dim small-text">{name}</span>
              <div dir={directionOf(text, 'rtl').direction}>
                <Lines text={text} base="rtl" />
              </div>
            </dd>
          ),
      )}
    </dl>
  );
}

function Done({ training }: { training: TrainingState }) {
  const { adapters } = useApp();
  const t = strings().training;
  const { run, adapter, attachedAs, model } = training;
  const attached = adapters.list.some(({ name, on }) => name === attachedAs && on);
  return (
    <section class="block">
      <h3>{t.done}</h3>
      <p>{attached ? t.doneNote : t.doneNoModel.replace('{model}', plainName(model))}</p>
      <Curve training={training} />
      {training.before !== null && <Answers training={training} />}
      {adapter && <Downloads files={adapter} name={training.name} />}
      <div class="actions">
        {!attached && run && (
          <button type="button" class="button" disabled={adapters.busy} onClick={() => void attachRun(run)}>
            {t.attach}
          </button>
        )}
        <button type="button" class="button primary" onClick={() => void changeDraft()}>
          {t.again}
        </button>
      </div>
    </section>
  );
}

function Downloads({ files, name }: { files: SourceFile[]; name: string }) {
  const t = strings().training;
  const f = formats();
  const [links, setLinks] = useState<{ path: string; url: string; size: number }[]>([]);
  const packed = async () => saveFile(new File([await packAdapter(files)], `${plainName(name)}.zip`));
  useEffect(() => {
    const made = files.map(({ path, file }) => ({ path, url: URL.createObjectURL(file), size: file.size }));
    setLinks(made);
    return () => made.forEach(({ url }) => URL.revokeObjectURL(url));
  }, [files]);
  return (
    <div class="field">
      <p>{t.downloads}</p>
      <div class="actions">
        {links.map(({ path, url, size }) => (
          <a key={path} class="button" href={url} download={path} dir="ltr">
            <Icon name="down" size={18} />
            {path} <bdi class="dim num">{f.bytes(size)}</bdi>
          </a>
        ))}
        <button type="button" class="button" onClick={() => void packed()}>
          <Icon name="down" size={18} />
          {t.oneFile} <bdi class="dim">zip</bdi>
        </button>
      </div>
    </div>
  );
}

function Runs({ runs }: { runs: Run[] }) {
  const t = strings().training;
  if (runs.length === 0) return null;
  return (
    <section class="block">
      <h3>{t.runs}</h3>
      <ul class="cards">
        {runs.map((run) => (
          <StoredRun key={run.id} run={run} />
        ))}
      </ul>
    </section>
  );
}

function StoredRun({ run }: { run: Run }) {
  const t = strings();
  const f = formats();
  const { training } = useApp();
  const [asking, setAsking] = useState(false);
  const { name, model, totalSteps } = run.about;
  const done = run.steps >= totalSteps;
  const busy = training.phase !== 'idle';
  const progress = t.training.runUnfinished
    .replace('{step}', f.number(run.steps))
    .replace('{total}', f.number(totalSteps));
  return (
    <li class="card">
      <div class="card-main">
        <strong>
          <bdi>{plainName(name)}</bdi>
        </strong>
        <p class="dim small-text">
          <bdi>{plainName(model)}</bdi> · {done ? t.training.runFinished : progress} · {f.date(run.createdAt)}
        </p>
        {asking && (
          <p class="ask" role="alert">
            {t.training.deleteAsk}
          </p>
        )}
      </div>
      {asking ? (
        <>
          <button type="button" class="button danger" onClick={() => void deleteRun(run)}>
            {t.delete}
          </button>
          <button type="button" class="button" onClick={() => setAsking(false)}>
            {t.cancel}
          </button>
        </>
      ) : (
        <>
          <button
            type="button"
            class="button primary"
            disabled={busy}
            onClick={() => void (done ? attachRun(run) : resume(run))}
          >
            {done ? t.training.attach : t.training.resume}
          </button>
          <button
            type="button"
            class="icon-button"
            aria-label={t.training.deleteRun.replace('{name}', plainName(name))}
            onClick={() => setAsking(true)}
          >
            <Icon name="trash" size={19} />
          </button>
        </>
      )}
    </li>
  );
}
