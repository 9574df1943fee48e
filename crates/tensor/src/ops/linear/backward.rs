//! The gradient of a linear layer's input: dx = dy W, from the same packed weights, dequantized along the other axis.
//!
//! Where the device was opened with f16, tiles hold f16, as in the forward product, and sums stay f32. Software devices
//! use f32: they have no separate workgroup memory to save, and convert one value at a time.

use std::sync::Arc;

use bayan_gpu::shader::Defines;
use bayan_gpu::{Capabilities, GpuError};

use crate::format_shaders;
use crate::graph::{Graph, Matrix, Op, Operand, Tensor, Values, elements};
use crate::plan::{Extent, KernelText, Lowering, RowsShape, grid};

/// dx[t, k] = Σ_n dy[t, n] weight[n, k], or added to dx; inputs dy [T, N] (and dx [T, K] when adding), output dx.
#[derive(Debug, Clone)]
pub struct LinearBackward {
    /// The weights [N, K].
    pub weight: Arc<Matrix>,
    /// Add to dx instead of overwriting it.
    pub add: bool,
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
        self.record(LinearBackward { weight: weight.clone(), add }, &inputs, &[dx]);
    }
}

/// One of the two kernels, specialised for a product.
struct Form {
    name: &'static str,
    text: &'static str,
    defines: Defines,
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

/// The kernel for devices with fast workgroup memory: 64 columns, two blocks of 32.
fn tiles(capabilities: &Capabilities, defines: Defines, tokens: usize) -> Form {
    let (tm, rm) = if tokens <= 16 { (16, 2) } else { (64, 8) };
    // A padded stride places neighbouring rows in different memory banks, if workgroup memory is large enough.
    let stride: usize = if capabilities.max_workgroup_bytes >= 20_000 { 17 } else { 16 };
    let half = capabilities.f16 && !capabilities.software;
    let defines = defines
        .set("HALF_TILES", half)
        .set("TM", tm)
        .set("RM", rm)
        .set("TM_8", tm * 8)
        .set("STRIDE", stride)
        .set("TILE_W", 32 * stride)
        .set("THREADS", tm / rm * 16);
    let threads = tm / rm * 16;
    Form {
        name: "tiles",
        text: wgsl!("linear/backward.wgsl"),
        defines,
        columns: 64,
        tokens: tm,
        step: 32,
        step_turns: 10 + grid::walk(64, threads) * 10 + grid::walk(tm * 8, threads) * 6,
        other_turns: 1 + 5 * rm as u64,
    }
}

/// The kernel for software devices, whose subgroups have `shape.lanes` invocations: one block of 32 columns.
fn lanes(defines: Defines, shape: RowsShape, tokens: usize) -> Form {
    let tile = tokens.min(64);
    let defines = defines
        .set("LANES", shape.lanes)
        .set("PASS", shape.pass())
        .set("OWN", 8 / shape.lanes)
        .set("HELD", 16 / shape.lanes)
        .set("TOKENS", tile)
        .set("TOKENS_8", tile * 8);
    let held = 16 / shape.lanes;
    Form {
        name: "lanes",
        text: wgsl!("linear/backward_lanes.wgsl"),
        defines,
        columns: 32,
        tokens: tile,
        step: 64,
        step_turns: 1 + grid::walk(64, shape.lanes) * 10 + ((tile + 1) * (1 + 5 * held)) as u64,
        other_turns: 1 + ((tile + 1) * (2 + 5 * 8 / shape.lanes)) as u64,
    }
}

impl Op for LinearBackward {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "linear_backward"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let weight = self.weight.clone();
        let tokens = to.input_shape(0)[0];
        for (index, shard) in weight.shards().iter().enumerate() {
            let vectors = weight.columns().is_multiple_of(4);
            let dy_vectors = weight.rows().is_multiple_of(4);
            let defines = Defines::new()
                .set("K", weight.columns())
                .set("SCALAR", !vectors)
                .set("VEC", if vectors { "vec4<f32>" } else { "f32" })
                .set("DY_VECTORS", dy_vectors)
                .set("DY", if dy_vectors { "vec4<f32>" } else { "f32" });
            let rows = to.tuning().rows_shape(to.capabilities());
            let form =
                if rows.shuffle { lanes(defines, rows, tokens) } else { tiles(to.capabilities(), defines, tokens) };
            let constants = format_shaders::constants(&weight);
            let parts = [
                constants.as_str(),
                format_shaders::shader(shard.format),
                wgsl!("lib/linear_backward.wgsl"),
                form.text,
            ];
            let name =
                format!("linear_backward_{} {} {}x{}", form.name, shard.format.name(), weight.rows(), weight.columns());
            let grid = [
                Extent::Fixed(weight.columns().div_ceil(form.columns) as u32),
                Extent::Fixed(tokens.div_ceil(form.tokens) as u32),
                Extent::Fixed(1),
            ];
            // As few dispatches as keep an invocation within the device's limit of loop iterations; one if there is no
            // limit.
            let piece = to.piece(form.other_turns, form.step_turns, form.step);
            for start in (0..shard.rows).step_by(piece) {
                let end = start.saturating_add(piece).min(shard.rows);
                let shape = [end, shard.first_row, weight.rows(), tokens, start].map(|n| n as u32);
                let bindings = vec![to.input(0), to.output(0), to.numbers(&shape)?];
                let defines = form.defines.clone().set("ADD", self.add || index > 0 || start > 0);
                let turns = (end - start).div_ceil(form.step) as u64 * form.step_turns + form.other_turns;
                let text = KernelText { name: &name, parts: &parts, defines, turns };
                to.emit(text, &[bindings, shard.planes()], grid)?;
            }
        }
        Ok(())
    }

    fn work(&self, inputs: &[&[usize]], _outputs: &[&[usize]]) -> u64 {
        elements(inputs[0]) * self.weight.columns() as u64
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let width = self.weight.columns();
        let dx = outputs[0].f32_mut();
        let mut sums: Vec<f64> =
            if self.add { dx.iter().map(|&v| f64::from(v)).collect() } else { vec![0.0; dx.len()] };
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
