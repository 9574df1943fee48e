//! Normalisation of the hidden states.

use std::sync::Arc;

use bayan_tensor::{Graph, State, Tensor};

use crate::ModelError;
use crate::load::Loader;

/// Root-mean-square normalisation.
#[derive(Debug)]
pub struct RmsNorm {
    /// Weights \[D\].
    pub weight: Arc<State>,
    /// Added to the mean square.
    pub eps: f32,
}

impl RmsNorm {
    /// Loads `{name}.weight`.
    ///
    /// # Errors
    /// As [`Loader::vector`].
    pub async fn load(loader: &mut Loader<'_>, name: &str, width: usize, eps: f32) -> Result<RmsNorm, ModelError> {
        Ok(RmsNorm { weight: loader.vector(&[(format!("{name}.weight"), width)], 0.0).await?, eps })
    }

    /// Loads `{name}.weight`, which is stored minus one (Gemma).
    ///
    /// # Errors
    /// As [`Loader::vector`].
    pub async fn load_minus_one(
        loader: &mut Loader<'_>,
        name: &str,
        width: usize,
        eps: f32,
    ) -> Result<RmsNorm, ModelError> {
        Ok(RmsNorm { weight: loader.vector(&[(format!("{name}.weight"), width)], 1.0).await?, eps })
    }

    /// x [T, D] to [T, D]
    pub fn forward(&self, graph: &mut Graph, x: Tensor) -> Tensor {
        graph.rms_norm(x, &self.weight, self.eps)
    }
}

/// Normalisation by mean and variance.
#[derive(Debug)]
pub struct LayerNorm {
    /// Weights \[D\].
    pub weight: Arc<State>,
    /// Biases \[D\].
    pub bias: Option<Arc<State>>,
    /// Added to the variance.
    pub eps: f32,
}

impl LayerNorm {
    /// Loads `{name}.weight`, and `{name}.bias` if `bias`, and multiplies both by `factor`, which saves scaling the
    /// result.
    ///
    /// # Errors
    /// As [`Loader::vector`].
    pub async fn load(
        loader: &mut Loader<'_>,
        name: &str,
        width: usize,
        eps: f32,
        bias: bool,
        factor: f32,
    ) -> Result<LayerNorm, ModelError> {
        let weight = loader.scaled_vector(&format!("{name}.weight"), &[width], factor).await?;
        let bias =
            if bias { Some(loader.scaled_vector(&format!("{name}.bias"), &[width], factor).await?) } else { None };
        Ok(LayerNorm { weight, bias, eps })
    }

    /// x [T, D] to [T, D]
    pub fn forward(&self, graph: &mut Graph, x: Tensor) -> Tensor {
        graph.layer_norm(x, &self.weight, self.bias.as_ref(), self.eps)
    }
}
