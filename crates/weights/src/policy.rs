//! Which tensor gets which format.
//!
//! Matrices of linear layers get the format that the user names. Embeddings and output heads get a finer one: they are
//! multiplied once per token instead of once per layer, so they take little time, while their errors go directly into
//! the logits and no later layer can correct them. Each format names its finer one ([`Format::finer`]): for `q4_k` that
//! is `q6_k` (6.56 bits), for `q4_0`, chosen where unpacking must be cheapest, `q8_0` (one byte per weight).
//! Vectors (norms, biases) stay f32: they are a thousandth of the bytes.

use crate::formats::{F16, F32, Format};
use std::collections::BTreeMap;

/// The formats for one quantization.
#[derive(Clone, Debug)]
pub struct Policy {
    /// For the matrices of linear layers.
    pub linear: &'static dyn Format,
    /// For the token embedding.
    pub embedding: &'static dyn Format,
    /// For the output head, when it is not tied to the embedding.
    pub head: &'static dyn Format,
    /// Formats of single tensors by exact name; they override all other rules.
    pub exceptions: BTreeMap<String, &'static dyn Format>,
    /// Importance `[K]` of a tensor's columns, by tensor name, for the quantizer; usually mean squared activations.
    pub importance: BTreeMap<String, Vec<f32>>,
}

impl Policy {
    /// The policy with `linear` for linear layers, and its finer format for embedding and head.
    pub fn for_format(linear: &'static dyn Format) -> Self {
        let fine = linear.finer().unwrap_or(linear);
        Self { linear, embedding: fine, head: fine, exceptions: BTreeMap::new(), importance: BTreeMap::new() }
    }

    /// The format for a tensor.
    pub fn format_for(&self, name: &str, shape: &[usize]) -> &'static dyn Format {
        if let Some(format) = self.exceptions.get(name) {
            return *format;
        }
        let module = name.strip_suffix(".weight").unwrap_or("");
        let last = module.rsplit('.').next().unwrap_or("");
        match (shape.len(), last) {
            (2, "embed_tokens" | "wte" | "word_embeddings") => self.embedding,
            (2, "lm_head" | "embed_out") => self.head,
            // A router makes discrete decisions, so its few rows stay exact enough for them.
            (2, "gate" | "router") => &F16,
            (2, last) if !last.is_empty() && !last.contains("norm") => self.linear,
            _ => &F32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::{Q4_0, Q4K};

    #[test]
    fn names_choose_formats() {
        let policy = Policy::for_format(&Q4K);
        let name = |tensor: &str, shape: &[usize]| policy.format_for(tensor, shape).name();
        assert_eq!(name("model.layers.0.mlp.up_proj.weight", &[8, 8]), "q4_k");
        assert_eq!(name("model.layers.0.mlp.gate_proj.weight", &[8, 8]), "q4_k");
        assert_eq!(name("model.embed_tokens.weight", &[8, 8]), "q6_k");
        assert_eq!(name("lm_head.weight", &[8, 8]), "q6_k");
        assert_eq!(name("model.norm.weight", &[8]), "f32");
        assert_eq!(name("model.layers.0.self_attn.q_proj.bias", &[8]), "f32");
        assert_eq!(name("model.layers.0.conv.conv.weight", &[8, 1, 3]), "f32");
        assert_eq!(Policy::for_format(&Q4_0).head.name(), "q8_0");
        let mut policy = policy;
        policy.exceptions.insert("lm_head.weight".to_owned(), &F16);
        assert_eq!(policy.format_for("lm_head.weight", &[8, 8]).name(), "f16");
    }
}
