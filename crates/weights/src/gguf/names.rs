//! llama.cpp's tensor names and their Hugging Face names: those that architectures share.
//!
//! One table for both directions, reading and writing.

use super::arch::Arch;

/// llama.cpp's name of a module, and Hugging Face's.
pub type Names = &'static [(&'static str, &'static str)];

/// Modules outside the layers.
pub(super) const GLOBALS: Names =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Modules of a layer of LLaMA; other architectures use those that they have.
pub(super) const LAYERS: Names = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Norms before and after both attention and MLP.
pub(super) const FOUR_NORMS: Names = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

impl Arch {
    /// Hugging Face's name of a llama.cpp tensor.
    pub fn to_hugging_face(&self, name: &str) -> Option<String> {
        if let Some(rest) = name.strip_prefix("blk.") {
            let (layer, tensor) = rest.split_once('.')?;
            let layer: u32 = layer.parse().ok()?;
            return Some(format!("{}{layer}.{}", self.layer_prefix, forward(self.layers, tensor)?));
        }
        forward(self.globals, name)
    }

    /// llama.cpp's name of a Hugging Face tensor.
    pub fn to_gguf(&self, name: &str) -> Option<String> {
        if let Some(rest) = name.strip_prefix(self.layer_prefix) {
            let (layer, tensor) = rest.split_once('.')?;
            let layer: u32 = layer.parse().ok()?;
            return Some(format!("blk.{layer}.{}", backward(self.layers, tensor)?));
        }
        backward(self.globals, name)
    }

    /// Whether the rows of this tensor (Hugging Face's name) are reordered.
    pub fn is_interleaved(&self, name: &str) -> bool {
        self.interleaved
            && [".q_proj.weight", ".k_proj.weight", ".q_proj.bias", ".k_proj.bias"]
                .iter()
                .any(|suffix| name.ends_with(suffix))
    }
}

fn forward(table: &[(&str, &str)], name: &str) -> Option<String> {
    if let Some((_, full)) = table.iter().find(|(gguf, _)| *gguf == name) {
        return Some((*full).to_owned());
    }
    let (module, suffix) = name.rsplit_once('.')?;
    let (_, found) = table.iter().find(|(gguf, _)| *gguf == module)?;
    matches!(suffix, "weight" | "bias").then(|| format!("{found}.{suffix}"))
}

fn backward(table: &[(&str, &str)], name: &str) -> Option<String> {
    if let Some((gguf, _)) = table.iter().find(|(_, full)| *full == name) {
        return Some((*gguf).to_owned());
    }
    let (module, suffix) = name.rsplit_once('.')?;
    let (gguf, _) = table.iter().find(|(_, hugging_face)| *hugging_face == module)?;
    matches!(suffix, "weight" | "bias").then(|| format!("{gguf}.{suffix}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::arch::ARCHS;

    #[test]
    fn names_go_both_ways() {
        for arch in ARCHS {
            let plain = |(gguf, full): &&(&str, &str)| {
                !gguf.starts_with("ssm_") && !gguf.ends_with(".weight") && !full.ends_with(".weight")
            };
            for (gguf, _) in arch.layers.iter().filter(plain) {
                let name = format!("blk.7.{gguf}.weight");
                let there = arch.to_hugging_face(&name).expect("a name");
                assert_eq!(arch.to_gguf(&there).as_deref(), Some(name.as_str()), "{}", arch.gguf);
            }
        }
        let arch = Arch::by_gguf("falcon-h1").expect("listed");
        assert_eq!(arch.to_hugging_face("blk.0.ssm_dt.bias").as_deref(), Some("model.layers.0.mamba.dt_bias"));
        assert_eq!(arch.to_hugging_face("blk.0.ssm_a").as_deref(), Some("model.layers.0.mamba.A_log"));
        for name in ["blk.0.ffn_norm", "blk.0.ffn_norm.weight"] {
            assert_eq!(arch.to_hugging_face(name).as_deref(), Some("model.layers.0.pre_ff_layernorm.weight"));
        }
        assert_eq!(arch.to_hugging_face("blk.x.ssm_a"), None);
        assert_eq!(arch.to_hugging_face("blk.0.unknown.weight"), None);
    }
}
