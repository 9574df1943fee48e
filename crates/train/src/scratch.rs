//! Random first weights for a model of which only `config.json` and the tokenizer are there.
//!
//! The choice: the weights become an ordinary checkpoint (in memory, and in the run's directory as `initial/`), which
//! is then opened like any other, so that another program can begin from the same numbers. Random numbers on the device
//! lost: nothing else could draw them again.

use std::path::{Path, PathBuf};

use bayan_models::{Fields, Sizes};
use bayan_weights::{MemorySource, Source, WeightsError};
use serde_json::{Value, json};

use crate::NamedArray;
use crate::checkpoint::encode_arrays;
use crate::error::{Result, TrainError};
use crate::files::replace_directory;
use crate::recipe::SaveDtype;
use crate::rng::Rng;

/// Where a run keeps its first weights.
pub const INITIAL: &str = "initial";

/// Architectures whose tensors are known here.
const KNOWN: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

/// Bytes of a `config.json` at most.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Name and sizes of every tensor of a configuration, in the order of the model.
///
/// # Errors
/// An architecture that is not one of `llama`, `mistral`, `qwen2` and `qwen3`, or a field that is missing or
/// impossible.
pub fn tensors(config: &Value) -> Result<Vec<(String, Vec<usize>)>> {
    let fields = Fields(config);
    let kind = fields.text("model_type").unwrap_or("nothing");
    if !KNOWN.contains(&kind) {
        return Err(TrainError::recipe(
            "from_scratch",
            format!("a model of type {}", KNOWN.join(", ")),
            kind,
            "write a config.json of one of these types",
        ));
    }
    let bad = |error: bayan_models::ModelError| {
        TrainError::recipe("from_scratch", "a configuration of a model", error, "correct config.json")
    };
    let sizes = Sizes::read(&fields, false).map_err(bad)?;
    let (d, f, v) = (sizes.hidden_size, sizes.intermediate_size, sizes.vocab_size);
    let (q, kv) = (sizes.num_attention_heads * sizes.head_dim, sizes.num_key_value_heads * sizes.head_dim);
    let flag = |name: &str| fields.flag(name, false).map_err(bad);
    // Qwen 2 has biases on queries, keys and values whatever its configuration says.
    let (qkv_bias, o_bias, mlp_bias) = match kind {
        "qwen2" => (true, false, false),
        "mistral" => (false, false, false),
        _ => (flag("attention_bias")?, flag("attention_bias")?, kind == "llama" && flag("mlp_bias")?),
    };
    let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![v, d])];
    for layer in 0..sizes.num_hidden_layers {
        let mut add = |name: &str, shape: Vec<usize>| all.push((format!("model.layers.{layer}.{name}"), shape));
        add("input_layernorm.weight", vec![d]);
        let attention = [
            ("q_proj", q, d, qkv_bias),
            ("k_proj", kv, d, qkv_bias),
            ("v_proj", kv, d, qkv_bias),
            ("o_proj", d, q, o_bias),
        ];
        let mlp = [("gate_proj", f, d, mlp_bias), ("up_proj", f, d, mlp_bias), ("down_proj", d, f, mlp_bias)];
        for (part, list) in [("self_attn", attention.as_slice()), ("mlp", &mlp)] {
            for (name, rows, columns, bias) in list {
                add(&format!("{part}.{name}.weight"), vec![*rows, *columns]);
                if *bias {
                    add(&format!("{part}.{name}.bias"), vec![*rows]);
                }
            }
        }
        if kind == "qwen3" {
            add("self_attn.q_norm.weight", vec![sizes.head_dim]);
            add("self_attn.k_norm.weight", vec![sizes.head_dim]);
        }
        add("post_attention_layernorm.weight", vec![d]);
    }
    all.push(("model.norm.weight".to_owned(), vec![d]));
    if !sizes.tie_word_embeddings {
        all.push(("lm_head.weight".to_owned(), vec![v, d]));
    }
    Ok(all)
}

/// First weights as transformers draws them: matrices normal with deviation `initializer_range` (0.02), norms 1, biases
/// 0. Each tensor has a random stream of its own, so that it does not depend on the others.
///
/// # Errors
/// As [`tensors`], or an `initializer_range` that is no positive number.
pub fn weights(config: &Value, seed: u64) -> Result<Vec<NamedArray>> {
    let range = config
        .get("initializer_range")
        .map_or(Some(0.02), Value::as_f64)
        .filter(|range| range.is_finite() && *range > 0.0);
    let range = range.ok_or_else(|| {
        TrainError::recipe(
            "from_scratch",
            "initializer_range above 0 in config.json",
            &config["initializer_range"],
            "write a number such as 0.02",
        )
    })?;
    let array = |(name, shape): (String, Vec<usize>)| {
        let count = shape.iter().product();
        let values = match (shape.len(), name.ends_with(".bias")) {
            (1, true) => vec![0.0; count],
            (1, false) => vec![1.0; count],
            _ => {
                // FNV-1a of the name.
                let stream = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
                    (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
                });
                let mut rng = Rng::new(seed, stream);
                (0..count).map(|_| (rng.normal() * range) as f32).collect()
            }
        };
        NamedArray { name, shape, values }
    };
    Ok(tensors(config)?.into_iter().map(array).collect())
}

