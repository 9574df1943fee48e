/** The session with the running model, and its loss. */
import type { BayanError, Session } from 'bayan-web';
import { getState, set } from './store';

let session: Session | null = null;
let label = '';
export const currentSession = (): Session | null => session;
export const runningLabel = (): string => label;
export const sessionInfo = () => session?.info ?? null;
export function setSession(next: Session | null, name: string): void {
  session = next;
  label = name;
}

/** The label of the model that runs, else of the one that loads or failed; empty without one. */
export function plainLabel(): string {
  const { model } = getState();
  return session ? label : model.kind === 'none' ? '' : model.label;
}

/** Ends the session after an error that it cannot survive; the page then offers to load the model again. */
export function loseModel(error: BayanError): void {
  const { model } = getState();
  const lost = plainLabel();
  const old = session;
  setSession(null, '');
  void old?.dispose();
  // While another model loads, that one takes its place.
  if (model.kind !== 'failed' && model.kind !== 'loading')
    set({ model: { kind: 'failed', label: lost, error, from: null } });
}
