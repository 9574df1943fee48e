//! What PEFT's LoRA adapters may change beside the pairs of linear layers: DoRA's magnitudes, pairs for the token
//! embedding, rows of single tokens, and whole tensors.
//!
//! A merge applies these changes. Rejected: applying them while a model runs, because magnitudes and rows change base
//! weights, which are quantized and shared with other adapters there.

use std::collections::BTreeMap;

use bayan_weights::{Checkpoint, ModelPart, Stored, TensorEntry, model_part};

use super::config::{AdapterConfig, Rules};
use super::error::AdapterError;
use super::{A, B, CHECK, PREFIX};

const MAGNITUDE: &str = ".lora_magnitude_vector";
const EMBEDDING_A: &str = ".lora_embedding_A";
const EMBEDDING_B: &str = ".lora_embedding_B";
const TOKEN_ROWS: &str = ".token_adapter.trainable_tokens_delta";
const BASE_LAYER: &str = ".base_layer.weight";

/// The LoRA pair of an embedding: row of token t += scale · B A[:, t].
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingPair {
    /// Rank r.
    pub rank: usize,
    /// Rows of the embedding.
    pub tokens: usize,
    /// Columns of the embedding.
    pub hidden_size: usize,
    /// Multiplies the product.
    pub scale: f32,
    /// A [r, tokens], row-major.
    pub a: Vec<f32>,
    /// B [hidden_size, r], row-major.
    pub b: Vec<f32>,
}

/// Rows that replace rows of the base.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenRows {
    /// The tokens, one for each row.
    pub ids: Vec<usize>,
    /// Columns of a row.
    pub hidden_size: usize,
    /// Values [ids, hidden_size], row-major.
    pub values: Vec<f32>,
}

/// A tensor that replaces the base's.
#[derive(Debug, Clone, PartialEq)]
pub struct WholeTensor {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub values: Vec<f32>,
}

/// Changes beside the pairs of linear layers. Modules have the names of base tensors without `.weight`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Extras {
    /// DoRA: the length of each row of the merged weight, by module.
    pub magnitudes: BTreeMap<String, Vec<f32>>,
    /// Pairs of embeddings, by module.
    pub embeddings: BTreeMap<String, EmbeddingPair>,
    /// Rows of single tokens, by module.
    pub token_rows: BTreeMap<String, TokenRows>,
    /// Whole tensors, by tensor name.
    pub tensors: BTreeMap<String, WholeTensor>,
}

impl Extras {
    /// Whether there is none, so that the adapter can be attached to a running model.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The kinds of changes, for people; empty where there is none.
    pub fn describe(&self) -> String {
        let kinds = [
            ("DoRA magnitudes", self.magnitudes.len()),
            ("LoRA of the embedding", self.embeddings.len()),
            ("rows of single tokens", self.token_rows.len()),
            ("whole tensors", self.tensors.len()),
        ];
        let present: Vec<String> =
            kinds.iter().filter(|(_, count)| *count > 0).map(|(kind, count)| format!("{kind} ({count})")).collect();
        present.join(", ")
    }

