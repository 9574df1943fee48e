//! What Python does with texts, where a published rule depends on it.

use serde_json::Value;

/// Whether Python's `str.strip` removes this character: white space, and the four separators that Rust does not count.
pub fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character)
}

/// Python's `text.strip()`.
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Python's `text.rstrip()`.
pub fn strip_end(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// Python's `str(value)` of a cell; `None` for lists and objects, which no rule prints.
pub fn text(value: &Value) -> Option<String> {
    Some(match value {
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(_) | Value::Object(_) => return None,
    })
}

/// The texts of a Python list of string literals, as `ast.literal_eval` reads them.
///
/// # Errors
/// It is no such list; the message says where.
pub fn list(source: &str) -> Result<Vec<String>, String> {
    let mut characters = source.char_indices().peekable();
    let mut found = Vec::new();
    let space = |c: char| c.is_ascii_whitespace();
    let wrong = |at: usize, expected: &str| format!("expected {expected} at character {at} of a Python list");
    let skip = |characters: &mut std::iter::Peekable<std::str::CharIndices<'_>>| {
        while characters.next_if(|&(_, c)| space(c)).is_some() {}
    };
    skip(&mut characters);
    characters.next_if(|&(_, c)| c == '[').ok_or_else(|| wrong(0, "`[`"))?;
    loop {
        skip(&mut characters);
        match characters.next() {
            Some((_, ']')) => break,
            Some((at, quote @ ('\'' | '"'))) => {
                found.push(literal(&mut characters, quote).ok_or_else(|| wrong(at, "a closed string"))?)
            }
            Some((at, _)) => return Err(wrong(at, "a string or `]`")),
            None => return Err(wrong(source.len(), "`]`")),
        }
        skip(&mut characters);
        match characters.peek() {
            Some((_, ',')) => drop(characters.next()),
            Some((_, ']')) => {}
            // Python joins neighbouring literals.
            Some((at, _)) => return Err(wrong(*at, "a comma or `]`")),
            None => return Err(wrong(source.len(), "`]`")),
        }
    }
    skip(&mut characters);
    match characters.next() {
        Some((at, _)) => Err(wrong(at, "nothing after the list")),
        None => Ok(found),
    }
}

/// The rest of a string literal after its opening quotation mark.
fn literal(characters: &mut std::iter::Peekable<std::str::CharIndices<'_>>, quote: char) -> Option<String> {
    let mut text = String::new();
    while let Some((_, character)) = characters.next() {
        match character {
            _ if character == quote => return Some(text),
            '\n' => return None,
            '\\' => match characters.next()?.1 {
                '\n' => {}
                'n' => text.push('\n'),
                't' => text.push('\t'),
                'r' => text.push('\r'),
                same @ ('\\' | '\'' | '"') => text.push(same),
                'x' => text.push(code(characters, 2)?),
                'u' => text.push(code(characters, 4)?),
                'U' => text.push(code(characters, 8)?),
                other => text.extend(['\\', other]),
            },
            other => text.push(other),
        }
    }
    None
}

fn code(characters: &mut std::iter::Peekable<std::str::CharIndices<'_>>, digits: usize) -> Option<char> {
    let mut value = 0;
    for _ in 0..digits {
        value = value * 16 + characters.next()?.1.to_digit(16)?;
    }
    char::from_u32(value)
}

/// `re.sub(r"\[.*?\]", "", text)`: removes brackets and what is between them on one line.
pub fn without_brackets(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(open) = rest.find('[') {
        kept.push_str(&rest[..open]);
        let after = &rest[open + 1..];
        match after.find([']', '\n']) {
            Some(at) if after[at..].starts_with(']') => rest = &after[at + 1..],
            _ => {
                kept.push('[');
                rest = after;
            }
        }
    }
    kept + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_literals_are_read() {
        assert_eq!(list(r#"['أ', "ب'ج" , 'د\'ه\n\u0627']"#), Ok(vec!["أ".into(), "ب'ج".into(), "د'ه\nا".into()]));
        assert_eq!(list(" [ ] "), Ok(vec![]));
        assert_eq!(list("['a',]"), Ok(vec!["a".into()]));
        for wrong in ["", "['a'", "['a' 'b']", "[1]", "['a'] x", "['a", "'a'", r"['\ud800']", r"['\x1"] {
            assert!(list(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn brackets_are_removed_as_the_expression_does() {
        assert_eq!(without_brackets("[header] نص [x]y]"), " نص y]");
        assert_eq!(without_brackets("a [b\nc] d"), "a [b\nc] d");
        assert_eq!(without_brackets("[[a]] ["), "] [");
    }

    #[test]
    fn cells_are_printed_as_python_prints_them() {
        let printed = |json: &str| text(&serde_json::from_str(json).unwrap());
        assert_eq!(printed("null").as_deref(), Some("None"));
        assert_eq!(printed("true").as_deref(), Some("True"));
        assert_eq!(printed("2.0").as_deref(), Some("2.0"));
        assert_eq!(printed("12").as_deref(), Some("12"));
        assert_eq!(printed("[]"), None);
        assert_eq!(strip_end("a \u{1c}\u{a0}\n"), "a");
    }
}
