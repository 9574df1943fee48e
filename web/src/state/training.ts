/** Training an adapter in the tab: the worker that trains, the stored runs, and the adapter that comes of it. */
import {
  BayanError,
  type Source,
  type SourceFile,
  type Training,
  type TrainingEvent,
  type TrainingRecipe,
  type TrainingResult,
  prepareTraining,
  TrainingStore,
} from 'bayan-web';
import { addAdapter, engine, runningSource } from './model';
import { currentSession, runningLabel } from './session';
import { getState, set, strings } from './store';
import { type About, NO_TRAINING, type Run, type TrainingState } from './training-state';

export interface Draft {
  name: string;
  examples: SourceFile[];
  recipe: TrainingRecipe;
  question: string;
}

let training: Training | null = null;
let draft: (Draft & Pick<About, 'model' | 'parameters' | 'source' | 'format'>) | null = null;
let store: Promise<TrainingStore | null> | null = null;
/** The newest checkpoint of a run that the browser cannot store. */
let inMemory: { run: Run; examples: SourceFile[]; checkpoint: SourceFile[] | null } | null = null;
/** Checkpoints are written one after another, while the training goes on. */
let writing: Promise<void> = Promise.resolve();

const opened = (): Promise<TrainingStore | null> => (store ??= TrainingStore.open());
const now = (): TrainingState => getState().training;
const change = (part: Partial<TrainingState>) => set({ training: { ...now(), ...part } });

/** The runs stored in this browser; the newest first. */
export async function findRuns(): Promise<void> {
  const place = await opened();
  change({ kept: place !== null, runs: place ? await place.list<About>().catch(() => []) : [] });
}

const known = (error: unknown): BayanError =>
  error instanceof BayanError ? error : new BayanError('Internal', String(error));

/** Back to the form, with the reason. */
async function fail(error: unknown): Promise<void> {
  await training?.dispose();
  training = null;
  const failure = known(error);
  const back = now().run && now().run!.steps > 0 ? 'paused' : 'idle';
  change({ phase: back, error: failure.code === 'Aborted' ? null : failure, seconds: null });
  await findRuns();
}

/** Reads and checks examples and settings over the running model. */
export async function prepare(next: Draft): Promise<void> {
  const source = runningSource();
  const session = currentSession();
  if (!source || !session) return;
  draft = {
    ...next,
    model: runningLabel(),
    parameters: session.info.model.parameters,
    source: source.kind === 'files' ? null : withoutToken(source),
    format: getState().settings.format,
  };
  set({ training: { ...NO_TRAINING, runs: now().runs, kept: now().kept, phase: 'preparing' } });
  change({ name: next.name, model: draft.model, question: next.question });
  try {
    training = await prepareTraining(source, {
      ...engine,
      examples: next.examples,
      recipe: next.recipe,
      format: draft.format,
    });
    training.onLost = (error) => void fail(error);
    change({ phase: 'ready', plan: training.plan, totalSteps: training.plan.steps });
  } catch (error) {
    await fail(error);
  }
}

function withoutToken<S extends Source>(source: S): S {
  const { token: _, ...rest } = source as S & { token?: string };
  return rest as S;
}

/** Back to the form. */
export async function changeDraft(): Promise<void> {
  await training?.dispose();
  training = null;
  set({ training: { ...NO_TRAINING, runs: now().runs, kept: now().kept } });
  await findRuns();
}

export async function measure(): Promise<void> {
  const measured = training;
  if (!measured) return;
  change({ phase: 'measuring' });
  try {
    const seconds = await measured.estimateSeconds();
    if (training === measured) change({ phase: 'ready', seconds });
  } catch (error) {
    if (training === measured) await fail(error);
  }
}

/** Greedy answer of the running model; null where none runs or it cannot answer now. */
async function ask(question: string, of: string): Promise<string | null> {
  const session = currentSession();
  if (!session || question.trim() === '' || runningLabel() !== of) return null;
  const sampling = { temperature: 0, maxTokens: 128 };
  let text = '';
  try {
    for await (const piece of session.chat([{ role: 'user', content: question }], { sampling })) text += piece.text;
  } catch {
    // A model without a chat template answers no questions; the training does not need it.
    return null;
  }
  return text.trim();
}

/** Trains the prepared run from its start. */
export async function begin(): Promise<void> {
  if (!training || !draft) return;
  const { examples, name, question, ...base } = draft;
  change({ phase: 'asking', error: null });
  const before = await ask(question, base.model);
  change({ before });
  const about: About = { name, question, before, ...base, totalSteps: now().totalSteps, losses: [], evaluated: [] };
  const place = await opened();
  let run: Run = { id: crypto.randomUUID(), createdAt: Date.now(), steps: 0, about };
  if (place) run = await place.create(about, examples);
  else inMemory = { run, examples, checkpoint: null };
  change({ run });
  await train(run, null);
}

