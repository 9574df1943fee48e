/** Settings and the panels that show them. */
import { probeDevice } from 'bayan-web';
import { type Settings, writeSettings } from './settings';
import { baseDirection, getState, set, strings } from './store';

export function changeSettings(change: Partial<Settings>): void {
  set({ settings: { ...getState().settings, ...change } });
  writeSettings(getState().settings);
  applySettings();
}

export function applySettings(): void {
  const { language, theme, textSize } = getState().settings;
  const root = document.documentElement;
  root.lang = language;
  root.dir = baseDirection();
  root.dataset['theme'] = theme;
  root.dataset['size'] = textSize;
  document.title = `${strings().appName} · ${strings().tagline}`;
}

export async function checkDevice(): Promise<void> {
  set({ probe: await probeDevice() });
}
