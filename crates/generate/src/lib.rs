//! From a prompt to its answer: tokenizer and chat template, the engine that runs a decoder, and a model that combines
//! them.

pub mod engine;
mod error;
mod grammar;
mod model;
pub mod openai;
pub mod text;

pub use bayan_models::Adapter;
pub use bayan_tensor::Cpu;
pub use bayan_tensor::ops::SampleSettings;
pub use engine::{
    Control, Engine, EngineOptions, Event, FinishReason, Job, JobId, LARGEST_BIAS, Likelihood, MOST_PROPOSALS, Request,
    ScoredText, StateError, StepSizes, TokenScore, Usage, log_sum, most_likely,
};
pub use error::GenerateError;
pub use grammar::{Allowed, Constraint, Grammar, GrammarError, Grammars};
pub use model::{Answer, AnswerText, Generation, Model, ModelOptions, TextPipeline};
