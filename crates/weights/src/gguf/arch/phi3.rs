//! Phi-3: one projection for queries, keys and values, and one for gate and up.

use super::super::names::Names;
use super::{Arch, PLAIN};

const LAYERS: Names = &[
    ("attn_norm", "input_layernorm"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_up", "mlp.gate_up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

pub(super) const PHI3: Arch = Arch {
    gguf: "phi3",
    model_types: &["phi3"],
    layers: LAYERS,
    config: |reader| {
        reader.copy("sliding_window", "attention.sliding_window");
        Ok(())
    },
    ..PLAIN
};
