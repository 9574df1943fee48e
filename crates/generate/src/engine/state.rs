//! The cache of a conversation as bytes, so that it can go on later without its prompt being computed again.
//!
//! The bytes hold the tokens and, layer by layer, what the cache stores for them, in the cache's own format: they are
//! as large as that part of the cache. Rejected: the tokens alone, because computing their cache is what takes the
//! time, and a format that other caches could read, because a ring or quantized rows would have to be computed again.

use serde::{Deserialize, Serialize};

use super::Engine;
use crate::GenerateError;

/// The first bytes of a saved state; the last character is the version.
const MAGIC: &[u8; 8] = b"BAYANKV1";

/// The checksum at the end.
const CHECKSUM_BYTES: usize = 4;

/// Why a state cannot be saved or restored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Nothing has been computed.
    #[error("there is nothing to save: the cache is empty; answer a conversation first")]
    Empty,
    /// An answer is being computed.
    #[error("an answer is being computed; save or restore when it has ended")]
    Busy,
    /// The bytes are no saved state, or not a whole one.
    #[error("this is no saved state, or a damaged one: {0}; compute the conversation anew")]
    Damaged(String),
    /// The state is another model's.
    #[error(
        "the state was saved from another model, or with other weights or adapters: expected {expected}, got {got}; load \
         the model that it was saved from, or compute the conversation anew"
    )]
    OtherModel {
        /// The model here.
        expected: String,
        /// The model of the state.
        got: String,
    },
    /// The cache has another form.
    #[error("the state was saved from a cache of another form: {what}; compute the conversation anew")]
    OtherCache {
        /// What differs.
        what: String,
    },
}

/// What stands before the bytes of a state, as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    model: String,
    format: String,
    layout: Vec<Vec<usize>>,
    tokens: usize,
    /// Positions written, which may be more than there are tokens.
    written: usize,
}

/// The parts of a state's bytes.
struct Parts<'a> {
    header: Header,
    tokens: Vec<u32>,
    values: &'a [u8],
}

fn damaged(what: impl Into<String>) -> StateError {
    StateError::Damaged(what.into())
}

impl<'a> Parts<'a> {
    fn read(bytes: &'a [u8]) -> Result<Parts<'a>, StateError> {
        let Some(rest) = bytes.strip_prefix(MAGIC) else {
            return Err(damaged("it does not begin as one of this version"));
        };
        let short = || damaged(format!("{} bytes are too few", bytes.len()));
        let (body, checksum) = rest.split_last_chunk::<CHECKSUM_BYTES>().ok_or_else(short)?;
        if crc32fast::hash(&bytes[..bytes.len() - CHECKSUM_BYTES]) != u32::from_le_bytes(*checksum) {
            return Err(damaged("its checksum is wrong"));
        }
        let (length, body) = body.split_first_chunk::<4>().ok_or_else(short)?;
        let (header, body) = body.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(short)?;
        let header: Header = serde_json::from_slice(header).map_err(|error| damaged(error.to_string()))?;
        let tokens_bytes = header.tokens.checked_mul(4).ok_or_else(short)?;
        let (tokens, values) = body.split_at_checked(tokens_bytes).ok_or_else(short)?;
        let tokens = tokens.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        Ok(Parts { header, tokens, values })
    }
}

impl Engine {
    /// The cache of the first sequence as bytes. `model` names the model with all that its numbers depend on: weights,
    /// their format, adapters.
    ///
    /// # Errors
    /// The cache is empty, an answer is being computed, or the device fails.
    pub async fn save_state(&self, model: &str) -> Result<Vec<u8>, GenerateError> {
        if self.load() != (0, 0) {
            return Err(StateError::Busy.into());
        }
        let tokens = &self.cached[0];
        if tokens.is_empty() {
            return Err(StateError::Empty.into());
        }
        let header = Header {
            model: model.to_string(),
            format: self.cache.shape.format.name().to_string(),
            layout: self.cache.layout(),
            tokens: tokens.len(),
            written: self.written[0],
        };
        let header = serde_json::to_vec(&header).map_err(|error| damaged(error.to_string()))?;
        let ranges = self.cache.ranges(0, tokens.len());
        let size: usize = ranges.iter().map(|range| range.size_bytes()).sum();
        let mut bytes = Vec::with_capacity(MAGIC.len() + 4 + header.len() + 4 * tokens.len() + size + CHECKSUM_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&(header.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&header);
        tokens.iter().for_each(|token| bytes.extend_from_slice(&token.to_le_bytes()));
        for range in &ranges {
            bytes.extend_from_slice(&range.read(&self.devices.gpus).await?);
        }
        let checksum = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        Ok(bytes)
    }

    /// Puts a saved state into the first sequence, and returns its number of tokens. A prompt that begins with these
    /// tokens then goes on after them. `model` must be what the state was saved with.
    ///
    /// # Errors
    /// The bytes are no whole state, or one of another model, cache format, ring size, or longer than the context; an
    /// answer is being computed. The cache is then as before.
    pub fn restore_state(&mut self, model: &str, bytes: &[u8]) -> Result<usize, StateError> {
        if self.load() != (0, 0) {
            return Err(StateError::Busy);
        }
        let Parts { header, tokens, values } = Parts::read(bytes)?;
        if header.model != model {
            return Err(StateError::OtherModel { expected: model.to_string(), got: header.model });
        }
        let format = self.cache.shape.format.name();
        let other = |what: String| StateError::OtherCache { what };
        if header.format != format {
            return Err(other(format!("its elements are {}, those here are {format}", header.format)));
        }
        if header.layout != self.cache.layout() {
            return Err(other("its layers or the sizes of their rings are not those here".into()));
        }
        let context = self.context();
        if tokens.len() >= context || header.written > context {
            return Err(other(format!("it has {} tokens, and the context here holds {context}", tokens.len())));
        }
        if tokens.is_empty() || header.written < tokens.len() || self.check(&tokens).is_err() {
            return Err(damaged("its tokens are not those of this model"));
        }
        let size = self.cache.prefix_bytes(tokens.len());
        if values.len() != size {
            return Err(damaged(format!("expected {size} bytes of keys and values, got {}", values.len())));
        }
        self.empty(0);
        self.hold(0, tokens.len()).map_err(|error| other(error.to_string()))?;
        let mut rest = values;
        for range in self.cache.ranges(0, tokens.len()) {
            let (own, after) = rest.split_at(range.size_bytes());
            range.write(&self.devices.gpus, own);
            rest = after;
        }
        self.written[0] = header.written;
        (self.owners[0], self.slot_adapters[0]) = (0, None);
        self.cached[0] = tokens;
        Ok(self.cached[0].len())
    }
}
