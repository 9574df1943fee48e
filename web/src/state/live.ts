/**
 * The answer that is being written. A new token does not change the page's state; the one message that shows the answer
 * listens with `onLive`.
 */
export interface Live {
  conversation: string;
  turn: string;
  text: string;
  tokens: number;
  startedAt: number;
  firstAt: number;
}

let abort: AbortController | null = null;
export let live: Live | null = null;

/** Starts a new answer; the signal is aborted by `stop`. */
export function startLive(next: Live): AbortSignal {
  live = next;
  abort = new AbortController();
  return abort.signal;
}

export function finishLive(): void {
  live = null;
  abort = null;
}

export function stop(): void {
  abort?.abort();
}

const listeners = new Set<() => void>();
export function onLive(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export function liveChanged(): void {
  for (const listener of listeners) listener();
}
