//! The interface between an architecture and the rest of Bayan.

use std::collections::HashSet;
use std::sync::Arc;

use bayan_tensor::ops::Causality;
use bayan_tensor::{Graph, Matrix, Tensor};

use crate::ModelError;
use crate::cache::{Cache, LayerCacheSpec};
use crate::config::Sizes;
use crate::layers::{Linear, LoraPair};

/// The inputs of a step.
#[derive(Debug, Clone, Copy)]
pub struct StepInputs {
    /// Token ids \[T\].
    pub tokens: Tensor,
    /// Positions and sequences of the tokens.
    pub causality: Causality,
    /// Indices \[R\] of the tokens whose logits are needed; `None`: all.
    pub rows: Option<Tensor>,
}

/// A decoder-only language model with its weights.
pub trait Decoder: std::fmt::Debug {
    /// The model's sizes.
    fn sizes(&self) -> &Sizes;

    /// What each layer stores in the cache.
    fn cache_specs(&self) -> Vec<LayerCacheSpec>;

    /// Records a step: tokens \[T\] to logits [R, V].
    fn forward(&self, graph: &mut Graph, inputs: StepInputs, cache: &Cache) -> Tensor;

    /// The weight matrices; a shared one may be listed twice.
    fn matrices(&self) -> Vec<&Arc<Matrix>>;

    /// The linear layers to which adapters can be attached. The output head comes last, if it is a layer of its own.
    fn linears_mut(&mut self) -> Vec<&mut Linear>;
}

impl dyn Decoder + '_ {
    /// Each weight matrix once: a tied output head is the embedding.
    pub fn distinct_matrices(&self) -> Vec<&Arc<Matrix>> {
        let mut seen = HashSet::new();
        self.matrices().into_iter().filter(|matrix| seen.insert(Arc::as_ptr(matrix))).collect()
    }

    /// Adds one LoRA pair to the module with that name; the module's rows replace `rows` of the pair. Graphs that are
    /// already recorded do not include the pair and must be recorded again.
    ///
    /// # Errors
    /// There is no such module, or the pair's sizes do not match it.
    pub fn attach(&mut self, module: &str, mut pair: LoraPair) -> Result<(), ModelError> {
        let expected =
            |what: String, got: String| ModelError::Adapter { module: module.to_string(), expected: what, got };
        let found = self.linears_mut().into_iter().find_map(|linear| {
            let rows = linear.modules.iter().find(|(name, _)| name == module).map(|(_, rows)| rows.clone())?;
            Some((linear, rows))
        });
        let Some((linear, rows)) = found else {
            return Err(expected("a linear module of this model".into(), "none of that name".into()));
        };
        let rank = pair.a.shape().first().copied().unwrap_or(0);
        let (a, b) = ([rank, linear.weight.columns()], [rows.len(), rank]);
        if rank == 0 || pair.a.shape() != a || pair.b.shape() != b {
            return Err(expected(
                format!("lora_A [r, {}] and lora_B [{}, r]", a[1], b[0]),
                format!("{:?} and {:?}", pair.a.shape(), pair.b.shape()),
            ));
        }
        pair.rows = rows;
        linear.lora.push(pair);
        Ok(())
    }

    /// Removes all pairs of an adapter, which restores the base model exactly. Returns the number of pairs removed.
    pub fn detach(&mut self, adapter: &str) -> usize {
        let mut removed = 0;
        for linear in self.linears_mut() {
            let before = linear.lora.len();
            linear.lora.retain(|pair| pair.adapter != adapter);
            removed += before - linear.lora.len();
        }
        removed
    }

    /// Multiplies the scales of an attached adapter by a factor, to mix several adapters.
    pub fn rescale(&mut self, adapter: &str, factor: f32) {
        for pair in
            self.linears_mut().into_iter().flat_map(|linear| &mut linear.lora).filter(|pair| pair.adapter == adapter)
        {
            pair.scale *= factor;
        }
    }
}
