//! The feed-forward layers.

use bayan_tensor::ops::Activation;
use bayan_tensor::{Graph, Tensor};

use super::linear::Linear;
use crate::ModelError;
use crate::config::Sizes;
use crate::load::Loader;

/// down(activation(gate(x)) · up(x))
#[derive(Debug)]
pub struct GatedMlp {
    /// Gate and up projections, stacked.
    pub gate_up_proj: Linear,
    /// Projection back to the hidden size.
    pub down_proj: Linear,
    /// Activation of the gate.
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
    /// Projection to the intermediate size.
    pub up_proj: Linear,
    /// Projection back to the hidden size.
    pub down_proj: Linear,
    /// Activation between the projections.
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
