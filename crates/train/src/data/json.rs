//! JSON rows from a stream: an array of objects (also as the value of `data` in an object), or objects one after
//! another, without ever holding the whole file.
//!
//! A scanner finds the end of each object by counting brackets outside strings, and serde_json parses that range alone.
//! Rejected: serde_json's streaming deserializer, because it cannot continue after a bad row, and counts lines from the
//! start of the row instead of the file.

use std::io::{BufRead, Read};
use std::path::Path;
use std::sync::Arc;

use bayan_weights::json::without_mark;
use serde_json::Value;

use super::{MAX_ROW_BYTES, Row, RowError, Rows, parse_object};
use crate::error::{BadRow, Place, TrainError, shortened};

/// Rows of a `.json` file.
pub(super) struct JsonRows<R> {
    reader: R,
    file: Arc<str>,
    /// Number of the current line, from 1.
    line: u64,
    state: State,
}

#[derive(PartialEq)]
enum State {
    Start,
    /// Inside the array; the flag says whether an element came before.
    Array {
        after_element: bool,
        /// Whether the array is the value of an object's only field, as in `{"data": [...]}`.
        wrapped: bool,
    },
    /// Objects that are not in an array.
    Bare,
    Done,
}

impl<R: BufRead> JsonRows<R> {
    pub(super) fn new(reader: R, file: Arc<str>) -> Self {
        Self { reader, file, line: 1, state: State::Start }
    }

    fn fatal(&mut self, expected: &str, got: impl Into<String>) -> RowError {
        self.state = State::Done;
        let remedy = "check that the file is complete, or convert it to jsonl";
        RowError::Fatal(TrainError::data(&self.file, expected, format!("{} in line {}", got.into(), self.line), remedy))
    }

    fn peek(&mut self) -> Result<Option<u8>, RowError> {
        match self.reader.fill_buf() {
            Ok(buffer) => Ok(buffer.first().copied()),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn failed(&mut self, error: std::io::Error) -> RowError {
        self.state = State::Done;
        RowError::Fatal(TrainError::io("read", std::path::Path::new(&*self.file), error))
    }

    fn advance(&mut self, byte: u8) {
        self.reader.consume(1);
        self.line += u64::from(byte == b'\n');
    }

    /// Skips white space; returns the next byte without consuming it.
    fn skip_space(&mut self) -> Result<Option<u8>, RowError> {
        loop {
            match self.peek()? {
                Some(byte) if byte.is_ascii_whitespace() => self.advance(byte),
                other => return Ok(other),
            }
        }
    }

    fn start(&mut self) -> Result<(), RowError> {
        if self.peek()? == Some(0xEF) {
            let mut mark = [0; 3];
            let read = self.reader.read_exact(&mut mark);
            if read.is_err() || mark != [0xEF, 0xBB, 0xBF] {
                return Err(self.fatal("JSON in UTF-8", "other bytes"));
            }
        }
        self.state = match self.skip_space()? {
            Some(b'[') => {
                self.advance(b'[');
                State::Array { after_element: false, wrapped: false }
            }
            Some(b'{') => match self.wrapper()? {
                Some(length) => {
                    self.skip(length);
                    State::Array { after_element: false, wrapped: true }
                }
                None => State::Bare,
            },
            Some(other) => return Err(self.fatal("an array of objects", format!("{:?}", char::from(other)))),
            None => return Err(self.fatal("an array of objects", "nothing")),
        };
        Ok(())
    }

    /// The length of `{"data": [` at the start of the file, if its rows are inside an object.
    fn wrapper(&mut self) -> Result<Option<usize>, RowError> {
        let start = match self.reader.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) => return Err(self.failed(error)),
        };
        let mut at = 0;
        for token in ["{", "\"data\"", ":", "["] {
            at += start[at..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            if !start[at..].starts_with(token.as_bytes()) {
                return Ok(None);
            }
            at += token.len();
        }
        Ok(Some(at))
    }

    fn skip(&mut self, length: usize) {
        for _ in 0..length {
            match self.reader.fill_buf().ok().and_then(|buffer| buffer.first().copied()) {
                Some(byte) => self.advance(byte),
                None => return,
            }
        }
    }

    /// Moves to the next element; false at the end.
    fn seek_element(&mut self) -> Result<bool, RowError> {
        if self.state == State::Start {
            self.start()?;
        }
        let next = self.skip_space()?;
        let State::Array { after_element, wrapped } = self.state else {
            return Ok(self.state != State::Done && next.is_some());
        };
        match next {
            Some(b']') => {
                self.advance(b']');
                if wrapped {
                    match self.skip_space()? {
                        Some(b'}') => self.advance(b'}'),
                        _ => return Err(self.fatal("an object with only the list of rows", "another field after it")),
                    }
                }
                if self.skip_space()?.is_some() {
                    return Err(self.fatal("nothing after the array", "more"));
                }
                self.state = State::Done;
                return Ok(false);
            }
            Some(b',') if after_element => {
                self.advance(b',');
                if matches!(self.skip_space()?, None | Some(b']' | b',')) {
                    return Err(self.fatal("an object after the comma", "none"));
                }
            }
            Some(_) if !after_element => {}
            Some(_) => return Err(self.fatal("a comma between objects", "none")),
            None => return Err(self.fatal("the array to end with ]", "the end of the file")),
        }
        self.state = State::Array { after_element: true, wrapped };
        Ok(true)
    }

    /// Reads the bytes of one value.
    fn value(&mut self) -> Result<Vec<u8>, RowError> {
        let (mut bytes, mut depth, mut in_string, mut escaped) = (Vec::new(), 0u32, false, false);
        loop {
            let Some(byte) = self.peek()? else {
                if depth > 0 || in_string || bytes.is_empty() {
                    return Err(self.fatal("a whole object", "the end of the file inside one"));
                }
                return Ok(bytes);
            };
            if depth == 0
                && !in_string
                && !bytes.is_empty()
                && (byte.is_ascii_whitespace() || matches!(byte, b',' | b']'))
            {
                return Ok(bytes); // a number or a word
            }
            if bytes.len() >= MAX_ROW_BYTES {
                return Err(self.fatal(&format!("rows of at most {MAX_ROW_BYTES} bytes"), "a longer one"));
            }
            self.advance(byte);
            bytes.push(byte);
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                _ if in_string => continue,
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ => continue,
            }
            if depth == 0 && !in_string && matches!(byte, b'}' | b']' | b'"') {
                return Ok(bytes);
            }
        }
    }
}

