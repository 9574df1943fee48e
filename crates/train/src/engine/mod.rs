//! The engine: a decoder with trained parameters; it takes micro-batches and returns losses and updated weights.
//!
//! The graph that inference records is recorded for a packed micro-batch, differentiated, and executed with the same
//! kernels. Rejected: a separate training model, because it would have to be kept equal to the first. All trained
//! parameters are in one arena, so that clipping and AdamW are three dispatches and only the loss is read back.

mod arena;
mod conformance;
mod error;
mod loss_scale;
mod step;
mod trainer;

#[cfg(test)]
mod f16_tests;
#[cfg(test)]
mod full_tests;
#[cfg(test)]
mod tests;

pub use arena::new_adapter;
pub use conformance::{dpo, lora_grads, lora_steps, lora_train};
pub use error::EngineError;
pub use loss_scale::{INITIAL_LOSS_SCALE, LossScale};
pub(crate) use step::rounded;
pub use trainer::{GradientCheck, PairResult, Trainer, TrainerOptions};
