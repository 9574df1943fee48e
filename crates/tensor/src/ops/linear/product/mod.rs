//! A product of two dense f32 matrices given by strides. LoRA pairs and all their gradients use this one op.
//!
//! Rejected: transposed copies, and one op for each of the six products of a LoRA pair. With strided views, the
//! gradient of a product is again a product, with strides exchanged. Long sums with small results are split into parts,
//! which are then added in a fixed order.

mod direct;
mod tiles;
mod vectors;

use std::sync::Arc;

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::cpu::simd::by_level;
use crate::cpu::{CpuStep, Shared};
use crate::graph::{Dtype, GROUP, Graph, Op, Operand, State, Tensor, Values};
use crate::passes::{Backward, BackwardError};
use crate::plan::{Extent, KernelText, Lowering, Variant, grid};

/// Location of the element (i, j) of a matrix within a tensor: offset + i · row + j · column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Index of element (0, 0).
    pub offset: usize,
    /// Distance between rows.
    pub row: usize,
    /// Distance between columns.
    pub column: usize,
}

impl View {
    /// A whole tensor whose rows have this width.
    pub fn of(width: usize) -> View {
        View { offset: 0, row: width, column: 1 }
    }

    /// The transposed view.
    pub fn transposed(self) -> View {
        View { row: self.column, column: self.row, ..self }
    }

    fn at(self, i: usize, j: usize) -> usize {
        self.offset + i * self.row + j * self.column
    }
}

/// c[m, n] = alpha Σ_k a[m, k] b[k, n], or added to c. Inputs a, b (and c when adding); outputs c, and with more than
/// one split the partial sums [splits, m, n].
#[derive(Debug, Clone, PartialEq)]
pub struct Product {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// a as [m, k].
    pub a: View,
    /// b as [k, n].
    pub b: View,
    /// c as [m, n].
    pub c: View,
    /// Multiplies the sums.
    pub alpha: f32,
    /// Add to c instead of overwriting it.
    pub add: bool,
    /// c is stored in the packed order of a trained matrix; the row stride of its view is then the distance between
    /// groups of 32 rows.
    pub packed: bool,
}

/// The kernels; the first that fits is used.
const VARIANTS: &[Variant<Product>] = &[
    tiles::VARIANT,   // hardware
    vectors::VARIANT, // software, both factors in vectors of four
    direct::VARIANT,  // software
];

/// What a variant sets. The op adds sizes and strides, and the sum over the parts.
struct ProductKernel {
    text: &'static str,
    defines: Defines,
    grid: [Extent; 3],
    turns: u64,
}

/// How all kernels write results.
const SHARED: &str = wgsl!("lib/product.wgsl");

/// A result with fewer tiles than this splits its sums over several workgroups.
const ENOUGH_TILES: usize = 48;
/// Shortest part of a sum for which another workgroup pays off.
const SHORTEST_SPLIT: usize = 128;

impl Graph {
    /// Records c (+)= alpha · a b.
    pub fn product(&mut self, product: Product, a: Tensor, b: Tensor, c: Tensor) {
        let splits = product.splits();
        let mut inputs = vec![a, b];
        let mut outputs = vec![c];
        if product.add {
            inputs.push(c);
        }
        if splits > 1 {
            outputs.push(self.tensor(&[splits, product.m, product.n], Dtype::F32));
        }
        self.record(product, &inputs, &outputs);
    }

    /// y[:, first_row..] += scale · (x Aᵀ) Bᵀ for x [T, K], y [T, N], A [r, K], B [rows, r].
    pub fn lora(&mut self, x: Tensor, y: Tensor, first_row: usize, a: &Arc<State>, b: &Arc<State>, scale: f32) {
        let (width, wide) = (self.width(x), self.width(y));
        let (rank, rows) = (a.shape()[0], b.shape()[0]);
        assert_eq!(
            (a.shape(), b.shape()[1]),
            ([rank, width].as_slice(), rank),
            "lora `{}`: sizes of A and B",
            a.label()
        );
        assert!(first_row + rows <= wide, "lora `{}`: rows {first_row}+{rows} of {wide}", b.label());
        let u = self.lora_down(x, a);
        self.lora_up(u, y, first_row, b, scale);
    }

