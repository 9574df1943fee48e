//! A checkpoint's tokenizer: tokenizer.json, or a SentencePiece model, with the special tokens named in its other
//! files.
//!
//! Ids equal those of `tokenizers.Tokenizer.from_file(tokenizer.json)`, the file that published checkpoints were made
//! with; nothing is normalized, trimmed or prefixed here. Rejected: rebuilding the tokenizer from vocabulary and
//! merges, as newer transformers do for some classes, because it gives other ids for leading spaces. Truncation and
//! padding in the file are disabled, because a prompt must be encoded whole.

use super::added::AddedTokens;
use super::config::{id_list, token_text};
use super::decoding::{StreamDecoder, byte_of, fallback_byte, stream_decoder};
use super::error::{Result, TextError};
use super::sentencepiece;
use crate::grammar::{GrammarError, Grammars};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use tokenizers::Tokenizer as Inner;

const TOKENIZER_JSON: &str = "tokenizer.json";

/// The files of a tokenizer, as bytes; all may be missing except one of the first two.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokenizerFiles<'a> {
    /// tokenizer.json; takes precedence over `tokenizer_model`.
    pub tokenizer_json: Option<&'a [u8]>,
    /// tokenizer.model: a SentencePiece model of type BPE.
    pub tokenizer_model: Option<&'a [u8]>,
    /// tokenizer_config.json: names of the special tokens, `add_bos_token`, `legacy`.
    pub tokenizer_config: Option<&'a [u8]>,
    /// special_tokens_map.json: names of the special tokens where tokenizer_config.json has none.
    pub special_tokens_map: Option<&'a [u8]>,
    /// generation_config.json: bos and eos ids.
    pub generation_config: Option<&'a [u8]>,
    /// config.json: bos and eos ids.
    pub config: Option<&'a [u8]>,
}

/// Text with marks in the parts that users typed, so that these cannot become control tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuardedText {
    /// The text that the template rendered.
    pub text: String,
    /// Byte positions in `text`, ascending: no special token is recognized in a range that contains one of them.
    pub guards: Vec<usize>,
}

/// Text to ids and back. Cloning is cheap: the vocabulary is shared.
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Inner,
    stream_decoder: StreamDecoder,
    added: AddedTokens,
    vocab_size: usize,
    special: BTreeMap<String, String>,
    bos: Option<u32>,
    eos: Vec<u32>,
    grammars: OnceLock<std::result::Result<Grammars, GrammarError>>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.shared.vocab_size)
            .field("bos", &self.shared.bos)
            .field("eos", &self.shared.eos)
            .finish()
    }
}

impl Tokenizer {
    /// Reads a tokenizer and its special tokens.
    ///
    /// # Errors
    /// Neither tokenizer.json nor tokenizer.model is present, or a file does not parse.
    pub fn from_files(files: &TokenizerFiles<'_>) -> Result<Self> {
        let tokenizer_config = json("tokenizer_config.json", files.tokenizer_config)?;
        let inner = match (files.tokenizer_json, files.tokenizer_model) {
            (Some(bytes), _) => read_json(bytes)?,
            (None, Some(bytes)) => read_json(&sentencepiece::to_tokenizer_json(bytes, &tokenizer_config)?)?,
            (None, None) => {
                let remedy = "Put tokenizer.json (or a SentencePiece tokenizer.model) next to config.json";
                return Err(TextError::file(
                    TOKENIZER_JSON,
                    "expected a tokenizer, found neither tokenizer.json nor tokenizer.model",
                    remedy,
                ));
            }
        };
        let map = json("special_tokens_map.json", files.special_tokens_map)?;
        let configs = [json("generation_config.json", files.generation_config)?, json("config.json", files.config)?];
        Self::build(inner, &tokenizer_config, &map, &configs)
    }

    /// A tokenizer from tokenizer.json alone, without known bos and eos.
    ///
    /// # Errors
    /// The bytes are not a tokenizer.json.
    pub fn from_json(tokenizer_json: &[u8]) -> Result<Self> {
        Self::from_files(&TokenizerFiles { tokenizer_json: Some(tokenizer_json), ..Default::default() })
    }

