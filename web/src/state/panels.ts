/** Settings and the panels that show them. */
import { probeDevice } from 'bayan-web';
import { reloadModel } from './model';
import { type Settings, writeSettings } from './settings';
import { baseDirection, getState, onCpu, set, strings } from './store';

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

/** Looks for WebGPU again; a model that ran on the CPU for want of it moves to the GPU. */
export async function checkDevice(): Promise<void> {
  const before = onCpu();
  set({ probe: await probeDevice() });
  if (onCpu() !== before) moveModel();
}

/** Chooses what computes; the model that runs moves there. */
export function chooseDevice(device: Settings['device']): void {
  const before = onCpu();
  changeSettings({ device });
  if (onCpu() !== before) moveModel();
}

function moveModel(): void {
  if (getState().model.kind === 'ready') void reloadModel();
}