    /// Checks that everything that the configuration names is there. `modules` are those with pairs.
    pub(super) fn check<'a>(
        &self,
        config: &AdapterConfig,
        modules: impl Iterator<Item = &'a String>,
    ) -> Result<(), AdapterError> {
        let absent =
            |field: &str, expected: String| Err(AdapterError::config(field, expected, "no such tensor", CHECK));
        let mut modules = modules.filter(|name| !self.magnitudes.contains_key(*name));
        if let Some(module) = modules.next().filter(|_| config.use_dora) {
            return absent("use_dora", format!("{module}{MAGNITUDE} beside the pair"));
        }
        let owns = |name: &str, pattern: &str| name == pattern || name.ends_with(&format!(".{pattern}"));
        for (pattern, _) in &config.trainable_token_indices {
            if !self.token_rows.keys().any(|module| owns(module, pattern)) {
                return absent("trainable_token_indices", format!("{pattern}{TOKEN_ROWS}"));
            }
        }
        for pattern in &config.modules_to_save {
            let owner = |tensor: &String| tensor.rsplit_once('.').is_some_and(|(owner, _)| owns(owner, pattern));
            if !self.tensors.keys().any(owner) {
                return absent("modules_to_save", format!("a tensor of {pattern}"));
            }
        }
        Ok(())
    }

    /// Reads a tensor that is not half of a pair of a linear layer; another tensor is an error.
    pub(super) async fn read(
        &mut self,
        checkpoint: &Checkpoint,
        config: &AdapterConfig,
        rules: &Rules,
        name: &str,
    ) -> Result<(), AdapterError> {
        let module = name.strip_prefix(PREFIX).ok_or_else(|| foreign(name))?;
        let entry = dense(checkpoint, name)?;
        if let Some(module) = module.strip_suffix(MAGNITUDE) {
            if !config.use_dora {
                let got = "a magnitude vector of DoRA";
                return Err(AdapterError::tensor(name, "no magnitudes, since use_dora is false", got, CHECK));
            }
            if module.ends_with("embed_tokens") {
                return Err(AdapterError::tensor(name, "DoRA of linear layers", "DoRA of an embedding", MERGE));
            }
            self.magnitudes.insert(text_name(module), checkpoint.read_f32(name).await?);
        } else if let Some(module) = module.strip_suffix(EMBEDDING_A) {
            let other = format!("{PREFIX}{module}{EMBEDDING_B}");
            let ([rank, tokens], [hidden_size, columns]) = (matrix(entry)?, matrix(dense(checkpoint, &other)?)?);
            let expected = rules.rank(module)?;
            if rank != expected || columns != rank {
                let got = format!("A [{rank}, {tokens}] and B [{hidden_size}, {columns}]");
                let expected = format!("A [{expected}, tokens] and B [hidden, {expected}]");
                return Err(AdapterError::tensor(name, expected, got, CHECK));
            }
            let (a, b) = (checkpoint.read_f32(name).await?, checkpoint.read_f32(&other).await?);
            let pair = EmbeddingPair { rank, tokens, hidden_size, scale: rules.scale(module)?, a, b };
            self.embeddings.insert(text_name(module), pair);
        } else if let Some(module) = module.strip_suffix(EMBEDDING_B) {
            let other = format!("{PREFIX}{module}{EMBEDDING_A}");
            dense(checkpoint, &other)?;
        } else if let Some(module) = module.strip_suffix(TOKEN_ROWS) {
            let [rows, hidden_size] = matrix(entry)?;
            let ids = config.token_ids(module).to_vec();
            if ids.len() != rows {
                let expected = format!("{} rows, one for each of trainable_token_indices", ids.len());
                return Err(AdapterError::tensor(name, expected, format!("{rows} rows"), CHECK));
            }
            let values = checkpoint.read_f32(name).await?;
            self.token_rows.insert(text_name(module), TokenRows { ids, hidden_size, values });
        } else {
            // PEFT writes a changed embedding layer, too, under the name of its base layer.
            let tensor = match module.strip_suffix(BASE_LAYER) {
                Some(module) => format!("{}.weight", module.trim_end_matches(".token_adapter")),
                None => module.to_owned(),
            };
            let owner = tensor.rsplit_once('.').map_or(tensor.as_str(), |(owner, _)| owner);
            let saved = |pattern: &String| owner == pattern || owner.ends_with(&format!(".{pattern}"));
            if !module.ends_with(BASE_LAYER) && !config.modules_to_save.iter().any(saved) {
                return Err(foreign(name));
            }
            let values = checkpoint.read_f32(name).await?;
            self.tensors.insert(text_name(&tensor), WholeTensor { shape: entry.shape.clone(), values });
        }
        Ok(())
    }
}

const MERGE: &str = "merge the adapter into its base with PEFT (merge_and_unload) and open the merged model";

/// The name in a checkpoint of text alone.
fn text_name(name: &str) -> String {
    match model_part(name) {
        ModelPart::Text(text) => text,
        _ => name.to_owned(),
    }
}

/// A tensor of numbers that is not quantized.
fn dense<'a>(checkpoint: &'a Checkpoint, name: &str) -> Result<&'a TensorEntry, AdapterError> {
    let Some(entry) = checkpoint.tensor(name) else {
        return Err(AdapterError::tensor(name, "this tensor, the counterpart of another", "nothing", CHECK));
    };
    match entry.stored {
        Stored::Dense(dtype) if dtype.is_weight() => Ok(entry),
        _ => Err(AdapterError::tensor(name, "a tensor of F32, F16 or BF16", entry.stored.name(), CHECK)),
    }
}

fn matrix(entry: &TensorEntry) -> Result<[usize; 2], AdapterError> {
    match entry.shape[..] {
        [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
        _ => Err(AdapterError::tensor(&entry.name, "a matrix", format!("{:?}", entry.shape), CHECK)),
    }
}

/// The error for a tensor of no known kind.
fn foreign(name: &str) -> AdapterError {
    let expected = format!("{PREFIX}NAME{A} or {PREFIX}NAME{B}");
    let (got, remedy) = if name.contains(".lora_A.") || name.contains(".lora_B.") {
        (
            "a name with something after lora_A or lora_B",
            "save it with PEFT's save_pretrained, which takes the adapter's name and biases out",
        )
    } else {
        ("a whole weight that modules_to_save does not name, or another kind of adapter", MERGE)
    };
    AdapterError::tensor(name, expected, got, remedy)
}
