//! The view of a dry run: shows exactly which tokens are trained.

use std::fmt::Write;

use bayan_generate::text::{TextError, Tokenizer};

use super::Tokens;

const TRAINED: &str = "\u{1b}[32m";
const RESET: &str = "\u{1b}[0m";

/// Shows a sequence as text, its trained tokens in green or, without colour, between ⟦ and ⟧. Control characters in the
/// data are printed as visible symbols, so that they do not reach the terminal.
///
/// # Errors
/// The tokenizer cannot decode an id.
pub fn dry_run(tokens: &Tokens, tokenizer: &Tokenizer, colour: bool) -> Result<String, TextError> {
    let mut out = String::new();
    let (open, close) = if colour { (TRAINED, RESET) } else { ("⟦", "⟧") };
    let mut start = 0;
    while start < tokens.ids.len() {
        let trained = tokens.trained[start];
        let end = tokens.trained[start..]
            .iter()
            .position(|t| *t != trained)
            .map_or(tokens.ids.len(), |length| start + length);
        let text: String = tokenizer.decode(&tokens.ids[start..end], false)?.chars().map(visible).collect();
        let _ = if trained { write!(out, "{open}{text}{close}") } else { write!(out, "{text}") };
        start = end;
    }
    let _ = writeln!(out, "\n({} tokens, {} trained)", tokens.ids.len(), tokens.trained_count());
    Ok(out)
}

fn visible(c: char) -> char {
    match c {
        '\n' => '\n',
        '\0'..='\u{1f}' => char::from_u32(0x2400 + c as u32).unwrap_or('\u{FFFD}'),
        '\u{7f}'..='\u{9f}' => '\u{FFFD}',
        c => c,
    }
}
