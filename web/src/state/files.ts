/** Files that were chosen, dropped or pasted. */
import { plainName } from '../text/hidden';
import { attach } from './attachments';
import { loadModel } from './model';
import { set } from './store';

const MODEL = /\.(gguf|safetensors)$/i;

/** Files that were dropped or pasted: a model is opened, the text of all others is added to the next message. */
export async function takeFiles(files: File[]): Promise<void> {
  if (files.some((file) => MODEL.test(file.name))) {
    const chosen = files.map((file) => ({ path: file.name, file }));
    set({ panel: null });
    return loadModel({ kind: 'files', files: chosen }, plainName(files.find((file) => MODEL.test(file.name))!.name));
  }
  for (const file of files) await attach(file);
}
