import type { Source, WeightFormat } from 'bayan-web';
import { useEffect, useState } from 'preact/hooks';
import catalogue from '../data/catalogue.json';
import { type CatalogueModel, downloadBytes, fits, fitsCpu, guessBudget, memoryBytes } from '../data/memory';
import { deleteStored, loadModel, refreshStored, shippedSource, unloadModel } from '../state/model';
import { changeSettings } from '../state/panels';
import { formats, onCpu, set, strings } from '../state/store';
import { plainName } from '../text/hidden';
import { Adapters } from './Adapters';
import { Sheet } from './Dialogs';
import { FilePicker } from './FilePicker';
import { useApp } from './hooks';
import { Icon } from './icons';

const FORMATS = ['q4', 'q8', 'f16'] as const;
const MODELS = catalogue.models as CatalogueModel[];

/** Closes the panel and loads the model. */
function run(source: Source, label: string): void {
  set({ panel: null });
  void loadModel(source, label);
}

export function ModelsPanel() {
  const state = useApp();
  const t = strings();
  const f = formats();
  useEffect(() => void refreshStored(), []);
  const { model, stored, estimate, shipped, settings } = state;
  const budget =
    settings.budgetGb === null
      ? guessBudget((navigator as Navigator & { deviceMemory?: number }).deviceMemory)
      : settings.budgetGb * 1e9;
  return (
    <Sheet title={t.models} onClose={() => set({ panel: null })}>
      {model.kind === 'ready' && (
        <div class="now">
          <span class="dot" aria-hidden="true" />
          <div>
            <strong>
              <bdi>{model.label}</bdi>
            </strong>
            <p class="dim small-text">{t.loaded}</p>
          </div>
          <span class="spacer" />
          <button type="button" class="button" onClick={() => void unloadModel()}>
            {t.unload}
          </button>
        </div>
      )}
      {model.kind === 'ready' && <Adapters />}
      {shipped && (
        <section class="block">
          <h3>{t.shipped}</h3>
          <div class="card">
            <div class="card-main">
              <strong>
                <bdi>{plainName(shipped.name)}</bdi>
              </strong>
              <p class="dim small-text">
                {t.shippedNote} <bdi class="num">{f.bytes(shipped.bytes)}</bdi>
              </p>
            </div>
            <button type="button" class="button primary" onClick={() => run(shippedSource(), plainName(shipped.name))}>
              {t.loadModel}
            </button>
          </div>
        </section>
      )}
      <section class="block">
        <h3>{t.stored}</h3>
        {stored?.length === 0 && <p class="dim">{t.storedNone}</p>}
        <ul class="cards">
          {stored?.map((item) => (
            <Stored key={item.id} item={item} />
          ))}
        </ul>
        {estimate && (
          <div class="storage">
            <progress max={estimate.quota} value={estimate.used} aria-label={t.stored} />
            <p class="dim small-text">
              {t.storedUse.replace('{used}', f.bytes(estimate.used)).replace('{quota}', f.bytes(estimate.quota))}
            </p>
          </div>
        )}
      </section>
      <section class="block">
        <h3>{t.catalogue}</h3>
        <div class="grid2 tight">
          <div class="field">
            <label for="format">{t.format}</label>
            <select
              id="format"
              value={settings.format}
              onChange={(e) => changeSettings({ format: e.currentTarget.value as WeightFormat })}
            >
              {Object.entries(t.formats).map(([key, name]) => (
                <option key={key} value={key}>
                  {name}
                </option>
              ))}
            </select>
          </div>
          {!onCpu() && (
            <div class="field">
              <label for="budget">{t.budget}</label>
              <input
                id="budget"
                type="number"
                dir="ltr"
                min={0.5}
                max={1024}
                step={0.5}
                value={Math.round(budget / 1e8) / 10}
                aria-describedby="budget-note"
                onChange={(e) => {
                  const gb = Number(e.currentTarget.value);
                  changeSettings({ budgetGb: gb >= 0.5 && gb <= 1024 ? gb : null });
                }}
              />
              <p class="dim small-text" id="budget-note">
                {t.budgetNote}
              </p>
            </div>
          )}
        </div>
        <ul class="cards">
          {MODELS.map((item) => (
            <Recommended key={item.repo} item={item} budget={budget} />
          ))}
        </ul>
      </section>
      <OtherSource />
    </Sheet>
  );
}

