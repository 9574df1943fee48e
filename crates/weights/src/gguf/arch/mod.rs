//! The GGUF form of each architecture: one file for each architecture or family, with its names, its configuration and
//! how it is written, in one [`Arch`]; and the table of all of them.

mod cohere;
mod falcon_h1;
mod gemma;
mod gemma4;
mod granite;
mod jais;
mod jais2;
mod lfm2;
mod llama;
mod olmo2;
mod phi3;
mod qwen;
mod qwen35;
mod smollm3;
pub(super) mod written;

use super::config::Reader;
use super::names::{GLOBALS, LAYERS, Names};
use super::tensors::Values;
use crate::error::WeightsError;
use written::{Change, Exported, Key, Model};

/// An architecture.
#[derive(Debug)]
pub struct Arch {
    /// `general.architecture`.
    pub gguf: &'static str,
    /// Hugging Face's `model_type`s that are written under this name.
    pub model_types: &'static [&'static str],
    /// Names of the modules outside the layers.
    pub globals: Names,
    /// The text before the layer number in Hugging Face's names.
    pub layer_prefix: &'static str,
    /// Names of the modules of a layer; a name with a suffix means that one tensor.
    pub layers: Names,
    /// The rows of q and k are reordered for rotary pairs (2i, 2i + 1).
    pub interleaved: bool,
    /// Endings of the modules whose matrices llama.cpp's form multiplies, or reorders by more than `interleaved`. What a
    /// LoRA adapter's pair for one of them means then depends on the model, so that it is not read.
    pub changed_pairs: &'static [&'static str],
    /// 1 has been added to the norm weights.
    pub norm_plus_one: bool,
    /// Shape and value transformation of a tensor, by Hugging Face's name and the shape in the file, where they differ
    /// from Hugging Face's.
    pub(super) stored: fn(&str, &[usize]) -> Option<(Vec<usize>, Values)>,
    /// Adds the architecture's own fields to `config.json`.
    pub(super) config: fn(&mut Reader<'_>) -> Result<(), WeightsError>,
    /// The architecture's additions to a written file. Errors: llama.cpp would compute something else than this model.
    pub(super) export: fn(&Model<'_>) -> Result<Exported, WeightsError>,
}

/// LLaMA's names, without any difference from Hugging Face's checkpoint.
const PLAIN: Arch = Arch {
    gguf: "",
    model_types: &[],
    globals: GLOBALS,
    layer_prefix: "model.layers.",
    layers: LAYERS,
    interleaved: false,
    changed_pairs: &[],
    norm_plus_one: false,
    stored: |_, _| None,
    config: |_| Ok(()),
    export: nothing_more,
};

/// An [`Arch::stored`] of recurrent layers: a convolution without its middle dimension, and -exp(A) in place of log A.
fn recurrent(name: &str, shape: &[usize]) -> Option<(Vec<usize>, Values)> {
    match shape {
        [channels, .., kernel] if name.ends_with(".conv1d.weight") => Some((vec![*channels, 1, *kernel], Values::Same)),
        _ if name.ends_with(".A_log") => Some((vec![shape.iter().product()], Values::MinusExp)),
        _ => None,
    }
}

/// The reverse of [`recurrent`].
fn recurrent_change(name: &str, shape: &[usize]) -> Change {
    match shape {
        [channels, .., kernel] if name.ends_with(".conv1d.weight") => {
            Change { shape: Some(vec![*channels, *kernel]), exact: true, ..Change::default() }
        }
        _ if name.ends_with(".A_log") => Change { values: Values::MinusExp, ..Change::default() },
        _ => Change::default(),
    }
}

/// An [`Arch::export`] that adds nothing.
fn nothing_more(_: &Model<'_>) -> Result<Exported, WeightsError> {
    Ok(Exported::default())
}

/// Every architecture.
pub static ARCHS: &[Arch] = &[
    llama::LLAMA,
    qwen::QWEN2,
    qwen::QWEN3,
    qwen35::QWEN35,
    gemma::GEMMA,
    gemma::GEMMA2,
    gemma::GEMMA3,
    gemma4::GEMMA4,
    phi3::PHI3,
    olmo2::OLMO2,
    cohere::COMMAND_R,
    cohere::COHERE2,
    lfm2::LFM2,
    falcon_h1::FALCON_H1,
    granite::GRANITE,
    jais::JAIS,
    jais2::JAIS2,
    smollm3::SMOLLM3,
];

impl Arch {
    /// Finds an architecture by llama.cpp's name.
    pub fn by_gguf(name: &str) -> Option<&'static Arch> {
        ARCHS.iter().find(|arch| arch.gguf == name)
    }

    /// Finds an architecture by Hugging Face's `model_type`.
    pub fn by_model_type(name: &str) -> Option<&'static Arch> {
        ARCHS.iter().find(|arch| arch.model_types.contains(&name))
    }
}
