//! The gradients of [`super::GateColumns`]; the activation is recomputed.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use super::gate_columns::{Columns, GateColumns};
use crate::graph::{Graph, Op, Operand, Tensor, Values};
use crate::plan::{KernelText, Lowering, grid};

/// Inputs x, gate and dy (and the gradient when adding); output the gradient of x or of the gate, as wide as that. It
/// is zero in columns that the op does not read.
#[derive(Debug, Clone, PartialEq)]
pub struct GateColumnsBackward {
    /// The op that is differentiated.
    pub of: GateColumns,
    /// Whether this is the gradient of the gate, or that of x.
    pub of_gate: bool,
    /// Add to the gradient instead of overwriting it.
    pub add: bool,
}

impl Graph {
    /// Records the gradient of x, or of the gate, of `gate_columns` into a tensor as wide; `read` holds x, gate and dy.
    pub fn gate_columns_backward(
        &mut self,
        of: GateColumns,
        of_gate: bool,
        read: [Tensor; 3],
        into: Tensor,
        add: bool,
    ) {
        let mut inputs = read.to_vec();
        inputs.extend(add.then_some(into));
        self.record(GateColumnsBackward { of, of_gate, add }, &inputs, &[into]);
    }
}

impl GateColumnsBackward {
    fn columns(&self) -> Columns {
        if self.of_gate { self.of.gate } else { self.of.x }
    }
}

impl Op for GateColumnsBackward {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "gate_columns_backward"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let width = |input: usize| to.input_shape(input).last().copied().unwrap_or(1);
        let (widths, tokens) = ([width(0), width(1)], to.input_shape(2)[0]);
        // When adding, only the columns that are read change.
        let columns = if self.add { self.of.count } else { widths[usize::from(self.of_gate)] };
        let threads = grid::row_threads(to, 64);
        let (grid, stride) = grid::flat_grid(to, tokens * columns, threads);
        let defines = Defines::new()
            .set("THREADS", threads)
            .set("N", self.of.count)
            .set("COLUMNS", columns)
            .set("OF_GATE", self.of_gate)
            .set("ADD", self.add)
            .set("ACTIVATION", self.of.activation.name());
        let defines = self.of.gate.name(self.of.x.name(defines, "X"), "GATE");
        let defines = self.columns().name(defines, "OWN");
        let size = to.numbers(&[(tokens * columns) as u32, stride, widths[0] as u32, widths[1] as u32])?;
        let parts = [
            wgsl!("lib/activate.wgsl"),
            wgsl!("lib/activate_slope.wgsl"),
            wgsl!("elementwise/gate_columns_backward.wgsl"),
        ];
        let bindings = vec![to.input(0), to.input(1), to.input(2), to.output(0), size];
        to.emit(KernelText { name: "gate_columns_backward", parts: &parts, defines, turns: 0 }, &[bindings], grid)
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let GateColumns { count, activation, x: of_x, gate: of_gate, .. } = self.of;
        let into = outputs[0].f32_mut();
        if !self.add {
            into.fill(0.0);
        }
        let width = inputs[usize::from(self.of_gate)].width();
        let rows = inputs[0].rows().zip(inputs[1].rows()).zip(inputs[2].rows());
        for (((x, gate), dy), into) in rows.zip(into.chunks_exact_mut(width)) {
            for (n, &dy) in dy.iter().enumerate().take(count) {
                let (x, gate) = (f64::from(x[of_x.at(n)]), f64::from(gate[of_gate.at(n)]));
                let factor = if self.of_gate { x * activation.slope(gate) } else { activation.apply(gate) };
                let to = &mut into[self.columns().at(n)];
                *to = (f64::from(*to) + f64::from(dy) * factor) as f32;
            }
        }
    }
}