function Stored({ item }: { item: NonNullable<ReturnType<typeof useApp>['stored']>[number] }) {
  const t = strings();
  const f = formats();
  const { model } = useApp();
  const [asking, setAsking] = useState(false);
  return (
    <li class="card">
      <div class="card-main">
        <strong>
          <bdi>{plainName(item.label)}</bdi>
        </strong>
        <p class="dim small-text">
          {item.complete ? (
            <bdi class="num">{f.bytes(item.storedBytes)}</bdi>
          ) : (
            t.incomplete.replace('{done}', f.bytes(item.storedBytes)).replace('{total}', f.bytes(item.sizeBytes))
          )}{' '}
          · {f.date(item.createdAt)}
        </p>
        {asking && (
          <p class="ask" role="alert">
            {t.deleteModelAsk}
          </p>
        )}
      </div>
      {asking ? (
        <>
          <button type="button" class="button danger" onClick={() => void deleteStored(item.id)}>
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
            disabled={model.kind === 'loading'}
            onClick={() => run(item.source, plainName(item.label))}
          >
            {item.complete ? t.loadModel : t.resume}
          </button>
          <button
            type="button"
            class="icon-button"
            aria-label={`${t.delete}: ${plainName(item.label)}`}
            onClick={() => setAsking(true)}
          >
            <Icon name="trash" size={19} />
          </button>
        </>
      )}
    </li>
  );
}

function Recommended({ item, budget }: { item: CatalogueModel; budget: number }) {
  const t = strings();
  const f = formats();
  const { settings, model } = useApp();
  // A quantized file stays as it is.
  const format = settings.format === 'auto' || item.file ? 'q4' : settings.format;
  const memory = memoryBytes(item, format, settings.contextLength);
  const tooLarge = onCpu() && !fitsCpu(item, format);
  const fit = tooLarge ? 'no' : onCpu() ? 'yes' : fits(memory, budget);
  return (
    <li class="card tall">
      <div class="card-main">
        <div class="card-title">
          <strong>
            <bdi>{item.name}</bdi>
          </strong>
          <span class={`badge ${fit}`}>
            {tooLarge ? t.cpuTooLarge : fit === 'yes' ? t.fitYes : fit === 'tight' ? t.fitTight : t.fitNo}
          </span>
        </div>
        <p>{item.note[settings.language]}</p>
        <p class="dim small-text meta">
          <bdi>{item.maker}</bdi>
          <span>
            {t.downloadSize} <bdi class="num">{f.bytes(downloadBytes(item))}</bdi>
            {item.file && ` · ${t.shortFormats.q4}`}
          </span>
          <span>
            {t.licence} <bdi>{item.licence}</bdi>
          </span>
        </p>
        <p class="dim small-text meta">
          <span>{t.memory}</span>
          {(item.file ? (['q4'] as const) : FORMATS).map((each) => (
            <span key={each} class={each === format ? 'chosen' : undefined}>
              {t.shortFormats[each]} <bdi class="num">{f.bytes(memoryBytes(item, each, settings.contextLength))}</bdi>
            </span>
          ))}
        </p>
        {item.gated && <p class="dim small-text">{t.gated}</p>}
      </div>
      <button
        type="button"
        class="button"
        disabled={model.kind === 'loading' || tooLarge}
        onClick={() => run({ kind: 'hub', repo: item.repo, ...(item.file ? { file: item.file } : {}) }, item.name)}
      >
        {t.download}
      </button>
    </li>
  );
}

function OtherSource() {
  const t = strings();
  const [address, setAddress] = useState('');
  const [token, setToken] = useState('');
  const submit = (event: Event) => {
    event.preventDefault();
    const text = address.trim();
    if (text === '') return;
    const secret = token.trim() ? { token: token.trim() } : {};
    const hub = /^(https:\/\/huggingface\.co\/)?[\w.-]+\/[\w.-]+\/?$/.test(text);
    const source: Source = hub ? { kind: 'hub', repo: text, ...secret } : { kind: 'url', url: text, ...secret };
    run(source, plainName(text.split('/').filter(Boolean).slice(-2).join('/')));
  };
  return (
    <section class="block">
      <h3>{t.other}</h3>
      <div class="grid2">
        <div class="source">
          <h4>
            <Icon name="folder" size={19} />
            {t.fromDisk}
          </h4>
          <p class="dim small-text">{t.fromDiskNote}</p>
          <FilePicker id="pick-files" onFiles={(files, label) => run({ kind: 'files', files }, label)} />
        </div>
        <form class="source" onSubmit={submit}>
          <h4>
            <Icon name="globe" size={19} />
            {t.fromAddress}
          </h4>
          <div class="field">
            <label for="address">{t.addressLabel}</label>
            <input
              id="address"
              dir="ltr"
              autocomplete="off"
              spellcheck={false}
              placeholder={t.addressPlaceholder}
              value={address}
              onInput={(e) => setAddress(e.currentTarget.value)}
            />
          </div>
          <div class="field">
            <label for="token">{t.token}</label>
            <input
              id="token"
              type="password"
              dir="ltr"
              autocomplete="off"
              value={token}
              aria-describedby="token-note"
              onInput={(e) => setToken(e.currentTarget.value)}
            />
            <p class="dim small-text" id="token-note">
              {t.tokenNote}
            </p>
          </div>
          <div class="actions">
            <button type="submit" class="button" disabled={address.trim() === ''}>
              {t.download}
            </button>
          </div>
        </form>
      </div>
    </section>
  );
}
