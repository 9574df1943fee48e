/** Where the engine lies: in the package by default, beside the page or elsewhere by option. */

/**
 * Both addresses are relative to the built `dist/index.js`. The build of the package writes them into `new URL(…)` as
 * literals, which is the form that bundlers copy as assets.
 */
const ENGINE_JS: string = '../engine/bayan.js';
const ENGINE_WASM: string = '../engine/bayan_bg.wasm';

export interface EnginePlace {
  /** Address of `bayan.js`; default: the copy in the package. A relative one starts at the page. */
  engineUrl?: string | URL | undefined;
  /** Address of `bayan_bg.wasm`; default: beside `engineUrl`. */
  wasmUrl?: string | URL | undefined;
}

/** The name of the worker: the address of `bayan.js`, and after a space that of the wasm where it lies elsewhere. */
export function workerName(place: EnginePlace): string {
  const base = globalThis.document?.baseURI ?? globalThis.location.href;
  if (place.engineUrl === undefined)
    return `${new URL(ENGINE_JS, import.meta.url).href} ${new URL(ENGINE_WASM, import.meta.url).href}`;
  const engine = new URL(place.engineUrl, base).href;
  return place.wasmUrl === undefined ? engine : `${engine} ${new URL(place.wasmUrl, base).href}`;
}

/** The reverse of {@link workerName}. */
export function placeOf(name: string): { engineUrl: string; wasmUrl: string } {
  const [engineUrl = '', wasmUrl = engineUrl.replace(/\.js$/, '_bg.wasm')] = name.split(' ');
  return { engineUrl, wasmUrl };
}
