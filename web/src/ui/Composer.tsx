import { useEffect, useRef, useState } from 'preact/hooks';
import { instruction, type Task } from '../data/writing';
import { send } from '../state/answers';
import { takeFiles } from '../state/files';
import { stop } from '../state/live';
import { baseDirection, strings } from '../state/store';
import type { Conversation } from '../state/database';
import { draftOf, keepDraft } from '../state/drafts';
import { shownTurns } from '../state/turns';
import { fieldDirection } from '../text/field';
import { AttachButton, PendingFiles } from './Attachments';
import { DictateButton, WritingTools } from './ComposerTools';
import { useApp } from './hooks';
import { Icon } from './icons';

/** A conversation without turns has no lasting id: there is one draft for all of them. */
const keyOf = (conversation: Conversation) => (conversation.turns.length === 0 ? 'new' : conversation.id);

export function Composer() {
  const state = useApp();
  const t = strings();
  const box = useRef<HTMLTextAreaElement>(null);
  const key = keyOf(state.current);
  const [text, setText] = useState(draftOf(key) ?? '');
  const [width, setWidth] = useState(innerWidth);
  const placeholder = state.model.kind === 'none' ? t.placeholderNoModel : t.placeholder;
  const [turned, setTurned] = useState<'rtl' | 'ltr' | null>(null);
  useEffect(() => setText(draftOf(key) ?? ''), [state.current.id, key]);
  useEffect(() => {
    const area = box.current!;
    area.style.height = 'auto';
    area.style.height = `${Math.min(area.scrollHeight, 240)}px`;
    // A long hint takes two lines on a phone.
  }, [text, width, placeholder]);
  useEffect(() => {
    const onResize = () => setWidth(innerWidth);
    addEventListener('resize', onResize);
    return () => removeEventListener('resize', onResize);
  }, []);
  const change = (value: string) => {
    keepDraft(key, value);
    setText(value);
  };
  const busy = state.answering !== null || state.reading > 0;
  const empty = text.trim() === '' && state.attachments.length === 0;
  const submit = (message = text) => {
    if (busy || empty) return;
    change('');
    setTurned(null);
    void send(message);
  };
  const answer = shownTurns(state.current).findLast(({ turn }) => turn.role === 'assistant')?.turn.content ?? '';
  const target = text.trim() !== '' ? 'text' : state.attachments.length > 0 ? 'file' : answer !== '' ? 'answer' : null;
  const perform = (task: Task) => {
    if (target === 'answer') void send(instruction(task, answer));
    else submit(instruction(task, text));
  };
  const onKeyDown = (event: KeyboardEvent) => {
    // While an input method composes, Enter confirms its text; some browsers report this only as keyCode 229.
    if (event.isComposing || event.keyCode === 229) return;
    if (event.key === 'Enter' && !event.shiftKey) {
      event.preventDefault();
      submit();
    } else if (event.ctrlKey && event.shiftKey && (event.code === 'ShiftRight' || event.code === 'ControlRight'))
      setTurned('rtl');
    else if (event.ctrlKey && event.shiftKey && (event.code === 'ShiftLeft' || event.code === 'ControlLeft'))
      setTurned('ltr');
  };
  return (
    <form
      class="composer"
      onSubmit={(e) => {
        e.preventDefault();
        submit();
      }}
    >
      <PendingFiles />
      <div class="composer-box">
        <AttachButton />
        <WritingTools target={target} disabled={busy} onTask={perform} />
        <textarea
          id="composer"
          ref={box}
          rows={1}
          value={text}
          {...(turned ? { dir: turned } : fieldDirection(text, baseDirection()))}
          placeholder={placeholder}
          aria-label={t.placeholder}
          enterkeyhint="send"
          autocomplete="off"
          spellcheck
          onInput={(e) => change(e.currentTarget.value)}
          onKeyDown={onKeyDown}
          onPaste={(e) => {
            const files = [...(e.clipboardData?.files ?? [])];
            // A copied part of a page brings its text and a picture of it: the text is meant.
            if (files.length === 0 || e.clipboardData?.types.includes('text/plain')) return;
            e.preventDefault();
            void takeFiles(files);
          }}
        />
        <DictateButton
          onText={(said) => change(text.trim() === '' ? said.trim() : `${text.trimEnd()} ${said.trim()}`)}
        />
        {state.answering !== null ? (
          <button type="button" class="send stop" aria-label={t.stop} title={t.stop} onClick={stop}>
            <Icon name="stop" size={22} />
          </button>
        ) : (
          <button type="submit" class="send" aria-label={t.send} title={t.send} disabled={empty || busy}>
            <Icon name="send" size={22} />
          </button>
        )}
      </div>
      <p class="hint">{t.composerHint}</p>
    </form>
  );
}
