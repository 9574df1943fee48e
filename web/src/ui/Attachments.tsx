/** Files of a message: in the composer before it is sent, and in its bubble. */
import { useEffect, useRef, useState } from 'preact/hooks';
import { removeAttachment } from '../state/attachments';
import { takeFiles } from '../state/files';
import { baseDirection, formats, getState, strings } from '../state/store';
import { type Attachment } from '../text/documents';
import { directionOf, languageOf } from '../text/direction';
import { Lines } from './Directed';
import { useApp } from './hooks';
import { Icon } from './icons';

/** Letters of a file that its preview shows. */
const PREVIEW = 4_000;

const sizeOf = (file: Attachment) => `${formats().number(file.text.length)} ${strings().letters}`;

/** The files of the next message. */
export function PendingFiles() {
  const t = strings();
  const { attachments, reading } = useApp();
  if (attachments.length === 0 && reading === 0) return null;
  return (
    <ul class="files" aria-live="polite">
      {attachments.map((file, at) => (
        <li key={at} class="file-chip">
          <Icon name="file" size={18} />
          <bdi class="file-name">{file.name}</bdi>
          <span class="dim small-text">{sizeOf(file)}</span>
          <button
            type="button"
            class="mini"
            aria-label={`${t.attachments.remove}: ${file.name}`}
            title={t.attachments.remove}
            onClick={() => removeAttachment(at)}
          >
            <Icon name="close" size={15} />
          </button>
        </li>
      ))}
      {reading > 0 && <li class="file-chip dim">{t.attachments.reading}</li>}
    </ul>
  );
}

/** The files of a message that was sent; a press shows the beginning of the text. */
export function SentFiles({ files }: { files: Attachment[] }) {
  return (
    <div class="files">
      {files.map((file, at) => {
        const { direction } = directionOf(file.text.slice(0, PREVIEW), baseDirection());
        const long = file.text.length > PREVIEW;
        return (
          <details key={at} class="file-chip">
            <summary>
              <Icon name="file" size={18} />
              <bdi class="file-name">{file.name}</bdi>
              <span class="dim small-text">{sizeOf(file)}</span>
            </summary>
            <div class="file-text" dir={direction} lang={languageOf(direction)} tabIndex={0}>
              <Lines text={long ? `${file.text.slice(0, PREVIEW)}…` : file.text} base={direction} />
            </div>
          </details>
        );
      })}
    </div>
  );
}

export function AttachButton() {
  const t = strings();
  const input = useRef<HTMLInputElement>(null);
  return (
    <>
      <button
        type="button"
        class="tool"
        aria-label={t.attachments.add}
        title={t.attachments.add}
        onClick={() => input.current?.click()}
      >
        <Icon name="clip" />
      </button>
      <input
        ref={input}
        id="attach"
        type="file"
        multiple
        hidden
        aria-label={t.attachments.add}
        onChange={(e) => {
          const files = [...(e.currentTarget.files ?? [])];
          // Cleared, so that choosing the same file again fires another change event.
          e.currentTarget.value = '';
          void takeFiles(files);
        }}
      />
    </>
  );
}

/** Takes files that are dropped anywhere on the page. */
export function DropPlace() {
  const t = strings();
  const [over, setOver] = useState(false);
  useEffect(() => {
    // A drag enters and leaves every element on its way; the page is left where the count is back at zero.
    let depth = 0;
    const withFiles = (event: DragEvent) => event.dataTransfer?.types.includes('Files') ?? false;
    const enter = (event: DragEvent) => {
      if (!withFiles(event)) return;
      depth++;
      setOver(getState().panel === null);
    };
    const leave = (event: DragEvent) => {
      if (withFiles(event) && --depth <= 0) setOver(false);
    };
    const move = (event: DragEvent) => withFiles(event) && event.preventDefault();
    const drop = (event: DragEvent) => {
      if (!withFiles(event)) return;
      // Else the browser would leave the page for the file. An open panel takes files where it says so.
      event.preventDefault();
      depth = 0;
      setOver(false);
      if (getState().panel === null) void takeFiles([...(event.dataTransfer?.files ?? [])]);
    };
    addEventListener('dragenter', enter);
    addEventListener('dragleave', leave);
    addEventListener('dragover', move);
    addEventListener('drop', drop);
    return () => {
      removeEventListener('dragenter', enter);
      removeEventListener('dragleave', leave);
      removeEventListener('dragover', move);
      removeEventListener('drop', drop);
    };
  }, []);
  return over ? (
    <div class="drop-place" role="status">
      <p>{t.attachments.drop}</p>
    </div>
  ) : null;
}
