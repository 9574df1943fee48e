//! Refuses checkpoints with tensors that the model would not read.
//!
//! A bias, a norm of queries, an output head or an adapter's pair that is left out gives other answers without a word.
//! So every tensor is read, or known to change nothing ([`USELESS`], and what [`changes_nothing`] finds out from the
//! values), or the checkpoint is refused with the names. Rejected: a warning, because scripts do not read it.

use bayan_weights::{Checkpoint, TensorEntry};

use super::recorder::Description;
use crate::adapter::layer_of;
use crate::{ModelError, Sizes};

/// Names of tensors that no architecture needs, and why.
const USELESS: &[(&str, &str)] = &[
    ("rotary_emb.inv_freq", "the rotary frequencies, which config.json states"),
    (".attn.masked_bias", "GPT-2's value for masked scores"),
    (".attn.bias", "GPT-2's causal mask"),
    ("relative_pe.slopes", "ALiBi's slopes, which follow from the number of heads"),
];

/// Most names in an error.
const SHOWN: usize = 8;
/// Values of a head that are compared with the embedding's at a time.
const COMPARED_ROWS: usize = 64;

/// Fails if the checkpoint has tensors that the described model neither reads nor may leave out.
///
/// # Errors
/// [`ModelError::Unread`]; a tensor cannot be read.
pub(crate) async fn refuse_unread(checkpoint: &Checkpoint, described: &Description) -> Result<(), ModelError> {
    let read = described.tensors.iter().map(|tensor| tensor.name.as_str());
    let read: std::collections::HashSet<&str> = read.chain(described.left_out.iter().map(String::as_str)).collect();
    let mut unread = Vec::new();
    for entry in checkpoint.tensors().iter().filter(|entry| !read.contains(entry.name.as_str())) {
        if !changes_nothing(checkpoint, entry, &described.sizes).await? {
            unread.push(entry.name.as_str());
        }
    }
    if unread.is_empty() {
        return Ok(());
    }
    let shown = |name: &&str| match checkpoint.gguf_name(name) {
        Some(gguf) => format!("{name} ({gguf})"),
        None => (*name).to_owned(),
    };
    let mut names = unread.iter().take(SHOWN).map(shown).collect::<Vec<_>>().join(", ");
    if unread.len() > SHOWN {
        names.push_str(&format!(" and {} more", unread.len() - SHOWN));
    }
    let model_type = checkpoint.config().get("model_type").and_then(|kind| kind.as_str()).unwrap_or("none");
    Err(ModelError::Unread {
        names,
        model_type: model_type.to_owned(),
        remedy: remedy(&unread, described.sizes.num_hidden_layers),
    })
}

fn remedy(unread: &[&str], layers: usize) -> String {
    let any = |parts: &[&str]| unread.iter().any(|name| parts.iter().any(|part| name.contains(part)));
    if any(&[".lora_", "lora_A", "lora_B"]) {
        "these are pairs of a LoRA adapter: merge it into its base with PEFT (merge_and_unload), or give the adapter \
         with --adapter"
            .to_owned()
    } else if any(&["quant_state", ".absmax", ".quant_map", ".SCB", "weight_scale", "weight_zero_point"]) {
        "the weights were quantized by another program (bitsandbytes, fp8): take the original checkpoint, and \
         quantize it with --quantize"
            .to_owned()
    } else if unread.iter().any(|name| layer_of(name).is_some_and(|layer| layer >= layers)) {
        format!("config.json has {layers} layers: take the config.json of this checkpoint")
    } else {
        "check that config.json belongs to this checkpoint (model_type, and attention_bias or mlp_bias if these are \
         biases); otherwise it is a variant that is not supported"
            .to_owned()
    }
}

/// Whether the model computes the same without this tensor.
async fn changes_nothing(checkpoint: &Checkpoint, entry: &TensorEntry, sizes: &Sizes) -> Result<bool, ModelError> {
    let name = entry.name.as_str();
    // GPT-2's mask is a matrix; a bias is a vector.
    let is_mask = !name.ends_with(".attn.bias") || entry.shape.len() != 1;
    if USELESS.iter().any(|(ending, _)| name.ends_with(ending)) && is_mask {
        return Ok(true);
    }
    if name == "lm_head.weight" && sizes.tie_word_embeddings {
        return same_as_embedding(checkpoint, entry).await;
    }
    // GPTQ's programs write a bias of zeros for every matrix.
    if name.ends_with(".bias") && entry.shape.len() == 1 {
        return Ok(checkpoint.read_f32(name).await?.iter().all(|value| *value == 0.0));
    }
    Ok(false)
}

/// Whether a head that config.json ties to the embedding has the embedding's values, up to quantization. The first, the
/// middle and the last rows are compared.
async fn same_as_embedding(checkpoint: &Checkpoint, head: &TensorEntry) -> Result<bool, ModelError> {
    let embedding = checkpoint.tensors().iter().find(|entry| entry.name.ends_with("embed_tokens.weight"));
    let Some(embedding) = embedding.filter(|embedding| embedding.shape == head.shape) else { return Ok(false) };
    let rows = head.rows();
    let (mut error, mut square) = (0.0, 0.0);
    for start in [0, rows / 2, rows.saturating_sub(COMPARED_ROWS)] {
        let part = start..rows.min(start + COMPARED_ROWS);
        let values = checkpoint.read_rows_f32(&head.name, part.clone()).await?;
        for (a, b) in values.iter().zip(checkpoint.read_rows_f32(&embedding.name, part).await?) {
            error += f64::from(a - b).powi(2);
            square += f64::from(b).powi(2);
        }
    }
    // Four bits lose about a hundredth of the square.
    Ok(error <= 0.03 * square)
}
