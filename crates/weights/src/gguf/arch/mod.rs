//! What each architecture is in GGUF: one file for each architecture or family, with its names, its configuration and
//! how it is written, in one [`Arch`]; and the table that finds them.

mod cohere;
mod falcon_h1;
mod gemma;
mod granite;
mod jais;
mod jais2;
mod lfm2;
mod llama;
mod olmo2;
mod phi3;
mod qwen;
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
    /// Hugging Face's `model_type`, and others that are written under the same name.
    pub model_types: &'static [&'static str],
    /// Modules outside the layers.
    pub globals: Names,
    /// Before the number of a layer in Hugging Face's names.
    pub layer_prefix: &'static str,
    /// Modules of a layer; a name with a suffix stands for that one tensor.
    pub layers: Names,
    /// Rows of q and k are reordered for rotary pairs (2i, 2i + 1).
    pub interleaved: bool,
    /// Norms have 1 added.
    pub norm_plus_one: bool,
    /// Sizes and values of a tensor by Hugging Face's name and the file's sizes, where they differ.
    pub(super) stored: fn(&str, &[usize]) -> Option<(Vec<usize>, Values)>,
    /// Adds to `config.json` what only this architecture has.
    pub(super) config: fn(&mut Reader<'_>) -> Result<(), WeightsError>,
    /// What a written file has besides what all have, by `config.json` and the head size; `None`: it is not written,
    /// because nothing here compares such a file with llama.cpp's.
    pub(super) export: Option<fn(&Value, usize) -> Result<Exported, WeightsError>>,
}

/// What the file of a checkpoint has besides what all have.
#[derive(Debug, Default)]
pub(super) struct Exported {
    /// Keys, without the architecture's name.
    pub keys: Vec<(&'static str, Key)>,
    /// Tensors whose names end so are multiplied by the number.
    pub factor: Option<(&'static str, f32)>,
}

/// A number under a key.
#[derive(Debug, Clone, Copy)]
pub(super) enum Key {
    /// A whole one.
    Whole(u32),
    /// Any.
    Float(f32),
}

/// LLaMA's names and nothing else that differs from Hugging Face's checkpoint.
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

/// For [`Arch::export`]: nothing besides what all have.
fn nothing_more(_: &Value, _: usize) -> Result<Exported, WeightsError> {
    Ok(Exported::default())
}

/// Every architecture.
pub static ARCHS: &[Arch] = &[
    llama::LLAMA,
    qwen::QWEN2,
    qwen::QWEN3,
    gemma::GEMMA,
    gemma::GEMMA2,
    gemma::GEMMA3,
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
    /// By llama.cpp's name.
    pub fn by_gguf(name: &str) -> Option<&'static Arch> {
        ARCHS.iter().find(|arch| arch.gguf == name)
    }

    /// By Hugging Face's `model_type`.
    pub fn by_model_type(name: &str) -> Option<&'static Arch> {
        ARCHS.iter().find(|arch| arch.model_types.contains(&name))
    }

    /// Whether checkpoints of it are written as GGUF.
    pub fn is_exported(&self) -> bool {
        self.export.is_some()
    }
}