impl<R: BufRead> Iterator for JsonRows<R> {
    type Item = Result<Row, RowError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.seek_element() {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => return Some(Err(error)),
        }
        let place = Place { file: self.file.clone(), number: self.line, unit: "line" };
        Some(self.value().and_then(|bytes| parse_object(place, &bytes)))
    }
}

/// Rows of a `.jsonl` file; one that holds an array is read as `.json`.
pub(super) fn lines_or_array<R: BufRead + 'static>(mut reader: R, file: Arc<str>) -> Result<Rows, TrainError> {
    let start = reader.fill_buf().map_err(|source| TrainError::io("read", Path::new(&*file), source))?;
    Ok(match without_mark(start).trim_ascii_start().first() {
        Some(b'[') => Box::new(JsonRows::new(reader, file)),
        _ => Box::new(JsonLines::new(reader, file)),
    })
}

/// Rows of a `.jsonl` file: one object per line; blank lines are skipped.
pub(super) struct JsonLines<R> {
    reader: R,
    file: Arc<str>,
    line: u64,
    done: bool,
}

impl<R: BufRead> JsonLines<R> {
    pub(super) fn new(reader: R, file: Arc<str>) -> Self {
        Self { reader, file, line: 0, done: false }
    }
}

impl<R: BufRead> Iterator for JsonLines<R> {
    type Item = Result<Row, RowError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            let mut bytes = Vec::new();
            self.line += 1;
            match (&mut self.reader).take(MAX_ROW_BYTES as u64 + 1).read_until(b'\n', &mut bytes) {
                Ok(0) => return None,
                Ok(read) if read > MAX_ROW_BYTES => {
                    self.done = true;
                    let (expected, got) = (
                        format!("lines of at most {MAX_ROW_BYTES} bytes"),
                        format!("a longer one, line {}", self.line),
                    );
                    return Some(Err(RowError::Fatal(TrainError::data(
                        &self.file,
                        expected,
                        got,
                        "put one object on each line",
                    ))));
                }
                Ok(_) => {}
                Err(error) => {
                    self.done = true;
                    return Some(Err(RowError::Fatal(TrainError::io(
                        "read",
                        std::path::Path::new(&*self.file),
                        error,
                    ))));
                }
            }
            let line = if self.line == 1 { without_mark(&bytes) } else { &bytes }.trim_ascii();
            if !line.is_empty() {
                return Some(parse_object(Place { file: self.file.clone(), number: self.line, unit: "line" }, line));
            }
        }
        None
    }
}

/// Parses a text cell that holds a JSON list (`[{"role": …}]`), as csv files have them.
pub(super) fn list_in_text(text: &str) -> Option<Vec<Value>> {
    text.trim_start().starts_with('[').then(|| serde_json::from_str(text).ok()).flatten()
}

/// The error for a row that is not JSON; it quotes the row's bytes.
pub(super) fn not_json(place: Place, bytes: &[u8], error: &serde_json::Error) -> RowError {
    let text = shortened(&String::from_utf8_lossy(&bytes[..bytes.len().min(400)]), 60);
    RowError::Bad(BadRow {
        place,
        field: String::new(),
        problem: format!("expected a JSON object, got {text:?} ({error})"),
    })
}
