//! The layers that model files are made of. A layer knows its weights and records its operations; it knows no
//! architecture.

use std::ops::Range;
use std::sync::Arc;

use bayan_tensor::ops::{self, Activation, Causality};
use bayan_tensor::{Graph, Matrix, State, Tensor};

use crate::ModelError;
use crate::cache::{LayerCache, LayerNeeds};
use crate::config::Sizes;
use crate::load::Loader;

/// A low-rank addition to some rows of a linear layer (LoRA, Hu et al., 2021): y[:, rows] += scale · (x Aᵀ) Bᵀ.
#[derive(Debug, Clone)]
pub struct LoraPart {
    /// Which adapter it belongs to, so that it can be taken off again.
    pub adapter: String,
    /// The module's rows within the stacked matrix.
    pub rows: Range<usize>,
    /// A [r, K], dense f32.
    pub a: Arc<State>,
    /// B [rows, r], dense f32.
    pub b: Arc<State>,
    /// Multiplies the addition.
    pub scale: f32,
    /// Dropout of the adapter's input while training.
    pub dropout: Option<ops::Dropout>,
}

/// x [T, K] to x Wᵀ + b [T, N]; possibly several projections of the same input, stacked by rows, and adapters on any of
/// them.
#[derive(Debug)]
pub struct Linear {
    /// [N, K]
    pub weight: Arc<Matrix>,
    /// \[N\]
    pub bias: Option<Arc<State>>,
    /// Hugging Face's name of each stacked module, such as `model.layers.0.self_attn.q_proj`, and its rows.
    pub modules: Vec<(String, Range<usize>)>,
    /// Adapters, in the order in which they are added. Without any, what is recorded is the base alone.
    pub lora: Vec<LoraPart>,
}

impl Linear {
    /// A layer of one module.
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

    /// As [`Linear::load`] with biases, from matrices stored [in, out].
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
        for part in &self.lora {
            let x = part.dropout.as_ref().map_or(x, |dropout| graph.dropout(x, dropout));
            graph.lora(x, y, part.rows.start, &part.a, &part.b, part.scale);
        }
        y
    }
}

/// Root-mean-square normalisation.
#[derive(Debug)]
pub struct RmsNorm {
    /// \[D\]
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

    /// Loads `{name}.weight`, which holds the factors minus one (Gemma).
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
    /// \[D\]
    pub weight: Arc<State>,
    /// \[D\]
    pub bias: Option<Arc<State>>,
    /// Added to the variance.
    pub eps: f32,
}

impl LayerNorm {
    /// Loads `{name}.weight`, and `{name}.bias` if `bias`; both times `factor`, so that what follows need not be
    /// scaled.
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

/// The token embedding, and the output head that may share its matrix.
#[derive(Debug)]
pub struct Embedding {
    /// [V, D]
    pub weight: Arc<Matrix>,
    /// Multiplies the embeddings.
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

/// Causal self-attention with rotary positions.
#[derive(Debug)]
pub struct Attention {
    /// Queries, keys and values, stacked.
    pub qkv_proj: Linear,
    /// Back to the hidden size.
    pub o_proj: Linear,
    /// Cosines and sines, [positions, R].
    pub rotary: Arc<State>,
    /// Weights of the norms of each query and key head.
    pub qk_norm: Option<(Arc<State>, Arc<State>)>,
    /// How heads are split and turned.
    pub rope: ops::Rope,
    /// How heads attend.
    pub attention: ops::Attention,
}

impl Attention {
    /// What it needs remembered.
    pub fn needs(&self) -> LayerNeeds {
        LayerNeeds {
            width: self.attention.kv_heads * self.attention.head_dim,
            window: self.attention.window,
            states: Vec::new(),
        }
    }

    /// x [T, D] to [T, D]
    pub fn forward(&self, graph: &mut Graph, x: Tensor, over: Causality, cache: &LayerCache) -> Tensor {
        let qkv = self.qkv_proj.forward(graph, x); // [T, (H + 2K) d]
        let norms = self.qk_norm.as_ref().map(|(q, k)| (q, k));
        let [q, k, v] = graph.rope(self.rope.clone(), qkv, over.positions, &self.rotary, norms); // [T, H, d], [T, K, d] twice
        let (keys, values) = graph.append(cache.rows, k, v, over.positions, over.bases, [&cache.keys, &cache.values]);
        let attention = ops::Attention { context: cache.rows.context, ring: cache.rows.ring, ..self.attention.clone() };
        let y = graph.attention(attention, q, keys, values, over); // [T, H, d]
        let y = graph.flatten(y); // [T, H d]
        self.o_proj.forward(graph, y)
    }
}

/// down(activation(gate(x)) · up(x))
#[derive(Debug)]
pub struct GatedMlp {
    /// Gate and up, stacked.
    pub gate_up_proj: Linear,
    /// Back to the hidden size.
    pub down_proj: Linear,
    /// Applied to the gate.
    pub activation: Activation,
}

impl GatedMlp {
    /// Loads `{prefix}gate_proj`, `up_proj` and `down_proj`.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub async fn load(
        loader: &mut Loader<'_>,
        prefix: &str,
        sizes: &Sizes,
        activation: Activation,
        bias: bool,
    ) -> Result<GatedMlp, ModelError> {
        let (d, f) = (sizes.hidden_size, sizes.intermediate_size);
        Ok(GatedMlp {
            gate_up_proj: Linear::load(loader, prefix, &[("gate_proj", f), ("up_proj", f)], d, bias).await?,
            down_proj: Linear::load(loader, prefix, &[("down_proj", d)], f, bias).await?,
            activation,
        })
    }

    /// x [T, D] to [T, D]
    pub fn forward(&self, graph: &mut Graph, x: Tensor) -> Tensor {
        let gate_up = self.gate_up_proj.forward(graph, x); // [T, 2F]
        let y = graph.gated(gate_up, self.activation); // [T, F]
        self.down_proj.forward(graph, y)
    }
}

/// down(activation(up(x)))
#[derive(Debug)]
pub struct PlainMlp {
    /// To the intermediate size.
    pub up_proj: Linear,
    /// Back to the hidden size.
    pub down_proj: Linear,
    /// Between them.
    pub activation: Activation,
}

impl PlainMlp {
    /// x [T, D] to [T, D]
    pub fn forward(&self, graph: &mut Graph, x: Tensor) -> Tensor {
        let y = self.up_proj.forward(graph, x); // [T, F]
        let y = graph.activate(y, self.activation);
        self.down_proj.forward(graph, y)
    }
}
