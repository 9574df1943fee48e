/** Files or a folder from the person's disk: the directory picker where there is one, a plain file input elsewhere. */
import type { SourceFile } from 'bayan-web';
import { useRef } from 'preact/hooks';
import { strings } from '../state/store';
import { plainName } from '../text/hidden';

export function FilePicker({
  id,
  disabled = false,
  onFiles,
}: {
  id: string;
  disabled?: boolean;
  onFiles: (files: SourceFile[], label: string) => void;
}) {
  const t = strings();
  const files = useRef<HTMLInputElement>(null);
  const folder = useRef<HTMLInputElement>(null);
  const fromInput = (input: HTMLInputElement) => {
    const chosen: SourceFile[] = [...(input.files ?? [])].map((file) => ({
      path: file.webkitRelativePath || file.name,
      file,
    }));
    // Cleared, so that choosing the same file again fires another change event.
    input.value = '';
    if (chosen.length > 0) onFiles(chosen, plainName(chosen[0]!.path.split('/')[0]!));
  };
  const pickFolder = async () => {
    const pick = (window as Window & { showDirectoryPicker?: () => Promise<FileSystemDirectoryHandle> })
      .showDirectoryPicker;
    if (!pick) return folder.current?.click();
    try {
      const handle = await pick.call(window);
      onFiles(await readFolder(handle), plainName(handle.name));
    } catch (error) {
      if (!(error instanceof DOMException && error.name === 'AbortError')) folder.current?.click();
    }
  };
  return (
    <div class="actions">
      <button type="button" class="button" disabled={disabled} onClick={() => void pickFolder()}>
        {t.pickFolder}
      </button>
      <button type="button" class="button" disabled={disabled} onClick={() => files.current?.click()}>
        {t.pickFiles}
      </button>
      <input
        ref={files}
        id={id}
        type="file"
        multiple
        hidden
        aria-label={t.pickFiles}
        onChange={(e) => fromInput(e.currentTarget)}
      />
      <input
        ref={folder}
        type="file"
        multiple
        hidden
        aria-label={t.pickFolder}
        onChange={(e) => fromInput(e.currentTarget)}
        {...{ webkitdirectory: true }}
      />
    </div>
  );
}

/** Files of a chosen folder and the folders directly inside it. */
async function readFolder(handle: FileSystemDirectoryHandle, prefix = '', depth = 0): Promise<SourceFile[]> {
  const found: SourceFile[] = [];
  for await (const [name, entry] of handle.entries()) {
    if (entry.kind === 'file')
      found.push({ path: `${prefix}${name}`, file: await (entry as FileSystemFileHandle).getFile() });
    else if (depth < 1)
      found.push(...(await readFolder(entry as FileSystemDirectoryHandle, `${prefix}${name}/`, depth + 1)));
    if (found.length > 2000) break;
  }
  return found;
}
