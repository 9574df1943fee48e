//! Text to ids and back: the tokenizer, its stream, chat templates, stop conditions and generation defaults of a
//! checkpoint.
//!
//! The choice: the `tokenizers` crate does the encoding (it is what wrote the published files) and minijinja renders
//! the template a checkpoint ships; everything around them (special tokens, stop sets, streaming, caps against hostile
//! files) is here, works on bytes already in memory and knows nothing of files, networks or GPUs, so the browser runs
//! the same code. The alternatives that lost: an own tokenizer per family (ids that are almost right), and hard-coded
//! prompt formats (wrong as soon as a checkpoint changes its template).

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
pub use stop::{StopMatcher, StopStep};
pub use stream::TokenStream;
pub use template::{
    BUILTIN_TEMPLATES, ChatInput, ChatTemplate, LocalTime, RenderLimits, builtin_template, guess_builtin,
};
pub use tokenizer::{GuardedText, Tokenizer, TokenizerFiles};
