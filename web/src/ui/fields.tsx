/** The controls of forms: what settings and training share. */

/** One of a few values, as buttons in a row; inside of a `fieldset`, or with a label of its own. */
export function Segments<T extends string>({
  name,
  label,
  value,
  options,
  onChange,
}: {
  name: string;
  label?: string;
  value: T;
  options: Record<T, string>;
  onChange: (value: T) => void;
}) {
  return (
    <div class="segments" role={label === undefined ? undefined : 'radiogroup'} aria-label={label}>
      {(Object.entries(options) as [T, string][]).map(([key, text]) => (
        <label key={key} class={key === value ? 'on' : ''}>
          <input type="radio" name={name} value={key} checked={key === value} onChange={() => onChange(key)} />
          <span>{text}</span>
        </label>
      ))}
    </div>
  );
}

/** One of a few values under a heading. */
export function Choice<T extends string>({
  name,
  label,
  value,
  options,
  onChange,
}: {
  name: string;
  label: string;
  value: T;
  options: Record<T, string>;
  onChange: (value: T) => void;
}) {
  return (
    <fieldset class="choice">
      <legend>{label}</legend>
      <Segments name={name} value={value} options={options} onChange={onChange} />
    </fieldset>
  );
}

/** A number between two bounds, shown beside its name. */
export function Slider({
  id,
  label,
  note,
  value,
  min,
  max,
  step,
  onChange,
}: {
  id: string;
  label: string;
  note: string;
  value: number;
  min: number;
  max: number;
  step: number;
  onChange: (value: number) => void;
}) {
  return (
    <div class="field">
      <div class="field-head">
        <label for={id}>{label}</label>
        <output for={id} class="num" dir="ltr">
          {value}
        </output>
      </div>
      <input
        id={id}
        type="range"
        min={min}
        max={max}
        step={step}
        value={value}
        aria-describedby={`${id}-note`}
        onInput={(e) => onChange(Number(e.currentTarget.value))}
      />
      <p class="dim small-text" id={`${id}-note`}>
        {note}
      </p>
    </div>
  );
}

/** A number that is typed: brought into its bounds, rounded unless `step` is `any`; null where nothing is typed. */
export function NumberField({
  id,
  label,
  note,
  value,
  min,
  max,
  step = 1,
  onChange,
}: {
  id: string;
  label: string;
  note: string;
  value: number | null;
  min: number;
  max: number;
  step?: number | 'any';
  onChange: (value: number | null) => void;
}) {
  return (
    <div class="field">
      <label for={id}>{label}</label>
      <input
        id={id}
        type="number"
        dir="ltr"
        inputMode={step === 1 ? 'numeric' : 'decimal'}
        min={min}
        max={max}
        step={step}
        value={value ?? ''}
        aria-describedby={`${id}-note`}
        onChange={(e) => {
          const text = e.currentTarget.value;
          const next = Number(text);
          if (text === '') onChange(null);
          else if (Number.isFinite(next)) onChange(Math.min(max, Math.max(min, step === 1 ? Math.round(next) : next)));
        }}
      />
      <p class="dim small-text" id={`${id}-note`}>
        {note}
      </p>
    </div>
  );
}
