import { MessageChannel } from 'node:worker_threads';
import { expect, it, vi } from 'vitest';
import type { EngineModule } from '../src/engine';
import { BayanError } from '../src/errors';
import { LocalBackend } from '../src/local';
import { RemoteBackend } from '../src/remote';
import { serve } from '../src/serve';
import { prepareTrainingWith, type TrainingOptions } from '../src/training/training';
import type { TrainingEvent } from '../src/training/types';
import type { Source } from '../src/types';
import type { FromWorker, Port, ToWorker } from '../src/wire';

const source: Source = { kind: 'files', files: [{ path: 'model.gguf', file: new Blob([new Uint8Array(9)]) }] };
const examples = [
  { prompt: 'من أنت؟', response: 'أنا رضا.' },
  { prompt: 'شكرا', response: 'العفو.' },
];

/** The whole path: training, wire, channel, serve, local, engine. */
async function prepared(options: Partial<TrainingOptions> = {}) {
  vi.resetModules();
  const engine = (await import('./engine-fake')) as unknown as EngineModule;
  const created = vi.fn(engine.create);
  const { port1, port2 } = new MessageChannel();
  serve(
    port1 as unknown as Port<FromWorker, ToWorker>,
    new LocalBackend(
      async () => ({ ...engine, create: created }),
      async () => null,
    ),
  );
  const remote = new RemoteBackend(port2 as unknown as Port<ToWorker, FromWorker>, () => port2.close());
  port1.start();
  port2.start();
  const training = await prepareTrainingWith(remote, source, { examples, ...options });
  return { training, created: JSON.parse(created.mock.calls[0]![0]) as { disable: string[] } };
}

it('trains in f32, pauses with a checkpoint, and goes on from it', async () => {
  const { training, created } = await prepared({ recipe: { max_steps: 20 } });
  expect(created.disable).toEqual(['f16', 'dot']);
  expect(training.plan).toMatchObject({ examples: 2, steps: 20 });
  expect(await training.estimateSeconds()).toBe(12);
  const events: TrainingEvent[] = [];
  const onEvent = (event: TrainingEvent) => {
    events.push(event);
    if (event.kind === 'step' && event.steps === 5) training.pause();
  };
  const first = await training.run({ onEvent });
  expect(first.end).toBe('paused');
  expect(first.steps).toBeLessThan(20);
  const saved = events.at(-1)!;
  if (saved.kind !== 'saved') throw new Error(JSON.stringify(saved));
  await training.dispose();

  const { training: again } = await prepared({ recipe: { max_steps: 20, f16: true } });
  const steps: number[] = [];
  const second = await again.run({
    checkpoint: saved.checkpoint,
    onEvent: (event) => void (event.kind === 'step' && steps.push(event.steps)),
  });
  expect(second.end).toBe('done');
  expect(steps[0]).toBe(first.steps + 1);
  expect(second.adapter.map(({ path }) => path)).toEqual(['adapter_config.json', 'adapter_model.safetensors']);
  expect(await second.adapter[0]!.file.text()).toBe('{}');
  await again.dispose();
});

it('takes files, and f16 where the recipe asks for it', async () => {
  const files = [{ path: 'a.jsonl', file: new Blob(['{}\n{}\n{}\n']) }];
  const { training, created } = await prepared({ examples: files, recipe: { f16: true } });
  expect(created.disable).toEqual(['dot']);
  expect(training.plan.examples).toBe(3);
  await training.dispose();
});

it('reports what cannot be trained as BadInput', async () => {
  for (const options of [{ recipe: { rank: 0 } }, { examples: [] }]) {
    const error = await prepared(options).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(BayanError);
    expect((error as BayanError).code).toBe('BadInput');
  }
});

it('pauses a run when it is disposed, and trains no more', async () => {
  const { training } = await prepared({ recipe: { max_steps: 200 } });
  const run = training.run();
  await training.dispose();
  expect((await run).end).toBe('paused');
  await expect(training.run()).rejects.toMatchObject({ code: 'Aborted' });
});
