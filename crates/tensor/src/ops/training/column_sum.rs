//! Sums over tokens: the gradients of biases and of norm weights; and sums of squares, the importance of each input of
//! a matrix for a quantizer.
//!
//! Each workgroup sums a run of rows, and the runs are added in a fixed order, so that results repeat bit by bit.
//! Rejected: atomic additions, whose order varies.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::graph::{Dtype, Graph, Op, Operand, Tensor, Values};
use crate::plan::{Extent, KernelText, Lowering, grid};

/// y\[c\] = Σ_r x[r, c] (or its square), or added to y. Inputs: x, viewed as rows of the length of y (and y when
/// adding); outputs: y, and the sums of the runs.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnSum {
    /// Sum squares.
    pub squares: bool,
    /// Add to y instead of overwriting it.
    pub add: bool,
}

/// Minimum number of rows per workgroup.
const RUN: usize = 32;
/// Maximum number of runs.
const MOST_RUNS: usize = 64;

fn runs(rows: usize) -> usize {
    rows.div_ceil(RUN).clamp(1, MOST_RUNS)
}

impl Graph {
    /// Records y (+)= the sum of the rows of x.
    pub fn column_sum(&mut self, x: Tensor, y: Tensor, add: bool) {
        self.sum_columns(x, y, ColumnSum { squares: false, add });
    }

    /// y \[K\] += the squares of x [T, K], column by column.
    pub fn column_squares(&mut self, x: Tensor, y: Tensor) {
        self.sum_columns(x, y, ColumnSum { squares: true, add: true });
    }

    fn sum_columns(&mut self, x: Tensor, y: Tensor, op: ColumnSum) {
        let (len, width) = (self.info(x).len(), self.info(y).len());
        assert!(width > 0 && len.is_multiple_of(width), "column_sum: sizes of x and y");
        let partial = self.tensor(&[runs(len / width), width], Dtype::F32);
        let inputs = [x, y];
        let inputs = &inputs[..1 + usize::from(op.add)];
        self.record(op, inputs, &[y, partial]);
    }
}

impl Op for ColumnSum {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "column_sum"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let width: usize = to.output_shape(0).iter().product();
        let rows = to.input_shape(0).iter().product::<usize>() / width;
        let runs = runs(rows);
        let threads = grid::row_threads(to, width.min(64));
        let size = to.numbers(&[width as u32, rows as u32, rows.div_ceil(runs) as u32, runs as u32])?;
        let columns = Extent::Fixed(width.div_ceil(threads) as u32);
        let part = |from, into, first: bool| {
            (
                vec![from, into, size.clone()],
                [columns, Extent::Fixed(if first { runs as u32 } else { 1 }), Extent::Fixed(1)],
            )
        };
        for (first, (bindings, grid)) in
            [(true, part(to.input(0), to.output(1), true)), (false, part(to.output(1), to.output(0), false))]
        {
            let defines = Defines::new()
                .set("THREADS", threads)
                .set("FIRST", first)
                .set("SQUARES", self.squares && first)
                .set("ADD", self.add && !first);
            let parts = [wgsl!("training/column_sum.wgsl")];
            let turns = if first { rows.div_ceil(runs) } else { runs } as u64 + 1;
            to.emit(KernelText { name: "column_sum", parts: &parts, defines, turns }, &[bindings], grid)?;
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let y = outputs[0].f32_mut();
        let width = y.len();
        for (c, y) in y.iter_mut().enumerate() {
            let sum: f64 = inputs[0].f32()[c..]
                .iter()
                .step_by(width)
                .map(|&v| f64::from(v).powi(if self.squares { 2 } else { 1 }))
                .sum();
            *y = (sum + if self.add { f64::from(*y) } else { 0.0 }) as f32;
        }
    }
}
