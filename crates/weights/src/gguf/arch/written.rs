//! What an architecture says of its files when they are written: keys, and how tensors differ from Hugging Face's.

use super::super::tensors::Values;
use crate::checkpoint::Checkpoint;
use crate::error::WeightsError;
use serde_json::Value;

/// The model that is written.
#[derive(Clone, Copy)]
#[cfg_attr(target_arch = "wasm32", allow(dead_code))]
pub(in super::super) struct Model<'a> {
    pub config: &'a Value,
    /// Head size by the configuration.
    pub head_dim: usize,
    pub checkpoint: &'a Checkpoint,
}

/// An architecture's additions to a written file. A browser writes none.
#[cfg_attr(target_arch = "wasm32", allow(dead_code))]
#[derive(Default)]
pub(in super::super) struct Exported {
    /// Metadata keys, without the architecture's prefix; they replace the common ones.
    pub keys: Vec<(&'static str, Key)>,
    /// How a tensor differs from Hugging Face's, by Hugging Face's name and shape; `None`: none does.
    pub change: Option<ChangeOf>,
    /// `output.weight` is written as the embedding times this factor, because llama.cpp needs a matrix of its own.
    pub head: Option<f32>,
    /// The output head is the embedding, so that a head in the checkpoint is not written.
    pub tied: bool,
    /// The architecture writes the rotary scaling itself.
    pub own_rotary: bool,
    /// Further tensors of numbers.
    pub tensors: Vec<(&'static str, Vec<f32>)>,
}

/// The change of a tensor, by Hugging Face's name and shape.
pub(in super::super) type ChangeOf = Box<dyn Fn(&str, &[usize]) -> Change>;

/// The value of a metadata key.
#[cfg_attr(target_arch = "wasm32", allow(dead_code))]
#[derive(Debug, Clone)]
pub(in super::super) enum Key {
    /// An unsigned integer.
    Whole(u32),
    /// A float.
    Float(f32),
    /// A text.
    Text(&'static str),
    /// Whole numbers, mostly one for each layer.
    Wholes(Vec<i32>),
    /// True or false for each layer.
    Flags(Vec<bool>),
    /// The common key is left out.
    Absent,
}

/// How a written tensor differs from Hugging Face's.
#[cfg_attr(target_arch = "wasm32", allow(dead_code))]
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Change {
    /// The shape in the file, of as many values.
    pub shape: Option<Vec<usize>>,
    /// Transformation of the values.
    pub values: Values,
    /// Factors of the rows, each for those before the given one.
    pub factors: Vec<(usize, f32)>,
    /// Another order of the rows, or of the elements of a vector.
    pub rows: Option<Heads>,
    /// Another order of the columns.
    pub columns: Option<Heads>,
    /// Written in f32, as vectors are.
    pub exact: bool,
    /// A norm to which nothing is added, in an architecture whose other norms get 1 added.
    pub whole_norm: bool,
}

impl Change {
    /// All values are multiplied.
    pub fn factor(factor: f32) -> Self {
        Self { factors: vec![(usize::MAX, factor)], ..Self::default() }
    }
}

/// The order of value heads where a key head serves several: Hugging Face has those of one key head together, llama.cpp
/// the n-th of each key head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(target_arch = "wasm32", allow(dead_code))]
pub(in super::super) struct Heads {
    /// Items before the first value head, which keep their places.
    pub first: usize,
    /// Items of a value head.
    pub run: usize,
    pub key_heads: usize,
    /// Value heads of each key head.
    pub each: usize,
}

#[cfg_attr(target_arch = "wasm32", allow(dead_code))]
impl Heads {
    /// The place in Hugging Face's tensor of the item that is written at `index`.
    pub fn source(&self, index: usize) -> usize {
        let Some(within) = index.checked_sub(self.first) else { return index };
        let (head, item) = (within / self.run, within % self.run);
        self.first + (head % self.key_heads * self.each + head / self.key_heads) * self.run + item
    }

    /// Items of all heads.
    pub fn count(&self) -> usize {
        self.first + self.run * self.key_heads * self.each
    }
}

#[cfg_attr(target_arch = "wasm32", allow(dead_code))]
impl Model<'_> {
    /// A whole number of the configuration.
    pub fn size(&self, key: &str) -> Option<u32> {
        self.config.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok())
    }

    /// A number of the configuration.
    pub fn number(&self, key: &str) -> Option<f32> {
        self.config.get(key).and_then(Value::as_f64).map(|n| n as f32)
    }

    pub fn flag(&self, key: &str) -> bool {
        self.config.get(key) == Some(&Value::Bool(true))
    }

    /// Number of layers, of a checkpoint that has all of them.
    pub fn layers(&self) -> Result<usize, WeightsError> {
        let layers = self.require("num_hidden_layers")? as usize;
        match layers <= self.checkpoint.tensors().len() {
            true => Ok(layers),
            false => Err(WeightsError::malformed(
                "config.json",
                format!(
                    "num_hidden_layers is {layers}, the checkpoint has {} tensors",
                    self.checkpoint.tensors().len()
                ),
            )),
        }
    }

    /// The shape of a tensor.
    pub fn shape(&self, tensor: &str) -> Option<&[usize]> {
        self.checkpoint.tensor(tensor).map(|entry| entry.shape.as_slice())
    }

    /// Rows of a tensor, which must exist.
    pub fn rows(&self, tensor: &str) -> Result<usize, WeightsError> {
        Ok(self.checkpoint.require(tensor)?.shape.first().copied().unwrap_or(0))
    }

    pub fn require(&self, key: &str) -> Result<u32, WeightsError> {
        self.size(key)
            .ok_or_else(|| WeightsError::malformed("config.json", format!("expected a whole number under {key:?}")))
    }

    /// The refusal of a model that llama.cpp could not compute; `what` it has, and what llama.cpp computes instead.
    pub fn refuse(&self, what: &str, expected: &str) -> WeightsError {
        let kind = self.config.get("model_type").and_then(Value::as_str).unwrap_or("none");
        WeightsError::Unsupported {
            what: format!("writing a {kind} model with {what} as GGUF"),
            remedy: format!("llama.cpp computes {expected}; keep this model as safetensors, which Bayan runs"),
        }
    }

    /// Refuses a model where one of these flags is set.
    pub fn without(&self, flags: &[&str]) -> Result<(), WeightsError> {
        match flags.iter().find(|flag| self.flag(flag)) {
            Some(flag) => {
                Err(self.refuse(&format!("{flag} = true"), &format!("this architecture with {flag} = false")))
            }
            None => Ok(()),
        }
    }

    /// The rotary parameters, in the styles of transformers 4 and 5.
    pub fn rotary(&self) -> Option<&Value> {
        self.config
            .get("rope_parameters")
            .filter(|value| value.is_object())
            .or(self.config.get("rope_scaling").filter(|value| value.is_object()))
    }

    /// The method of rotary scaling.
    pub fn rotary_kind(&self) -> &str {
        let kind = self.rotary().and_then(|rope| rope.get("rope_type").or(rope.get("type")));
        kind.and_then(Value::as_str).unwrap_or("default")
    }

    /// Refuses a model with rotary scaling, which llama.cpp does not apply to this architecture.
    pub fn without_rotary_scaling(&self) -> Result<(), WeightsError> {
        match self.rotary_kind() {
            "default" => Ok(()),
            kind => Err(self.refuse(&format!("the rotary scaling {kind:?}"), "this architecture without any")),
        }
    }

    /// Rotated numbers of each head.
    pub fn rotated(&self, default: f64) -> usize {
        let part = self.rotary().and_then(|rope| rope.get("partial_rotary_factor"));
        let part = part.or(self.config.get("partial_rotary_factor")).and_then(Value::as_f64).unwrap_or(default);
        (self.head_dim as f64 * part) as usize / 2 * 2
    }

    /// Whether the heads of the queries make up the hidden size, which llama.cpp expects of some architectures.
    pub fn heads_fill_the_hidden_size(&self) -> Result<(), WeightsError> {
        let (hidden, heads) = (self.require("hidden_size")? as usize, self.require("num_attention_heads")? as usize);
        match heads.checked_mul(self.head_dim) {
            Some(width) if width == hidden => Ok(()),
            _ => Err(self.refuse(
                &format!("{heads} heads of {} and a hidden size of {hidden}", self.head_dim),
                "this architecture with heads that make up the hidden size",
            )),
        }
    }
}

/// The interval n, where every n-th layer has full attention.
#[cfg_attr(target_arch = "wasm32", allow(dead_code))]
pub(in super::super) fn interval(full: &[bool]) -> Option<u32> {
    let follows = |n: usize| full.iter().enumerate().all(|(layer, full)| *full == ((layer + 1) % n == 0));
    (1..=full.len() + 1).find(|&n| follows(n)).and_then(|n| u32::try_from(n).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_heads_are_tiled() {
        let heads = Heads { first: 3, run: 2, key_heads: 2, each: 3 };
        assert_eq!(heads.count(), 15);
        let found: Vec<usize> = (0..15).map(|index| heads.source(index)).collect();
        // Heads 0 to 2 belong to the first key head, 3 to 5 to the second.
        assert_eq!(found, [0, 1, 2, 3, 4, 9, 10, 5, 6, 11, 12, 7, 8, 13, 14]);
    }

    #[test]
    fn regular_layers_have_an_interval() {
        assert_eq!(interval(&[false, false, true, false, false, true]), Some(3));
        assert_eq!(interval(&[true, true]), Some(1));
        assert_eq!(interval(&[false, false]), Some(3));
        assert_eq!(interval(&[true, false, true]), None);
    }
}