    /// The first product of [`Graph::lora`]: x [T, K] and A [r, K] to x Aᵀ [T, r].
    pub fn lora_down(&mut self, x: Tensor, a: &Arc<State>) -> Tensor {
        let (tokens, width, rank) = (self.rows(x), self.width(x), a.shape()[0]);
        let a = self.state(a);
        let u = self.tensor(&[tokens, rank], Dtype::F32);
        let down = Product {
            m: tokens,
            n: rank,
            k: width,
            a: View::of(width),
            b: View::of(width).transposed(),
            c: View::of(rank),
            alpha: 1.0,
            add: false,
            packed: false,
        };
        self.product(down, x, a, u);
        u
    }

    /// The second product of [`Graph::lora`]: y[:, first_row..] += scale · u Bᵀ, with u [T, r] and B [rows, r].
    pub fn lora_up(&mut self, u: Tensor, y: Tensor, first_row: usize, b: &Arc<State>, scale: f32) {
        let (tokens, rank, wide, rows) = (self.rows(u), self.width(u), self.width(y), b.shape()[0]);
        let b = self.state(b);
        let c = View { offset: first_row, ..View::of(wide) };
        let up = Product {
            m: tokens,
            n: rows,
            k: rank,
            a: View::of(rank),
            b: View::of(rank).transposed(),
            c,
            alpha: scale,
            add: true,
            packed: false,
        };
        self.product(up, u, b, y);
    }
}

impl Graph {
    /// gradient[first_row + n, k] += Σ_t dy[t, n] x[t, k], for dy [T, N], x [T, K], and the gradient of a matrix, whose
    /// rows from `first_row` on belong to the linear layer.
    pub fn weight_gradient(&mut self, dy: Tensor, x: Tensor, gradient: Tensor, first_row: usize) {
        let (tokens, n, k) = (self.rows(dy), self.width(dy), self.width(x));
        let group = GROUP * k.next_multiple_of(32);
        assert!(first_row.is_multiple_of(GROUP) && self.rows(x) == tokens, "weight_gradient: rows");
        assert!(
            (first_row + n).div_ceil(GROUP) * group <= self.info(gradient).len(),
            "weight_gradient: size of the gradient"
        );
        let c = View { offset: first_row / GROUP * group, row: group, column: 1 };
        let a = View::of(n).transposed();
        self.product(
            Product { m: n, n: k, k: tokens, a, b: View::of(k), c, alpha: 1.0, add: true, packed: true },
            dy,
            x,
            gradient,
        );
    }
}

impl Product {
    /// Rows and columns of a tile, and what one invocation computes of it.
    fn tile(&self) -> (usize, usize, usize, usize) {
        match (self.m <= 16, self.n <= 16) {
            (false, false) => (64, 64, 4, 4),
            (false, true) => (64, 16, 4, 2),
            (true, false) => (16, 64, 2, 4),
            (true, true) => (16, 16, 2, 1),
        }
    }

    /// Number of parts of each sum.
    pub fn splits(&self) -> usize {
        let (tm, tn, ..) = self.tile();
        let tiles = self.m.div_ceil(tm) * self.n.div_ceil(tn);
        (ENOUGH_TILES / tiles).min(self.k / SHORTEST_SPLIT).max(1)
    }

    /// Number of parts that the kernels really use, and the length of one: a multiple of 16.
    fn split(&self) -> (usize, usize) {
        let length = self.k.div_ceil(self.splits()).next_multiple_of(16);
        (self.k.div_ceil(length), length)
    }

    /// The names that all kernels read.
    fn defines(&self) -> Defines {
        Defines::new().set("ALPHA", self.alpha).set("ADD", self.add).set("PACKED", self.packed)
    }

    /// Emits a variant's kernel and, where sums are split, the one that adds their parts.
    fn emit(&self, to: &mut Lowering<'_>, kernel: ProductKernel) -> Result<(), GpuError> {
        let (splits, length) = self.split();
        let mut numbers = vec![self.m, self.n, self.k, length];
        [self.a, self.b, self.c].iter().for_each(|view| numbers.extend([view.offset, view.row, view.column]));
        numbers.push(splits);
        let numbers = to.numbers(&numbers.iter().map(|&n| n as u32).collect::<Vec<_>>())?;
        let result = if splits > 1 { to.output(1) } else { to.output(0) };
        let text = KernelText {
            name: "product",
            parts: &[SHARED, kernel.text],
            defines: kernel.defines.set("SPLIT", splits > 1),
            turns: kernel.turns,
        };
        to.emit(text, &[vec![to.input(0), to.input(1), result.clone(), numbers.clone()]], kernel.grid)?;
        if splits > 1 {
            let threads = grid::row_threads(to, 64);
            let (grid, stride) = grid::flat_grid(to, self.m * self.n, threads);
            let defines = self.defines().set("THREADS", threads).set("STRIDE", stride).set("SPLIT", false);
            let text = KernelText {
                name: "product_sum",
                parts: &[SHARED, wgsl!("linear/product_sum.wgsl")],
                defines,
                turns: splits as u64 + 1,
            };
            to.emit(text, &[vec![result, to.output(0), numbers]], grid)?;
        }
        Ok(())
    }
}

