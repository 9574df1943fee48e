//! GGUF metadata as a `config.json`.
//!
//! Only what llama.cpp's converter keeps can be told; what it drops, because its own code has it built in, is put back
//! here (Gemma's query scales, window patterns). Keys that an architecture does not have are left out, and its own
//! defaults hold.

use super::header::{Header, Value as Meta};
use super::names::Arch;
use crate::error::WeightsError;
use serde_json::{Map, Value, json};

/// What the metadata cannot say and the tensors can.
#[derive(Clone, Debug, Default)]
pub(super) struct Hints {
    pub vocab_size: usize,
    pub has_output: bool,
    pub has_q_bias: bool,
    pub has_mlp_bias: bool,
    pub has_q_norm: bool,
    pub has_ssm_norm: bool,
    pub has_conv_bias: bool,
    /// The divisors of the rotary frequencies, if the file has them.
    pub rope_factors: Option<Vec<f32>>,
    /// Phi-3's divisors for short and long contexts.
    pub long_rope: Option<(Vec<f32>, Vec<f32>)>,
}

struct Reader<'a> {
    file: &'a str,
    header: &'a Header,
    arch: &'a Arch,
    out: Map<String, Value>,
}

/// The configuration of the model in `file`.
pub(super) fn config(file: &str, header: &Header, arch: &Arch, hints: &Hints) -> Result<Value, WeightsError> {
    let mut reader = Reader { file, header, arch, out: Map::new() };
    reader.set("model_type", json!(arch.model_type));
    reader.common(hints)?;
    match arch.gguf {
        "llama" => {
            reader.set("attention_bias", json!(hints.has_q_bias));
            reader.set("mlp_bias", json!(hints.has_mlp_bias));
        }
        "gemma" | "gemma2" | "gemma3" => reader.gemma(),
        "phi3" => reader.copy("sliding_window", "attention.sliding_window"),
        "command-r" | "cohere2" => reader.cohere(hints),
        "lfm2" => reader.lfm2(),
        "falcon-h1" => reader.falcon_h1(hints),
        "jais" => reader.jais()?,
        _ => {}
    }
    reader.rope(hints);
    reader.special_ids();
    Ok(Value::Object(reader.out))
}

