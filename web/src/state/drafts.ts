/** Unsent text: of each conversation's composer, of the new one, and of messages that are being edited. */

const KEY = 'bayan-drafts';
const MOST = 50;

type Drafts = Record<string, string>;

/** The tab's own drafts first: another tab may write to the same conversation. */
function read(storage: Storage): Drafts {
  const raw: unknown = JSON.parse(storage.getItem(KEY) ?? '{}');
  if (typeof raw !== 'object' || raw === null) return {};
  return Object.fromEntries(Object.entries(raw).filter(([, text]) => typeof text === 'string')) as Drafts;
}

export function draftOf(key: string): string | null {
  for (const storage of storages()) {
    try {
      const draft = read(storage)[key];
      if (draft !== undefined) return draft;
    } catch {
      // Unreadable: no draft.
    }
  }
  return null;
}

/** Null removes the draft. */
export function keepDraft(key: string, text: string | null): void {
  for (const storage of storages()) {
    try {
      const { [key]: _, ...others } = read(storage);
      const kept = Object.entries(others).slice(-MOST);
      storage.setItem(KEY, JSON.stringify(Object.fromEntries(text ? [...kept, [key, text]] : kept)));
    } catch {
      // Storage is full or refused: the draft lasts until the page is closed.
    }
  }
}

/** The tab's storage survives a reload, the browser's also closing the tab. */
function storages(): Storage[] {
  try {
    return [sessionStorage, localStorage];
  } catch {
    return [];
  }
}
