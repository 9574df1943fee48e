//! What an architecture is to the rest of Bayan.

use std::sync::Arc;

use bayan_tensor::ops::Causality;
use bayan_tensor::{Graph, Matrix, Tensor};

use crate::ModelError;
use crate::cache::{Cache, LayerNeeds};
use crate::config::Sizes;
use crate::layers::{Linear, LoraPart};

/// What a step hands to a decoder.
#[derive(Debug, Clone, Copy)]
pub struct StepInputs {
    /// Token ids \[T\].
    pub tokens: Tensor,
    /// Their positions and sequences.
    pub over: Causality,
    /// The tokens \[R\] whose logits are wanted; `None`: all.
    pub rows: Option<Tensor>,
}

/// A decoder-only language model with its weights.
pub trait Decoder: std::fmt::Debug {
    /// Its sizes.
    fn sizes(&self) -> &Sizes;

    /// What each layer needs remembered.
    fn cache_needs(&self) -> Vec<LayerNeeds>;

    /// Records a step: tokens \[T\] to logits [R, V].
    fn forward(&self, graph: &mut Graph, inputs: StepInputs, cache: &Cache) -> Tensor;

    /// Its weight matrices; a shared one may be named twice.
    fn matrices(&self) -> Vec<&Arc<Matrix>>;

    /// Its linear layers, to attach adapters to; the output head, where it is a layer of its own, comes last.
    fn linears_mut(&mut self) -> Vec<&mut Linear>;
}

impl dyn Decoder + '_ {
    /// Adds one low-rank pair to the module of that name; `rows` of the part is set to the module's. Graphs that were
    /// recorded before do not have it: record again.
    ///
    /// # Errors
    /// No such module, or sizes that do not fit it.
    pub fn attach(&mut self, module: &str, mut part: LoraPart) -> Result<(), ModelError> {
        let expected =
            |what: String, got: String| ModelError::Adapter { module: module.to_string(), expected: what, got };
        let found = self.linears_mut().into_iter().find_map(|linear| {
            let rows = linear.modules.iter().find(|(name, _)| name == module).map(|(_, rows)| rows.clone())?;
            Some((linear, rows))
        });
        let Some((linear, rows)) = found else {
            return Err(expected("a linear module of this model".into(), "none of that name".into()));
        };
        let rank = part.a.shape().first().copied().unwrap_or(0);
        let (a, b) = ([rank, linear.weight.columns()], [rows.len(), rank]);
        if rank == 0 || part.a.shape() != a || part.b.shape() != b {
            return Err(expected(
                format!("lora_A [r, {}] and lora_B [{}, r]", a[1], b[0]),
                format!("{:?} and {:?}", part.a.shape(), part.b.shape()),
            ));
        }
        part.rows = rows;
        linear.lora.push(part);
        Ok(())
    }

    /// Takes every pair of an adapter off; the base is then exactly what it was. Returns how many there were.
    pub fn detach(&mut self, adapter: &str) -> usize {
        let mut removed = 0;
        for linear in self.linears_mut() {
            let before = linear.lora.len();
            linear.lora.retain(|part| part.adapter != adapter);
            removed += before - linear.lora.len();
        }
        removed
    }

    /// Changes the scales of an attached adapter by a factor, for mixing several.
    pub fn rescale(&mut self, adapter: &str, factor: f32) {
        for part in
            self.linears_mut().into_iter().flat_map(|linear| &mut linear.lora).filter(|part| part.adapter == adapter)
        {
            part.scale *= factor;
        }
    }
}