/// A checkpoint of random weights: the configuration of `base` (for f32, without a quantization), what travels with its
/// weights, and [`weights`].
///
/// # Errors
/// As [`weights`], and files that cannot be read.
pub async fn source(base: &dyn Source, seed: u64) -> Result<MemorySource> {
    let unread = |error: WeightsError| {
        TrainError::recipe(
            "from_scratch",
            "a directory with config.json and the tokenizer",
            error,
            "name one with --model",
        )
    };
    let missing = || {
        TrainError::recipe(
            "from_scratch",
            "config.json beside the tokenizer",
            format!("none in {}", base.describe()),
            "write one",
        )
    };
    let size =
        base.size("config.json").await.map_err(unread)?.filter(|size| *size <= MAX_CONFIG_BYTES).ok_or_else(missing)?;
    let text = base.read("config.json", 0, size as usize).await.map_err(unread)?;
    let parsed: std::result::Result<Value, _> = serde_json::from_slice(&text);
    let mut config =
        parsed.map_err(|error| TrainError::recipe("from_scratch", "config.json to be JSON", error, "correct it"))?;
    let arrays = weights(&config, seed)?;
    plain(&mut config, SaveDtype::Float32);
    let mut files = MemorySource::new().with("config.json", format!("{config:#}\n").into_bytes());
    for (name, bytes) in bayan_weights::directory::side_files(base).await.map_err(unread)? {
        files.insert(name, bytes);
    }
    files.insert("model.safetensors", encode_arrays(Path::new(INITIAL), &arrays)?);
    Ok(files)
}

/// A configuration for dense weights of these numbers.
pub(crate) fn plain(config: &mut Value, save: SaveDtype) {
    let Some(object) = config.as_object_mut() else { return };
    object.shift_remove("quantization_config");
    // transformers 5 writes `dtype`, 4 `torch_dtype`.
    let name = if object.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    object.insert(name.to_owned(), json!(save.name()));
}

/// Writes the first weights into the directory of a run, for other programs to begin from.
///
/// # Errors
/// A refused file operation.
pub fn keep(source: &MemorySource, output: &Path) -> Result<PathBuf> {
    let target = output.join(INITIAL);
    let files: Vec<(&str, &[u8])> = source.files().collect();
    replace_directory(&target, &files)?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bayan_weights::{Checkpoint, DirectorySource};
    use std::collections::BTreeMap;
    use std::rc::Rc;

    #[test]
    fn every_known_architecture_opens_from_its_configuration() {
        for model in ["llama3_gqa", "llama3_tied", "llama2_mha", "mistral_swa", "qwen2_bias", "qwen3_qknorm"] {
            let base = Rc::new(DirectorySource::new(crate::testing::path(&["models", model])).unwrap());
            let stored = pollster::block_on(Checkpoint::open(base.clone())).unwrap();
            let source = pollster::block_on(source(base.as_ref(), 3)).unwrap();
            let fresh = pollster::block_on(Checkpoint::open(Rc::new(source))).unwrap();
            let shapes = |of: &Checkpoint| {
                of.tensors().iter().map(|t| (t.name.clone(), t.shape.clone())).collect::<BTreeMap<_, _>>()
            };
            assert_eq!(shapes(&fresh), shapes(&stored), "{model}");
            let values = pollster::block_on(fresh.read_f32("model.layers.0.mlp.up_proj.weight")).unwrap();
            let deviation = (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
            assert!((deviation / 0.02 - 1.0).abs() < 0.03, "{model}: {deviation}");
            assert!(pollster::block_on(fresh.read_f32("model.norm.weight")).unwrap().iter().all(|v| *v == 1.0));
            let dtype = fresh.config().get("dtype").or(fresh.config().get("torch_dtype"));
            assert_eq!(dtype, Some(&json!("float32")), "{model}");
        }
        let config = json!({"model_type": "gemma2"});
        assert!(weights(&config, 0).unwrap_err().to_string().contains("gemma2"));
    }

    #[test]
    fn a_seed_gives_the_same_weights_again() {
        let text = std::fs::read(crate::testing::path(&["models", "qwen3_qknorm", "config.json"])).unwrap();
        let config: Value = serde_json::from_slice(&text).unwrap();
        let of = |seed| weights(&config, seed).unwrap();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }
}
