import { useMemo, useRef, useState } from 'preact/hooks';
import {
  deleteConversation,
  exportConversations,
  importConversations,
  openConversation,
  renameConversation,
  startConversation,
} from '../state/conversations';
import { baseDirection, getState, set, strings } from '../state/store';
import { type Conversation, titleDirection } from '../state/database';
import { matches } from '../text/search';
import { Line } from './Directed';
import { useApp } from './hooks';
import { Icon, Mark } from './icons';

const DAY = 86_400_000;

function groups(list: Conversation[], t: ReturnType<typeof strings>): { name: string; items: Conversation[] }[] {
  const midnight = new Date().setHours(0, 0, 0, 0);
  const buckets = [
    { name: t.today, from: midnight },
    { name: t.yesterday, from: midnight - DAY },
    { name: t.week, from: midnight - 7 * DAY },
    { name: t.older, from: -Infinity },
  ];
  const result = buckets.map(({ name }) => ({ name, items: [] as Conversation[] }));
  for (const item of list) result[buckets.findIndex(({ from }) => item.updatedAt >= from)]!.items.push(item);
  return result.filter(({ items }) => items.length > 0);
}

export function Sidebar() {
  const state = useApp();
  const t = strings();
  const file = useRef<HTMLInputElement>(null);
  const found = useMemo(
    () =>
      state.query.trim() === ''
        ? state.conversations
        : state.conversations.filter((c) =>
            matches(`${c.title} ${c.turns.map((turn) => turn.content.slice(0, 20_000)).join(' ')}`, state.query),
          ),
    [state.conversations, state.query],
  );
  return (
    <nav class="sidebar" aria-label={t.conversations}>
      <div class="brand">
        <Mark />
        <span class="word">{t.appName}</span>
        <span class="spacer" />
        <button
          type="button"
          class="icon-button only-narrow"
          aria-label={t.close}
          onClick={() => set({ sidebar: false })}
        >
          <Icon name="close" />
        </button>
      </div>
      <button type="button" class="new-chat" onClick={startConversation}>
        <Icon name="plus" />
        {t.newChat}
      </button>
      <label class="search">
        <Icon name="search" size={18} />
        <input
          id="search"
          type="search"
          dir={state.query === '' ? undefined : 'auto'}
          placeholder={t.search}
          aria-label={t.search}
          value={state.query}
          onInput={(e) => set({ query: e.currentTarget.value })}
        />
      </label>
      <div class="chat-list">
        {state.conversations.length === 0 && <p class="dim pad">{t.noChats}</p>}
        {state.conversations.length > 0 && found.length === 0 && (
          <p class="dim pad" role="status">
            {t.noResults}
          </p>
        )}
        {groups(found, t).map((group) => (
          <section key={group.name}>
            <h2>{group.name}</h2>
            <ul>
              {group.items.map((item) => (
                <Row key={item.id} item={item} open={item.id === state.current.id} />
              ))}
            </ul>
          </section>
        ))}
      </div>
      <div class="side-foot">
        <button type="button" class="side-link" onClick={() => set({ panel: 'models', sidebar: false })}>
          <Icon name="box" size={19} />
          {t.models}
        </button>
        <button type="button" class="side-link" onClick={() => set({ panel: 'settings', sidebar: false })}>
          <Icon name="settings" size={19} />
          {t.settings}
        </button>
        <div class="side-pair">
          <button type="button" class="text-button" onClick={() => file.current?.click()}>
            {t.importAll}
          </button>
          <button
            type="button"
            class="text-button"
            disabled={state.conversations.length === 0}
            onClick={() => exportConversations()}
          >
            {t.exportAll}
          </button>
        </div>
        <input
          ref={file}
          type="file"
          accept="application/json,.json"
          hidden
          aria-label={t.importAll}
          onChange={(e) => {
            const chosen = e.currentTarget.files?.[0];
            if (chosen) void importConversations(chosen);
            e.currentTarget.value = '';
          }}
        />
      </div>
    </nav>
  );
}

function Row({ item, open }: { item: Conversation; open: boolean }) {
  const t = strings();
  const [mode, setMode] = useState<'view' | 'menu' | 'rename'>('view');
  const [title, setTitle] = useState(item.title);
  if (mode === 'rename') {
    const done = (keep: boolean) => {
      setMode('view');
      if (keep) void renameConversation(item.id, title);
    };
    return (
      <li class="row">
        <input
          class="rename"
          dir="auto"
          aria-label={t.chatTitle}
          value={title}
          maxLength={120}
          ref={(input) => input?.focus()}
          onInput={(e) => setTitle(e.currentTarget.value)}
          onBlur={() => done(true)}
          onKeyDown={(e) => {
            if (e.isComposing) return;
            if (e.key === 'Enter') done(true);
            else if (e.key === 'Escape') {
              e.stopPropagation();
              done(false);
            }
          }}
        />
      </li>
    );
  }
  return (
    <li class={open ? 'row open' : 'row'}>
      <button
        type="button"
        class="row-title"
        dir={titleDirection(item.title, baseDirection())}
        aria-current={open ? 'page' : undefined}
        onClick={() => openConversation(item.id)}
      >
        <Line text={item.title || t.newChat} direction={titleDirection(item.title, baseDirection())} />
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
      {mode === 'menu' && (
        <div
          class="row-menu"
          onKeyDown={(e) => {
            if (e.key === 'Escape') {
              e.stopPropagation();
              setMode('view');
            }
          }}
        >
          <button
            type="button"
            onClick={() => {
              setTitle(item.title);
              setMode('rename');
            }}
          >
            <Icon name="edit" size={17} />
            {t.rename}
          </button>
          <button
            type="button"
            onClick={() => {
              setMode('view');
              exportConversations(item.id);
            }}
          >
            <Icon name="export" size={17} />
            {t.exportOne}
          </button>
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
      )}
    </li>
  );
}
