//! Errors of the engine.

use bayan_gpu::GpuError;
use bayan_models::{AdapterError, ModelError};
use bayan_tensor::BackwardError;

/// An error of the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The base model, or an adapter that does not fit it.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The device.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// The adapter's files.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// An operation of the model has no gradient.
    #[error(transparent)]
    Backward(#[from] BackwardError),
    /// A batch, request or saved state is not usable.
    #[error("{what}: expected {expected}, got {got}; {remedy}")]
    Input {
        /// What the error is about.
        what: String,
        /// What was expected.
        expected: String,
        /// What was found.
        got: String,
        /// What to do.
        remedy: String,
    },
    /// NaN or infinity in the loss or in a gradient.
    #[error(
        "training: {what} is not finite; this step did not change the weights: resume from the last checkpoint with a lower learning rate"
    )]
    NotFinite {
        /// The loss, or the first tensor whose gradient is not finite.
        what: String,
    },
}

impl EngineError {
    pub(crate) fn input(what: &str, expected: impl Into<String>, got: impl Into<String>, remedy: &str) -> EngineError {
        EngineError::Input {
            what: what.to_owned(),
            expected: expected.into(),
            got: got.into(),
            remedy: remedy.to_owned(),
        }
    }
}
