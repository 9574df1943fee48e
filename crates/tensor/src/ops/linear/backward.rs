//! The gradient of a linear layer's input: dx = dy W, from the same packed weights, dequantised along the other axis.
//!
//! Where the device was opened with f16, tiles hold it, as those of the forward product do, and sums stay f32. Software
//! devices keep f32: they have no memory of a workgroup to save, and convert number by number.

use std::sync::Arc;

use bayan_gpu::shader::Defines;
use bayan_gpu::{Capabilities, GpuError};

use crate::format_shaders;
use crate::graph::{Graph, Matrix, Op, Operand, Tensor, Values, elements};
use crate::plan::{Extent, KernelText, Lowering, RowsShape};

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

/// The name of a form, its text, what that is specialised with, and the columns and tokens of a workgroup.
type Form = (&'static str, &'static str, Defines, usize, usize);

/// The form for devices with fast workgroup memory: 64 columns, two blocks of 32.
fn tiles(capabilities: &Capabilities, defines: Defines, tokens: usize) -> Form {
    let (tm, rm) = if tokens <= 16 { (16, 2) } else { (64, 8) };
    // A padded stride keeps the stores of neighbouring rows in different banks, where the device has the room.
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
    ("tiles", wgsl!("linear/backward.wgsl"), defines, 64, tm)
}

/// The form for software devices, whose subgroups are `shape.lanes` wide: one block of 32 columns.
fn lanes(defines: Defines, shape: RowsShape, tokens: usize) -> Form {
    let tile = tokens.min(64);
    let defines = defines
        .set("LANES", shape.lanes)
        .set("PASS", shape.pass())
        .set("OWN", 8 / shape.lanes)
        .set("HELD", 16 / shape.lanes)
        .set("TOKENS", tile)
        .set("TOKENS_8", tile * 8);
    ("lanes", wgsl!("linear/backward_lanes.wgsl"), defines, 32, tile)
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
                .set("ADD", self.add || index > 0)
                .set("SCALAR", !vectors)
                .set("VEC", if vectors { "vec4<f32>" } else { "f32" })
                .set("DY_VECTORS", dy_vectors)
                .set("DY", if dy_vectors { "vec4<f32>" } else { "f32" });
            let rows = to.tuning().rows_shape(to.capabilities());
            let (form, text, defines, columns, tile) =
                if rows.shuffle { lanes(defines, rows, tokens) } else { tiles(to.capabilities(), defines, tokens) };
            let shape =
                to.numbers(&[shard.rows as u32, shard.first_row as u32, weight.rows() as u32, tokens as u32])?;
            let constants = format_shaders::constants(&weight);
            let parts =
                [constants.as_str(), format_shaders::shader(shard.format), wgsl!("lib/linear_backward.wgsl"), text];
            let name = format!("linear_backward_{form} {} {}x{}", shard.format.name(), weight.rows(), weight.columns());
            let grid = [
                Extent::Fixed(weight.columns().div_ceil(columns) as u32),
                Extent::Fixed(tokens.div_ceil(tile) as u32),
                Extent::Fixed(1),
            ];
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
