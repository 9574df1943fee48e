//! Without workgroup memory, for software devices: each invocation computes 4 x 4 results.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use super::{Product, ProductKernel};
use crate::plan::{Extent, Lowering, Target, Variant, grid};

pub(super) const VARIANT: Variant<Product> = Variant { name: "direct", fits, emit };

/// Invocations per workgroup.
const THREADS: usize = 32;

fn fits(_: &Product, _: &Target<'_>) -> bool {
    true
}

fn emit(product: &Product, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    let (defines, grid) = defines_and_grid(product, to, 4);
    let kernel = ProductKernel {
        text: wgsl!("linear/product_direct.wgsl"),
        defines: defines.set("RN", 4usize).set("RM_RN", 16usize),
        grid,
        turns: product.split().1 as u64 + 16 + 2,
    };
    product.emit(to, kernel)
}

/// The names and the grid of the kernels in which an invocation computes `rows` x 4 results.
pub(super) fn defines_and_grid(product: &Product, to: &Lowering<'_>, rows: usize) -> (Defines, [Extent; 3]) {
    let (mut grid, stride) = grid::flat_grid(to, product.m.div_ceil(rows) * product.n.div_ceil(4), THREADS);
    grid[2] = Extent::Fixed(product.split().0 as u32);
    (product.defines().set("RM", rows).set("THREADS", THREADS).set("STRIDE", stride), grid)
}
