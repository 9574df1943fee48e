/** Examples and settings of a training. */
import { useState } from 'preact/hooks';
import type { SourceFile } from 'bayan-web';
import { sessionInfo } from '../state/session';
import { baseDirection, formats, set, strings } from '../state/store';
import { prepare } from '../state/training';
import {
  EMPTY_PAIR,
  examplesOf,
  type Form,
  type Pair,
  PRESETS,
  rateFor,
  recipeOf,
  settingsOf,
} from '../state/training-draft';
import { fieldDirection } from '../text/field';
import { plainName } from '../text/hidden';
import { NumberField, Segments } from './fields';
import { useApp } from './hooks';
import { Icon } from './icons';

/** Kept while the page is open: closing the panel loses nothing. */
let kept: Form | null = null;

function firstForm(parameters: number): Form {
  const t = strings().training;
  return {
    way: 'pairs',
    pairs: [EMPTY_PAIR, EMPTY_PAIR],
    text: '',
    files: [],
    name: '',
    question: t.probeDefault,
    ...settingsOf('quick', parameters),
  };
}

export function TrainingForm() {
  const { training } = useApp();
  const t = strings().training;
  const parameters = sessionInfo()?.model.parameters ?? 0;
  const [form, setForm] = useState<Form>(kept ?? firstForm(parameters));
  const [empty, setEmpty] = useState(false);
  const change = (part: Partial<Form>) => {
    kept = { ...form, ...part };
    setForm(kept);
    setEmpty(false);
  };
  const submit = (event: Event) => {
    event.preventDefault();
    const examples = examplesOf(form);
    if (examples.length === 0) return setEmpty(true);
    const { question } = form;
    void prepare({ name: form.name.trim() || t.unnamed, examples, recipe: recipeOf(form, parameters), question });
  };
  const busy = training.phase === 'preparing';
  return (
    <form onSubmit={submit}>
      <section class="block">
        <h3>{t.examples}</h3>
        <Segments name="way" label={t.examples} value={form.way} options={t.ways} onChange={(way) => change({ way })} />
        <Examples form={form} change={change} />
        {empty && (
          <p class="ask" role="alert">
            {t.noExamples}
          </p>
        )}
      </section>
      <section class="block">
        <h3>{t.settings}</h3>
        <Segments
          name="preset"
          label={t.preset}
          value={form.preset}
          options={t.presets}
          onChange={(preset) => change(settingsOf(preset, parameters))}
        />
        <div class="grid2 three">
          <NumberField
            id="train-rank"
            label={t.rank}
            note={t.rankNote}
            value={form.rank}
            min={1}
            max={256}
            onChange={(rank) => change({ rank: rank ?? PRESETS[form.preset].rank })}
          />
          <NumberField
            id="train-steps"
            label={t.steps}
            note={t.stepsNote}
            value={form.steps}
            min={1}
            max={100000}
            onChange={(steps) => change({ steps: steps ?? PRESETS[form.preset].steps })}
          />
          <NumberField
            id="train-rate"
            label={t.rate}
            note={t.rateNote}
            value={form.learningRate}
            min={0.000001}
            max={1}
            step="any"
            onChange={(rate) => change({ learningRate: rate ?? rateFor(form.preset, parameters) })}
          />
        </div>
        <div class="grid2">
          <div class="field">
            <label for="train-name">{t.name}</label>
            <input
              id="train-name"
              dir="auto"
              autocomplete="off"
              placeholder={t.unnamed}
              value={form.name}
              onInput={(e) => change({ name: e.currentTarget.value })}
            />
          </div>
          <div class="field">
            <label for="train-probe">{t.probe}</label>
            <input
              id="train-probe"
              dir="auto"
              autocomplete="off"
              value={form.question}
              aria-describedby="train-probe-note"
              onInput={(e) => change({ question: e.currentTarget.value })}
            />
            <p class="dim small-text" id="train-probe-note">
              {t.probeNote}
            </p>
          </div>
        </div>
      </section>
      <div class="actions">
        <button type="submit" class="button primary" disabled={busy}>
          {busy ? t.checking : t.check}
        </button>
      </div>
    </form>
  );
}

