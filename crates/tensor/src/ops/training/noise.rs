//! Uniform noise on embeddings while training (NEFTune: Jain et al., 2023). As with dropout, the noise is a hash of a
//! seed and the element's index: recomputing a layer gives the same noise, and none is stored.

use std::sync::Arc;

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use super::dropout::hash;
use crate::graph::{Graph, Node, Op, Operand, State, Tensor, Values};
use crate::ops::lookup::Embed;
use crate::passes::{Backward, BackwardError};
use crate::plan::{KernelText, Lowering, grid};

/// x\[t\] += scale · sizes\[t\] · u, with u uniform in −1..1; inputs x [T, D], seed \[1\], sizes \[T\]; output x.
#[derive(Debug, Clone, PartialEq)]
pub struct Noise {
    /// The factor by which the embeddings were multiplied: the noise applies to the values in the table.
    pub scale: f32,
}

impl Graph {
    /// Adds noise to every embedding recorded so far. `seed` \[1\] changes with every step; `sizes` \[T\] are the
    /// amplitudes. Returns false if there is no embedding.
    pub fn noise_on_embeddings(&mut self, seed: &Arc<State>, sizes: Tensor) -> bool {
        let seed = self.state(seed);
        let found = |(index, node): (usize, &Node)| {
            Some((index, node.op.as_any().downcast_ref::<Embed>()?.scale, node.outputs[0]))
        };
        let places: Vec<(usize, f32, Tensor)> = self.nodes().iter().enumerate().filter_map(found).collect();
        for (index, scale, x) in places.iter().rev().copied() {
            self.insert_node(
                index + 1,
                Node { op: Arc::new(Noise { scale }), inputs: vec![x, seed, sizes], outputs: vec![x] },
            );
        }
        !places.is_empty()
    }
}

/// A value in −1..1 from a hash; the shader computes the same.
fn uniform(hash: u32) -> f32 {
    (hash >> 8) as f32 * (2.0 / 16_777_216.0) - 1.0
}

impl Op for Noise {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "noise"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let shape = to.output_shape(0);
        let (len, width) = (shape.iter().product::<usize>(), shape[shape.len() - 1]);
        let threads = grid::row_threads(to, 64);
        let (grid, stride) = grid::flat_grid(to, len, threads);
        let size = to.numbers(&[len as u32, stride, width as u32])?;
        let defines = Defines::new().set("THREADS", threads).set("SCALE", self.scale);
        let bindings = vec![to.output(0), to.input(1), to.input(2), size];
        let parts = [wgsl!("lib/hash.wgsl"), wgsl!("training/noise.wgsl")];
        to.emit(KernelText { name: "noise", parts: &parts, defines, turns: 0 }, &[bindings], grid)
    }

    /// The gradient of the sum is also that of x, so there is nothing to record.
    fn backward(&self, _to: &mut Backward<'_>) -> Result<(), BackwardError> {
        Ok(())
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let (width, seed) = (inputs[0].width(), inputs[1].u32()[0]);
        for (i, x) in outputs[0].f32_mut().iter_mut().enumerate() {
            *x += self.scale * inputs[2].f32()[i / width] * uniform(hash(seed, i as u32));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_uniform_and_another_for_each_seed() {
        let draw = |seed| (0..40_000).map(|i| f64::from(uniform(hash(seed, i)))).collect::<Vec<_>>();
        let (one, two) = (draw(1), draw(2));
        let moment =
            |values: &[f64], power: i32| values.iter().map(|v| v.powi(power)).sum::<f64>() / values.len() as f64;
        assert!(one.iter().all(|v| (-1.0..1.0).contains(v)));
        assert!(moment(&one, 1).abs() < 0.01 && (moment(&one, 2) - 1.0 / 3.0).abs() < 0.01);
        let together = one.iter().zip(&two).map(|(a, b)| a * b).sum::<f64>() / 40_000.0;
        assert!(together.abs() < 0.01, "{together}");
    }
}
