import { useEffect } from 'preact/hooks';
import { startConversation } from '../state/conversations';
import { changeSettings } from '../state/panels';
import { onCpu, set, strings } from '../state/store';
import { DropPlace } from './Attachments';
import { Chat } from './Chat';
import { Composer } from './Composer';
import { useApp } from './hooks';
import { Header } from './Header';
import { Icon } from './icons';
import { ConfirmDownload, Notice } from './Dialogs';
import { DevicePanel } from './DevicePanel';
import { ModelsPanel } from './ModelsPanel';
import { SettingsPanel } from './SettingsPanel';
import { Sidebar } from './Sidebar';
import { TrainingPanel } from './TrainingPanel';

export function App() {
  const state = useApp();
  const t = strings();
  useEffect(() => {
    const keys = (event: KeyboardEvent) => {
      // `code` is the key's position: with an Arabic layout `key` is another letter.
      if ((event.ctrlKey || event.metaKey) && event.shiftKey && event.code === 'KeyO') {
        event.preventDefault();
        startConversation();
      } else if ((event.ctrlKey || event.metaKey) && event.code === 'KeyK') {
        event.preventDefault();
        set({ sidebar: true });
        requestAnimationFrame(() => document.getElementById('search')?.focus());
      } else if (event.code === 'Escape' && state.sidebar) set({ sidebar: false });
    };
    window.addEventListener('keydown', keys);
    return () => window.removeEventListener('keydown', keys);
  });
  return (
    <div class={state.sidebar ? 'shell with-sidebar' : 'shell'}>
      <a
        class="skip"
        href="#main"
        onClick={(e) => {
          e.preventDefault();
          document.getElementById('composer')?.focus();
        }}
      >
        {t.skip}
      </a>
      <Sidebar />
      {state.sidebar && (
        <button type="button" class="scrim" aria-label={t.close} onClick={() => set({ sidebar: false })} />
      )}
      <main id="main" class="main" inert={state.sidebar && matchMedia('(max-width: 820px)').matches}>
        <Header />
        {!state.online && (
          <p class="strip" role="status">
            {t.offline}
          </p>
        )}
        {state.storageBroken && (
          <p class="strip warn" role="alert">
            {t.storageFailed}
          </p>
        )}
        {state.probe !== null && onCpu() && !state.settings.cpuNoted && (
          <div class="strip closable" role="status">
            <p>
              {t.cpuNote}{' '}
              <button type="button" class="text-button" onClick={() => set({ panel: 'device' })}>
                {t.cpuMore}
              </button>
            </p>
            <button
              type="button"
              class="icon-button small"
              aria-label={t.close}
              onClick={() => changeSettings({ cpuNoted: true })}
            >
              <Icon name="close" size={16} />
            </button>
          </div>
        )}
        <Chat />
        <Composer />
        <DropPlace />
      </main>
      {state.panel === 'models' && <ModelsPanel />}
      {state.panel === 'settings' && <SettingsPanel />}
      {state.panel === 'device' && <DevicePanel />}
      {state.panel === 'training' && <TrainingPanel />}
      {state.plan && <ConfirmDownload />}
      <Notice />
    </div>
  );
}
