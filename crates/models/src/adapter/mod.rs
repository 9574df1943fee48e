//! LoRA adapters: reads PEFT's adapter_config.json and adapter_model.safetensors, or a GGUF file, into named pairs of
//! matrices, and writes PEFT's files.
//!
//! The reader refuses whatever it does not support, and the writer's files equal PEFT's byte for byte. Rejected: a
//! tolerant reader, because an adapter with DoRA vectors or other ranks would load, run and give wrong answers. Bytes
//! are read through [`Source`], so the browser page reads a dropped adapter with the same code;
//! nothing here accesses files.

mod config;
mod error;
mod extras;
mod patterns;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::rc::Rc;

use bayan_weights::gguf::adapter::{AdapterFile, AdapterPair, read_adapter};
use bayan_weights::safetensors::encode_header;
use bayan_weights::{Checkpoint, Dtype, ModelPart, Source, Stored, gguf, model_part};

pub use config::{AdapterConfig, PEFT_VERSION, Rules};
pub use error::AdapterError;
pub use extras::{EmbeddingPair, Extras, TokenRows, WholeTensor};
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
    /// Changes beside the pairs, which only a merge applies.
    pub extras: Extras,
}

/// The names of a module's tensors A and B in PEFT's files.
pub fn tensor_names(module: &str) -> (String, String) {
    (format!("{PREFIX}{module}{A}"), format!("{PREFIX}{module}{B}"))
}

impl Adapter {
    /// A short text that other adapters do not have: from the numbers of all pairs and their scales.
    pub fn fingerprint(&self) -> String {
        let mut hash = crc32fast::Hasher::new();
        for (name, pair) in &self.modules {
            hash.update(name.as_bytes());
            let numbers = pair.a.iter().chain(&pair.b).chain([&pair.scale]);
            numbers.for_each(|value| hash.update(&value.to_le_bytes()));
        }
        format!("{:08x}", hash.finalize())
    }

    /// Reads an adapter's two files.
    ///
    /// # Errors
    /// A missing or damaged file, a pickle instead of safetensors, an unsupported field, a tensor that does not belong
    /// in the adapter or whose shape contradicts its rank, NaN or infinity.
    pub async fn open(source: Rc<dyn Source>) -> Result<Self, AdapterError> {
        let checkpoint = Checkpoint::open_as(source, ADAPTER_CONFIG, "adapter_model").await?;
        let config = AdapterConfig::parse(checkpoint.config())?;
        let rules = config.rules()?;
        let (mut modules, mut renamed, mut vision) = (BTreeMap::new(), false, 0);
        let (names, others) = pairs(&checkpoint)?;
        let mut extras = Extras::default();
        for name in others {
            extras.read(&checkpoint, &config, &rules, name).await?;
        }
        for module in names {
            if !rules.is_target(&module)? {
                let expected =
                    "only modules that target_modules, exclude_modules and layers_to_transform name".to_owned();
                return Err(AdapterError::tensor(&module, expected, "a pair for this module", CHECK));
            }
            let name = match model_part(&module) {
                ModelPart::Other => {
                    vision += 1;
                    continue;
                }
                ModelPart::Text(name) => name,
                ModelPart::Unknown => module.clone(),
            };
            renamed |= name != module;
            modules.insert(name, read_pair(&checkpoint, &rules, &module).await?);
        }
        if vision > 0 {
            tracing::warn!("{vision} pairs of the adapter belong to the vision tower, which this program does not run");
        }
        if modules.is_empty() && extras.is_empty() {
            let expected = "at least one pair of lora_A and lora_B for the language model";
            return Err(AdapterError::tensor("(all)", expected, format!("{vision} for the vision tower"), CHECK));
        }
        extras.check(&config, modules.keys())?;
        let config = if renamed { config.for_modules(&modules) } else { config };
        Ok(Self { config, modules, extras })
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
        let mut modules = BTreeMap::new();
        for (name, pair) in file.pairs {
            let AdapterPair { rank, in_features, out_features, a, b } = pair;
            let scale = (alpha_of(rank) / rank as f64) as f32;
            modules.insert(name, AdapterModule { rank, in_features, out_features, scale, a, b });
        }
        let config = AdapterConfig::new(1, 1.0, TargetModules::Names(Vec::new())).for_modules(&modules);
        config.rules()?;
        Ok(Self { config, modules, extras: Extras::default() })
    }

    /// Checks that the adapter consists of pairs of linear layers, as one that is attached or trained further must.
    ///
    /// # Errors
    /// It changes something else; the error names it.
    pub fn require_plain(&self) -> Result<(), AdapterError> {
        if self.extras.is_empty() {
            return Ok(());
        }
        const REMEDY: &str = "merge it into its base (bayan merge BASE OUT --adapter DIR) and open the merged model";
        Err(AdapterError::tensor("(all)", "pairs of linear layers alone", self.extras.describe(), REMEDY))
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
    /// A pair whose arrays do not have the stated sizes, or changes beside the pairs.
    pub fn encode_weights(&self) -> Result<Vec<u8>, AdapterError> {
        self.require_plain()?;
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

/// The modules for which the file has pairs, and the names of all other tensors.
fn pairs(checkpoint: &Checkpoint) -> Result<(Vec<String>, Vec<&str>), AdapterError> {
    let (mut modules, mut others) = (Vec::new(), Vec::new());
    for name in checkpoint.names() {
        let module = name.strip_prefix(PREFIX).unwrap_or_default();
        let (module, other) = match (module.strip_suffix(A), module.strip_suffix(B)) {
            (Some(module), _) => (module, tensor_names(module).1),
            (_, Some(module)) => (module, tensor_names(module).0),
            _ => {
                others.push(name);
                continue;
            }
        };
        if checkpoint.tensor(&other).is_none() {
            return Err(AdapterError::tensor(name, format!("its counterpart {other:?} beside it"), "nothing", CHECK));
        }
        if name.ends_with(A) {
            modules.push(module.to_owned());
        }
    }
    Ok((modules, others))
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
