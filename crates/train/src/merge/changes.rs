//! What adapters make of the tensors of their base.

use bayan_models::{Adapter, AdapterError, AdapterModule, EmbeddingPair, TokenRows, WholeTensor};
use bayan_weights::{Checkpoint, TensorEntry};
use serde_json::Value;

const REMEDY: &str = "use the base model that the adapter was trained on; adapter_config.json names it";

/// One step of a change, in the order of application.
enum Step<'a> {
    /// The rows become these.
    Whole(&'a WholeTensor),
    /// += scale · (B A)ᵀ
    Embedding(&'a EmbeddingPair, f32),
    /// += scale · B A; with DoRA every row then gets a length.
    Pair(&'a AdapterModule, f32, Option<&'a [f32]>),
    /// Single rows become these.
    Rows(&'a TokenRows),
}

/// The changes of one tensor by all adapters.
pub(super) struct Change<'a>(Vec<Step<'a>>);

impl<'a> Change<'a> {
    /// The changes of a tensor; each adapter has a factor on its own scale.
    pub(super) fn of(adapters: &'a [(Adapter, f32)], tensor: &str) -> Self {
        let module = tensor.strip_suffix(".weight").unwrap_or(tensor);
        let mut steps = Vec::new();
        for (adapter, factor) in adapters {
            let extras = &adapter.extras;
            steps.extend(extras.tensors.get(tensor).map(Step::Whole));
            steps.extend(extras.embeddings.get(module).map(|pair| Step::Embedding(pair, pair.scale * factor)));
            let magnitude = extras.magnitudes.get(module).map(Vec::as_slice);
            steps.extend(adapter.modules.get(module).map(|pair| Step::Pair(pair, pair.scale * factor, magnitude)));
            steps.extend(extras.token_rows.get(module).map(Step::Rows));
        }
        Self(steps)
    }

    /// Whether the tensor stays as it is.
    pub(super) fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// Changes rows `first..` of the tensor; `values` [rows, k] are those of the base.
    pub(super) fn apply(&self, values: &mut [f32], first: usize, k: usize) {
        for step in &self.0 {
            match step {
                Step::Whole(tensor) => values.copy_from_slice(&tensor.values[first * k..][..values.len()]),
                Step::Embedding(pair, scale) => {
                    for (row, into) in values.chunks_exact_mut(k).enumerate() {
                        for (value, b) in into.iter_mut().zip(pair.b.chunks_exact(pair.rank)) {
                            let product: f32 =
                                b.iter().enumerate().map(|(r, b)| b * pair.a[r * pair.tokens + first + row]).sum();
                            *value += scale * product;
                        }
                    }
                }
                Step::Pair(pair, scale, magnitude) => {
                    add_rows(values, pair, *scale, first);
                    let Some(magnitude) = magnitude else { continue };
                    for (row, length) in values.chunks_exact_mut(k).zip(&magnitude[first..]) {
                        let norm = row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
                        let factor = (f64::from(*length) / norm) as f32;
                        row.iter_mut().for_each(|value| *value *= factor);
                    }
                }
                Step::Rows(rows) => {
                    for (id, row) in rows.ids.iter().zip(rows.values.chunks_exact(k)) {
                        let place = id.checked_sub(first).and_then(|at| values.get_mut(at * k..(at + 1) * k));
                        if let Some(place) = place {
                            place.copy_from_slice(row);
                        }
                    }
                }
            }
        }
    }
}

/// values [rows, K] += scale · B[first..] A
fn add_rows(values: &mut [f32], pair: &AdapterModule, scale: f32, first: usize) {
    for (row, into) in values.chunks_exact_mut(pair.in_features).enumerate() {
        let b = &pair.b[(first + row) * pair.rank..][..pair.rank];
        for (&b, a) in b.iter().zip(pair.a.chunks_exact(pair.in_features)) {
            let factor = scale * b;
            into.iter_mut().zip(a).for_each(|(value, a)| *value += factor * a);
        }
    }
}

/// The name of the output head that the merge must write although the base has none, and the embedding that it is
/// read from.
///
/// A head that is tied to the embedding would change with it. PEFT changes only the input side, but for the rows of
/// single tokens, and where `ensure_weight_tying` says otherwise.
pub(super) fn untied_head(checkpoint: &Checkpoint, adapters: &[(Adapter, f32)]) -> Option<(String, String)> {
    const HEAD: &str = "lm_head.weight";
    if checkpoint.tensor(HEAD).is_some() {
        return None;
    }
    let embedding = checkpoint.names().find(|name| name.ends_with("embed_tokens.weight"))?.to_owned();
    let module = embedding.strip_suffix(".weight")?;
    let unties = |(adapter, _): &(Adapter, f32)| {
        let (extras, tied) = (&adapter.extras, adapter.config.ensure_weight_tying);
        let input_alone = extras.embeddings.contains_key(module) || extras.tensors.contains_key(&embedding);
        extras.tensors.contains_key(HEAD) || input_alone && !tied
    };
    adapters.iter().any(unties).then(|| (HEAD.to_owned(), embedding))
}

/// Sets a field of the configuration for a head of its own.
pub(super) fn untie(config: &mut Value) {
    for place in [Some("text_config"), None] {
        let part = match place {
            Some(name) => config.get_mut(name),
            None => Some(&mut *config),
        };
        if let Some(object) = part.and_then(Value::as_object_mut) {
            object.insert("tie_word_embeddings".to_owned(), Value::Bool(false));
        }
    }
}

/// Checks every change against the sizes of the base.
///
/// # Errors
/// The first tensor that the base lacks, or has with other sizes.
pub(super) fn check(
    checkpoint: &Checkpoint,
    adapter: &Adapter,
    head: Option<&(String, String)>,
) -> Result<(), AdapterError> {
    let matrix = |module: &str| {
        let entry = checkpoint.tensor(&format!("{module}.weight")).filter(|entry| entry.shape.len() == 2)?;
        Some((entry.rows(), entry.k()))
    };
    adapter.check_base(matrix)?;
    let mismatch = |name: &str, expected: Option<Vec<usize>>, got: String| {
        let expected = expected.map_or("the name of a tensor of this model".to_owned(), |shape| format!("{shape:?}"));
        AdapterError::tensor(name, expected, got, REMEDY)
    };
    let extras = &adapter.extras;
    for (module, lengths) in &extras.magnitudes {
        let pair = adapter.modules.get(module).map(|pair| pair.out_features);
        if pair != Some(lengths.len()) {
            return Err(mismatch(module, pair.map(|n| vec![n]), format!("{} magnitudes", lengths.len())));
        }
    }
    for (module, pair) in &extras.embeddings {
        if matrix(module) != Some((pair.tokens, pair.hidden_size)) {
            let got = format!("a pair for [{}, {}]", pair.tokens, pair.hidden_size);
            return Err(mismatch(module, matrix(module).map(|(n, k)| vec![n, k]), got));
        }
    }
    for (module, rows) in &extras.token_rows {
        let fits = |(n, k): (usize, usize)| k == rows.hidden_size && rows.ids.iter().all(|id| *id < n);
        if !matrix(module).is_some_and(fits) {
            let last = rows.ids.iter().max().copied().unwrap_or_default();
            let got = format!("rows of {} numbers up to token {last}", rows.hidden_size);
            return Err(mismatch(module, matrix(module).map(|(n, k)| vec![n, k]), got));
        }
    }
    for (name, tensor) in &extras.tensors {
        let from = head.filter(|(head, _)| head == name).map_or(name, |(_, embedding)| embedding);
        let shape = checkpoint.tensor(from).map(|entry: &TensorEntry| entry.shape.clone());
        if shape.as_ref() != Some(&tensor.shape) {
            return Err(mismatch(name, shape, format!("{:?}", tensor.shape)));
        }
    }
    Ok(())
}
