//! LoRA adapters: reads PEFT's adapter_config.json and adapter_model.safetensors, or a GGUF file, into named pairs of
//! matrices, and writes PEFT's files.
//!
//! The reader refuses whatever it does not support, and the writer's files equal PEFT's byte for byte. Rejected: a
//! tolerant reader, because an adapter with DoRA vectors or other ranks would load, run and give wrong answers. Bytes
//! are read through [`Source`], so the browser page reads a dropped adapter with the same code;
//! nothing here accesses files.

mod config;
mod error;
mod patterns;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::rc::Rc;

use bayan_weights::gguf::adapter::{AdapterFile, AdapterPair, read_adapter};
use bayan_weights::safetensors::encode_header;
use bayan_weights::{Checkpoint, Dtype, Source, Stored, gguf};

pub use config::{AdapterConfig, PEFT_VERSION, Rules};
pub use error::AdapterError;
pub use patterns::{TargetModules, layer_of};

/// The name of the configuration file.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The name of the weights file.
pub const ADAPTER_MODEL: &str = "adapter_model.safetensors";

const PREFIX: &str = "base_model.model.";
const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";
const CHECK: &str = "check that both files belong together, and save the adapter again with PEFT";

/// The LoRA pair of one module: y += scale · B (A x).
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterModule {
    /// Rank r.
    pub rank: usize,
    /// Columns of the base weight.
    pub in_features: usize,
    /// Rows of the base weight.
    pub out_features: usize,
    /// Multiplies the product: alpha / r, or alpha / √r with rsLoRA.
    pub scale: f32,
    /// A [r, in], row-major.
    pub a: Vec<f32>,
    /// B [out, r], row-major.
    pub b: Vec<f32>,
}

/// An adapter in host memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// The adapter's configuration.
    pub config: AdapterConfig,
    /// The pairs by module name, which is the name of the base tensor without `.weight`:
    /// `model.layers.0.self_attn.q_proj`.
    pub modules: BTreeMap<String, AdapterModule>,
}

/// The names of a module's tensors A and B in PEFT's files.
pub fn tensor_names(module: &str) -> (String, String) {
    (format!("{PREFIX}{module}{A}"), format!("{PREFIX}{module}{B}"))
}

impl Adapter {
    /// Reads an adapter's two files.
    ///
    /// # Errors
    /// A missing or damaged file, a pickle instead of safetensors, an unsupported field, a tensor that does not belong
    /// in the adapter or whose shape contradicts its rank, NaN or infinity.
    pub async fn open(source: Rc<dyn Source>) -> Result<Self, AdapterError> {
        let checkpoint = Checkpoint::open_as(source, ADAPTER_CONFIG, "adapter_model").await?;
        let config = AdapterConfig::parse(checkpoint.config())?;
        let rules = config.rules()?;
        let names = pairs(&checkpoint)?;
        let mut modules = BTreeMap::new();
        for module in names {
            if !rules.is_target(&module)? {
                let expected =
                    "only modules that target_modules, exclude_modules and layers_to_transform name".to_owned();
                return Err(AdapterError::tensor(&module, expected, "a pair for this module", CHECK));
            }
            modules.insert(module.clone(), read_pair(&checkpoint, &rules, &module).await?);
        }
        Ok(Self { config, modules })
    }

    /// Reads an adapter for a base model whose heads have this size: a GGUF file, or as [`Adapter::open`].
    ///
    /// # Errors
    /// As [`Adapter::open`], and those of a GGUF file.
    pub async fn open_for(source: Rc<dyn Source>, head_dim: usize) -> Result<Self, AdapterError> {
        let has_config = source.size(ADAPTER_CONFIG).await?.is_some() && source.main_file().is_none();
        match if has_config { None } else { gguf::find(source.as_ref()).await? } {
            Some(file) => Self::from_gguf(read_adapter(source.as_ref(), &file, head_dim).await?),
            None => Self::open(source).await,
        }
    }

