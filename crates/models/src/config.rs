//! Reads config.json with Hugging Face's field names, in the styles of transformers 4 and 5.

use serde_json::Value;

use bayan_tensor::ops::Activation;

use crate::ModelError;

/// A view of config.json whose errors name the field.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a>(pub &'a Value);

/// Larger sizes are rejected: they can only come from a damaged file, and would overflow later.
const LARGEST: u64 = 1 << 31;

impl<'a> Fields<'a> {
    fn fail<T>(field: &str, expected: &str, got: &Value) -> Result<T, ModelError> {
        let mut got = got.to_string();
        if got.len() > 80 {
            let cut = (0..=80).rev().find(|&i| got.is_char_boundary(i)).unwrap_or(0);
            got.truncate(cut);
            got.push('…');
        }
        Err(ModelError::Config { field: field.to_string(), expected: expected.to_string(), got })
    }

    /// The configuration with these values in place of the fields that it leaves out.
    pub(crate) fn with_defaults(&self, defaults: &Value) -> Value {
        let mut whole = self.0.clone();
        if let (Some(fields), Some(defaults)) = (whole.as_object_mut(), defaults.as_object()) {
            for (name, value) in defaults {
                fields.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
        whole
    }

    /// The value of a field that exists and is not null.
    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.0.get(field).filter(|v| !v.is_null())
    }

    /// A positive integer, if the field exists.
    ///
    /// # Errors
    /// The field has another kind of value.
    pub fn optional_size(&self, field: &str) -> Result<Option<usize>, ModelError> {
        match self.get(field) {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(n) if (1..LARGEST).contains(&n) => Ok(Some(n as usize)),
                _ => Self::fail(field, "a positive whole number", value),
            },
        }
    }

    /// A positive integer.
    ///
    /// # Errors
    /// The field is missing, or has another kind of value.
    pub fn size(&self, field: &str) -> Result<usize, ModelError> {
        match self.optional_size(field)? {
            Some(size) => Ok(size),
            None => Self::fail(field, "a positive whole number", &Value::String("nothing".into())),
        }
    }

    /// A positive integer from the first of these fields that exists.
    ///
    /// # Errors
    /// None of the fields exists, or the first one has another kind of value.
    pub fn size_named(&self, names: &[&str]) -> Result<usize, ModelError> {
        let name = names.iter().find(|name| self.get(name).is_some());
        self.size(name.unwrap_or(&names[0]))
    }

    /// The epsilon of the norms, under any of its field names.
    ///
    /// # Errors
    /// The value is not a number.
    pub fn norm_eps(&self) -> Result<f32, ModelError> {
        let names =
            [("rms_norm_eps", 1e-6), ("layer_norm_eps", 1e-5), ("layer_norm_epsilon", 1e-5), ("norm_eps", 1e-5)];
        let (name, default) = names.into_iter().find(|(name, _)| self.get(name).is_some()).unwrap_or(names[0]);
        Ok(self.number(name, default)? as f32)
    }

    /// The window of each layer. `layer_types` states which layers have one; without it, all except every n-th layer
    /// have one, where n is `sliding_window_pattern` or the architecture's `pattern`.
    ///
    /// # Errors
    /// The window or the pattern is not a number.
    pub fn windows(&self, layers: usize, pattern: usize) -> Result<Vec<Option<usize>>, ModelError> {
        let window = self.optional_size("sliding_window")?.unwrap_or(4096);
        let known = self.optional_size("sliding_window_pattern")?.or(self.optional_size("_sliding_window_pattern")?);
        let pattern = known.unwrap_or(pattern);
        let types = self.get("layer_types").and_then(|v| v.as_array());
        let sliding = |layer: usize| match types.and_then(|types| types.get(layer)).and_then(|t| t.as_str()) {
            Some(kind) => kind == "sliding_attention",
            None => !(layer + 1).is_multiple_of(pattern),
        };
        Ok((0..layers).map(|layer| sliding(layer).then_some(window)).collect())
    }

