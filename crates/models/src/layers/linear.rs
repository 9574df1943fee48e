//! Linear layers, and the adapters attached to them.

use std::ops::Range;
use std::sync::Arc;

use bayan_tensor::ops::{self, Activation, Columns, GateColumns};
use bayan_tensor::{Graph, Matrix, State, Tensor};

use crate::ModelError;
use crate::load::Loader;

/// A low-rank addition to some rows of a linear layer (LoRA, Hu et al., 2021): y[:, rows] += scale · (x Aᵀ) Bᵀ.
#[derive(Debug, Clone)]
pub struct LoraPair {
    /// Name of the adapter to which the pair belongs, by which it is removed again.
    pub adapter: String,
    /// The module's rows within the stacked matrix.
    pub rows: Range<usize>,
    /// A [r, K], dense f32.
    pub a: Arc<State>,
    /// B [rows, r], dense f32.
    pub b: Arc<State>,
    /// Multiplies the product.
    pub scale: f32,
    /// Dropout of the adapter's input while training.
    pub dropout: Option<ops::Dropout>,
    /// Whether the pair is recorded. A server switches adapters off for requests that do not name them.
    pub enabled: bool,
    /// Which tokens the pair is for; `None`: all.
    pub factors: Option<TokenFactors>,
}

/// A factor of each token, 1 or 0: tokens with different adapters are computed in one step.
#[derive(Debug, Clone)]
pub struct TokenFactors {
    /// The factors of several adapters [T, W], each repeated as often as the largest rank.
    pub state: Arc<State>,
    /// The first column of the pair's adapter.
    pub first: usize,
}

impl TokenFactors {
    /// u [T, r], times each token's factor.
    fn apply(&self, graph: &mut Graph, u: Tensor) -> Tensor {
        let count = graph.shape(u)[1];
        let gate = graph.state(&self.state);
        // This activation keeps 0 and 1.
        let (activation, x) = (Activation::Relu2, Columns::from(0, count));
        graph.gate_columns(GateColumns { count, activation, x, gate: Columns::from(self.first, count) }, u, gate)
    }
}

/// x [T, K] to x Wᵀ + b [T, N]. The matrix may hold several projections of the same input, stacked by rows, and each
/// may have adapters.
#[derive(Debug)]
pub struct Linear {
    /// W [N, K].
    pub weight: Arc<Matrix>,
    /// b \[N\].
    pub bias: Option<Arc<State>>,
    /// Hugging Face's name of each stacked module, such as `model.layers.0.self_attn.q_proj`, and its rows.
    pub modules: Vec<(String, Range<usize>)>,
    /// The adapters' pairs, in the order in which they are added. Without any, only the base layer is recorded.
    pub lora: Vec<LoraPair>,
}

impl Linear {
    /// A layer with one module.
    pub fn single(name: &str, weight: Arc<Matrix>, bias: Option<Arc<State>>) -> Linear {
        let modules = vec![(name.to_string(), 0..weight.rows())];
        Linear { weight, bias, modules, lora: Vec::new() }
    }

    /// Loads `{prefix}{part}.weight` for each (part, rows), and the biases if `bias`.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub async fn load(
        loader: &mut Loader<'_>,
        prefix: &str,
        parts: &[(&str, usize)],
        columns: usize,
        bias: bool,
    ) -> Result<Linear, ModelError> {
        let named = |suffix: &str| {
            parts.iter().map(|(part, rows)| (format!("{prefix}{part}.{suffix}"), *rows)).collect::<Vec<_>>()
        };
        let weight = loader.matrix(&named("weight"), columns).await?;
        let bias = if bias { Some(loader.vector(&named("bias"), 0.0).await?) } else { None };
        let mut first = 0;
        let modules = parts.iter().map(|(part, rows)| {
            let range = first..first + rows;
            first = range.end;
            (format!("{prefix}{part}"), range)
        });
        Ok(Linear { weight, bias, modules: modules.collect(), lora: Vec::new() })
    }

    /// As [`Linear::load`] with biases, from matrices that are stored [in, out].
    ///
    /// # Errors
    /// As [`Loader::transposed_matrix`].
    pub async fn load_transposed(
        loader: &mut Loader<'_>,
        prefix: &str,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> Result<Linear, ModelError> {
        let named = |suffix: &str| {
            parts.iter().map(|(part, rows)| (format!("{prefix}{part}.{suffix}"), *rows)).collect::<Vec<_>>()
        };
        let weight = loader.transposed_matrix(&named("weight"), columns).await?;
        let bias = loader.vector(&named("bias"), 0.0).await?;
        let mut first = 0;
        let modules = parts.iter().map(|(part, rows)| {
            let range = first..first + rows;
            first = range.end;
            (format!("{prefix}{part}"), range)
        });
        Ok(Linear { weight, bias: Some(bias), modules: modules.collect(), lora: Vec::new() })
    }

    /// x [T, K] to [T, N]
    pub fn forward(&self, graph: &mut Graph, x: Tensor) -> Tensor {
        let y = graph.linear(x, &self.weight, self.bias.as_ref());
        for pair in self.lora.iter().filter(|pair| pair.enabled) {
            let x = pair.dropout.as_ref().map_or(x, |dropout| graph.dropout(x, dropout));
            let Some(factors) = &pair.factors else {
                graph.lora(x, y, pair.rows.start, &pair.a, &pair.b, pair.scale);
                continue;
            };
            let u = graph.lora_down(x, &pair.a);
            let u = factors.apply(graph, u);
            graph.lora_up(u, y, pair.rows.start, &pair.b, pair.scale);
        }
        y
    }
}
