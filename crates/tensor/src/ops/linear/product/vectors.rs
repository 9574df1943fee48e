//! As [`super::direct`], with vectors of four: a software device loads four neighbours hardly slower than one value.

use bayan_gpu::GpuError;

use super::direct::defines_and_grid;
use super::{Product, ProductKernel, View};
use crate::plan::{Lowering, Target, Variant};

pub(super) const VARIANT: Variant<Product> = Variant { name: "vectors", fits, emit };

/// Whether a and b can both be read as vectors of four neighbours, along whichever axis is contiguous.
fn fits(product: &Product, _: &Target<'_>) -> bool {
    let Product { m, n, k, a, b, .. } = *product;
    let vectors = |view: View, across: usize, strides: (usize, usize)| match strides {
        (1, other) => other.is_multiple_of(4) && view.offset.is_multiple_of(4),
        (other, 1) => other.is_multiple_of(4) && view.offset.is_multiple_of(4) && across.is_multiple_of(4),
        _ => false,
    };
    vectors(a, m, (a.column, a.row)) && vectors(b, n, (b.row, b.column)) && k.is_multiple_of(4)
}

fn emit(product: &Product, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    let rows = if product.m > 4 { 8 } else { 4 };
    let (defines, grid) = defines_and_grid(product, to, rows);
    let defines =
        defines.set("RM_4", rows / 4).set("A_ALONG_K", product.a.column == 1).set("B_ALONG_K", product.b.column != 1);
    let kernel = ProductKernel {
        text: wgsl!("linear/product_vectors.wgsl"),
        defines,
        grid,
        turns: product.split().1.div_ceil(4) as u64 + 1,
    };
    product.emit(to, kernel)
}
