//! A streaming decoder: ids in, text out, one token at a time.
//!
//! Text is returned as soon as it is complete UTF-8; a character split over tokens waits for its last byte, so that
//! U+FFFD never appears for a split character. The concatenation of all pieces and the flush equals the decoding of the
//! whole list, with one exception: byte-fallback decoders replace a whole run of `<0x..>` tokens by U+FFFD if any part
//! of the run is invalid, including characters that a stream has returned before. Here returned text stays, and the
//! rest of that run becomes one U+FFFD for each byte. Rejected: holding every run back until it ends, because it would
//! delay every ؟ and every Arabic-Indic digit of a LLaMA-2 vocabulary for text that is invalid anyway.

use super::decoding::{StreamDecoder, TokenRule, byte_of, fallback_byte};
use super::error::{Result, TextError};
use super::tokenizer::Tokenizer;
use tokenizers::Decoder;

const LOSSY: char = '\u{FFFD}';

/// Decodes a growing sequence of ids. It is cheap to create and shares its tokenizer.
#[derive(Debug, Clone)]
pub struct TokenStream {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    /// Bytes of an incomplete character (at most 3 between calls).
    pending: Vec<u8>,
    /// Whether the current run of `<0x..>` tokens is invalid UTF-8.
    run_broken: bool,
    /// Number of tokens so far, without skipped ones.
    tokens: usize,
    /// Characters that may still be stripped at the start.
    strip_left: usize,
    /// For [`StreamDecoder::Whole`] only: all ids, and how many bytes of their text were returned.
    ids: Vec<u32>,
    shown: String,
}

impl TokenStream {
    /// A new stream. With `skip_special_tokens`, control tokens such as `<|im_end|>` produce no text.
    pub fn new(tokenizer: &Tokenizer, skip_special_tokens: bool) -> Self {
        let strip_left = match tokenizer.stream_decoder() {
            StreamDecoder::Pieces { strip: Some((_, n)), .. } => *n,
            _ => 0,
        };
        let tokenizer = tokenizer.clone();
        Self {
            tokenizer,
            skip_special_tokens,
            pending: vec![],
            run_broken: false,
            tokens: 0,
            strip_left,
            ids: vec![],
            shown: String::new(),
        }
    }

    /// The same for tokens that continue a text, so that nothing is stripped from the start.
    #[must_use]
    pub fn within_text(self) -> Self {
        Self { tokens: 1, strip_left: 0, ..self }
    }

    /// Takes one id and returns the text that it completes, if any. Unknown ids produce no text.
    ///
    /// # Errors
    /// The tokenizer's decoder fails, which does not happen for a well-formed tokenizer.json.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        let Some(token) = self.tokenizer.visible_token(id, self.skip_special_tokens) else { return Ok(None) };
        let tokenizer = self.tokenizer.clone();
        let text = match tokenizer.stream_decoder() {
            StreamDecoder::ByteLevel => self.push_byte_level(&token),
            StreamDecoder::Spaced => {
                if self.tokens == 0 {
                    token
                } else {
                    format!(" {token}")
                }
            }
            StreamDecoder::Pieces { rules, byte_fallback, strip } => {
                let token = apply(rules, token, self.tokens == 0)?;
                let text = self.push_piece(token, *byte_fallback);
                self.strip(text, strip.map(|(c, _)| c))
            }
            StreamDecoder::Whole => self.push_whole(id)?,
        };
        self.tokens += 1;
        Ok((!text.is_empty()).then_some(text))
    }

    /// Ends the stream and returns the text that was held back. An incomplete character becomes U+FFFD, as when
    /// decoding the whole list.
    pub fn flush(&mut self) -> Option<String> {
        let tokenizer = self.tokenizer.clone();
        let text = match tokenizer.stream_decoder() {
            StreamDecoder::ByteLevel => String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned(),
            StreamDecoder::Spaced => String::new(),
            StreamDecoder::Pieces { strip, .. } => {
                let text = lossy(&mut self.pending);
                self.run_broken = false;
                self.strip(text, strip.map(|(c, _)| c))
            }
            StreamDecoder::Whole => {
                let whole = self.tokenizer.decode(&self.ids, self.skip_special_tokens).unwrap_or_default();
                let rest = whole.strip_prefix(&self.shown).unwrap_or_default().to_owned();
                self.shown = whole;
                rest
            }
        };
        (!text.is_empty()).then_some(text)
    }

    /// Bytes held back because their character is incomplete: at most 3 (for a decoder that runs token by token).
    pub fn held_bytes(&self) -> usize {
        self.pending.len()
    }

    fn push_byte_level(&mut self, token: &str) -> String {
        match token.chars().map(byte_of).collect::<Option<Vec<u8>>>() {
            Some(bytes) => self.pending.extend(bytes),
            None => self.pending.extend(token.as_bytes()),
        }
        let mut text = String::new();
        loop {
            let error = match std::str::from_utf8(&self.pending) {
                Ok(whole) => {
                    text.push_str(whole);
                    self.pending.clear();
                    return text;
                }
                Err(error) => error,
            };
            let valid = error.valid_up_to();
            text.push_str(&String::from_utf8_lossy(&self.pending[..valid]));
            let Some(bad) = error.error_len() else {
                self.pending.drain(..valid);
                return text;
            };
            text.push(LOSSY);
            self.pending.drain(..valid + bad);
        }
    }

    fn push_piece(&mut self, token: String, byte_fallback: bool) -> String {
        let Some(byte) = fallback_byte(&token).filter(|_| byte_fallback) else {
            self.run_broken = false;
            let mut text = lossy(&mut self.pending);
            text.push_str(&token);
            return text;
        };
        self.pending.push(byte);
        if !self.run_broken {
            match std::str::from_utf8(&self.pending) {
                Ok(whole) => {
                    let text = whole.to_owned();
                    self.pending.clear();
                    return text;
                }
                Err(error) if error.error_len().is_none() => return String::new(),
                Err(_) => self.run_broken = true,
            }
        }
        lossy(&mut self.pending)
    }

    fn strip(&mut self, text: String, content: Option<char>) -> String {
        let mut rest = text.as_str();
        while self.strip_left > 0 && !rest.is_empty() {
            match content.and_then(|c| rest.strip_prefix(c)) {
                Some(shorter) => {
                    rest = shorter;
                    self.strip_left -= 1;
                }
                None => self.strip_left = 0,
            }
        }
        rest.to_owned()
    }

    fn push_whole(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let whole = self.tokenizer.decode(&self.ids, self.skip_special_tokens)?;
        if whole.ends_with(LOSSY) {
            return Ok(String::new());
        }
        let Some(new) = whole.strip_prefix(&self.shown).map(str::to_owned) else { return Ok(String::new()) };
        self.shown = whole;
        Ok(new)
    }
}

/// One U+FFFD for each byte, as the ByteFallback decoder does.
fn lossy(bytes: &mut Vec<u8>) -> String {
    let text = bytes.iter().map(|_| LOSSY).collect();
    bytes.clear();
    text
}

fn apply(rules: &[TokenRule], mut token: String, first: bool) -> Result<String> {
    for rule in rules {
        token = match rule {
            TokenRule::Alone(decoder) => {
                let problem = |e: tokenizers::Error| TextError::Tokenizer { action: "decode", problem: e.to_string() };
                decoder.decode_chain(vec![token]).map_err(problem)?.concat()
            }
            TokenRule::Metaspace { replacement, drop_in_first } => {
                token.replace(*replacement, if first && *drop_in_first { "" } else { " " })
            }
        };
    }
    Ok(token)
}
