//! What can be wrong with a model.

use bayan_gpu::GpuError;
use bayan_weights::WeightsError;

/// An error while a model is opened.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A field of config.json is missing or impossible.
    #[error("config.json: `{field}`: expected {expected}, got {got}; check that the file belongs to this checkpoint")]
    Config {
        /// The field, by Hugging Face's name.
        field: String,
        /// What would do.
        expected: String,
        /// What stands there.
        got: String,
    },
    /// No architecture of that name.
    #[error("config.json: model_type `{model_type}` is not supported; supported: {supported}")]
    Architecture {
        /// What the checkpoint says.
        model_type: String,
        /// What there is.
        supported: String,
    },
    /// An adapter that does not fit the model.
    #[error(
        "adapter: module `{module}`: expected {expected}, got {got}; check that the adapter was trained on this base model"
    )]
    Adapter {
        /// The module, by Hugging Face's name.
        module: String,
        /// What would fit.
        expected: String,
        /// What the adapter has.
        got: String,
    },
    /// Layers that cannot be split so.
    #[error(
        "splitting layers over devices: expected {expected}, got {got}; name fewer devices with `--devices` or other shares with `--tensor-split`"
    )]
    Split {
        /// What would do.
        expected: String,
        /// What was asked.
        got: String,
    },
    /// A tensor that cannot be trained with all parameters.
    #[error("`{tensor}`: expected {expected}, got {got}; train an adapter instead (leave --full out)")]
    Train {
        /// The tensor, by Hugging Face's name.
        tensor: String,
        /// What would do.
        expected: String,
        /// What is there.
        got: String,
    },
    /// The checkpoint's files.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The device.
    #[error(transparent)]
    Gpu(#[from] GpuError),
}
