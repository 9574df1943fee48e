//! Errors of models.

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
        /// The permitted values.
        expected: String,
        /// The file's value.
        got: String,
    },
    /// There is no such architecture.
    #[error("config.json: model_type `{model_type}` is not supported; supported: {supported}")]
    Architecture {
        /// The checkpoint's `model_type`.
        model_type: String,
        /// The supported `model_type`s.
        supported: String,
    },
    /// An adapter that does not fit the model.
    #[error(
        "adapter: module `{module}`: expected {expected}, got {got}; check that the adapter was trained on this base model"
    )]
    Adapter {
        /// The module, by Hugging Face's name.
        module: String,
        /// The sizes or modules that would match.
        expected: String,
        /// The adapter's.
        got: String,
    },
    /// The layers cannot be divided among the devices as requested.
    #[error(
        "splitting layers over devices: expected {expected}, got {got}; name fewer devices with `--devices` or other shares with `--tensor-split`"
    )]
    Split {
        /// What is permitted.
        expected: String,
        /// What was requested.
        got: String,
    },
    /// A tensor that cannot be trained when all parameters are trained.
    #[error("`{tensor}`: expected {expected}, got {got}; train an adapter instead (leave --full out)")]
    Train {
        /// The tensor, by Hugging Face's name.
        tensor: String,
        /// What training of all parameters requires.
        expected: String,
        /// What the tensor is.
        got: String,
    },
    /// The checkpoint has tensors that the model would not read.
    #[error(
        "a {model_type} model does not read these tensors of the checkpoint, and would answer otherwise than the model that has them: {names}; {remedy}"
    )]
    Unread {
        /// The tensors, by Hugging Face's names.
        names: String,
        /// The checkpoint's `model_type`.
        model_type: String,
        /// What to do.
        remedy: String,
    },
    /// An error in the checkpoint's files.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// An error of the device.
    #[error(transparent)]
    Gpu(#[from] GpuError),
}
