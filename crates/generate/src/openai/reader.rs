//! Calls in the text of an answer, while it comes. The grammar of the answer makes sure that what begins like a call is
//! one.

use serde_json::{Value, json};

use super::Format;

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Text for the user.
    Text(String),
    /// A call of this function begins.
    Call(String),
    /// Further characters of the last call's arguments, which are one JSON object in all.
    Arguments(String),
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    /// Text, of which `held` may be the beginning of a call's opening.
    Text,
    /// Before a call, up to its brace.
    Between,
    /// A call's name, so far.
    Name(String),
    /// Arguments: open braces and brackets, whether a string is open, whether its last character was a backslash.
    Arguments { depth: usize, quoted: bool, escaped: bool },
    /// Behind the arguments, up to the call's closing brace.
    After,
}

/// Divides the text of one answer.
#[derive(Debug)]
pub struct Reader {
    /// `None`: everything is text.
    format: Option<Format>,
    state: State,
    held: String,
    /// Whether text has been given out, so that a call at the start is no longer possible.
    begun: bool,
    calls: usize,
}

impl Reader {
    /// A reader of answers with calls of this form, or without any.
    pub fn new(format: Option<Format>) -> Reader {
        Reader { format, state: State::Text, held: String::new(), begun: false, calls: 0 }
    }

    /// Number of calls that have begun.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Takes the next text, and returns what is certain.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        let Some(format) = self.format else {
            return if text.is_empty() { Vec::new() } else { vec![Piece::Text(text.to_string())] };
        };
        let mut pieces = Vec::new();
        for c in text.chars() {
            self.character(format, c, &mut pieces);
        }
        pieces
    }

    /// Ends the answer, and returns the text that was held back.
    pub fn end(&mut self) -> Vec<Piece> {
        let held = std::mem::take(&mut self.held);
        if held.is_empty() { Vec::new() } else { vec![Piece::Text(held)] }
    }

    fn character(&mut self, format: Format, c: char, pieces: &mut Vec<Piece>) {
        match &mut self.state {
            State::Text => {
                self.held.push(c);
                let opening = format.opening();
                let mut possible = !(format.begins_answer() && self.begun);
                if possible && self.held == opening {
                    self.held.clear();
                    // Llama's opening is the beginning of the call itself.
                    self.state = if format.begins_answer() { State::Name(String::new()) } else { State::Between };
                    return;
                }
                while !(self.held.is_empty() || possible && opening.starts_with(self.held.as_str())) {
                    let first = self.held.remove(0);
                    self.begun = true;
                    possible = !format.begins_answer();
                    add(pieces, first, false);
                }
            }
            State::Between => {
                if c == '{' {
                    self.state = State::Name(String::new());
                }
            }
            State::Name(head) => {
                head.push(c);
                if let Some(name) = head.strip_suffix(format.between()) {
                    let name = name.trim_start_matches("\"name\": \"").to_string();
                    pieces.push(Piece::Call(name));
                    self.calls += 1;
                    self.state = State::Arguments { depth: 0, quoted: false, escaped: false };
                }
            }
            State::Arguments { depth, quoted, escaped } => {
                add(pieces, c, true);
                match (*quoted, c) {
                    _ if *escaped => *escaped = false,
                    (true, '\\') => *escaped = true,
                    (_, '"') => *quoted = !*quoted,
                    (false, '{' | '[') => *depth += 1,
                    (false, '}' | ']') => {
                        *depth = depth.saturating_sub(1);
                        if *depth == 0 {
                            self.state = State::After;
                        }
                    }
                    _ => {}
                }
            }
            State::After => {
                if c == '}' {
                    self.state = State::Between;
                }
            }
        }
    }
}

/// OpenAI's deltas of pieces. `before` is the number of calls that had begun before these pieces; `new_id` makes the id
/// of a call.
pub fn deltas(pieces: Vec<Piece>, before: usize, new_id: &mut dyn FnMut() -> String) -> Vec<Value> {
    let mut calls = before;
    let delta = |piece| match piece {
        Piece::Text(text) => json!({"content": text}),
        Piece::Call(name) => {
            calls += 1;
            let function = json!({"name": name, "arguments": ""});
            json!({"tool_calls": [{"index": calls - 1, "id": new_id(), "type": "function", "function": function}]})
        }
        Piece::Arguments(more) => {
            json!({"tool_calls": [{"index": calls.saturating_sub(1), "function": {"arguments": more}}]})
        }
    };
    pieces.into_iter().map(delta).collect()
}

