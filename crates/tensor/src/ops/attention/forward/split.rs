//! For few tokens: the cached positions are split into runs that different workgroups process (flash decoding, Dao et
//! al. 2023), and a second dispatch merges them.

use bayan_gpu::shader::Defines;
use bayan_gpu::{GpuError, Slice};

use super::{Attention, CACHE, SCORE};
use crate::ops::FEW_TOKENS;
use crate::plan::{Extent, KernelText, Lowering, Target, Variant, grid};

pub(super) const VARIANT: Variant<Attention> = Variant { name: "split", fits, emit };

/// Attention of one token over one run of positions.
pub(crate) const RUN: &str = wgsl!("lib/attention_run.wgsl");

/// Number of cached positions in one run.
pub(crate) const SPLIT: usize = 256;

fn fits(_: &Attention, target: &Target<'_>) -> bool {
    target.tokens <= FEW_TOKENS
}

fn emit(attention: &Attention, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    let tokens = to.target().tokens;
    let (h, k, d) = (attention.heads, attention.kv_heads, attention.head_dim);
    let max_splits = attention.context.div_ceil(SPLIT);
    let partial = to.gpu().allocate("attention runs", (tokens * max_splits * h * (d + 2) * 4) as u64)?.whole();
    let threads = grid::group_threads(to, 64);
    let defines = attention
        .defines(to.input_shape(1)[0])
        .set("SPLIT", SPLIT)
        .set("MAX_SPLITS", max_splits)
        .set("G_SPLIT", h / k * SPLIT);
    let defines = grid::reduction(to, defines, threads);
    let parts = [wgsl!("lib/reduce.wgsl"), CACHE, SCORE, RUN, wgsl!("attention/split.wgsl")];
    let bindings = vec![to.input(0), to.input(1), to.input(2), to.input(3), to.input(4), partial.clone()];
    let text = KernelText {
        name: "attention_split",
        parts: &parts,
        defines: defines.clone(),
        turns: attention.run_turns(threads),
    };
    let grid = [Extent::Fixed(k as u32), Extent::CachedRuns(SPLIT as u32), Extent::Fixed(tokens as u32)];
    to.emit(text, &[bindings], grid)?;
    let bindings = vec![partial, to.input(3), to.output(0)];
    merge(to, defines, bindings, attention, tokens, threads)
}

/// Emits the kernel that merges the runs of each token and head.
pub(crate) fn merge(
    to: &mut Lowering<'_>,
    defines: Defines,
    bindings: Vec<Slice>,
    attention: &Attention,
    tokens: usize,
    threads: usize,
) -> Result<(), GpuError> {
    let splits = attention.context.div_ceil(SPLIT) as u64;
    let turns = 2 * (splits + 1) + grid::walk(attention.head_dim, threads) * (2 + splits);
    let text = KernelText { name: "attention_merge", parts: &[wgsl!("attention/merge.wgsl")], defines, turns };
    to.emit(text, &[bindings], [Extent::Fixed(attention.heads as u32), Extent::Fixed(tokens as u32), Extent::Fixed(1)])
}

impl Attention {
    /// Loop iterations of `lib/attention_run.wgsl` for one run of positions.
    pub(crate) fn run_turns(&self, threads: usize) -> u64 {
        let (d4, group, run) = (self.head_dim / 4, self.heads / self.kv_heads, grid::walk(SPLIT, threads));
        run * (2 + d4 as u64)
            + 1
            + group as u64 * (1 + 2 * run + 2 * grid::REDUCTION)
            + grid::walk(d4, threads) * (2 + SPLIT as u64)
    }
}
