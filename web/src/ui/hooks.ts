import { useEffect, useReducer } from 'preact/hooks';
import { getState, type State, subscribe } from '../state/store';

/** The page's state; each change renders the component again. */
export function useApp(): State {
  const [, redraw] = useReducer((n: number) => n + 1, 0);
  useEffect(() => subscribe(() => redraw(undefined as never)), []);
  return getState();
}
