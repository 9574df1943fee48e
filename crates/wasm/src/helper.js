/**
 * Workers that help the engine on the CPU. The build appends this text to `bayan.js`, so that a helper is the same file
 * under another name, and a host serves no more files than without helpers.
 */
const HELPER_NAME = 'bayan helper';
/** How long a helper may take to start; it compiles nothing. */
const HELPER_STARTS_MS = 20_000;
/** The memory begins with whose turn it is and the length of an error's text (crates/wasm/src/helpers.rs). */
const HELPER_HEAD_BYTES = 64;
const HELPER_FAILED = 2;

/** Starts a helper; resolves when it waits for work. */
async function startHelper(module, memory) {
  const worker = new Worker(import.meta.url, { type: 'module', name: HELPER_NAME });
  let late;
  try {
    await new Promise((resolve, reject) => {
      late = setTimeout(
        () => reject(new Error(`it did not start within ${HELPER_STARTS_MS / 1000} seconds`)),
        HELPER_STARTS_MS,
      );
      worker.onmessage = ({ data }) => (data.ready ? resolve() : reject(new Error(data.reason)));
      worker.onerror = (event) => reject(new Error(event.message || 'its script could not be loaded'));
      worker.postMessage({ module, memory });
    });
  } catch (error) {
    worker.terminate();
    throw error;
  } finally {
    clearTimeout(late);
  }
  return worker;
}

/** Works until the engine ends this worker. */
function runHelper({ module, memory }) {
  try {
    initSync({ module });
  } catch (error) {
    self.postMessage({ reason: String(error) });
    return;
  }
  self.postMessage({ ready: true });
  const words = new Int32Array(memory, 0, 2);
  let reason;
  try {
    reason = help(memory);
  } catch (error) {
    reason = String(error);
  }
  const text = new TextEncoder().encode(reason).subarray(0, 1000);
  new Uint8Array(memory, HELPER_HEAD_BYTES).set(text);
  words[1] = text.length;
  Atomics.store(words, 0, HELPER_FAILED);
  Atomics.notify(words, 0);
}

if (globalThis.name === HELPER_NAME) self.onmessage = ({ data }) => runHelper(data);