    fn build(mut inner: Inner, tokenizer_config: &Value, map: &Value, configs: &[Value]) -> Result<Self> {
        let remedy = "Re-export tokenizer.json with a current transformers";
        inner.with_truncation(None).map_err(|e| TextError::file(TOKENIZER_JSON, e.to_string(), remedy))?;
        inner.with_padding(None);
        let stream_decoder = stream_decoder(inner.get_decoder())
            .map_err(|problem| TextError::file(TOKENIZER_JSON, format!("the decoder has {problem}"), remedy))?;
        let mut special = BTreeMap::new();
        for name in ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"] {
            // A null in tokenizer_config.json is a value: Qwen has no bos even where another file names one.
            let value = tokenizer_config.get(name).or_else(|| map.get(name));
            if let Some(text) = value.and_then(token_text) {
                special.insert(name.to_owned(), text.to_owned());
            }
        }
        let named = |name: &str| special.get(name).and_then(|text| inner.token_to_id(text));
        let bos_is_null = tokenizer_config.get("bos_token").is_some_and(Value::is_null);
        let bos = match named("bos_token") {
            None if !bos_is_null => configs.iter().flat_map(|c| id_list(c, "bos_token_id")).next(),
            found => found,
        };
        let mut eos: Vec<u32> = named("eos_token").into_iter().collect();
        eos.extend(configs.iter().flat_map(|c| id_list(c, "eos_token_id")));
        let mut seen = std::collections::BTreeSet::new();
        eos.retain(|id| seen.insert(*id));
        let added = AddedTokens::of(&inner);
        let vocab_size = inner.get_vocab_size(true);
        let grammars = OnceLock::new();
        Ok(Self { shared: Arc::new(Shared { inner, stream_decoder, added, vocab_size, special, bos, eos, grammars }) })
    }

    /// The ids of a text, exactly as in `tokenizers`; `add_special_tokens` runs the file's post-processor (usually a
    /// bos in front). Special tokens in the text are recognized.
    ///
    /// # Errors
    /// The tokenizer refuses the text, which does not happen for a well-formed tokenizer.json.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self.shared.inner.encode_fast(text, add_special_tokens).map_err(encode_error)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of a prompt: with special tokens added, unless the text already begins with the bos token (as rendered
    /// templates do).
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let has_bos = self.bos_token().is_some_and(|bos| !bos.is_empty() && text.starts_with(bos));
        self.encode(text, !has_bos)
    }

    /// The ids of a rendered chat: its special tokens are recognized, none are added. This equals transformers'
    /// `apply_chat_template(tokenize=True)`, id by id; as there, `<|eot_id|>` typed by a user becomes the control
    /// token. See [`Tokenizer::encode_guarded`].
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_chat(&self, rendered: &str) -> Result<Vec<u32>> {
        self.encode(rendered, false)
    }

    /// As [`Tokenizer::encode_chat`], but special tokens that users typed stay text; the template's own are recognized.
    /// Without guards the ids are those of `encode_chat`. transformers recognizes either all special tokens or
    /// (`split_special_tokens=True`) none. Added tokens that are not special (`<think>` of Qwen 3) are recognized
    /// everywhere, as in transformers.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_guarded(&self, text: &GuardedText) -> Result<Vec<u32>> {
        let guarded = |from: usize, to: usize| {
            let at = text.guards.partition_point(|g| *g < from);
            text.guards.get(at).is_some_and(|g| *g < to)
        };
        self.shared.added.encode(&self.shared.inner, &text.text, &guarded).map_err(encode_error)
    }

    /// The ids of untrusted text: no special token in it is recognized (`split_special_tokens=True` of transformers),
    /// and none are added.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_untrusted(&self, text: &str) -> Result<Vec<u32>> {
        self.shared.added.encode(&self.shared.inner, text, &|_, _| true).map_err(encode_error)
    }

    /// The text of these ids, decoded as in `tokenizers`; unknown ids produce nothing, and with `skip_special_tokens`
    /// control tokens produce nothing either.
    ///
    /// # Errors
    /// The tokenizer's decoder fails, which does not happen for a well-formed tokenizer.json.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        if !ids.iter().any(|id| self.visible_token(*id, skip_special_tokens).is_some()) {
            return Ok(String::new());
        }
        let problem = |e: tokenizers::Error| TextError::Tokenizer { action: "decode", problem: e.to_string() };
        self.shared.inner.decode(ids, skip_special_tokens).map_err(problem)
    }

    /// A token's text in the vocabulary (`▁` for a space, `Ġ` in byte-level vocabularies).
    pub fn token(&self, id: u32) -> Option<String> {
        self.shared.inner.id_to_token(id)
    }

    /// The bytes of text that a token stands for inside a text; they may be a part of a character. `None` for unknown
    /// ids and for added tokens (which stand for themselves).
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.token(id)?;
        if self.shared.inner.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id) {
            return None;
        }
        match &self.shared.stream_decoder {
            StreamDecoder::ByteLevel => token.chars().map(byte_of).collect(),
            _ => Some(fallback_byte(&token).map_or_else(|| token.replace('▁', " ").into_bytes(), |byte| vec![byte])),
        }
    }

    /// The id of a token by its text in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.shared.inner.token_to_id(token)
    }

    /// Number of tokens of the vocabulary, added ones included. A model's vocabulary may be larger.
    pub fn vocab_size(&self) -> usize {
        self.shared.vocab_size
    }

    /// The id of the bos token, if this tokenizer has one.
    pub fn bos(&self) -> Option<u32> {
        self.shared.bos
    }

    /// The ids that end a text: the tokenizer's eos token, then those of generation_config.json and config.json.
    pub fn eos(&self) -> &[u32] {
        &self.shared.eos
    }

    /// The text of the bos token.
    pub fn bos_token(&self) -> Option<&str> {
        self.special("bos_token")
    }

    /// The text of the eos token.
    pub fn eos_token(&self) -> Option<&str> {
        self.special("eos_token")
    }

    /// A named special token's text: bos_token, eos_token, unk_token, sep_token, pad_token, cls_token or mask_token.
    pub fn special(&self, name: &str) -> Option<&str> {
        self.shared.special.get(name).map(String::as_str)
    }

    /// All named special tokens; they are variables of the template.
    pub fn named_special_tokens(&self) -> &BTreeMap<String, String> {
        &self.shared.special
    }

    /// The texts of all special (control) tokens, with their ids.
    pub fn special_tokens(&self) -> impl Iterator<Item = (&str, u32)> {
        self.shared.added.special()
    }

    /// The largest id of a token.
    pub fn largest_id(&self) -> Option<u32> {
        self.shared.inner.get_vocab(true).into_values().max()
    }

    /// The compiler of constraints for this vocabulary, which is read at the first call.
    ///
    /// # Errors
    /// As [`Grammars::new`].
    pub fn grammars(&self) -> std::result::Result<&Grammars, GrammarError> {
        self.shared.grammars.get_or_init(|| Grammars::new(self)).as_ref().map_err(Clone::clone)
    }

    /// Whether the text of a token depends on no other token, unless it is the first.
    pub(crate) fn decodes_each_token(&self) -> bool {
        matches!(self.shared.stream_decoder, StreamDecoder::ByteLevel | StreamDecoder::Pieces { .. })
    }

    /// Whether this id is a special (control) token.
    pub fn is_special(&self, id: u32) -> bool {
        self.shared.added.is_special(id)
    }

    pub(crate) fn stream_decoder(&self) -> &StreamDecoder {
        &self.shared.stream_decoder
    }

    /// The token that an id is decoded as; `None` for unknown ids and, with `skip_special_tokens`, for special ones.
    pub(crate) fn visible_token(&self, id: u32, skip_special_tokens: bool) -> Option<String> {
        let token = self.token(id)?;
        let hidden = skip_special_tokens && self.shared.inner.get_added_vocabulary().is_special_token(&token);
        (!hidden).then_some(token)
    }
}

