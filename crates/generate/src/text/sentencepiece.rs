//! Converts a SentencePiece `tokenizer.model` to tokenizer.json.
//!
//! The file is a protobuf of pieces with scores. BPE merges are not stored but follow from the scores: every way to
//! split a piece into two pieces is a merge, ranked by the score of the resulting piece. transformers' converter does
//! the same; the result is read by the code for tokenizer.json, with LLaMA-2's conventions (`▁` in front, byte
//! fallback, bos added). Rejected: a second BPE that works on scores, because it would be a second definition of the
//! same ids.

use super::error::{Result, TextError};
use serde_json::{Value, json};
use std::collections::HashMap;

const FILE: &str = "tokenizer.model";
const CORRUPT: &str = "Download the file again, or provide tokenizer.json";
const CONVERT: &str = "Convert it with transformers (AutoTokenizer.from_pretrained(..., use_fast=True).save_pretrained) and use the tokenizer.json it writes";
/// Longer pieces are refused: training limits pieces to a few dozen bytes, and all splits of a piece are tried.
const MAX_PIECE_BYTES: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

struct Piece {
    text: String,
    score: f32,
    kind: Kind,
}

struct Model {
    pieces: Vec<Piece>,
    model_type: u64,
    byte_fallback: bool,
    has_charsmap: bool,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
}

/// The bytes of a tokenizer.json for a SentencePiece model. `tokenizer_config` (or null) may set `legacy`,
/// `add_bos_token`, `add_eos_token`.
///
/// # Errors
/// The bytes are not such a protobuf, or the model is not BPE, or normalizes text in a way that has no equivalent here.
pub fn to_tokenizer_json(bytes: &[u8], tokenizer_config: &Value) -> Result<Vec<u8>> {
    let model = read(bytes)?;
    check(&model)?;
    let mut ids: HashMap<&str, usize> = HashMap::with_capacity(model.pieces.len());
    for (id, piece) in model.pieces.iter().enumerate() {
        if let Some(first) = ids.insert(&piece.text, id) {
            return Err(corrupt(format!("expected distinct pieces, found {:?} as id {first} and {id}", piece.text)));
        }
    }
    let first_of = |kind: Kind| model.pieces.iter().find(|p| p.kind == kind).map(|p| p.text.as_str());
    let flag = |name: &str, default: bool| tokenizer_config.get(name).and_then(Value::as_bool).unwrap_or(default);
    let named = |name: &str, default: &str| {
        let text = tokenizer_config.get(name).and_then(super::config::token_text).unwrap_or(default);
        ids.get(text).map(|id| (text.to_owned(), *id))
    };
    let bos = named("bos_token", "<s>").filter(|_| flag("add_bos_token", true));
    let eos = named("eos_token", "</s>").filter(|_| flag("add_eos_token", false));
    let (normalizer, pre_tokenizer) = spaces(model.add_dummy_prefix, flag("legacy", true));
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if model.add_dummy_prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let vocab: serde_json::Map<String, Value> =
        model.pieces.iter().enumerate().map(|(id, p)| (p.text.clone(), json!(id))).collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added(&model.pieces),
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor(bos, eos),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": first_of(Kind::Unknown), "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": true, "byte_fallback": model.byte_fallback || first_of(Kind::Byte).is_some(), "ignore_merges": false,
            "vocab": vocab, "merges": merges(&model.pieces, &ids),
        },
    });
    serde_json::to_vec(&file).map_err(|e| corrupt(e.to_string()))
}

fn check(model: &Model) -> Result<()> {
    if model.pieces.is_empty() {
        return Err(corrupt("expected a SentencePiece model with pieces, found none"));
    }
    if model.model_type != 2 {
        let problem = format!("expected a BPE model (model_type 2), got model_type {}", model.model_type);
        return Err(TextError::file(FILE, problem, CONVERT));
    }
    if model.has_charsmap {
        return Err(TextError::file(
            FILE,
            "expected the identity normalisation, got a precompiled character map",
            CONVERT,
        ));
    }
    if model.remove_extra_whitespaces {
        return Err(TextError::file(FILE, "expected remove_extra_whitespaces = false, got true", CONVERT));
    }
    Ok(())
}

/// The source of `▁`: a normalizer before every range of text (legacy), or a pre-tokenizer before the first only.
fn spaces(add_dummy_prefix: bool, legacy: bool) -> (Value, Value) {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    match (add_dummy_prefix, legacy) {
        (true, true) => {
            (json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}), Value::Null)
        }
        (true, false) => {
            (Value::Null, json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false}))
        }
        (false, _) => (replace, Value::Null),
    }
}

