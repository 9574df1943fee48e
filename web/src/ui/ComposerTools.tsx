/** Buttons of the composer: tasks on an Arabic text, and dictation. */
import { useEffect, useRef, useState } from 'preact/hooks';
import { TASKS, type Task } from '../data/writing';
import { canDictate, dictate } from '../state/speech';
import { strings } from '../state/store';
import { useApp } from './hooks';
import { Icon } from './icons';

/** `target` names what the tasks work on; null where there is nothing. */
export function WritingTools({
  target,
  disabled,
  onTask,
}: {
  target: 'text' | 'file' | 'answer' | null;
  disabled: boolean;
  onTask: (task: Task) => void;
}) {
  const t = strings();
  const [open, setOpen] = useState(false);
  const place = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (!open) return;
    const outside = (event: Event) => {
      if (!place.current?.contains(event.target as Node)) setOpen(false);
    };
    addEventListener('pointerdown', outside);
    return () => removeEventListener('pointerdown', outside);
  }, [open]);
  const words = { text: t.writing.onText, file: t.writing.onFile, answer: t.writing.onAnswer };
  return (
    <div
      class="writing"
      ref={place}
      onKeyDown={(e) => {
        if (e.key !== 'Escape' || !open) return;
        e.stopPropagation();
        setOpen(false);
      }}
    >
      <button
        type="button"
        class="tool"
        aria-label={t.writing.title}
        title={t.writing.title}
        aria-expanded={open}
        disabled={disabled}
        onClick={() => setOpen(!open)}
      >
        <Icon name="wand" />
      </button>
      {open && (
        <div class="writing-menu">
          <p class="dim small-text">{target ? words[target] : t.writing.nothing}</p>
          {target &&
            TASKS.map((task) => (
              <button
                type="button"
                key={task}
                onClick={() => {
                  setOpen(false);
                  onTask(task);
                }}
              >
                {t.writing.tasks[task]}
              </button>
            ))}
        </div>
      )}
    </div>
  );
}

/** Shown only where the browser recognizes speech on the device itself. */
export function DictateButton({ onText }: { onText: (text: string) => void }) {
  const t = strings();
  const { settings } = useApp();
  const language = settings.language === 'ar' ? 'ar-SA' : 'en-US';
  const [possible, setPossible] = useState(false);
  const [stop, setStop] = useState<(() => void) | null>(null);
  const write = useRef(onText);
  write.current = onText;
  useEffect(() => {
    let current = true;
    void canDictate(language).then((can) => current && setPossible(can));
    return () => {
      current = false;
    };
  }, [language]);
  useEffect(() => () => stop?.(), [stop]);
  if (!possible) return null;
  const label = stop ? t.stopDictating : t.dictate;
  return (
    <button
      type="button"
      class={stop ? 'tool on' : 'tool'}
      aria-label={label}
      title={label}
      aria-pressed={stop !== null}
      onClick={() => {
        if (stop) return setStop(null);
        const end = dictate(
          language,
          (text) => write.current(text),
          () => setStop(null),
        );
        setStop(() => end);
      }}
    >
      <Icon name="mic" />
    </button>
  );
}
