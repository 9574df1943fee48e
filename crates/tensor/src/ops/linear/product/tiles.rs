//! Tiles in workgroup memory, for hardware. Where the device was opened with f16, tiles hold f16 and sums stay f32.

use bayan_gpu::GpuError;

use super::{Product, ProductKernel};
use crate::plan::{Extent, Lowering, Target, Variant, grid};

pub(super) const VARIANT: Variant<Product> = Variant { name: "tiles", fits, emit };

fn fits(_: &Product, target: &Target<'_>) -> bool {
    target.hardware()
}

fn emit(product: &Product, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    let (tm, tn, rm, rn) = product.tile();
    let (splits, length) = product.split();
    let threads = tm / rm * (tn / rn);
    let defines = product
        .defines()
        .set("TM", tm)
        .set("TN", tn)
        .set("RM", rm)
        .set("RN", rn)
        .set("RM_RN", rm * rn)
        .set("TM_TK", tm * 16)
        .set("TN_TK", tn * 16)
        .set("THREADS", threads)
        .set("HALF_TILES", to.capabilities().f16)
        .set("A_ALONG_K", product.a.column == 1)
        .set("B_ALONG_K", product.b.column != 1);
    let loads = grid::walk(tm * 16, threads) + grid::walk(tn * 16, threads);
    let kernel = ProductKernel {
        text: wgsl!("linear/product_tiles.wgsl"),
        defines,
        grid: [product.n.div_ceil(tn), product.m.div_ceil(tm), splits].map(|n| Extent::Fixed(n as u32)),
        turns: length.div_ceil(16) as u64 * (18 + loads) + (rm * rn) as u64 + 2,
    };
    product.emit(to, kernel)
}