/** Continues a stored run, also one of an earlier visit. */
export async function resume(run: Run): Promise<void> {
  const { about } = run;
  const running = currentSession() && runningLabel() === about.model ? runningSource() : null;
  const source = about.source ?? running;
  if (!source) {
    change({ trouble: strings().training.needsModel.replace('{model}', about.model) });
    return;
  }
  const { runs, kept } = now();
  set({
    training: {
      ...NO_TRAINING,
      runs,
      kept,
      phase: 'loading',
      name: about.name,
      model: about.model,
      steps: run.steps,
      totalSteps: about.totalSteps,
      losses: about.losses.filter((point) => point.step <= run.steps),
      evaluated: about.evaluated.filter((point) => point.step <= run.steps),
      question: about.question,
      before: about.before,
      run,
    },
  });
  try {
    const place = await opened();
    const held = place ? await place.read(run) : inMemory;
    if (!held) return;
    const { examples, checkpoint } = held;
    training = await prepareTraining(source, { ...engine, examples, recipe: about.recipe, format: about.format });
    training.onLost = (error) => void fail(error);
    change({ plan: training.plan });
    await train(run, checkpoint);
  } catch (error) {
    await fail(error);
  }
}

/** One tab trains a run: the lock also keeps the browser from freezing a hidden tab. */
async function train(run: Run, checkpoint: SourceFile[] | null): Promise<void> {
  const work = async (free: unknown) => {
    if (free === null) {
      await training?.dispose();
      training = null;
      change({ phase: 'idle', trouble: strings().training.otherTab });
      return;
    }
    await follow(run, checkpoint);
  };
  if (navigator.locks) await navigator.locks.request(`bayan-training-${run.id}`, { ifAvailable: true }, work);
  else await work(undefined);
}

async function follow(run: Run, checkpoint: SourceFile[] | null): Promise<void> {
  const running = training;
  if (!running) return;
  change({ phase: 'loading', run });
  try {
    const result = await running.run({ onEvent, ...(checkpoint ? { checkpoint } : {}) });
    await writing;
    await running.dispose();
    if (training !== running) return;
    training = null;
    await (result.end === 'paused' ? paused() : finished(result));
  } catch (error) {
    await writing.catch(() => {});
    if (training === running) await fail(error);
  }
}

function onEvent(event: TrainingEvent): void {
  const { losses, evaluated, phase } = now();
  switch (event.kind) {
    case 'step':
      change({
        phase: phase === 'pausing' ? phase : 'running',
        steps: event.steps,
        totalSteps: event.totalSteps,
        secondsLeft: event.secondsLeft,
        tokensPerSecond: event.tokensPerSecond,
        losses: [...losses, { step: event.steps, loss: event.loss }],
      });
      break;
    case 'evaluated':
      change({ evaluated: [...evaluated, { step: event.steps, loss: event.loss }] });
      break;
    case 'saved':
      save(event.steps, event.checkpoint);
      break;
  }
}

/** Stores a checkpoint; a browser that refuses it ends the training, because a pause would lose it. */
function save(steps: number, checkpoint: SourceFile[]): void {
  const { run, losses, evaluated } = now();
  if (!run) return;
  const about: About = { ...run.about, losses, evaluated };
  writing = writing.then(async () => {
    const place = await opened();
    let next: Run = { ...run, steps, about };
    if (place) next = await place.save(run, steps, checkpoint, about);
    else if (inMemory) inMemory = { ...inMemory, run: next, checkpoint };
    // The run may have been cancelled meanwhile.
    if (now().run?.id === run.id) change({ run: next });
  });
  writing.catch((error: unknown) => {
    writing = Promise.resolve();
    void fail(error);
  });
}

export function pause(): void {
  change({ phase: 'pausing' });
  training?.pause();
}

async function paused(): Promise<void> {
  change({ phase: 'paused', secondsLeft: null });
  await findRuns();
}

async function finished(result: TrainingResult): Promise<void> {
  change({ phase: 'done', steps: result.steps, adapter: result.adapter, secondsLeft: null });
  await findRuns();
  if (now().run) await putOn(now().run!, result.adapter);
}

/** Attaches the adapter to its base, if that runs, and asks the question again. */
async function putOn(run: Run, files: SourceFile[]): Promise<void> {
  if (!currentSession() || runningLabel() !== run.about.model) return;
  await addAdapter(files, run.about.name);
  const { error, list } = getState().adapters;
  change({ attachedAs: error ? null : list.at(-1)!.name });
  if (!error) change({ after: await ask(run.about.question, run.about.model) });
}

/** Shows a finished run of an earlier visit, and attaches its adapter. */
export async function attachRun(run: Run): Promise<void> {
  const { about } = run;
  const { runs, kept } = now();
  const files = await adapterOf(run);
  set({
    training: {
      ...NO_TRAINING,
      ...{ runs, kept, run, steps: run.steps, name: about.name, model: about.model },
      ...{ totalSteps: about.totalSteps, losses: about.losses, evaluated: about.evaluated },
      ...{ question: about.question, before: about.before },
      phase: 'done',
      adapter: files,
    },
  });
  await putOn(run, files);
}

/** The files of an adapter in a checkpoint. */
async function adapterOf(run: Run): Promise<SourceFile[]> {
  const place = await opened();
  const held = place ? await place.read(run) : inMemory;
  return (held?.checkpoint ?? []).filter(({ path }) => path.startsWith('adapter_'));
}

/** Ends the training, or leaves a paused one, and deletes its run. */
export async function cancelTraining(): Promise<void> {
  const { run } = now();
  const old = training;
  training = null;
  await old?.dispose();
  await writing.catch(() => {});
  set({ training: { ...NO_TRAINING, runs: now().runs, kept: now().kept } });
  if (run) await deleteRun(run);
}

export async function deleteRun(run: Run): Promise<void> {
  await (await opened())?.delete(run.id).catch(() => {});
  await findRuns();
}
