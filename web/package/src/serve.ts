/** The worker's side: answers the messages of `wire.ts` from a `Backend`. */
import type { Backend, LoadHooks } from './backend';
import { toWire } from './errors';
import type { Piece } from './types';
import type { FromWorker, Port, ToWorker } from './wire';

export function serve(port: Port<FromWorker, ToWorker>, backend: Backend): void {
  const aborts = new Map<number, AbortController>();
  const answers = new Map<number, (ok: boolean) => void>();
  backend.onLost = (error) => port.postMessage({ kind: 'lost', error: toWire(error) });

  const hooksFor = (id: number, signal: AbortSignal): LoadHooks => ({
    signal,
    onProgress: (progress) => port.postMessage({ kind: 'progress', id, progress }),
    confirm: (plan) =>
      new Promise<boolean>((resolve) => {
        answers.set(id, resolve);
        signal.addEventListener('abort', () => resolve(false), { once: true });
        port.postMessage({ kind: 'confirm', id, plan });
      }),
  });

  const forward = async (id: number, pieces: AsyncIterable<Piece>): Promise<null> => {
    for await (const piece of pieces) port.postMessage({ kind: 'piece', id, piece });
    return null;
  };

  const run = async (message: Extract<ToWorker, { kind: 'call' }>, signal: AbortSignal): Promise<unknown> => {
    const { id } = message;
    switch (message.name) {
      case 'load':
        return backend.load(message.args, hooksFor(id, signal));
      case 'chat':
        return forward(id, backend.chat(message.args.messages, message.args.sampling, signal));
      case 'generate':
        return forward(id, backend.generate(message.args.prompt, message.args.sampling, signal));
      case 'warmUp':
        return backend.warmUp(message.args.tokens, message.args.sampling, signal);
      case 'tokenize':
        return backend.tokenize(message.args.text);
      case 'detokenize':
        return backend.detokenize(message.args.ids);
      case 'saveState':
        return backend.saveState();
      case 'restoreState':
        return backend.restoreState(message.args.bytes);
      case 'loadAdapter':
        return backend.loadAdapter(message.args.source, message.args.options, hooksFor(id, signal));
      case 'unloadAdapter':
        return backend.unloadAdapter(message.args.name);
      case 'prepareTraining':
        return backend.prepareTraining(message.args, hooksFor(id, signal));
      case 'measureTraining':
        return backend.measureTraining(hooksFor(id, signal));
      case 'train': {
        const { checkpoint } = message.args;
        return backend.train(checkpoint, (event) => port.postMessage({ kind: 'training', id, event }), signal);
      }
      case 'info':
        return backend.info();
      case 'listStored':
        return backend.listStored();
      case 'deleteStored':
        return backend.deleteStored(message.args.id);
      case 'dispose':
        return backend.dispose();
    }
  };

  port.addEventListener('message', (event) => {
    const message = event.data;
    if (message.kind === 'cancel') return aborts.get(message.id)?.abort();
    if (message.kind === 'answer') return answers.get(message.id)?.(message.ok);
    const abort = new AbortController();
    aborts.set(message.id, abort);
    run(message, abort.signal)
      .then(
        (value) => {
          const moved =
            message.name === 'saveState' && value instanceof Uint8Array ? [value.buffer as ArrayBuffer] : [];
          port.postMessage({ kind: 'result', id: message.id, value: value ?? null }, moved);
        },
        (error) => port.postMessage({ kind: 'error', id: message.id, error: toWire(error) }),
      )
      .finally(() => {
        aborts.delete(message.id);
        answers.delete(message.id);
      });
  });
}
