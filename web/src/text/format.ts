/** Numbers, sizes and dates in the chosen digits and the Gregorian calendar. */
export type Digits = 'latn' | 'arab';

export class Formats {
  constructor(
    readonly locale: 'ar' | 'en',
    readonly digits: Digits,
  ) {}

  private get system(): Digits {
    return this.locale === 'ar' ? this.digits : 'latn';
  }

  number(value: number, maximumFractionDigits = 0): string {
    return new Intl.NumberFormat(this.locale, { numberingSystem: this.system, maximumFractionDigits }).format(value);
  }

  percent(value: number): string {
    return new Intl.NumberFormat(this.locale, {
      numberingSystem: this.system,
      style: 'percent',
      maximumFractionDigits: 0,
    }).format(value);
  }

  /** Decimal units, as on download pages. */
  bytes(value: number): string {
    const units = this.locale === 'ar' ? ['بايت', 'ك.ب', 'م.ب', 'غ.ب', 'ت.ب'] : ['B', 'kB', 'MB', 'GB', 'TB'];
    let at = 0;
    while (value >= 1000 && at < units.length - 1) {
      value /= 1000;
      at++;
    }
    return `${this.number(value, at > 0 && value < 100 ? (at > 2 ? 2 : 1) : 0)}\u00a0${units[at]}`;
  }

  date(time: number): string {
    return new Intl.DateTimeFormat(this.locale, {
      numberingSystem: this.system,
      calendar: 'gregory',
      day: 'numeric',
      month: 'long',
      year: 'numeric',
    }).format(time);
  }

  plural(count: number, forms: Partial<Record<Intl.LDMLPluralRule, string>> & { other: string }): string {
    const form = forms[new Intl.PluralRules(this.locale).select(count)] ?? forms.other;
    return form.replace('{n}', this.number(count));
  }
}