    fn from_gguf(file: AdapterFile) -> Result<Self, AdapterError> {
        // llama.cpp takes an alpha of 0 for a scale of 1.
        let alpha_of = |rank: usize| if file.alpha == 0.0 { rank as f64 } else { f64::from(file.alpha) };
        let first = file.pairs.values().next().map_or(1, |pair| pair.rank);
        let names = file.pairs.keys().cloned().collect();
        let mut config = AdapterConfig::new(first, alpha_of(first), TargetModules::Names(names));
        let mut modules = BTreeMap::new();
        for (name, pair) in file.pairs {
            let AdapterPair { rank, in_features, out_features, a, b } = pair;
            if rank != first {
                let pattern = name.replace('.', "\\.");
                config.rank_pattern.push((pattern.clone(), rank));
                config.alpha_pattern.push((pattern, alpha_of(rank)));
            }
            let scale = (alpha_of(rank) / rank as f64) as f32;
            modules.insert(name, AdapterModule { rank, in_features, out_features, scale, a, b });
        }
        config.rules()?;
        Ok(Self { config, modules })
    }

    /// Checks the adapter against its base model. `linear` returns the sizes (out, in) of the linear layer with that
    /// name, or `None` if there is no such layer.
    ///
    /// # Errors
    /// The first module that the base model lacks, or has with other sizes.
    pub fn check_base(&self, linear: impl Fn(&str) -> Option<(usize, usize)>) -> Result<(), AdapterError> {
        const REMEDY: &str = "use the base model that the adapter was trained on; adapter_config.json names it";
        for (name, module) in &self.modules {
            let got = format!("an adapter for [{}, {}]", module.out_features, module.in_features);
            match linear(name) {
                Some(sizes) if sizes == (module.out_features, module.in_features) => {}
                Some((out, input)) => {
                    return Err(AdapterError::tensor(
                        name,
                        format!("a base weight of [{out}, {input}], as this model has"),
                        got,
                        REMEDY,
                    ));
                }
                None => {
                    return Err(AdapterError::tensor(name, "the name of a linear layer of this model", got, REMEDY));
                }
            }
        }
        Ok(())
    }

    /// Number of values in all pairs.
    pub fn parameters(&self) -> u64 {
        self.modules.values().map(|m| (m.a.len() + m.b.len()) as u64).sum()
    }

    /// adapter_config.json as PEFT writes it.
    pub fn encode_config(&self) -> Vec<u8> {
        // Encoding cannot fail: the value consists of maps, lists and numbers.
        serde_json::to_vec_pretty(&self.config.to_json()).unwrap_or_default()
    }

    /// adapter_model.safetensors as PEFT writes it: f32, sorted by name.
    ///
    /// # Errors
    /// A pair whose arrays do not have the stated sizes.
    pub fn encode_weights(&self) -> Result<Vec<u8>, AdapterError> {
        let mut arrays: Vec<(String, [usize; 2], &[f32])> = Vec::with_capacity(2 * self.modules.len());
        for (name, m) in &self.modules {
            let (a, b) = tensor_names(name);
            arrays.push((a, [m.rank, m.in_features], &m.a));
            arrays.push((b, [m.out_features, m.rank], &m.b));
        }
        arrays.sort_by(|x, y| x.0.cmp(&y.0));
        for (name, [rows, columns], values) in &arrays {
            if rows.checked_mul(*columns) != Some(values.len()) {
                return Err(AdapterError::tensor(
                    name,
                    format!("{rows} × {columns} numbers"),
                    values.len().to_string(),
                    "report this as a bug",
                ));
            }
        }
        let described: Vec<(&str, Dtype, &[usize], u64)> = arrays
            .iter()
            .map(|(name, shape, values)| (name.as_str(), Dtype::F32, &shape[..], 4 * values.len() as u64))
            .collect();
        let mut bytes = encode_header(&described, &BTreeMap::from([("format".to_owned(), "pt".to_owned())]));
        for (_, _, values) in &arrays {
            bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        }
        Ok(bytes)
    }
}

