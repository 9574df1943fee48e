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

use super::config::Reader;
use super::names::{GLOBALS, LAYERS, Names};
use super::tensors::Values;
use crate::error::WeightsError;
use serde_json::Value;

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
    /// 1 has been added to the norm weights.
    pub norm_plus_one: bool,
    /// Shape and value transformation of a tensor, by Hugging Face's name and the shape in the file, where they differ
    /// from Hugging Face's.
    pub(super) stored: fn(&str, &[usize]) -> Option<(Vec<usize>, Values)>,
    /// Adds the architecture's own fields to `config.json`.
    pub(super) config: fn(&mut Reader<'_>) -> Result<(), WeightsError>,
    /// The architecture's additions to a written file, from `config.json` and the head size. `None`: it is not written,
    /// because no test compares such a file with llama.cpp's.
    pub(super) export: Option<fn(&Value, usize) -> Result<Exported, WeightsError>>,
}

/// An architecture's additions to a written file. A browser writes none.
#[cfg_attr(target_arch = "wasm32", allow(dead_code))]
#[derive(Debug, Default)]
pub(super) struct Exported {
    /// Metadata keys, without the architecture's prefix.
    pub keys: Vec<(&'static str, Key)>,
    /// The ending of the names of tensors that are multiplied, and the factor.
    pub factor: Option<(&'static str, f32)>,
}

/// The value of a metadata key.
#[cfg_attr(target_arch = "wasm32", allow(dead_code))]
#[derive(Debug, Clone, Copy)]
pub(super) enum Key {
    /// An unsigned integer.
    Whole(u32),
    /// A float.
    Float(f32),
}

/// LLaMA's names, without any difference from Hugging Face's checkpoint.
const PLAIN: Arch = Arch {
    gguf: "",
    model_types: &[],
    globals: GLOBALS,
    layer_prefix: "model.layers.",
    layers: LAYERS,
    interleaved: false,
    norm_plus_one: false,
    stored: |_, _| None,
    config: |_| Ok(()),
    export: None,
};

/// An [`Arch::stored`] of recurrent layers: a convolution without its middle dimension, and -exp(A) in place of log A.
fn recurrent(name: &str, shape: &[usize]) -> Option<(Vec<usize>, Values)> {
    match shape {
        [channels, .., kernel] if name.ends_with(".conv1d.weight") => Some((vec![*channels, 1, *kernel], Values::Same)),
        _ if name.ends_with(".A_log") => Some((vec![shape.iter().product()], Values::MinusExp)),
        _ => None,
    }
}

/// An [`Arch::export`] that adds nothing.
fn nothing_more(_: &Value, _: usize) -> Result<Exported, WeightsError> {
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

    /// Whether its checkpoints can be written as GGUF.
    pub fn is_exported(&self) -> bool {
        self.export.is_some()
    }
}
