/** The worker: imports the engine whose address is its name when the first model is loaded. */
import { importEngine } from './engine';
import { LocalBackend } from './local';
import { placeOf } from './place';
import { serve } from './serve';
import { OpfsStorage } from './source/storage';
import { ModelStore } from './source/store';
import type { FromWorker, Port, ToWorker } from './wire';

const scope = globalThis as unknown as Port<FromWorker, ToWorker> & { name: string };
/** The page passes the engine's addresses as the worker's name: they are not known when this file is built. */
const { engineUrl, wasmUrl } = placeOf(scope.name);
let store: Promise<ModelStore | null> | null = null;

serve(
  scope,
  new LocalBackend(
    () => importEngine(engineUrl, wasmUrl),
    () => (store ??= OpfsStorage.open().then((storage) => (storage ? new ModelStore(storage) : null))),
  ),
);
