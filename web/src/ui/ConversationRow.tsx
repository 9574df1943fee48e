/** One conversation in the sidebar, with its menu and the fields for its title and folder. */
import { useState } from 'preact/hooks';
import {
  canShare,
  deleteConversation,
  exportConversations,
  moveConversation,
  openConversation,
  pinConversation,
  printConversation,
  renameConversation,
  shareConversation,
} from '../state/conversations';
import { type Conversation, titleDirection } from '../state/database';
import { baseDirection, getState, strings } from '../state/store';
import { Line } from './Directed';
import { Icon } from './icons';

type Mode = 'view' | 'menu' | 'rename' | 'folder';

export function ConversationRow({ item, open }: { item: Conversation; open: boolean }) {
  const t = strings();
  const [mode, setMode] = useState<Mode>('view');
  if (mode === 'rename' || mode === 'folder') {
    const done = (text: string | null) => {
      setMode('view');
      if (text === null) return;
      void (mode === 'rename' ? renameConversation(item.id, text) : moveConversation(item.id, text));
    };
    return (
      <li class="row">
        {mode === 'rename' ? (
          <Field label={t.chatTitle} start={item.title} onDone={done} />
        ) : (
          <Field label={t.folderName} start={item.folder ?? ''} suggestions={folderNames()} onDone={done} />
        )}
      </li>
    );
  }
  const direction = titleDirection(item.title, baseDirection());
  return (
    <li class={open ? 'row open' : 'row'}>
      <button
        type="button"
        class="row-title"
        dir={direction}
        aria-current={open ? 'page' : undefined}
        onClick={() => openConversation(item.id)}
      >
        <Line text={item.title || t.newChat} direction={direction} />
      </button>
      <button
        type="button"
        class="icon-button small row-more"
        aria-label={`${t.options}: ${item.title}`}
        aria-expanded={mode === 'menu'}
        onClick={() => setMode(mode === 'menu' ? 'view' : 'menu')}
      >
        <Icon name="dots" size={18} />
      </button>
      {mode === 'menu' && <Menu item={item} setMode={setMode} />}
    </li>
  );
}

export function folderNames(): string[] {
  return [...new Set(getState().conversations.map((c) => c.folder ?? ''))].filter(Boolean).sort();
}

function Menu({ item, setMode }: { item: Conversation; setMode: (mode: Mode) => void }) {
  const t = strings();
  const entry = (icon: Parameters<typeof Icon>[0]['name'], label: string, run: () => void, next: Mode = 'view') => (
    <button
      type="button"
      onClick={() => {
        setMode(next);
        run();
      }}
    >
      <Icon name={icon} size={17} />
      {label}
    </button>
  );
  const nothing = () => {};
  return (
    <div
      class="row-menu"
      onKeyDown={(e) => {
        if (e.key !== 'Escape') return;
        e.stopPropagation();
        setMode('view');
      }}
    >
      {entry('pin', item.pinned ? t.unpin : t.pin, () => void pinConversation(item.id, !item.pinned))}
      {entry('edit', t.rename, nothing, 'rename')}
      {entry('folder', t.folder, nothing, 'folder')}
      {entry('export', t.exportMarkdown, () => exportConversations(item.id, 'markdown'))}
      {entry('export', t.exportOne, () => exportConversations(item.id))}
      {entry('print', t.print, () => printConversation(item.id))}
      {canShare() && entry('share', t.share, () => void shareConversation(item.id))}
      <button
        type="button"
        class="danger"
        onClick={() => {
          if (getState().conversations.some((c) => c.id === item.id)) void deleteConversation(item.id);
        }}
      >
        <Icon name="trash" size={17} />
        {t.delete}
      </button>
    </div>
  );
}

/** A text field in a row: Enter or leaving it keeps the text, Escape does not. */
function Field(props: { label: string; start: string; suggestions?: string[]; onDone: (text: string | null) => void }) {
  const [text, setText] = useState(props.start);
  return (
    <>
      <input
        class="rename"
        dir="auto"
        aria-label={props.label}
        placeholder={props.label}
        value={text}
        maxLength={120}
        list={props.suggestions ? 'folders' : undefined}
        ref={(input) => input?.focus()}
        onInput={(e) => setText(e.currentTarget.value)}
        onBlur={() => props.onDone(text)}
        onKeyDown={(e) => {
          if (e.isComposing) return;
          if (e.key === 'Enter') props.onDone(text);
          else if (e.key === 'Escape') {
            e.stopPropagation();
            props.onDone(null);
          }
        }}
      />
      {props.suggestions && (
        <datalist id="folders">
          {props.suggestions.map((name) => (
            <option key={name} value={name} />
          ))}
        </datalist>
      )}
    </>
  );
}
