/** The person's settings in localStorage. Each field that cannot be read takes its default. */
import type { Sampling, WeightFormat } from 'bayan-web';

export interface Settings {
  language: 'ar' | 'en';
  theme: 'system' | 'light' | 'dark';
  textSize: 'normal' | 'large' | 'larger';
  digits: 'latn' | 'arab';
  system: string;
  /** Null, also in the next two: as the maker of the model advises (`generation_config.json`). */
  temperature: number | null;
  topP: number | null;
  repetition: number | null;
  maxTokens: number;
  contextLength: number;
  seed: number | null;
  format: WeightFormat;
  budgetGb: number | null;
  /** `cpu` also where there is a GPU. */
  device: 'auto' | 'cpu';
  /** Whether the person has closed the note that the CPU computes. */
  cpuNoted: boolean;
}

export const DEFAULTS: Settings = {
  language: 'ar',
  theme: 'system',
  textSize: 'normal',
  digits: 'latn',
  system: '',
  temperature: null,
  topP: null,
  repetition: null,
  maxTokens: 1024,
  contextLength: 4096,
  seed: null,
  format: 'auto',
  budgetGb: null,
  device: 'auto',
  cpuNoted: false,
};

/** Where the person takes the choice from the model's maker: the values to begin with. */
export const OWN_SAMPLING = { temperature: 0.6, topP: 0.9, repetition: 1.05 };

/** Whether every value of sampling is the one that the model's maker advises. */
export const isAdvised = ({ temperature, topP, repetition }: Settings): boolean =>
  temperature === null && topP === null && repetition === null;

const ALLOWED: { [K in keyof Settings]?: readonly unknown[] } = {
  language: ['ar', 'en'],
  theme: ['system', 'light', 'dark'],
  textSize: ['normal', 'large', 'larger'],
  digits: ['latn', 'arab'],
  format: ['auto', 'q4', 'q8', 'f16'],
  device: ['auto', 'cpu'],
  cpuNoted: [true, false],
};
const RANGE: { [K in keyof Settings]?: readonly [number, number] } = {
  temperature: [0, 2],
  topP: [0.05, 1],
  repetition: [1, 2],
  maxTokens: [16, 32768],
  contextLength: [256, 131072],
  seed: [0, 2 ** 32 - 1],
  budgetGb: [0.5, 1024],
};
const KEY = 'bayan-settings';

export function cleanSettings(raw: unknown): Settings {
  const settings: Settings = { ...DEFAULTS };
  if (typeof raw !== 'object' || raw === null) return settings;
  for (const key of Object.keys(DEFAULTS) as (keyof Settings)[]) {
    const value = (raw as Record<string, unknown>)[key];
    const allowed = ALLOWED[key];
    const range = RANGE[key];
    const fine = allowed
      ? allowed.includes(value)
      : range
        ? (value === null && DEFAULTS[key] === null) ||
          (typeof value === 'number' && value >= range[0] && value <= range[1])
        : typeof value === 'string' && value.length <= 20_000;
    if (fine) (settings as unknown as Record<string, unknown>)[key] = value;
  }
  return settings;
}

export function readSettings(): Settings {
  try {
    return cleanSettings(JSON.parse(localStorage.getItem(KEY) ?? 'null'));
  } catch {
    return { ...DEFAULTS };
  }
}

export function writeSettings(settings: Settings): void {
  try {
    localStorage.setItem(KEY, JSON.stringify(settings));
  } catch {
    // Storage is refused: the settings last until the page is closed.
  }
}

export function samplingOf(settings: Settings): Sampling {
  return {
    ...(settings.temperature === null ? {} : { temperature: settings.temperature }),
    ...(settings.topP === null ? {} : { topP: settings.topP }),
    ...(settings.repetition === null ? {} : { repetitionPenalty: settings.repetition }),
    maxTokens: Math.round(settings.maxTokens),
    ...(settings.seed === null ? {} : { seed: Math.round(settings.seed) }),
  };
}
