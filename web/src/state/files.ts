/** Files that were chosen, dropped or pasted. */
import { plainName } from '../text/hidden';
import { attach } from './attachments';
import { isAdapter, unpackAdapter } from './adapter-file';
import { addAdapter, loadModel } from './model';
import { getState, set } from './store';

const MODEL = /\.(gguf|safetensors)$/i;

/** Files that were dropped or pasted: a model is opened, an adapter put on, the text of others joins the message. */
export async function takeFiles(files: File[]): Promise<void> {
  const sourceFiles = files.map((file) => ({ path: file.name, file }));
  if (getState().model.kind === 'ready' && isAdapter(await unpackAdapter(sourceFiles))) {
    set({ panel: 'models' });
    return addAdapter(sourceFiles, plainName(files[0]!.name));
  }
  if (files.some((file) => MODEL.test(file.name))) {
    set({ panel: null });
    return loadModel(
      { kind: 'files', files: sourceFiles },
      plainName(files.find((file) => MODEL.test(file.name))!.name),
    );
  }
  for (const file of files) await attach(file);
}
