import { exportConversations, setConversationSystem } from '../state/conversations';
import { changeSettings } from '../state/panels';
import { baseDirection, set, strings } from '../state/store';
import { DEFAULTS, isAdvised, OWN_SAMPLING } from '../state/settings';
import { fieldDirection } from '../text/field';
import { Sheet } from './Dialogs';
import { Choice, NumberField, Slider } from './fields';
import { useApp } from './hooks';

const SLIDERS = [
  { key: 'temperature', id: 'temperature', min: 0, max: 1.5, step: 0.05 },
  { key: 'topP', id: 'top-p', min: 0.05, max: 1, step: 0.05 },
  { key: 'repetition', id: 'repetition', min: 1, max: 1.5, step: 0.01 },
] as const;

export function SettingsPanel() {
  const { settings: s, current, conversations } = useApp();
  const t = strings();
  return (
    <Sheet title={t.settings} onClose={() => set({ panel: null })}>
      <section class="block">
        <h3>{t.appearance}</h3>
        <div class="grid2">
          <Choice
            name="language"
            label={t.language}
            value={s.language}
            options={{ ar: 'العربية', en: 'English' }}
            onChange={(language) => changeSettings({ language })}
          />
          <Choice
            name="theme"
            label={t.theme}
            value={s.theme}
            options={t.themes}
            onChange={(theme) => changeSettings({ theme })}
          />
          <Choice
            name="size"
            label={t.textSize}
            value={s.textSize}
            options={t.sizes}
            onChange={(textSize) => changeSettings({ textSize })}
          />
          <Choice
            name="digits"
            label={t.digits}
            value={s.digits}
            options={t.digitNames}
            onChange={(digits) => changeSettings({ digits })}
          />
        </div>
      </section>
      <section class="block">
        <h3>{t.answering}</h3>
        <div class="field">
          <label for="system">{t.systemPrompt}</label>
          <textarea
            id="system"
            {...fieldDirection(s.system, baseDirection())}
            rows={3}
            maxLength={20000}
            value={s.system}
            aria-describedby="system-note"
            onInput={(e) => changeSettings({ system: e.currentTarget.value })}
          />
          <p class="dim small-text" id="system-note">
            {t.systemNote}
          </p>
        </div>
        <div class="field">
          <label for="system-chat">{t.systemChat}</label>
          <textarea
            id="system-chat"
            {...fieldDirection(current.system, baseDirection())}
            rows={2}
            maxLength={20000}
            value={current.system}
            onChange={(e) => void setConversationSystem(e.currentTarget.value)}
          />
        </div>
        <label class="check">
          <input
            type="checkbox"
            id="advised"
            checked={isAdvised(s)}
            onChange={(e) =>
              changeSettings(
                e.currentTarget.checked ? { temperature: null, topP: null, repetition: null } : OWN_SAMPLING,
              )
            }
          />
          {t.advisedSampling}
        </label>
        <div class="grid2">
          {!isAdvised(s) &&
            SLIDERS.map(({ key, id, ...bounds }) => (
              <Slider
                key={key}
                id={id}
                label={t[key]}
                note={t[`${key}Note`]}
                value={s[key] ?? OWN_SAMPLING[key]}
                {...bounds}
                onChange={(value) => changeSettings({ [key]: value })}
              />
            ))}
          <NumberField
            id="max-tokens"
            label={t.maxTokens}
            note={t.maxTokensNote}
            value={s.maxTokens}
            min={16}
            max={32768}
            onChange={(v) => changeSettings({ maxTokens: v ?? DEFAULTS.maxTokens })}
          />
          <NumberField
            id="context-length"
            label={t.contextLength}
            note={t.contextNote}
            value={s.contextLength}
            min={256}
            max={131072}
            onChange={(v) => changeSettings({ contextLength: v ?? DEFAULTS.contextLength })}
          />
          <NumberField
            id="seed"
            label={t.seed}
            note={t.seedNote}
            value={s.seed}
            min={0}
            max={2 ** 32 - 1}
            onChange={(seed) => changeSettings({ seed })}
          />
        </div>
      </section>
      <section class="block">
        <h3>{t.data}</h3>
        <p class="dim">{t.dataNote}</p>
        <div class="actions">
          <button
            type="button"
            class="button"
            disabled={conversations.length === 0}
            onClick={() => exportConversations()}
          >
            {t.exportAll}
          </button>
          <button type="button" class="button" onClick={() => changeSettings({ ...DEFAULTS, language: s.language })}>
            {t.resetSettings}
          </button>
        </div>
      </section>
    </Sheet>
  );
}
