//! The gradient of a linear layer's input: dx = dy W, from the same packed weights, dequantized along the other axis.

mod lanes;
mod matrices;
mod tiles;

use std::sync::Arc;

use bayan_gpu::shader::Defines;
use bayan_gpu::{GpuError, Slice};

use crate::format_shaders;
use crate::graph::{Graph, Matrix, Op, Operand, Tensor, Values};
use crate::ops::training::unpack_rows;
use crate::plan::{Extent, KernelText, Lowering, Target, Variant};

/// dx[t, k] = Σ_n dy[t, n] weight[n, k], or added to dx; inputs dy [T, N] (and dx [T, K] when adding), output dx.
#[derive(Debug, Clone)]
pub struct LinearBackward {
    /// The weights [N, K].
    pub weight: Arc<Matrix>,
    /// Add to dx instead of overwriting it.
    pub add: bool,
    /// Set if a rewrite rounded dy to f16: the first input is the padded output of [`ToF16`](crate::ops::ToF16).
    pub f16: bool,
}

impl Graph {
    /// Records dx (+)= dy W.
    pub fn linear_backward(&mut self, dy: Tensor, weight: &Arc<Matrix>, dx: Tensor, add: bool) {
        assert_eq!(
            (self.width(dy), self.width(dx)),
            (weight.rows(), weight.columns()),
            "linear_backward `{}`: widths",
            weight.label()
        );
        let inputs = if add { vec![dy, dx] } else { vec![dy] };
        self.record(LinearBackward { weight: weight.clone(), add, f16: false }, &inputs, &[dx]);
    }
}

/// The kernels; the first that fits is used.
const VARIANTS: &[Variant<LinearBackward>] = &[
    matrices::VARIANT, // hardware with cooperative matrices, many tokens: gradients in f16
    lanes::VARIANT,    // software with subgroups
    tiles::VARIANT,    // everything else
];

/// The bindings of the variants that read dy in f32, and how they read and write.
const SHARED: &str = wgsl!("lib/linear_backward.wgsl");

/// What a variant sets. The op adds the weights, and divides their rows into dispatches.
struct BackwardKernel {
    /// The texts linked after the format's.
    texts: &'static [&'static str],
    defines: Defines,
    /// The bindings before the output.
    inputs: Vec<Slice>,
    /// Columns per workgroup.
    columns: usize,
    /// Tokens per workgroup.
    tokens: usize,
    /// Rows of W per iteration of the outer loop.
    step: usize,
    /// Loop iterations within one iteration of the outer loop.
    step_turns: u64,
    /// Loop iterations before and after the outer loop.
    other_turns: u64,
}

impl LinearBackward {
    /// Emits a variant's kernel for each shard, in as few dispatches as keep an invocation within the device's limit of
    /// loop iterations; one if there is no limit.
    fn emit(&self, to: &mut Lowering<'_>, variant: &str, kernel: BackwardKernel) -> Result<(), GpuError> {
        let (weight, tokens) = (&self.weight, to.target().tokens);
        let vectors = weight.columns().is_multiple_of(4);
        let dy_vectors = weight.rows().is_multiple_of(4);
        let defines = kernel
            .defines
            .clone()
            .set("K", weight.columns())
            .set("SCALAR", !vectors)
            .set("VEC", if vectors { "vec4<f32>" } else { "f32" })
            .set("DY_VECTORS", dy_vectors)
            .set("DY", if dy_vectors { "vec4<f32>" } else { "f32" });
        let constants = format_shaders::constants(weight);
        let grid = [weight.columns().div_ceil(kernel.columns), tokens.div_ceil(kernel.tokens), 1];
        let grid = grid.map(|n| Extent::Fixed(n as u32));
        let piece = to.piece(kernel.other_turns, kernel.step_turns, kernel.step);
        for (index, shard) in weight.shards().iter().enumerate() {
            let format = shard.format;
            let mut parts = vec![constants.as_str(), format_shaders::shader(format)];
            parts.extend(kernel.texts);
            let name = format!("linear_backward_{variant} {} {}x{}", format.name(), weight.rows(), weight.columns());
            for start in (0..shard.rows).step_by(piece) {
                let end = start.saturating_add(piece).min(shard.rows);
                let shape = [end, shard.first_row, weight.rows(), tokens, start].map(|n| n as u32);
                let mut bindings = kernel.inputs.clone();
                bindings.extend([to.output(0), to.numbers(&shape)?]);
                let defines = defines.clone().set("ADD", self.add || index > 0 || start > 0);
                let turns = (end - start).div_ceil(kernel.step) as u64 * kernel.step_turns + kernel.other_turns;
                let text = KernelText { name: &name, parts: &parts, defines, turns };
                to.emit(text, &[bindings, shard.planes()], grid)?;
            }
        }
        Ok(())
    }
}

impl LinearBackward {
    /// Whether dy should be rounded to f16 for the kernel that computes this gradient on this target.
    pub(crate) fn takes_f16(&self, target: &Target<'_>) -> bool {
        let name = |op: &LinearBackward| Variant::first(VARIANTS, op, target).map(|variant| variant.name);
        !self.f16 && name(&LinearBackward { f16: true, ..self.clone() }) == Some(matrices::VARIANT.name)
    }
}

impl Op for LinearBackward {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "linear_backward"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        to.emit_first(VARIANTS, self)
    }

    fn work(&self, inputs: &[&[usize]], _outputs: &[&[usize]]) -> u64 {
        inputs[0][0] as u64 * self.weight.rows() as u64 * self.weight.columns() as u64
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let width = self.weight.columns();
        let dx = outputs[0].f32_mut();
        let mut sums: Vec<f64> =
            if self.add { dx.iter().map(|&v| f64::from(v)).collect() } else { vec![0.0; dx.len()] };
        let mut row = Vec::new();
        let height = self.weight.rows();
        let gradient = if self.f16 { unpack_rows(&inputs[0], height) } else { inputs[0].f32().to_vec() };
        for n in 0..height {
            self.weight.host_row(n, &mut row);
            for (dy, sums) in gradient.chunks_exact(height).zip(sums.chunks_exact_mut(width)) {
                let dy = f64::from(dy[n]);
                sums.iter_mut().zip(&row).for_each(|(sum, &w)| *sum += dy * f64::from(w));
            }
        }
        dx.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum as f32);
    }
}
