//! Causal self-attention.

use std::sync::Arc;

use bayan_tensor::ops::{self, Causality};
use bayan_tensor::{Graph, State, Tensor};

use super::linear::Linear;
use crate::cache::{LayerCache, LayerCacheSpec};

/// Causal self-attention with rotary positions.
#[derive(Debug)]
pub struct Attention {
    /// Projections of queries, keys and values, stacked.
    pub qkv_proj: Linear,
    /// Projection back to the hidden size.
    pub o_proj: Linear,
    /// Cosines and sines, [positions, R].
    pub rotary: Arc<State>,
    /// Weights of the norms of queries and keys, if there are any.
    pub qk_norm: Option<(Arc<State>, Arc<State>)>,
    /// How the projection is split into heads, normalised and rotated.
    pub rope: ops::Rope,
    /// The settings of attention.
    pub attention: ops::Attention,
}

impl Attention {
    /// What the layer stores in the cache.
    pub fn cache_spec(&self) -> LayerCacheSpec {
        LayerCacheSpec {
            width: self.attention.kv_heads * self.attention.head_dim,
            window: self.attention.window,
            ..Default::default()
        }
    }

    /// x [T, D] to [T, D]
    pub fn forward(&self, graph: &mut Graph, x: Tensor, causality: Causality, cache: &LayerCache) -> Tensor {
        let qkv = self.qkv_proj.forward(graph, x); // [T, (H + 2K) d]
        let norms = self.qk_norm.as_ref().map(|(q, k)| (q, k));
        // [T, H, d], [T, K, d] twice
        let [q, k, v] = graph.rope(self.rope.clone(), qkv, causality.positions, &self.rotary, norms);
        let (keys, values) =
            graph.append(cache.rows, k, v, causality.positions, causality.bases, [&cache.keys, &cache.values]);
        let attention = self.attention.over(cache.rows);
        let y = graph.attention(attention, q, keys, values, causality); // [T, H, d]
        let y = graph.flatten(y); // [T, H d]
        self.o_proj.forward(graph, y)
    }
}
