//! The token embedding and the output head.

use std::sync::Arc;

use bayan_tensor::{Graph, Matrix, Tensor};

use super::linear::Linear;
use crate::ModelError;
use crate::config::Sizes;
use crate::load::Loader;

/// The token embedding. An output head may share its matrix.
#[derive(Debug)]
pub struct Embedding {
    /// The embedding matrix [V, D].
    pub weight: Arc<Matrix>,
    /// Multiplies every embedding.
    pub scale: f32,
}

impl Embedding {
    /// Loads `{name}.weight`.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub async fn load(loader: &mut Loader<'_>, name: &str, sizes: &Sizes, scale: f32) -> Result<Embedding, ModelError> {
        Ok(Embedding {
            weight: loader.matrix(&[(format!("{name}.weight"), sizes.vocab_size)], sizes.hidden_size).await?,
            scale,
        })
    }

    /// tokens \[T\] to [T, D]
    pub fn forward(&self, graph: &mut Graph, tokens: Tensor) -> Tensor {
        graph.embed(tokens, &self.weight, self.scale)
    }
}

/// The output head: it shares the embedding's matrix where the two are tied, and otherwise has its own.
pub(crate) async fn lm_head(
    sizes: &Sizes,
    embedding: &Embedding,
    loader: &mut Loader<'_>,
) -> Result<Linear, ModelError> {
    if sizes.tie_word_embeddings {
        return Ok(Linear::single("lm_head", embedding.weight.clone(), None));
    }
    Linear::load(loader, "", &[("lm_head", sizes.vocab_size)], sizes.hidden_size, false).await
}
