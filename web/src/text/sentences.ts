/** Sentences for the screen reader's live region: announced when whole, not token by token. */
export class Sentences {
  private said = 0;

  /** New whole sentences in `text` since the last call; at `done`, whatever is left. */
  take(text: string, done: boolean): string {
    const rest = text.slice(this.said, this.said + 4000);
    let end = done ? rest.length : 0;
    if (!done) for (const match of rest.matchAll(/[.!؟?؛:]\s|\n/g)) end = match.index + match[0].length;
    if (end === 0) return '';
    this.said += end;
    return rest.slice(0, end).replace(/```[\s\S]*?```/g, ' ').replace(/[*_`#|>]+/g, '').replace(/\s+/g, ' ').trim();
  }
}