/// Adds a character to the last piece, if it is of the same kind.
fn add(pieces: &mut Vec<Piece>, c: char, arguments: bool) {
    match pieces.last_mut() {
        Some(Piece::Text(text)) if !arguments => text.push(c),
        Some(Piece::Arguments(text)) if arguments => text.push(c),
        _ if arguments => pieces.push(Piece::Arguments(c.into())),
        _ => pieces.push(Piece::Text(c.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All pieces of a text that comes in parts of `size` characters; neighbours of one kind are joined.
    fn read(format: Format, text: &str, size: usize) -> Vec<Piece> {
        let mut reader = Reader::new(Some(format));
        let characters: Vec<char> = text.chars().collect();
        let parts = characters.chunks(size).map(|part| part.iter().collect::<String>());
        let mut pieces: Vec<Piece> = parts.flat_map(|part| reader.push(&part)).collect();
        pieces.extend(reader.end());
        let mut joined: Vec<Piece> = Vec::new();
        for piece in pieces {
            match (joined.last_mut(), piece) {
                (Some(Piece::Text(a)), Piece::Text(b)) | (Some(Piece::Arguments(a)), Piece::Arguments(b)) => {
                    a.push_str(&b);
                }
                (_, piece) => joined.push(piece),
            }
        }
        joined
    }

    fn call(name: &str, arguments: &str) -> [Piece; 2] {
        [Piece::Call(name.into()), Piece::Arguments(arguments.into())]
    }

    #[test]
    fn calls_of_every_form_are_found_in_any_pieces() {
        let tricky = r#"{"a": "}\"{", "ب": [1, {"x": {}}]}"#;
        let text = |text: &str| Piece::Text(text.into());
        for size in 1..40 {
            let hermes = format!(
                "أهلا <tool <tool_call>\n{{\"name\": \"f\", \"arguments\": {tricky}}}\n</tool_call>\n<tool_call>\n{{\"name\": \"g\", \"arguments\": {{}}}}\n</tool_call>"
            );
            let expected = [vec![text("أهلا <tool ")], call("f", tricky).to_vec(), call("g", "{}").to_vec()].concat();
            assert_eq!(read(Format::Hermes, &hermes, size), expected, "{size}");
            let mistral = format!(
                "[TOOL_CALLS] [{{\"name\": \"f\", \"arguments\": {tricky}}}, {{\"name\": \"g\", \"arguments\": {{}}}}]"
            );
            assert_eq!(read(Format::Mistral, &mistral, size), expected[1..], "{size}");
            let llama = format!("{{\"name\": \"f\", \"parameters\": {tricky}}}");
            assert_eq!(read(Format::Llama3, &llama, size), call("f", tricky), "{size}");
            for plain in ["{\"nome\": 1}", "x {\"name\": \"f\"}", "", "<tool_call", "{\"name\": "] {
                let expected: Vec<Piece> = if plain.is_empty() { vec![] } else { vec![text(plain)] };
                assert_eq!(read(Format::Llama3, plain, size), expected, "{plain} {size}");
            }
            assert_eq!(read(Format::Hermes, "a <tool_cal", size), [text("a <tool_cal")]);
        }
    }

    #[test]
    fn deltas_number_the_calls_of_an_answer() {
        let pieces = [vec![Piece::Arguments("}".into()), Piece::Text("س".into())], call("g", "{").to_vec()].concat();
        let mut ids = 0;
        let mut new_id = || {
            ids += 1;
            format!("id{ids}")
        };
        let found = deltas(pieces, 1, &mut new_id);
        let begun = json!({"index": 1, "id": "id1", "type": "function", "function": {"name": "g", "arguments": ""}});
        let expected = [
            json!({"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}),
            json!({"content": "س"}),
            json!({"tool_calls": [begun]}),
            json!({"tool_calls": [{"index": 1, "function": {"arguments": "{"}}]}),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_call_that_is_cut_gives_what_came() {
        let cut = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1";
        assert_eq!(read(Format::Hermes, cut, 3), call("f", "{\"a\": [1"));
        assert_eq!(read(Format::Hermes, "<tool_call>\n{\"name\": \"f", 3), []);
    }
}
