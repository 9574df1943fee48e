/**
 * The turns of a conversation as a tree: each turn names the one before it. Nothing is ever replaced, so that versions
 * stay and two tabs can add turns at the same time.
 *
 * Turns with the same parent are versions of each other where one edits another (`versionOf`) or where they answer the
 * same message. Other turns with the same parent were written in two tabs at once: all of them are shown, in order of
 * time, each followed by what answers it.
 */
import type { Attachment } from '../text/documents';

export interface Turn {
  id: string;
  role: 'user' | 'assistant';
  content: string;
  /** Files of a message, read before its text. */
  files?: Attachment[];
  at: number;
  /**
   * The turn before this one; null for a first turn. Records of version 0.1 have none: the order of the list counts.
   */
  parent?: string | null;
  /** The first version of the message that this one edits. */
  versionOf?: string;
  end?: 'stopped' | 'length' | 'context' | 'error';
  model?: string;
  tokensPerSecond?: number;
  charsPerSecond?: number;
  /** The first turn that the model read for this answer, where the context did not hold all before it. */
  readFrom?: string;
  /** The part of the conversation's files that the model read for this answer, where the context did not hold them. */
  filesRead?: number;
}

/** What a model reads of a turn: its files, each between marks with its name, then its text. */
export function contentOf({ content, files = [] }: Turn): string {
  const parts = files.map(({ name, text }) => `<file name="${name.replace(/"/g, "'")}">\n${text}\n</file>`);
  return [...parts, content].filter(Boolean).join('\n\n');
}

/** A turn on the shown path with its versions, itself among them. */
export interface ShownTurn {
  turn: Turn;
  versions: Turn[];
}

interface Tree {
  turns: Turn[];
  /** The version that is shown, by the key of its group; without one, the newest. */
  chosen?: Record<string, string>;
}

/** Names the group of versions that a turn belongs to. */
export function groupOf(turn: Turn): string {
  return turn.role === 'assistant' ? `answer ${turn.parent ?? ''}` : (turn.versionOf ?? turn.id);
}

/** The same turns, each with its parent. */
export function withParents(turns: Turn[]): Turn[] {
  return turns.map((turn, at) => (turn.parent === undefined ? { ...turn, parent: turns[at - 1]?.id ?? null } : turn));
}

/** The turns that are shown, from the first to the last. */
export function shownTurns({ turns, chosen = {} }: Tree): ShownTurn[] {
  const children = new Map<string | null, Map<string, Turn[]>>();
  for (const turn of withParents(turns)) {
    const groups = children.get(turn.parent!) ?? new Map<string, Turn[]>();
    children.set(turn.parent!, groups);
    groups.set(groupOf(turn), [...(groups.get(groupOf(turn)) ?? []), turn]);
  }
  const groupsAfter = (parent: string | null) =>
    [...(children.get(parent) ?? [])].sort(([, a], [, b]) => a[0]!.at - b[0]!.at);
  const shown: ShownTurn[] = [];
  // A damaged record may name a turn as its own ancestor.
  const seen = new Set<string>();
  for (const open = [groupsAfter(null)]; open.length > 0;) {
    const group = open.at(-1)!.shift();
    if (!group) {
      open.pop();
      continue;
    }
    const [key, list] = group;
    const versions = list.sort((a, b) => a.at - b.at);
    const turn = versions.find((each) => each.id === chosen[key]) ?? versions.at(-1)!;
    if (seen.has(turn.id)) continue;
    seen.add(turn.id);
    shown.push({ turn, versions });
    open.push(groupsAfter(turn.id));
  }
  return shown;
}

/** `tree` with `turn` added, or replaced where it is there. */
export function withTurn<T extends Tree>(tree: T, turn: Turn): T {
  const turns = withParents(tree.turns);
  const at = turns.findIndex((each) => each.id === turn.id);
  if (at < 0) return { ...tree, turns: [...turns, turn] };
  return { ...tree, turns: turns.map((each, i) => (i === at ? turn : each)) };
}

/** All turns of both: those of `stored`, then those that only `local` holds. */
export function merged<T extends Tree>(stored: T, local: Tree): T {
  const known = new Set(stored.turns.map((turn) => turn.id));
  const more = withParents(local.turns).filter((turn) => !known.has(turn.id));
  return more.length === 0 ? stored : { ...stored, turns: [...withParents(stored.turns), ...more] };
}
