/** The session with the running model, and its loss. */
import type { BayanError, Session } from 'bayan-web';
import { getState, set } from './store';

let session: Session | null = null;
export const currentSession = (): Session | null => session;
export const sessionInfo = () => session?.info ?? null;
export function setSession(next: Session | null): void {
  session = next;
}

/** The label of the model that runs, loads or failed; empty without one. */
export function plainLabel(): string {
  const { model } = getState();
  return model.kind === 'none' ? '' : model.label;
}

/** Ends the session after an error that it cannot survive; the page then offers to load the model again. */
export function loseModel(error: BayanError): void {
  if (getState().model.kind === 'failed') return;
  const label = plainLabel();
  const old = session;
  session = null;
  void old?.dispose();
  set({ model: { kind: 'failed', label, error } });
}