    /// A finite number, or the default when the field is missing.
    ///
    /// # Errors
    /// The field has another kind of value.
    pub fn number(&self, field: &str, default: f64) -> Result<f64, ModelError> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => match value.as_f64() {
                Some(n) if n.is_finite() => Ok(n),
                _ => Self::fail(field, "a number", value),
            },
        }
    }

    /// True or false, or the default when the field is missing.
    ///
    /// # Errors
    /// The field has another kind of value.
    pub fn flag(&self, field: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(field) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(value) => Self::fail(field, "true or false", value),
        }
    }

    /// A string, if the field exists.
    pub fn text(&self, field: &str) -> Option<&'a str> {
        self.get(field).and_then(Value::as_str)
    }

    /// The error for a field whose value is not supported.
    ///
    /// # Errors
    /// Always.
    pub fn refuse<T>(&self, field: &str, expected: &str) -> Result<T, ModelError> {
        Self::fail(field, expected, self.0.get(field).unwrap_or(&Value::Null))
    }
}

/// The sizes common to all decoder-only transformers.
#[derive(Debug, Clone, PartialEq)]
pub struct Sizes {
    /// Hidden size, D.
    pub hidden_size: usize,
    /// Intermediate size of the MLP, F.
    pub intermediate_size: usize,
    /// Number of layers, L.
    pub num_hidden_layers: usize,
    /// Number of query heads, H.
    pub num_attention_heads: usize,
    /// Number of key-value heads, K.
    pub num_key_value_heads: usize,
    /// Head size, d.
    pub head_dim: usize,
    /// Vocabulary size, V.
    pub vocab_size: usize,
    /// Number of positions for which the model was trained.
    pub max_position_embeddings: usize,
    /// ε of the norms, of any kind.
    pub rms_norm_eps: f32,
    /// Whether the output head is the embedding matrix.
    pub tie_word_embeddings: bool,
}

impl Sizes {
    /// Reads and checks the sizes. `tied` is the architecture's default for `tie_word_embeddings`.
    ///
    /// # Errors
    /// A field that is missing or impossible.
    pub fn read(fields: &Fields<'_>, tied: bool) -> Result<Sizes, ModelError> {
        let hidden_size = fields.size_named(&["hidden_size", "n_embd"])?;
        let num_attention_heads = fields.size_named(&["num_attention_heads", "n_head"])?;
        let num_key_value_heads = fields.optional_size("num_key_value_heads")?.unwrap_or(num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            return fields.refuse(
                "num_key_value_heads",
                &format!("a divisor of num_attention_heads, which is {num_attention_heads}"),
            );
        }
        let head_dim = match fields.optional_size("head_dim")? {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
            None => {
                return fields.refuse(
                    "hidden_size",
                    &format!(
                        "a multiple of num_attention_heads, which is {num_attention_heads}, or an explicit head_dim"
                    ),
                );
            }
        };
        if !head_dim.is_multiple_of(4) || head_dim > 1024 {
            return fields.refuse("head_dim", "a multiple of 4 up to 1024");
        }
        let sizes = Sizes {
            hidden_size,
            intermediate_size: fields.size_named(&["intermediate_size", "n_inner", "block_ff_dim"])?,
            num_hidden_layers: fields.size_named(&["num_hidden_layers", "n_layer"])?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: fields.size("vocab_size")?,
            max_position_embeddings: fields
                .optional_size("max_position_embeddings")?
                .or(fields.optional_size("n_positions")?)
                .unwrap_or(2048),
            rms_norm_eps: fields.norm_eps()?,
            tie_word_embeddings: fields.flag("tie_word_embeddings", tied)?,
        };
        if sizes.num_hidden_layers > 10_000 {
            return fields.refuse("num_hidden_layers", "at most 10000");
        }
        Ok(sizes)
    }
}

/// The activation of the MLP.
pub(crate) fn activation(config: &Fields<'_>) -> Result<Activation, ModelError> {
    match config.text("hidden_activation").or(config.text("hidden_act")).unwrap_or("silu") {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
        "relu2" => Ok(Activation::Relu2),
        _ => config.refuse("hidden_act", "silu, gelu_pytorch_tanh or relu2"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn impossible_sizes_are_named() {
        let config = |heads: Value| json!({"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": heads, "vocab_size": 10});
        let error = |config: Value| Sizes::read(&Fields(&config), false).unwrap_err().to_string();
        assert!(error(config(json!(0))).contains("num_attention_heads"));
        assert!(error(config(json!(3))).contains("hidden_size"));
        assert!(error(config(json!("many"))).contains("got \"many\""));
        assert!(error(json!({})).contains("hidden_size"));
        assert!(Sizes::read(&Fields(&config(json!(4))), false).is_ok());
    }
}