fn added(pieces: &[Piece]) -> Vec<Value> {
    let wanted = |kind: Kind| matches!(kind, Kind::Unknown | Kind::Control | Kind::UserDefined);
    let token = |(id, p): (usize, &Piece)| json!({"id": id, "content": p.text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": p.kind != Kind::UserDefined});
    pieces.iter().enumerate().filter(|(_, p)| wanted(p.kind)).map(token).collect()
}

fn post_processor(bos: Option<(String, usize)>, eos: Option<(String, usize)>) -> Value {
    let mut special = serde_json::Map::new();
    for (text, id) in [&bos, &eos].into_iter().flatten() {
        special.insert(text.clone(), json!({"id": text, "ids": [id], "tokens": [text]}));
    }
    let around = |sequence: &str, type_id: usize| {
        let token = |t: &Option<(String, usize)>| {
            t.as_ref().map(|(text, _)| json!({"SpecialToken": {"id": text, "type_id": type_id}}))
        };
        [token(&bos), Some(json!({"Sequence": {"id": sequence, "type_id": type_id}})), token(&eos)]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
    };
    let pair = [around("A", 0), around("B", 1)].concat();
    json!({"type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": special})
}

/// All merges, the highest score first; at equal scores the longer left part, then the longer right part, then the
/// order of ids.
fn merges(pieces: &[Piece], ids: &HashMap<&str, usize>) -> Vec<[String; 2]> {
    struct Merge<'a> {
        left: &'a str,
        right: &'a str,
        score: f32,
        lengths: (usize, usize),
    }
    let mut all: Vec<Merge<'_>> = Vec::new();
    for piece in pieces.iter().filter(|p| matches!(p.kind, Kind::Normal | Kind::UserDefined)) {
        let cuts =
            piece.text.char_indices().enumerate().skip(1).map(|(chars, (at, _))| (chars, piece.text.split_at(at)));
        let length = piece.text.chars().count();
        let known =
            cuts.filter_map(|(chars, (left, right))| Some((ids.get(left)?, ids.get(right)?, chars, left, right)));
        let mut own: Vec<_> = known.collect();
        own.sort_by_key(|(left, right, ..)| (**left, **right));
        all.extend(own.into_iter().map(|(_, _, chars, left, right)| Merge {
            left,
            right,
            score: piece.score,
            lengths: (chars, length - chars),
        }));
    }
    all.sort_by(|a, b| b.score.total_cmp(&a.score).then(b.lengths.cmp(&a.lengths)));
    all.into_iter().map(|m| [m.left.to_owned(), m.right.to_owned()]).collect()
}

fn corrupt(problem: impl Into<String>) -> TextError {
    TextError::file(FILE, problem, CORRUPT)
}

/// One field of a protobuf message.
enum Field<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
    Fixed64,
}

/// A cursor over a protobuf message; every read is checked against the remaining bytes.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or_else(|| corrupt("the protobuf ends inside a number"))?;
            self.rest = rest;
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(corrupt("a protobuf number is longer than 10 bytes"))
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8]> {
        let fits = usize::try_from(length).ok().and_then(|n| self.rest.split_at_checked(n));
        let (taken, rest) = fits.ok_or_else(|| {
            corrupt(format!("a protobuf field of {length} bytes, where {} are left", self.rest.len()))
        })?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next field's number and value; `None` at the end.
    fn field(&mut self) -> Result<Option<(u64, Field<'a>)>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Field::Varint(self.varint()?),
            1 => self.take(8).map(|_| Field::Fixed64)?,
            2 => {
                let length = self.varint()?;
                Field::Bytes(self.take(length)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Field::Fixed32(bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte)))
            }
            wire => return Err(corrupt(format!("expected a SentencePiece protobuf, found wire type {wire}"))),
        };
        Ok(Some((key >> 3, value)))
    }
}

fn read(bytes: &[u8]) -> Result<Model> {
    let mut model = Model {
        pieces: vec![],
        model_type: 1,
        byte_fallback: false,
        has_charsmap: false,
        add_dummy_prefix: true,
        remove_extra_whitespaces: true,
    };
    let mut reader = Reader { rest: bytes };
    while let Some((number, field)) = reader.field()? {
        match (number, field) {
            (1, Field::Bytes(piece)) => model.pieces.push(read_piece(piece, model.pieces.len())?),
            (2, Field::Bytes(trainer)) => {
                let mut reader = Reader { rest: trainer };
                while let Some((number, field)) = reader.field()? {
                    match (number, field) {
                        (3, Field::Varint(value)) => model.model_type = value,
                        (35, Field::Varint(value)) => model.byte_fallback = value != 0,
                        _ => {}
                    }
                }
            }
            (3, Field::Bytes(normalizer)) => {
                let mut reader = Reader { rest: normalizer };
                while let Some((number, field)) = reader.field()? {
                    match (number, field) {
                        (2, Field::Bytes(map)) => model.has_charsmap = !map.is_empty(),
                        (3, Field::Varint(value)) => model.add_dummy_prefix = value != 0,
                        (4, Field::Varint(value)) => model.remove_extra_whitespaces = value != 0,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(model)
}

fn read_piece(bytes: &[u8], id: usize) -> Result<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: Kind::Normal };
    let mut reader = Reader { rest: bytes };
    while let Some((number, field)) = reader.field()? {
        match (number, field) {
            (1, Field::Bytes(text)) if text.len() <= MAX_PIECE_BYTES => {
                let text = std::str::from_utf8(text).map_err(|e| corrupt(format!("piece {id} is not UTF-8: {e}")))?;
                piece.text = text.to_owned();
            }
            (1, Field::Bytes(text)) => {
                return Err(corrupt(format!(
                    "piece {id} has {} bytes, expected at most {MAX_PIECE_BYTES}",
                    text.len()
                )));
            }
            (2, Field::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Field::Varint(kind)) => {
                piece.kind = match kind {
                    1 => Kind::Normal,
                    2 => Kind::Unknown,
                    3 => Kind::Control,
                    4 => Kind::UserDefined,
                    5 => Kind::Unused,
                    6 => Kind::Byte,
                    other => return Err(corrupt(format!("piece {id} has type {other}, expected 1 to 6"))),
                };
            }
            _ => {}
        }
    }
    match piece.text.is_empty() {
        true => Err(corrupt(format!("piece {id} is empty"))),
        false => Ok(piece),
    }
}
