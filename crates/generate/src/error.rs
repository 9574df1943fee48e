//! Errors between a prompt and its answer.

use bayan_gpu::GpuError;
use bayan_models::{AdapterError, ModelError};
use bayan_weights::WeightsError;

use crate::engine::StateError;
use crate::grammar::GrammarError;
use crate::text::TextError;

/// An error while a model is opened or generates.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An adapter cannot be attached.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The device failed.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// The checkpoint's files are missing or damaged.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The tokenizer or the chat template failed.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The prompt does not fit.
    #[error(
        "the prompt has {prompt} tokens and the context holds {context}, of which at least one must be left for the answer; shorten it or use a larger `--context`"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Positions of the context.
        context: usize,
    },
    /// The cache is smaller than one context.
    #[error(
        "a cache of {positions} positions does not hold one context of {context}; use a larger `--cache-positions` or a \
         smaller `--context`"
    )]
    CachePositions {
        /// Positions of the cache.
        positions: usize,
        /// Positions of a context.
        context: usize,
    },
    /// The cache has no room for what is computed outside of jobs.
    #[error(
        "the cache has {positions} positions and lacks room for {needed} more beside the sequences in it; use a larger \
         `--cache-positions`"
    )]
    CacheFull {
        /// Positions of the sequence that lacks room.
        needed: usize,
        /// Positions of the cache.
        positions: usize,
    },
    /// A token id is outside the model's vocabulary.
    #[error("token {id} is outside the vocabulary of {vocabulary}; the tokenizer does not belong to this checkpoint")]
    Token {
        /// The token.
        id: u32,
        /// The vocabulary's size.
        vocabulary: usize,
    },
    /// The prompt is empty.
    #[error(
        "the prompt is empty: expected at least one token; give a text, or a tokenizer that adds a beginning-of-sequence token"
    )]
    EmptyPrompt,
    /// Layers in host memory that a GPU reads need a GPU.
    #[error(
        "{layers} layers on a GPU: expected a GPU, got the CPU, which has all layers in its memory; leave `--gpu-layers` out"
    )]
    GpuLayers {
        /// Number of layers asked for.
        layers: usize,
    },
    /// A recurrent model cannot run steps of one size.
    #[error(
        "answers that do not depend on other requests need a model without recurrent layers, and this one has some; leave `--batch-invariant` out"
    )]
    Recurrent,
    /// The number of proposals of speculative decoding is out of range.
    #[error("{got} proposed tokens: expected 1 to {most}")]
    Proposals {
        /// The number.
        got: usize,
        /// The largest.
        most: usize,
    },
    /// More of the most likely tokens are asked for than a step gives.
    #[error("log-probabilities of the {got} most likely tokens: expected at most {most}")]
    Scores {
        /// The number asked for.
        got: usize,
        /// The largest.
        most: usize,
    },
    /// A recurrent model cannot go back before rejected proposals.
    #[error(
        "speculative decoding goes back where a proposal is rejected, and {what} has recurrent layers, which cannot; leave `--lookup` and `--draft-model` out, or use another model"
    )]
    RecurrentProposals {
        /// Which of the two models.
        what: &'static str,
    },
    /// The draft model has another vocabulary.
    #[error(
        "the draft model has another tokenizer: token {id} is {model} in the model and {draft} in the draft model; expected a draft model of the same family, whose tokens have the same numbers"
    )]
    DraftTokenizer {
        /// The first token that differs.
        id: u32,
        /// Its text in the model.
        model: String,
        /// Its text in the draft model.
        draft: String,
    },
    /// The constraint of an answer cannot be used.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// A state cannot be saved or restored.
    #[error(transparent)]
    State(#[from] StateError),
    /// The biases ban every token.
    #[error(
        "all {vocabulary} tokens of the vocabulary are banned (a logit bias of minus infinity), so there is nothing to generate: leave at least one token out of the bans"
    )]
    AllBanned {
        /// The vocabulary's size.
        vocabulary: usize,
    },
    /// An adapter of that name is attached already.
    #[error("an adapter named `{0}` is already attached; detach it first, or give the new one another name")]
    AdapterName(String),
    /// No adapter of that name is loaded.
    #[error("no adapter named `{0}` is loaded")]
    NoAdapter(String),
    /// A job uses the adapter.
    #[error("the adapter `{0}` is in use; try again when its answers have ended")]
    AdapterInUse(String),
    /// A tokenizer or template file is far larger than any valid one.
    #[error("{file}: expected at most {largest_bytes} bytes, got {size_bytes}; the file is not what its name says")]
    TextSize {
        /// Its name.
        file: String,
        /// Its size.
        size_bytes: u64,
        /// The limit.
        largest_bytes: u64,
    },
    /// The checkpoint has no chat template.
    #[error(
        "this checkpoint has no chat template and none could be guessed from its vocabulary; choose one with `--chat-template` ({0})"
    )]
    NoTemplate(String),
}