function Examples({ form, change }: { form: Form; change: (part: Partial<Form>) => void }) {
  const t = strings().training;
  const f = formats();
  if (form.way === 'paste')
    return (
      <div class="field">
        <label for="train-text">{t.pasteLabel}</label>
        <textarea
          id="train-text"
          {...fieldDirection(form.text, 'ltr')}
          rows={8}
          spellcheck={false}
          value={form.text}
          aria-describedby="train-text-note"
          onInput={(e) => change({ text: e.currentTarget.value })}
        />
        <p class="dim small-text" id="train-text-note">
          {t.pasteNote}
        </p>
      </div>
    );
  if (form.way === 'file')
    return <Files files={form.files} onFiles={(files) => change({ files })} onExample={change} />;
  const replace = (at: number, part: Partial<Pair>) =>
    change({ pairs: form.pairs.map((pair, i) => (i === at ? { ...pair, ...part } : pair)) });
  return (
    <>
      <ol class="pairs">
        {form.pairs.map((pair, at) => (
          <li key={at}>
            <textarea
              {...fieldDirection(pair.prompt, baseDirection())}
              rows={1}
              placeholder={t.question}
              aria-label={`${t.question} ${f.number(at + 1)}`}
              value={pair.prompt}
              onInput={(e) => replace(at, { prompt: e.currentTarget.value })}
            />
            <textarea
              {...fieldDirection(pair.response, baseDirection())}
              rows={1}
              placeholder={t.answer}
              aria-label={`${t.answer} ${f.number(at + 1)}`}
              value={pair.response}
              onInput={(e) => replace(at, { response: e.currentTarget.value })}
            />
            <button
              type="button"
              class="icon-button"
              aria-label={t.removePair.replace('{n}', f.number(at + 1))}
              disabled={form.pairs.length === 1}
              onClick={() => change({ pairs: form.pairs.filter((_, i) => i !== at) })}
            >
              <Icon name="trash" size={19} />
            </button>
          </li>
        ))}
      </ol>
      <div class="actions">
        <button type="button" class="button" onClick={() => change({ pairs: [...form.pairs, EMPTY_PAIR] })}>
          <Icon name="plus" size={18} />
          {t.addPair}
        </button>
      </div>
    </>
  );
}

function Files({
  files,
  onFiles,
  onExample,
}: {
  files: SourceFile[];
  onFiles: (files: SourceFile[]) => void;
  onExample: (part: Partial<Form>) => void;
}) {
  const t = strings().training;
  const f = formats();
  const take = (list: FileList | null | undefined) => {
    const chosen = [...(list ?? [])].map((file) => ({ path: file.name, file }));
    if (chosen.length > 0) onFiles(chosen);
  };
  const example = async () => {
    const response = await fetch('training/am-rida.jsonl').catch(() => null);
    if (!response?.ok) return set({ notice: { text: strings().errors.Network.text } });
    // The example has few rows and was tried with these settings.
    const parameters = sessionInfo()?.model.parameters ?? 0;
    const files = [{ path: 'am-rida.jsonl', file: await response.blob() }];
    onExample({ files, way: 'file', name: 'عم رضا', ...settingsOf('quick', parameters) });
  };
  return (
    <div
      class="drop"
      onDragOver={(e) => e.preventDefault()}
      onDrop={(e) => {
        e.preventDefault();
        take(e.dataTransfer?.files);
      }}
    >
      <p class="dim">{t.fileNote}</p>
      {files.length > 0 && (
        <ul class="plain">
          {files.map(({ path, file }) => (
            <li key={path}>
              <bdi>{plainName(path)}</bdi> · <bdi class="num">{f.bytes(file.size)}</bdi>
            </li>
          ))}
        </ul>
      )}
      <div class="actions">
        <label class="button">
          {t.pickFile}
          <input
            type="file"
            id="train-file"
            class="visually-hidden"
            multiple
            accept=".jsonl,.ndjson,.json,.csv,.tsv,.gz"
            onChange={(e) => {
              take(e.currentTarget.files);
              e.currentTarget.value = '';
            }}
          />
        </label>
        <button type="button" class="button" onClick={() => void example()}>
          {t.useExample}
        </button>
      </div>
    </div>
  );
}
