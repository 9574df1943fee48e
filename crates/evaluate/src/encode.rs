//! From a prompt and its continuations to token ids, as each harness does it.
//!
//! Most encode context and continuation together, because tokens may cross their border, and cut where the encoded
//! context ends; lighteval 0.13 encodes them apart. White space at the end of the context belongs to the continuation.

use bayan_generate::ScoredText;
use bayan_generate::text::Tokenizer;

use crate::data::python;
use crate::task::Protocol;
use crate::{EvalError, Result};

/// Encodes for a model.
#[derive(Debug, Clone, Copy)]
pub struct Encoder<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Most tokens before the last one; longer texts lose their beginning.
    pub context: usize,
}

/// The encoded continuations of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// One text for each choice.
    pub texts: Vec<ScoredText>,
    /// Whether a text was too long and lost its beginning.
    pub truncated: bool,
}

impl Encoder<'_> {
    /// The token that stands for an empty context: the beginning of a text, or its end.
    fn prefix(&self) -> Option<u32> {
        self.tokenizer.bos().or_else(|| self.tokenizer.eos().first().copied())
    }

    fn encode(&self, protocol: Protocol, text: &str) -> Result<Vec<u32>> {
        let prefix = self.tokenizer.bos_token().or_else(|| self.tokenizer.eos_token());
        // lm-eval adds no special tokens to a text that begins with one already.
        let begun = protocol == Protocol::LmEval && prefix.is_some_and(|prefix| text.starts_with(prefix));
        Ok(self.tokenizer.encode(text, !begun)?)
    }

    /// Encodes a context and its continuations.
    ///
    /// # Errors
    /// A continuation has no token of its own, or more tokens than the context has positions.
    pub fn choices(&self, protocol: Protocol, context: &str, continuations: &[String]) -> Result<Encoded> {
        let kept = python::strip_end(context);
        let moved = &context[kept.len()..];
        let start = self.encode(protocol, kept)?;
        let mut truncated = false;
        let mut texts = Vec::with_capacity(continuations.len());
        for continuation in continuations {
            let (mut ids, mut from) = if context.is_empty() {
                self.without_context(continuation)?
            } else {
                self.pair(protocol, &start, kept, &format!("{moved}{continuation}"))?
            };
            if from == 0 || from >= ids.len() || ids.len() - from > self.context {
                return Err(EvalError::unexpected(
                    format!("the choice {continuation:?}"),
                    format!("1 to {} tokens after a context", self.context),
                    format!("{} tokens after {from}", ids.len().saturating_sub(from)),
                    "check the row, or use a larger --context",
                ));
            }
            // The last token is not read by the model; lighteval 0.13 counts it all the same.
            let most = self.context + usize::from(protocol != Protocol::Lighteval);
            if ids.len() > most {
                let cut = ids.len() - most;
                ids.drain(..cut);
                from -= cut;
                truncated = true;
            }
            texts.push(ScoredText { ids, from: from.max(1) });
        }
        Ok(Encoded { texts, truncated })
    }

    /// The tokens of a context that is not empty and its continuation, and the number of the first of the latter.
    fn pair(&self, protocol: Protocol, start: &[u32], kept: &str, continuation: &str) -> Result<(Vec<u32>, usize)> {
        if protocol == Protocol::Lighteval {
            // An end of text after the context would make the model forget it.
            let end = start.last().filter(|id| self.tokenizer.eos().first() == Some(*id));
            let start = &start[..start.len() - end.iter().count()];
            return Ok(([start, &self.tokenizer.encode(continuation, false)?].concat(), start.len()));
        }
        let whole = self.encode(protocol, &format!("{kept}{continuation}"))?;
        if protocol == Protocol::OallV1 {
            let joined = usize::from(whole.len() == start.len());
            return Ok((whole, start.len().saturating_sub(joined)));
        }
        let rest = whole.get(start.len()..).unwrap_or_default();
        Ok(([start, rest].concat(), start.len()))
    }

    /// The continuation after the token that stands for an empty context.
    fn without_context(&self, continuation: &str) -> Result<(Vec<u32>, usize)> {
        let mut ids = self.tokenizer.encode(continuation, false)?;
        if let Some(prefix) = self.prefix().filter(|prefix| ids.first() != Some(prefix)) {
            ids.insert(0, prefix);
        }
        Ok((ids, 1))
    }

    /// Encodes contexts, each with its continuation. Equal contexts that follow each other are encoded once.
    ///
    /// # Errors
    /// As [`Encoder::choices`].
    pub fn pairs(&self, protocol: Protocol, pairs: &[(&str, String)]) -> Result<Encoded> {
        let mut all = Encoded { texts: Vec::with_capacity(pairs.len()), truncated: false };
        for same in pairs.chunk_by(|one, other| one.0 == other.0) {
            let continuations: Vec<String> = same.iter().map(|(_, continuation)| continuation.clone()).collect();
            let Encoded { texts, truncated } = self.choices(protocol, same[0].0, &continuations)?;
            all.texts.extend(texts);
            all.truncated |= truncated;
        }
        Ok(all)
    }

    /// Encodes a prompt that an answer is generated for. Of a prompt that is too long the beginning is left out.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn prompt(
        &self,
        protocol: Protocol,
        text: &str,
        special_tokens: bool,
        answer_tokens: usize,
    ) -> Result<(Vec<u32>, bool)> {
        let mut ids = if special_tokens { self.encode(protocol, text)? } else { self.tokenizer.encode(text, false)? };
        let most = self.context.saturating_sub(answer_tokens).max(1);
        let truncated = ids.len() > most;
        if truncated {
            ids.drain(..ids.len() - most);
        }
        Ok((ids, truncated))
    }
}