impl Reader<'_> {
    fn set(&mut self, key: &str, value: Value) {
        self.out.insert(key.to_owned(), value);
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch.gguf)
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.header.number(&self.key(key))
    }

    /// A size; of a list, one for each layer, the largest.
    fn size(&self, key: &str) -> Option<u64> {
        match self.header.metadata.get(&self.key(key)) {
            Some(Meta::Integers(values)) => values.iter().copied().max().and_then(|most| u64::try_from(most).ok()),
            _ => self.header.integer(&self.key(key)),
        }
    }

    fn require(&self, key: &str) -> Result<u64, WeightsError> {
        let found = self.size(key);
        found.ok_or_else(|| {
            WeightsError::malformed(
                self.file,
                format!("expected the metadata key {:?} with a whole number, found none", self.key(key)),
            )
        })
    }

    /// A number under Hugging Face's key, where the file has it.
    fn copy(&mut self, to: &str, from: &str) {
        if let Some(size) = self.size(from) {
            self.set(to, json!(size));
        } else if let Some(number) = self.number(from) {
            self.set(to, json!(short(number)));
        }
    }

    fn common(&mut self, hints: &Hints) -> Result<(), WeightsError> {
        let (hidden, heads) = (self.require("embedding_length")?, self.require("attention.head_count")?);
        self.set("num_hidden_layers", json!(self.require("block_count")?));
        self.set("hidden_size", json!(hidden));
        self.set("intermediate_size", json!(self.require("feed_forward_length")?));
        self.set("num_attention_heads", json!(heads));
        self.set("num_key_value_heads", json!(self.size("attention.head_count_kv").unwrap_or(heads)));
        self.set("vocab_size", json!(hints.vocab_size));
        self.set("tie_word_embeddings", json!(!hints.has_output));
        self.copy("head_dim", "attention.key_length");
        self.copy("max_position_embeddings", "context_length");
        self.copy("rms_norm_eps", "attention.layer_norm_rms_epsilon");
        self.copy("layer_norm_eps", "attention.layer_norm_epsilon");
        self.set("hidden_act", json!("silu"));
        Ok(())
    }

    fn head_dim(&self) -> u64 {
        let of = |key: &str| self.out.get(key).and_then(Value::as_u64).unwrap_or(0);
        self.size("attention.key_length").unwrap_or_else(|| of("hidden_size") / of("num_attention_heads").max(1))
    }

    fn gemma(&mut self) {
        for key in ["hidden_act", "hidden_activation"] {
            self.set(key, json!("gelu_pytorch_tanh"));
        }
        if self.arch.gguf == "gemma" {
            return;
        }
        self.copy("sliding_window", "attention.sliding_window");
        for (to, from) in [
            ("attn_logit_softcapping", "attn_logit_softcapping"),
            ("final_logit_softcapping", "final_logit_softcapping"),
        ] {
            let cap = self.number(from).map(short);
            self.set(to, json!(cap));
        }
        // The converter drops the scale of queries: it is the head size but for the 27B models, which llama.cpp knows
        // by their layers.
        let of = |key: &str| self.out.get(key).and_then(Value::as_u64).unwrap_or(0);
        let is_27b = of("num_hidden_layers") == if self.arch.gguf == "gemma2" { 46 } else { 62 };
        let scalar = if is_27b { of("hidden_size") / of("num_attention_heads").max(1) } else { self.head_dim() };
        self.set("query_pre_attn_scalar", json!(scalar));
        if self.arch.gguf == "gemma3" {
            let local = self.number("rope.freq_base_swa").unwrap_or(10_000.0);
            self.set("rope_local_base_freq", json!(short(local)));
            let pattern = self.size("attention.sliding_window_pattern").unwrap_or(6);
            self.set("sliding_window_pattern", json!(pattern));
        }
    }

    fn cohere(&mut self, hints: &Hints) {
        self.copy("logit_scale", "logit_scale");
        self.set("attention_bias", json!(hints.has_q_bias));
        if self.arch.gguf == "command-r" {
            self.set("use_qk_norm", json!(hints.has_q_norm));
        } else {
            self.copy("sliding_window", "attention.sliding_window");
            let pattern = self.size("attention.sliding_window_pattern").unwrap_or(4);
            self.set("sliding_window_pattern", json!(pattern));
        }
    }

    fn lfm2(&mut self) {
        self.copy("conv_L_cache", "shortconv.l_cache");
        self.set("conv_bias", json!(false));
        self.set("block_auto_adjust_ff_dim", json!(false));
        if let Some(eps) = self.out.get("rms_norm_eps").cloned() {
            self.set("norm_eps", eps);
        }
        if let Some(counts) = self.header.integers(&self.key("attention.head_count_kv")) {
            let kinds: Vec<&str> = counts.iter().map(|&n| if n > 0 { "full_attention" } else { "conv" }).collect();
            self.set("layer_types", json!(kinds));
        }
    }

    /// The converter multiplies the multipliers into the weights, so all are 1 here.
    fn falcon_h1(&mut self, hints: &Hints) {
        self.set("mamba_rms_norm", json!(hints.has_ssm_norm));
        self.set("mamba_norm_before_gate", json!(false));
        self.set("mamba_conv_bias", json!(hints.has_conv_bias));
        for key in ["attention_in", "attention_out", "embedding", "key", "lm_head", "ssm_in", "ssm_out"] {
            self.set(&format!("{key}_multiplier"), json!(1.0));
        }
        self.set("mlp_multipliers", json!([1.0, 1.0]));
        self.set("ssm_multipliers", json!([1.0, 1.0, 1.0, 1.0, 1.0]));
        for (to, from) in [
            ("mamba_d_conv", "ssm.conv_kernel"),
            ("mamba_d_ssm", "ssm.inner_size"),
            ("mamba_d_state", "ssm.state_size"),
            ("mamba_n_heads", "ssm.time_step_rank"),
            ("mamba_n_groups", "ssm.group_count"),
        ] {
            self.copy(to, from);
        }
        let of = |key: &str| self.out.get(key).and_then(Value::as_u64).unwrap_or(0);
        let head = of("mamba_d_ssm") / of("mamba_n_heads").max(1);
        self.set("mamba_d_head", json!(head));
    }

    /// The converter multiplies the embedding and output scales into the weights, and writes matrices as [out, in].
    fn jais(&mut self) -> Result<(), WeightsError> {
        if let Some(bias) = self.number("attention.max_alibi_bias").filter(|bias| *bias != 8.0) {
            return Err(WeightsError::Unsupported {
                what: format!("{}: the slopes of ALiBi from a greatest bias of {bias}", self.file),
                remedy: "expected 8, as in every published model; take the safetensors checkpoint".to_owned(),
            });
        }
        for (to, from) in [
            ("n_embd", "hidden_size"),
            ("n_layer", "num_hidden_layers"),
            ("n_head", "num_attention_heads"),
            ("n_inner", "intermediate_size"),
            ("n_positions", "max_position_embeddings"),
            ("layer_norm_epsilon", "layer_norm_eps"),
        ] {
            if let Some(value) = self.out.get(from).cloned() {
                self.set(to, value);
            }
        }
        self.set("activation_function", json!("swiglu"));
        self.set("position_embedding_type", json!("alibi"));
        self.set("mup_embeddings_scale", json!(1.0));
        self.set("mup_output_alpha", json!(1.0));
        self.set("mup_width_scale", json!(1.0));
        self.set("mup_scale_qk_dot_by_d", json!(true));
        self.set(crate::checkpoint::TURNED_KEY, json!(true));
        Ok(())
    }

    fn rope(&mut self, hints: &Hints) {
        self.copy("rope_theta", "rope.freq_base");
        if let Some(theta) = self.number("rope.freq_base") {
            self.set("rope_theta", json!(short(theta)));
        }
        if let (Some(turned), head) = (self.size("rope.dimension_count"), self.head_dim())
            && turned < head
        {
            self.set("partial_rotary_factor", json!(turned as f64 / head as f64));
        }
        if let Some(factors) = &hints.rope_factors {
            self.set("rope_scaling", json!({"rope_type": "frequency_factors", "factors": factors}));
            return;
        }
        let original = self.size("rope.scaling.original_context_length");
        if let (Some((short, long)), Some(original)) = (&hints.long_rope, original) {
            self.set("original_max_position_embeddings", json!(original));
            self.set(
                "rope_scaling",
                json!({"rope_type": "longrope", "type": "longrope", "short_factor": short, "long_factor": long}),
            );
            return;
        }
        let factor = self.number("rope.scaling.factor").or(self.number("rope.scale_linear")).unwrap_or(1.0);
        let kind =
            self.header.text(&self.key("rope.scaling.type")).unwrap_or(if factor == 1.0 { "none" } else { "linear" });
        match kind {
            "linear" if factor != 1.0 => {
                self.set("rope_scaling", json!({"rope_type": "linear", "factor": short(factor)}))
            }
            "yarn" => {
                let mut scaling = json!({"rope_type": "yarn", "factor": short(factor)});
                if let Some(original) = original {
                    scaling["original_max_position_embeddings"] = json!(original);
                }
                if let Some(attention) = self.number("rope.scaling.attn_factor").filter(|factor| *factor != 1.0) {
                    scaling["attention_factor"] = json!(short(attention) * (0.1 * factor.ln() + 1.0));
                }
                self.set("rope_scaling", scaling);
            }
            _ => {}
        }
    }

    fn special_ids(&mut self) {
        if let Some(bos) = self.header.integer("tokenizer.ggml.bos_token_id") {
            self.set("bos_token_id", json!(bos));
        }
        let ends = end_ids(self.header);
        match ends.as_slice() {
            [] => {}
            [one] => self.set("eos_token_id", json!(one)),
            all => self.set("eos_token_id", json!(all)),
        }
    }
}

/// The ids that end a text, a turn or a message.
pub(super) fn end_ids(header: &Header) -> Vec<u64> {
    let mut ids = Vec::new();
    for key in ["eos", "eot", "eom"] {
        let id = header.integer(&format!("tokenizer.ggml.{key}_token_id"));
        ids.extend(id.filter(|id| !ids.contains(id)));
    }
    ids
}

/// The shortest decimal that is this f32: metadata floats are f32, and 1e-5 should read as 1e-5.
fn short(value: f64) -> f64 {
    if f64::from(value as f32) == value { (value as f32).to_string().parse().unwrap_or(value) } else { value }
}