fn encode_error(error: tokenizers::Error) -> TextError {
    TextError::Tokenizer { action: "encode", problem: error.to_string() }
}

/// Parts of a tokenizer.json on which the tokenizers library panics instead of failing.
#[derive(Deserialize)]
struct RiskyParts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    #[allow(dead_code)] // reading it is the check: the library expects JSON there
    decoder: Value,
}

/// Whether a part, or a part within it, has this type.
fn mentions(part: &Value, kind: &str) -> bool {
    match part {
        Value::Object(fields) => {
            fields.get("type").is_some_and(|t| t == kind) || fields.values().any(|inner| mentions(inner, kind))
        }
        Value::Array(list) => list.iter().any(|inner| mentions(inner, kind)),
        _ => false,
    }
}

fn read_json(bytes: &[u8]) -> Result<Inner> {
    let remedy = "Download the file again, or re-export it with a current transformers";
    let bytes = bayan_weights::json::without_mark(bytes);
    let risky: RiskyParts = bayan_weights::json::parse(TOKENIZER_JSON, bytes)?;
    if mentions(&risky.normalizer, "Precompiled") {
        let problem = "its normalizer is a compiled table of SentencePiece (Precompiled), which no model of a supported architecture has";
        return Err(TextError::file(TOKENIZER_JSON, problem, "Use the checkpoint with its tokenizer.model alone"));
    }
    Inner::from_bytes(bytes).map_err(|e| {
        TextError::file(TOKENIZER_JSON, format!("expected a tokenizer of the tokenizers library, got: {e}"), remedy)
    })
}

fn json(file: &'static str, bytes: Option<&[u8]>) -> Result<Value> {
    let Some(bytes) = bytes else { return Ok(Value::Null) };
    Ok(bayan_weights::json::parse(file, bytes)?)
}
