import { useEffect, useReducer } from 'preact/hooks';
import { getState, type State, subscribe } from '../state/app';

/** The page's state; the component is drawn again after each change. */
export function useApp(): State {
  const [, redraw] = useReducer((n: number) => n + 1, 0);
  useEffect(() => subscribe(() => redraw(undefined as never)), []);
  return getState();
}
