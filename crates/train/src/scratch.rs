//! Random initial weights for a model that has only a `config.json` and a tokenizer.
//!
//! The weights become an ordinary checkpoint (in memory, and in the run's directory as `initial/`), which is then
//! opened like any other, so that other programs can start from the same numbers. Rejected: random numbers on the
//! device, because no other program could reproduce them.

use std::path::{Path, PathBuf};

use bayan_models::{DescribedTensor, FirstValues};
use bayan_weights::{MemorySource, Source, WeightsError};
use serde_json::{Value, json};

use crate::NamedArray;
use crate::checkpoint::encode_arrays;
use crate::error::{Result, TrainError};
use crate::files::replace_directory;
use crate::recipe::SaveDtype;
use crate::rng::Rng;

/// Directory of a run's initial weights.
pub const INITIAL: &str = "initial";

/// Largest `config.json` in bytes.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Most numbers in all initial weights, because they are generated in memory.
const MAX_NUMBERS: u64 = 1 << 34;

/// Initial weights as transformers draws them: matrices normal with standard deviation `initializer_range` (0.02),
/// norms 1, biases 0. Each tensor has its own random stream, so that it does not depend on the others.
///
/// # Errors
/// No architecture accepts the configuration, `initializer_range` is not a positive number, or there are more numbers
/// than fit the limit.
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
    let model = bayan_models::describe(config).map_err(|error| {
        TrainError::recipe("from_scratch", "a configuration of a model", error, "correct config.json")
    })?;
    let count =
        |tensor: &DescribedTensor| tensor.shape.iter().fold(1u64, |count, &size| count.saturating_mul(size as u64));
    let total = model.tensors.iter().map(count).fold(0, u64::saturating_add);
    if total > MAX_NUMBERS {
        return Err(TrainError::recipe(
            "from_scratch",
            format!("at most {MAX_NUMBERS} parameters, because they are generated in memory"),
            total,
            "choose smaller sizes in config.json",
        ));
    }
    let array = |DescribedTensor { name, shape, first }: DescribedTensor| {
        let count = shape.iter().product();
        let values = match first {
            FirstValues::All(value) => vec![value; count],
            FirstValues::Each(value) => (0..count).map(value).collect(),
            FirstValues::Random => {
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
    Ok(model.tensors.into_iter().map(array).collect())
}

/// A checkpoint of random weights: the configuration of `base` (for f32, without a quantization), its tokenizer and
/// side files, and [`weights`].
///
/// # Errors
/// As [`weights`], or a file cannot be read.
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

/// Changes a configuration to dense weights of this number type.
pub(crate) fn plain(config: &mut Value, save: SaveDtype) {
    let Some(object) = config.as_object_mut() else { return };
    object.shift_remove("quantization_config");
    // transformers 5 writes `dtype`, transformers 4 `torch_dtype`.
    let name = if object.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    object.insert(name.to_owned(), json!(save.name()));
}

/// Writes the initial weights into the directory of a run, so that other programs can start from them.
///
/// # Errors
/// A file operation was refused.
pub fn save_initial(source: &MemorySource, output: &Path) -> Result<PathBuf> {
    let target = output.join(INITIAL);
    let files: Vec<(&str, &[u8])> = source.files().collect();
    replace_directory(&target, &files)?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bayan_weights::{Checkpoint, DirectorySource};
    use std::rc::Rc;

    #[test]
    fn every_fixture_opens_from_its_configuration() {
        for model in crate::testing::models() {
            let base = Rc::new(DirectorySource::new(crate::testing::path(&["models", &model])).unwrap());
            let source = pollster::block_on(source(base.as_ref(), 3)).unwrap();
            let fresh = pollster::block_on(Checkpoint::open(Rc::new(source))).unwrap();
            let options = bayan_models::LoadOptions { context: 16 };
            let decoder = pollster::block_on(bayan_models::open(&fresh, None, &options, None, &mut |_, _| {}));
            assert!(decoder.is_ok(), "{model}: {:?}", decoder.err());
            for tensor in fresh.tensors() {
                let values = pollster::block_on(fresh.read_f32(&tensor.name)).unwrap();
                let square = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64;
                // Large tensors are random; the others are constants.
                if values.len() > 4000 {
                    assert!((square.sqrt() / 0.02 - 1.0).abs() < 0.1, "{model}: {}: {square}", tensor.name);
                } else if tensor.name.ends_with("norm.weight") {
                    // These models store norms minus one; Gemma 4 and the gated norm of Qwen 3.5 do not.
                    let minus_one = model.starts_with("gemma") && !model.starts_with("gemma4")
                        || model.starts_with("qwen3_5") && !tensor.name.contains("linear_attn");
                    let one = if minus_one { 0.0 } else { 1.0 };
                    assert!(values.iter().all(|v| *v == one), "{model}: {}", tensor.name);
                }
            }
            let dtype = fresh.config().get("dtype").or(fresh.config().get("torch_dtype"));
            assert_eq!(dtype, Some(&json!("float32")), "{model}");
        }
    }

    #[test]
    fn impossible_configurations_are_refused() {
        let error = |config: Value| weights(&config, 0).unwrap_err().to_string();
        assert!(error(json!({"model_type": "gpt9"})).contains("gpt9"));
        let sizes = json!({"model_type": "llama", "hidden_size": 1 << 30, "intermediate_size": 1 << 30,
            "num_hidden_layers": 1, "num_attention_heads": 1 << 22, "vocab_size": 1 << 30});
        assert!(error(sizes).contains("in memory"));
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
