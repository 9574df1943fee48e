/** Starts the page: settings, device probe, included model, stored conversations, other tabs. */
import { probeDevice } from 'bayan-web';
import { openConversation, refreshFromOtherTab } from './conversations';
import { allConversations, onOtherTab } from './database';
import { findShipped, startByItself } from './model';
import { applySettings } from './panels';
import { getState, set } from './store';
import { findRuns } from './training';

export async function start(): Promise<void> {
  applySettings();
  window.addEventListener('online', () => set({ online: true }));
  window.addEventListener('offline', () => set({ online: false }));
  onOtherTab((id) => void refreshFromOtherTab(id));
  void Promise.all([probeDevice().then((probe) => set({ probe })), findShipped()]).then(startByItself);
  void findRuns();
  try {
    const conversations = await allConversations();
    const wanted = decodeURIComponent(location.hash.slice(1));
    const current = conversations.find((c) => c.id === wanted) ?? getState().current;
    set({ conversations, current });
  } catch {
    set({ storageBroken: true });
  }
  window.addEventListener('hashchange', () => {
    const found = getState().conversations.find((c) => c.id === decodeURIComponent(location.hash.slice(1)));
    if (found && found.id !== getState().current.id) openConversation(found.id);
  });
}
