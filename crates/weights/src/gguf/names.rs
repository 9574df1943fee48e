//! llama.cpp's architecture and tensor names, and those of Hugging Face they stand for.
//!
//! One table for both directions: a GGUF is read by it and written by it.

/// An architecture.
#[derive(Debug)]
pub struct Arch {
    /// `general.architecture`.
    pub gguf: &'static str,
    /// Hugging Face's `model_type`.
    pub model_type: &'static str,
    /// Modules outside the layers.
    pub globals: &'static [(&'static str, &'static str)],
    /// Before the number of a layer in Hugging Face's names.
    pub layer_prefix: &'static str,
    /// Modules of a layer; a name with a suffix stands for that one tensor.
    pub layers: &'static [(&'static str, &'static str)],
    /// Rows of q and k are reordered for rotary pairs (2i, 2i + 1).
    pub interleaved: bool,
    /// Norms have 1 added.
    pub norm_plus_one: bool,
}

const GLOBALS: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

const LLAMA: &[(&str, &str)] = &[
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

/// Gemma 2 and 3: norms before and after both halves.
const FOUR_NORMS: &[(&str, &str)] = &[
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

const PHI3: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_up", "mlp.gate_up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

const LFM2_GLOBALS: &[(&str, &str)] = &[
    ("token_embd", "model.embed_tokens"),
    ("token_embd_norm", "model.embedding_norm"),
    ("output_norm", "model.embedding_norm"),
    ("output", "lm_head"),
];

const LFM2: &[(&str, &str)] = &[
    ("attn_norm", "operator_norm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.out_proj"),
    ("attn_q_norm", "self_attn.q_layernorm"),
    ("attn_k_norm", "self_attn.k_layernorm"),
    ("shortconv.in_proj", "conv.in_proj"),
    ("shortconv.conv", "conv.conv"),
    ("shortconv.out_proj", "conv.out_proj"),
    ("ffn_norm", "ffn_norm"),
    ("ffn_gate", "feed_forward.w1"),
    ("ffn_down", "feed_forward.w2"),
    ("ffn_up", "feed_forward.w3"),
];

const FALCON_H1_GLOBALS: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.final_layernorm"), ("output", "lm_head")];

const FALCON_H1: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ssm_in", "mamba.in_proj"),
    ("ssm_conv1d", "mamba.conv1d"),
    ("ssm_dt.bias", "mamba.dt_bias"),
    ("ssm_a", "mamba.A_log"),
    ("ssm_d", "mamba.D"),
    ("ssm_norm", "mamba.norm"),
    ("ssm_out", "mamba.out_proj"),
    // llama.cpp's table of this architecture leaves the suffix of this one out.
    ("ffn_norm", "pre_ff_layernorm.weight"),
    ("ffn_norm.weight", "pre_ff_layernorm.weight"),
    ("ffn_gate", "feed_forward.gate_proj"),
    ("ffn_up", "feed_forward.up_proj"),
    ("ffn_down", "feed_forward.down_proj"),
];

const JAIS_GLOBALS: &[(&str, &str)] =
    &[("token_embd", "transformer.wte"), ("output_norm", "transformer.ln_f"), ("output", "lm_head")];

const JAIS: &[(&str, &str)] = &[
    ("attn_norm", "ln_1"),
    ("attn_qkv", "attn.c_attn"),
    ("attn_output", "attn.c_proj"),
    ("ffn_norm", "ln_2"),
    ("ffn_up", "mlp.c_fc"),
    ("ffn_gate", "mlp.c_fc2"),
    ("ffn_down", "mlp.c_proj"),
];

const fn dense(gguf: &'static str, model_type: &'static str, layers: &'static [(&'static str, &'static str)]) -> Arch {
    Arch {
        gguf,
        model_type,
        globals: GLOBALS,
        layer_prefix: "model.layers.",
        layers,
        interleaved: false,
        norm_plus_one: false,
    }
}

/// Every architecture.
pub static ARCHS: &[Arch] = &[
    Arch { interleaved: true, ..dense("llama", "llama", LLAMA) },
    dense("qwen2", "qwen2", LLAMA),
    dense("qwen3", "qwen3", LLAMA),
    Arch { norm_plus_one: true, ..dense("gemma", "gemma", LLAMA) },
    Arch { norm_plus_one: true, ..dense("gemma2", "gemma2", FOUR_NORMS) },
    Arch { norm_plus_one: true, ..dense("gemma3", "gemma3_text", FOUR_NORMS) },
    dense("phi3", "phi3", PHI3),
    dense("olmo2", "olmo2", FOUR_NORMS),
    dense("command-r", "cohere", LLAMA),
    dense("cohere2", "cohere2", LLAMA),
    Arch { globals: LFM2_GLOBALS, ..dense("lfm2", "lfm2", LFM2) },
    Arch { globals: FALCON_H1_GLOBALS, ..dense("falcon-h1", "falcon_h1", FALCON_H1) },
    Arch { globals: JAIS_GLOBALS, layer_prefix: "transformer.h.", ..dense("jais", "jais", JAIS) },
];

impl Arch {
    /// By llama.cpp's name.
    pub fn by_gguf(name: &str) -> Option<&'static Arch> {
        ARCHS.iter().find(|arch| arch.gguf == name)
    }

    /// By Hugging Face's `model_type`; mistral is llama with a window there.
    pub fn by_model_type(name: &str) -> Option<&'static Arch> {
        let name = if name == "mistral" { "llama" } else { name };
        ARCHS.iter().find(|arch| arch.model_type == name)
    }

    /// Hugging Face's name of llama.cpp's tensor.
    pub fn to_hugging_face(&self, name: &str) -> Option<String> {
        if let Some(rest) = name.strip_prefix("blk.") {
            let (layer, tensor) = rest.split_once('.')?;
            let layer: u32 = layer.parse().ok()?;
            return Some(format!("{}{layer}.{}", self.layer_prefix, forward(self.layers, tensor)?));
        }
        forward(self.globals, name)
    }

    /// llama.cpp's name of Hugging Face's tensor.
    pub fn to_gguf(&self, name: &str) -> Option<String> {
        if let Some(rest) = name.strip_prefix(self.layer_prefix) {
            let (layer, tensor) = rest.split_once('.')?;
            let layer: u32 = layer.parse().ok()?;
            return Some(format!("blk.{layer}.{}", backward(self.layers, tensor)?));
        }
        backward(self.globals, name)
    }

    /// Whether rows of this tensor of Hugging Face's are reordered.
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

    #[test]
    fn names_go_both_ways() {
        for arch in ARCHS {
            for (gguf, _) in
                arch.layers.iter().filter(|(gguf, full)| !gguf.starts_with("ssm_") && !full.ends_with(".weight"))
            {
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
