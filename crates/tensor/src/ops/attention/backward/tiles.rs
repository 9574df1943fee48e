//! Tiles of queries and keys in workgroup memory.

use bayan_gpu::GpuError;

use super::{AttentionBackward, Pass};
use crate::ops::attention::forward::{QUERY_TILE, SCORE};
use crate::plan::{Extent, KernelText, Lowering, Target, Variant, grid};

pub(super) const VARIANT: Variant<AttentionBackward> = Variant { name: "tiles", fits, emit };

fn fits(_: &AttentionBackward, _: &Target<'_>) -> bool {
    true
}

fn emit(op: &AttentionBackward, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    let d4 = op.0.head_dim / 4;
    // One invocation owns one vector of d in every TOGETHER-th row of the tile. On a software device every barrier
    // costs time for each invocation: there, a workgroup has as few invocations as a tile needs.
    let most = if to.target().hardware() { 128 } else { QUERY_TILE };
    let mut together = 1;
    while together * 2 * d4 <= most && together < QUERY_TILE {
        together *= 2;
    }
    let threads = (together * d4).max(QUERY_TILE);
    let (tiles, group, keys) = (to.input_shape(7)[0], op.0.heads / op.0.kv_heads, op.keys(to).div_ceil(QUERY_TILE));
    // Each tile of keys, or of queries, is processed once: its products cover d in parts of 8 vectors.
    let products = 1 + d4.div_ceil(8) as u64 * (10 + grid::walk(QUERY_TILE * 8, threads));
    for pass in Pass::ALL {
        let (name, text) = match pass {
            Pass::Statistics => ("attention_backward_statistics", wgsl!("attention/backward_statistics.wgsl")),
            Pass::Queries => ("attention_backward_queries", wgsl!("attention/backward_queries.wgsl")),
            Pass::Keys => ("attention_backward_keys", wgsl!("attention/backward_keys.wgsl")),
        };
        let defines = op
            .defines(pass)
            .set("TILE", QUERY_TILE)
            .set("TILE_9", QUERY_TILE * 9)
            .set("TILE_TILE", QUERY_TILE * QUERY_TILE)
            .set("PAIRS", (QUERY_TILE * QUERY_TILE).div_ceil(threads))
            .set("TOGETHER", together)
            .set("EACH", QUERY_TILE / together)
            .set("THREADS", threads);
        // Turns of the loops around the products, and the number of products.
        let (around, times) = match pass {
            Pass::Keys => (1 + tiles * (2 + group * (2 + QUERY_TILE)), tiles * group),
            Pass::Statistics | Pass::Queries => (keys * (3 + 2 * QUERY_TILE) + d4 + 2, keys),
        };
        let parts = [SCORE, wgsl!("lib/attention_backward.wgsl"), text];
        let grid = [Extent::Fixed(op.heads(pass) as u32), Extent::Fixed(tiles as u32), Extent::Fixed(1)];
        let text = KernelText { name, parts: &parts, defines, turns: around as u64 + times as u64 * products };
        to.emit(text, &[pass.bindings(to)], grid)?;
    }
    Ok(())
}
