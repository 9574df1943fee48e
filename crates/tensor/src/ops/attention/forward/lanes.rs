//! For software devices with subgroups of a known size: a workgroup is one subgroup with one query in each invocation,
//! and loops over the cached rows, which the subgroup reads once and broadcasts.

use bayan_gpu::GpuError;

use super::{Attention, CACHE, QUERY_TILE, ROW, SCORE};
use crate::plan::{Extent, KernelText, Lowering, Target, Variant};

pub(super) const VARIANT: Variant<Attention> = Variant { name: "lanes", fits, emit };

fn fits(attention: &Attention, target: &Target<'_>) -> bool {
    target.lanes().is_some_and(|lanes| attention.divides_into(lanes))
}

fn emit(attention: &Attention, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    let lanes = to.target().rows_shape.lanes;
    let defines = attention
        .defines(to.input_shape(1)[0], to.input_shape(4)[0], to.input_shape(3)[0])
        .set("LANES", lanes)
        .set("TQ", QUERY_TILE)
        .set("HELD", attention.head_dim / 4 / lanes)
        .set("QUADS", lanes == 4);
    let bindings = (0..6).map(|i| to.input(i)).chain([to.output(0)]).collect();
    let tiles = to.input_shape(5)[0] * QUERY_TILE / lanes;
    let text = KernelText {
        name: "attention_lanes",
        parts: &[CACHE, ROW, SCORE, wgsl!("attention/lanes.wgsl")],
        defines,
        turns: attention.keys().div_ceil(4) as u64 + 1,
    };
    let grid = [Extent::Fixed(attention.heads as u32), Extent::Fixed(tiles as u32), Extent::Fixed(1)];
    to.emit(text, &[bindings], grid)
}
