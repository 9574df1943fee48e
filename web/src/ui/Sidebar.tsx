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
import { ConversationRow, folderNames } from './ConversationRow';
import { useApp } from './hooks';
import { Icon, Mark } from './icons';

const DAY = 86_400_000;

/** Pinned conversations, then folders by name, then the others by day. */
function groups(list: Conversation[], t: ReturnType<typeof strings>): { name: string; items: Conversation[] }[] {
  const midnight = new Date().setHours(0, 0, 0, 0);
  const free = list.filter((item) => !item.pinned && !item.folder);
  const since = (from: number, to: number) => free.filter((item) => item.updatedAt >= from && item.updatedAt < to);
  return [
    { name: t.pinned, items: list.filter((item) => item.pinned) },
    ...folderNames().map((name) => ({ name, items: list.filter((item) => !item.pinned && item.folder === name) })),
    { name: t.today, items: since(midnight, Infinity) },
    { name: t.yesterday, items: since(midnight - DAY, midnight) },
    { name: t.week, items: since(midnight - 7 * DAY, midnight - DAY) },
    { name: t.older, items: since(-Infinity, midnight - 7 * DAY) },
  ].filter(({ items }) => items.length > 0);
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
                <ConversationRow key={item.id} item={item} open={item.id === state.current.id} />
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
