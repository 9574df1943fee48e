//! The gradient of a linear layer's input: dx = dy W, from the same packed weights, dequantised along the other axis.

use std::sync::Arc;

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::graph::{Graph, Tensor};
use crate::lower::{Extent, KernelText, Lowering};
use crate::matrix::Matrix;
use crate::op::{Op, Operand, elements};
use crate::quant;
use crate::values::Values;

/// dx[t, k] = Σ_n dy[t, n] weight[n, k], or added to dx; inputs dy [T, N] (and dx [T, K] when adding), output dx.
#[derive(Debug, Clone)]
pub struct LinearBackward {
    /// The weights [N, K].
    pub weight: Arc<Matrix>,
    /// Add to dx instead of writing it.
    pub add: bool,
}

impl Graph {
    /// Records dx (+)= dy W.
    pub fn linear_backward(&mut self, dy: Tensor, weight: &Arc<Matrix>, dx: Tensor, add: bool) {
        assert_eq!((self.width(dy), self.width(dx)), (weight.rows(), weight.columns()), "linear_backward `{}`: widths", weight.label());
        let inputs = if add { vec![dy, dx] } else { vec![dy] };
        self.record(LinearBackward { weight: weight.clone(), add }, &inputs, &[dx]);
    }
}

/// Tokens of a tile and of one invocation; columns of a tile are two blocks of 32.
const TILE: usize = 64;
const EACH: usize = 8;

impl Op for LinearBackward {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "linear_backward"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let weight = &self.weight;
        let tokens = to.input_shape(0)[0];
        let (tm, rm) = if tokens <= 16 { (16, 2) } else { (TILE, EACH) };
        let vectors = weight.columns().is_multiple_of(4);
        for (index, shard) in weight.shards().iter().enumerate() {
            // A padded stride keeps the stores of neighbouring rows in different banks, where the device has the room.
            let stride: usize = if to.capabilities().max_workgroup_bytes >= 20_000 { 17 } else { 16 };
            let (smallest, largest) = to.capabilities().subgroup_size;
            let shuffle = to.capabilities().software && to.capabilities().subgroups && (smallest as usize, largest as usize) == (rm, rm);
            let defines = Defines::new()
                .set("SHUFFLE", shuffle)
                .set("K", weight.columns())
                .set("TM", tm)
                .set("RM", rm)
                .set("TM_8", tm * 8)
                .set("STRIDE", stride)
                .set("TILE_W", 32 * stride)
                .set("THREADS", tm / rm * 16)
                .set("ADD", self.add || index > 0)
                .set("SCALAR", !vectors)
                .set("VEC", if vectors { "vec4<f32>" } else { "f32" })
                .set("DY_VECTORS", weight.rows().is_multiple_of(4))
                .set("DY", if weight.rows().is_multiple_of(4) { "vec4<f32>" } else { "f32" });
            let shape = to.numbers(&[shard.rows as u32, shard.first_row as u32, weight.rows() as u32, tokens as u32])?;
            let constants = quant::constants(weight);
            let parts = [constants.as_str(), quant::shader(shard.format), include_str!("../../../../shaders/linear_backward.wgsl")];
            let name = format!("linear_backward {} {}x{}", shard.format.name(), weight.rows(), weight.columns());
            let grid = [Extent::Fixed(weight.columns().div_ceil(64) as u32), Extent::Fixed(tokens.div_ceil(tm) as u32), Extent::Fixed(1)];
            let bindings = vec![to.input(0), to.output(0), shape];
            to.emit(KernelText { name: &name, parts: &parts, defines }, &[bindings, shard.planes()], grid)?;
        }
        Ok(())
    }

    fn work(&self, inputs: &[&[usize]], _outputs: &[&[usize]]) -> u64 {
        elements(inputs[0]) * self.weight.columns() as u64
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let width = self.weight.columns();
        let dx = outputs[0].f32_mut();
        let mut sums: Vec<f64> = if self.add { dx.iter().map(|&v| f64::from(v)).collect() } else { vec![0.0; dx.len()] };
        let mut row = Vec::new();
        for n in 0..self.weight.rows() {
            self.weight.host_row(n, &mut row);
            for (dy, sums) in inputs[0].rows().zip(sums.chunks_exact_mut(width)) {
                let dy = f64::from(dy[n]);
                sums.iter_mut().zip(&row).for_each(|(sum, &w)| *sum += dy * f64::from(w));
            }
        }
        dx.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum as f32);
    }
}