/// The modules for which the file has pairs. Every tensor must be A or B of a module.
fn pairs(checkpoint: &Checkpoint) -> Result<Vec<String>, AdapterError> {
    let mut modules = Vec::new();
    for name in checkpoint.names() {
        let module = name.strip_prefix(PREFIX).ok_or_else(|| foreign(name))?;
        let (module, other) = match (module.strip_suffix(A), module.strip_suffix(B)) {
            (Some(module), _) => (module, tensor_names(module).1),
            (_, Some(module)) => (module, tensor_names(module).0),
            _ => return Err(foreign(name)),
        };
        if checkpoint.tensor(&other).is_none() {
            return Err(AdapterError::tensor(name, format!("its counterpart {other:?} beside it"), "nothing", CHECK));
        }
        if name.ends_with(A) {
            modules.push(module.to_owned());
        }
    }
    if modules.is_empty() {
        return Err(AdapterError::tensor("(all)", "at least one pair of lora_A and lora_B", "none", CHECK));
    }
    Ok(modules)
}

/// The error for a tensor that is neither A nor B of a module.
fn foreign(name: &str) -> AdapterError {
    const MERGE: &str = "merge the adapter into its base with PEFT (merge_and_unload) and open the merged model";
    let expected = format!("{PREFIX}NAME{A} or {PREFIX}NAME{B}");
    let (got, remedy) = if name.contains("lora_magnitude_vector") {
        ("a magnitude vector of DoRA", MERGE)
    } else if name.contains("lora_embedding_") {
        ("a pair for an embedding", MERGE)
    } else if name.contains(".lora_A.") || name.contains(".lora_B.") {
        (
            "a name with something after lora_A or lora_B",
            "save it with PEFT's save_pretrained, which takes the adapter's name and biases out",
        )
    } else {
        ("a whole weight or another kind of adapter", MERGE)
    };
    AdapterError::tensor(name, expected, got, remedy)
}

async fn read_pair(checkpoint: &Checkpoint, rules: &Rules, module: &str) -> Result<AdapterModule, AdapterError> {
    let (a, b) = tensor_names(module);
    let (rank, scale) = (rules.rank(module)?, rules.scale(module)?);
    let shape = |name: &str| -> Result<[usize; 2], AdapterError> {
        let entry = checkpoint.require(name)?;
        let dense = matches!(entry.stored, Stored::Dense(dtype) if dtype.is_weight());
        match entry.shape[..] {
            [rows, columns] if dense && rows > 0 && columns > 0 => Ok([rows, columns]),
            _ => Err(AdapterError::tensor(
                name,
                "a matrix of F32, F16 or BF16",
                format!("{} {:?}", entry.stored.name(), entry.shape),
                CHECK,
            )),
        }
    };
    let ([a_rows, in_features], [out_features, b_columns]) = (shape(&a)?, shape(&b)?);
    if a_rows != rank {
        return Err(AdapterError::tensor(
            &a,
            format!("[{rank}, in], since the configuration says rank {rank}"),
            format!("[{a_rows}, {in_features}]"),
            CHECK,
        ));
    }
    if b_columns != rank {
        return Err(AdapterError::tensor(
            &b,
            format!("[out, {rank}], since the configuration says rank {rank}"),
            format!("[{out_features}, {b_columns}]"),
            CHECK,
        ));
    }
    if !scale.is_finite() {
        return Err(AdapterError::tensor(&a, "a finite scale", scale.to_string(), CHECK));
    }
    Ok(AdapterModule {
        rank,
        in_features,
        out_features,
        scale,
        a: checkpoint.read_f32(&a).await?,
        b: checkpoint.read_f32(&b).await?,
    })
}
