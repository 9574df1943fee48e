//! For many tokens: each tile of queries loops over tiles of keys in workgroup memory (FlashAttention, Dao et al.,
//! 2022).

use bayan_gpu::GpuError;

use super::{Attention, CACHE, QUERY_TILE, ROW, SCORE};
use crate::plan::{Extent, KernelText, Lowering, Target, Variant, grid};

pub(super) const VARIANT: Variant<Attention> = Variant { name: "tiles", fits, emit };

/// Invocations per workgroup.
const THREADS: usize = 128;
/// Invocations that share the weights of a query.
const SHARE: usize = THREADS / QUERY_TILE;

fn fits(_: &Attention, _: &Target<'_>) -> bool {
    true
}

fn emit(attention: &Attention, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    let d4 = attention.head_dim / 4;
    let available = to.capabilities().max_workgroup_bytes as usize - 64;
    // Workgroup memory holds the queries too only if heads are narrow enough; the keys and values are always there.
    let needs = |queries: usize, keys: usize| {
        queries * attention.head_dim * 4
            + keys * (attention.head_dim + 4) * 4
            + QUERY_TILE * (keys + 1) * 4
            + (THREADS + QUERY_TILE) * 4
    };
    let shared = needs(QUERY_TILE, 4) <= available;
    let mut keys = 32;
    while keys > 4 && needs(if shared { QUERY_TILE } else { 0 }, keys) > available {
        keys /= 2;
    }
    let defines = attention
        .defines(to.input_shape(1)[0], to.input_shape(4)[0], to.input_shape(3)[0])
        .set("THREADS", THREADS)
        .set("TQ", QUERY_TILE)
        .set("TK", keys)
        .set("D4", d4)
        .set("SHARED_QUERIES", shared)
        .set("TQ_D4", QUERY_TILE * d4)
        .set("TK_ROW", keys * (d4 + 1))
        .set("TQ_WEIGHTS", QUERY_TILE * (keys + 1))
        .set("QUERIES", (QUERY_TILE * keys / THREADS).max(1))
        .set("SHARE", SHARE)
        .set("ONE_COLUMN", THREADS.is_multiple_of(d4))
        .set("OUTPUTS", (QUERY_TILE * d4).div_ceil(THREADS));
    let bindings = (0..6).map(|i| to.input(i)).chain([to.output(0)]).collect();
    let loads = grid::walk(keys * d4, THREADS);
    let weights = 2 * grid::walk(keys, SHARE) + SHARE as u64 + 1;
    let each = 1 + 2 * loads + weights + keys as u64 + 1;
    let text = KernelText {
        name: "attention_tiles",
        parts: &[CACHE, ROW, SCORE, wgsl!("attention/tiles.wgsl")],
        defines,
        turns: 1 + grid::walk(QUERY_TILE * d4, THREADS) + SHARE as u64 + attention.keys().div_ceil(keys) as u64 * each,
    };
    let tiles = to.input_shape(5)[0];
    let grid = [Extent::Fixed(attention.heads as u32), Extent::Fixed(tiles as u32), Extent::Fixed(1)];
    to.emit(text, &[bindings], grid)
}
