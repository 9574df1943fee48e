/** Splits a streaming text into whole sentences for the screen reader's live region. */
export class Sentences {
  private said = 0;

  /** The sentences of `text` completed since the last call; with `done` also the unfinished rest. */
  take(text: string, done: boolean): string {
    const rest = text.slice(this.said, this.said + 4000);
    let end = done ? rest.length : 0;
    if (!done) for (const match of rest.matchAll(/[.!؟?؛:]\s|\n/g)) end = match.index + match[0].length;
    if (end === 0) return '';
    this.said += end;
    return rest
      .slice(0, end)
      .replace(/```[\s\S]*?```/g, ' ')
      .replace(/[*_`#|>]+/g, '')
      .replace(/\s+/g, ' ')
      .trim();
  }
}
