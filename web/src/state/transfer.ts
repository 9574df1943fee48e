/** Conversations as files: JSON, which can be imported again, and Markdown, for people. */
import type { Strings } from '../strings/ar';
import type { Attachment } from '../text/documents';
import { plainName } from '../text/hidden';
import { type Conversation, titleFrom } from './database';
import { contentOf, shownTurns, type Turn, withParents } from './turns';

export const EXPORT_KIND = 'bayan-conversations';

export function exportText(conversations: Conversation[]): string {
  return JSON.stringify({ kind: EXPORT_KIND, version: 1, conversations }, null, 2);
}

/** The shown path as Markdown: a heading for each turn. */
export function markdownText(conversation: Conversation, t: Strings): string {
  const turns = shownTurns(conversation).map(
    ({ turn }) => `## ${turn.role === 'user' ? t.you : turn.model || t.assistant}\n\n${contentOf(turn).trim()}\n`,
  );
  return [`# ${conversation.title || t.newChat}\n`, ...turns].join('\n');
}

const asId = (value: unknown): string | null =>
  typeof value === 'string' && value !== '' && value.length <= 64 ? value : null;

/** Conversations of an export; null where the text is none. Unknown fields are dropped, wrong types refused. */
export function importText(text: string): Conversation[] | null {
  let json: { kind?: unknown; version?: unknown; conversations?: unknown };
  try {
    json = JSON.parse(text);
  } catch {
    return null;
  }
  if (json?.kind !== EXPORT_KIND || json.version !== 1 || !Array.isArray(json.conversations)) return null;
  const result: Conversation[] = [];
  for (const item of json.conversations as Partial<Conversation>[]) {
    if (typeof item?.title !== 'string' || !Array.isArray(item.turns)) return null;
    const turns: Turn[] = [];
    for (const turn of item.turns as Partial<Turn>[]) {
      const read = readTurn(turn);
      if (read === null) return null;
      turns.push(read);
    }
    const createdAt = Number(item.createdAt) || Date.now();
    const chosen = Object.entries(item.chosen ?? {}).filter(([, id]) => asId(id));
    result.push({
      id: asId(item.id) ?? crypto.randomUUID(),
      title: titleFrom(item.title) || titleFrom(turns[0]?.content ?? ''),
      createdAt,
      updatedAt: Number(item.updatedAt) || createdAt,
      system: typeof item.system === 'string' ? item.system : '',
      turns: withParents(turns),
      ...(chosen.length > 0 ? { chosen: Object.fromEntries(chosen) } : {}),
      ...(item.pinned === true ? { pinned: true } : {}),
      ...(typeof item.folder === 'string' && item.folder !== '' ? { folder: titleFrom(item.folder) } : {}),
    });
  }
  return result;
}

function readTurn(turn: Partial<Turn>): Turn | null {
  if ((turn?.role !== 'user' && turn?.role !== 'assistant') || typeof turn.content !== 'string') return null;
  const parent = turn.parent === null ? null : asId(turn.parent);
  const versionOf = asId(turn.versionOf);
  const readFrom = asId(turn.readFrom);
  const files: Attachment[] = [];
  for (const file of Array.isArray(turn.files) ? (turn.files as Partial<Attachment>[]) : []) {
    if (typeof file?.name !== 'string' || typeof file.text !== 'string') return null;
    files.push({ name: plainName(file.name), text: file.text, cut: file.cut === true });
  }
  return {
    id: asId(turn.id) ?? crypto.randomUUID(),
    role: turn.role,
    content: turn.content,
    at: Number(turn.at) || Date.now(),
    ...(turn.parent === null || parent !== null ? { parent } : {}),
    ...(versionOf ? { versionOf } : {}),
    ...(readFrom ? { readFrom } : {}),
    ...(typeof turn.model === 'string' ? { model: turn.model } : {}),
    ...(files.length > 0 ? { files } : {}),
  };
}
