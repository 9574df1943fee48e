//! Text to ids and back: a checkpoint's tokenizer, its streaming decoder, chat templates, stop conditions and
//! generation defaults.
//!
//! The `tokenizers` crate encodes (it wrote the published files) and minijinja renders the template of the checkpoint;
//! everything else (special tokens, stop sets, streaming, limits against hostile files) is here, works on bytes in
//! memory and does not access files, networks or GPUs, so that the browser runs the same code. Rejected: an own
//! tokenizer for each family, because its ids would be almost right, and hard-coded prompt formats, because they are
//! wrong as soon as a checkpoint changes its template.

mod added;
mod config;
mod decoding;
mod error;
mod sentencepiece;
mod stop;
mod stream;
mod template;
mod tokenizer;

#[cfg(test)]
mod tests;

pub use config::{GenerationDefaults, stop_ids};
pub use error::{Result, TextError};
pub use sentencepiece::to_tokenizer_json as sentencepiece_to_json;
pub use stop::{StopMatcher, StopStep};
pub use stream::TokenStream;
pub use template::{
    Adapted, BUILTIN_TEMPLATES, ChatInput, ChatTemplate, LocalTime, RenderLimits, builtin_template, guess_builtin,
    join_parts,
};
pub use tokenizer::{GuardedText, Tokenizer, TokenizerFiles};