impl Op for Product {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "product"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        to.emit_first(VARIANTS, self)
    }

    fn work(&self, _inputs: &[&[usize]], _outputs: &[&[usize]]) -> u64 {
        self.m as u64 * self.n as u64 * self.k as u64
    }

    fn backward(&self, to: &mut Backward<'_>) -> Result<(), BackwardError> {
        if self.packed {
            return Err(BackwardError("product into a packed matrix"));
        }
        let Some(gradient) = to.gradient(0) else { return Ok(()) };
        let (a, b) = (to.input(0), to.input(1));
        if to.requires_grad(a) {
            let product = Product {
                m: self.m,
                n: self.k,
                k: self.n,
                a: self.c,
                b: self.b.transposed(),
                c: self.a,
                alpha: self.alpha,
                add: false,
                packed: false,
            };
            to.contribute(a, |graph, into, add| graph.product(Product { add, ..product }, gradient, b, into));
        }
        if to.requires_grad(b) {
            let product = Product {
                m: self.k,
                n: self.n,
                k: self.m,
                a: self.a.transposed(),
                b: self.c,
                c: self.b,
                alpha: self.alpha,
                add: false,
                packed: false,
            };
            to.contribute(b, |graph, into, add| graph.product(Product { add, ..product }, a, gradient, into));
        }
        Ok(())
    }

    fn compute(&self, step: &mut CpuStep<'_>) {
        // The products of LoRA: both operands are read along k.
        if self.packed || self.a.column != 1 || self.b.row != 1 || self.c.column != 1 {
            return step.by_reference(&|inputs, outputs| self.reference(inputs, outputs));
        }
        let (a, b) = (step.inputs[0].f32(), step.inputs[1].f32());
        let level = step.cpu.level();
        let to = Shared::new(step.outputs[0].f32_mut());
        // One token has too few rows for all threads, so the columns are divided.
        let least = ((1 << 14) / (self.m * self.k).max(1)).max(1);
        step.cpu.split(self.n, least, |columns| {
            for i in 0..self.m {
                let first = self.c.at(i, columns.start);
                // SAFETY: each column is in one range.
                let c = unsafe { to.part(first..first + columns.len()) };
                row_times(level, self, &a[self.a.at(i, 0)..][..self.k], b, columns.start, c);
            }
        });
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let (a, b) = (inputs[0].f32(), inputs[1].f32());
        let c = outputs[0].f32_mut();
        for i in 0..self.m {
            for j in 0..self.n {
                let sum: f64 = (0..self.k).map(|k| f64::from(a[self.a.at(i, k)]) * f64::from(b[self.b.at(k, j)])).sum();
                let at = if self.packed {
                    self.c.offset + i / 32 * self.c.row + j / 4 * 128 + i % 32 * 4 + j % 4
                } else {
                    self.c.at(i, j)
                };
                let before = if self.add { f64::from(c[at]) } else { 0.0 };
                c[at] = (before + f64::from(self.alpha) * sum) as f32;
            }
        }
    }
}

by_level! {
    /// Columns of one row of the product on the CPU, from column `first` on.
    fn row_times<S>(product: &Product, a: &[f32], b: &[f32], first: usize, c: &mut [f32]) {
        for (j, c) in (first..).zip(c) {
            let b = &b[product.b.at(0, j)..][..a.len()];
            let mut lanes = [0f32; 8];
            let ((a_eights, a_rest), (b_eights, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
            for (a, b) in a_eights.iter().zip(b_eights) {
                for lane in 0..8 {
                    lanes[lane] += a[lane] * b[lane];
                }
            }
            let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
            let before = if product.add { *c } else { 0.0 };
            *c = before + product.alpha * (lanes.iter().sum::<f32>() + rest);
        }
    }
}
