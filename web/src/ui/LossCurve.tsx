/** The curve of a training's losses, drawn as SVG: time runs from left to right in both languages. */
import type { Point } from '../state/training-state';

const WIDTH = 640;
const HEIGHT = 180;
const PAD = { left: 46, right: 10, top: 10, bottom: 24 };

/** The mean of the last steps, which the eye follows; the steps themselves are drawn behind it. */
function smoothed(points: Point[]): Point[] {
  const keep = points.length > 200 ? 0.95 : 0.8;
  let sum = 0;
  let weight = 0;
  return points.map(({ step, loss }) => {
    sum = keep * sum + (1 - keep) * loss;
    weight = keep * weight + (1 - keep);
    return { step, loss: sum / weight };
  });
}

/** At most `count` points: the ones left out could not be seen. */
function thinned(points: Point[], count: number): Point[] {
  if (points.length <= count) return points;
  const every = Math.ceil(points.length / count);
  return points.filter((_, at) => at % every === 0 || at === points.length - 1);
}

export function LossCurve({
  losses,
  evaluated,
  totalSteps,
  label,
  number,
}: {
  losses: Point[];
  evaluated: Point[];
  totalSteps: number;
  label: string;
  number: (value: number, digits?: number) => string;
}) {
  if (losses.length === 0) return null;
  const all = [...losses, ...evaluated].map((point) => point.loss);
  const high = Math.max(...all);
  const low = Math.min(0, ...all);
  const last = Math.max(totalSteps, losses.at(-1)!.step, 2);
  const x = (step: number) => PAD.left + ((step - 1) / (last - 1)) * (WIDTH - PAD.left - PAD.right);
  const y = (loss: number) =>
    PAD.top + (1 - (loss - low) / Math.max(1e-9, high - low)) * (HEIGHT - PAD.top - PAD.bottom);
  const line = (points: Point[]) =>
    thinned(points, 400)
      .map(({ step, loss }, at) => `${at === 0 ? 'M' : 'L'}${x(step).toFixed(1)} ${y(loss).toFixed(1)}`)
      .join('');
  const ticks = [0, 0.5, 1].map((share) => low + share * (high - low));
  return (
    <svg class="loss-curve" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={label}>
      {ticks.map((value) => (
        <g key={value}>
          <line class="grid" x1={PAD.left} x2={WIDTH - PAD.right} y1={y(value)} y2={y(value)} />
          <text x={PAD.left - 6} y={y(value) + 4} text-anchor="end">
            {number(value, 1)}
          </text>
        </g>
      ))}
      <text x={PAD.left} y={HEIGHT - 6}>
        {number(1)}
      </text>
      <text x={WIDTH - PAD.right} y={HEIGHT - 6} text-anchor="end">
        {number(last)}
      </text>
      <path class="each" d={line(losses)} />
      <path class="mean" d={line(smoothed(losses))} />
      {evaluated.map(({ step, loss }) => (
        <circle key={step} class="evaluated" cx={x(step)} cy={y(loss)} r="4" />
      ))}
    </svg>
  );
}
