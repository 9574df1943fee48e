/** The adapters of the running model, each with its size, a switch and a button that removes it; a picker loads one. */
import { addAdapter, removeAdapter, switchAdapter } from '../state/model';
import { formats, set, strings } from '../state/store';
import { plainName } from '../text/hidden';
import { FilePicker } from './FilePicker';
import { useApp } from './hooks';
import { Icon } from './icons';
import { errorText } from './progress';

export function Adapters() {
  const { adapters, answering } = useApp();
  const t = strings();
  const f = formats();
  const busy = adapters.busy || answering !== null;
  return (
    <section class="block adapters">
      <h3>{t.adapters}</h3>
      <p class="dim small-text">{t.adaptersNote}</p>
      {adapters.list.length > 0 && (
        <ul class="cards">
          {adapters.list.map((item) => (
            <li class="card" key={item.name}>
              <div class="card-main">
                <strong>
                  <bdi>{plainName(item.name)}</bdi>
                </strong>
                <p class="dim small-text">
                  {t.adapterSize
                    .replace('{rank}', f.number(item.rank ?? 0))
                    .replace('{parameters}', f.number(item.parameters))}
                </p>
              </div>
              <label class="check">
                <input
                  type="checkbox"
                  role="switch"
                  checked={item.on}
                  disabled={busy}
                  aria-label={`${t.adapterOn}: ${plainName(item.name)}`}
                  onChange={(e) => void switchAdapter(item.name, e.currentTarget.checked)}
                />
                {item.on ? t.adapterOn : t.adapterOff}
              </label>
              <button type="button" class="button" disabled={busy} onClick={() => void removeAdapter(item.name)}>
                {t.adapterRemove}
              </button>
            </li>
          ))}
        </ul>
      )}
      {adapters.error && (
        <div class="trouble" role="alert">
          <Icon name="warn" />
          <div>
            <strong>{t.adapterFailed}</strong>
            <p>{adapters.error.code === 'BadCheckpoint' ? t.adapterBad : errorText(adapters.error, t, f).text}</p>
            <details>
              <summary>{t.details}</summary>
              <p dir="ltr" lang="en" class="detail">
                {adapters.error.message}
              </p>
            </details>
          </div>
        </div>
      )}
      <div class="actions">
        <button type="button" class="button primary" onClick={() => set({ panel: 'training' })}>
          {t.training.open}
        </button>
      </div>
      <FilePicker id="pick-adapter" disabled={busy} onFiles={(files, label) => void addAdapter(files, label)} />
    </section>
  );
}
