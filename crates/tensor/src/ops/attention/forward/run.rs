//! How the cached positions of few tokens are divided into runs (flash decoding, Dao et al. 2023), and how the
//! invocations of a workgroup share one run.
//!
//! On hardware with subgroups they share the positions, with several loads of each in flight: speed is bytes in flight
//! there, and short runs make enough workgroups for a large device. Elsewhere an invocation computes whole scores.

use bayan_gpu::shader::Defines;
use bayan_gpu::{Capabilities, GpuError, Slice};

use super::Attention;
use crate::plan::{Extent, KernelText, Lowering, grid};

/// Positions of a run on software devices, and the most on hardware.
const LONGEST: usize = 256;
/// The fewest positions of a run on hardware.
const SHORTEST: usize = 64;
/// Bytes that the results of short runs may take; for more, runs are longer.
const MOST_BYTES: usize = 64 << 20;
/// Invocations of a workgroup on hardware.
const HARDWARE_THREADS: usize = 128;
/// Most invocations that share a key.
const MOST_LANES: usize = 8;
/// Loads of vectors that an invocation starts before it uses the first.
const IN_FLIGHT: usize = 8;
/// Invocations of the merging workgroup on hardware: `attention/merge_shared.wgsl` has 32 for each run.
const MERGE_THREADS: usize = 256;
/// Pairs of elements that such a workgroup merges.
const MERGE_COLUMNS: usize = 32;
/// Runs that one of its invocations loads together.
const MERGE_RUNS: usize = 8;

/// How runs are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// Positions of a run.
    pub split: usize,
    /// Invocations of a workgroup.
    pub threads: usize,
    /// The division of a workgroup whose invocations share the positions.
    shared: Option<Shared>,
}

/// Sizes of `lib/attention_run_shared.wgsl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shared {
    /// Invocations that share a key.
    lanes: usize,
    /// Keys that they load together.
    keys: usize,
    /// Sets of invocations that each read whole rows of values.
    slots: usize,
    /// Heads whose sums are joined together.
    heads: usize,
}

impl Shared {
    fn of(attention: &Attention, capabilities: &Capabilities, split: usize) -> Option<Shared> {
        let (d4, group) = (attention.head_dim / 4, attention.heads / attention.kv_heads);
        let smallest = capabilities.subgroup_size.0 as usize;
        let lanes = MOST_LANES.min(smallest).min(1 << d4.trailing_zeros());
        let fits = !capabilities.software
            && capabilities.subgroups
            && lanes >= 4
            && d4 <= HARDWARE_THREADS
            && capabilities.subgroup_size.1 as usize <= HARDWARE_THREADS;
        let steps = d4 / lanes;
        let keys = (IN_FLIGHT.div_ceil(steps)).min(split * lanes / HARDWARE_THREADS).clamp(1, 4);
        let shared = Shared { lanes, keys, slots: HARDWARE_THREADS / d4.max(1), heads: 1 };
        // Beside this there are the queries, and what reductions need.
        let taken = group * shared.pitch(split) * 4 + group * attention.head_dim * 4 + HARDWARE_THREADS * 4 + 256;
        let free = (capabilities.max_workgroup_bytes as usize).checked_sub(taken).filter(|_| fits)?;
        let most = free.min(HARDWARE_THREADS * 16 * 8) / (HARDWARE_THREADS * 16);
        let heads = (1..=most.min(group)).rev().find(|&heads| group.is_multiple_of(heads))?;
        Some(Shared { heads, ..shared })
    }

    /// Weights of one head in workgroup memory: whole steps of the loop over values, and eight more, so that heads
    /// begin in different banks.
    fn pitch(self, split: usize) -> usize {
        split.next_multiple_of(self.slots * IN_FLIGHT) + 8
    }
}

impl Run {
    /// The best for these sizes on this device.
    pub(crate) fn of(attention: &Attention, capabilities: &Capabilities, tokens: usize) -> Run {
        if Shared::of(attention, capabilities, LONGEST).is_some() {
            let bytes = |split: usize| 4 * elements(attention, split, tokens);
            let split = [SHORTEST, 2 * SHORTEST].into_iter().find(|&split| bytes(split) <= MOST_BYTES);
            let split = split.unwrap_or(LONGEST);
            return Run { split, threads: HARDWARE_THREADS, shared: Shared::of(attention, capabilities, split) };
        }
        Run { split: LONGEST, threads: grid::group_threads(capabilities, 64), shared: None }
    }

    /// Sizes of the results of all runs, [T, splits, H, d + 2].
    pub(crate) fn results(&self, attention: &Attention, tokens: usize) -> [usize; 4] {
        [tokens, attention.context.div_ceil(self.split), attention.heads, attention.head_dim + 2]
    }

    /// The text of `attend`.
    pub(crate) fn text(&self) -> [&'static str; 2] {
        let attend = match self.shared {
            Some(_) => wgsl!("lib/attention_run_shared.wgsl"),
            None => wgsl!("lib/attention_run_each.wgsl"),
        };
        [wgsl!("lib/attention_run.wgsl"), attend]
    }

    /// The names that the texts read, for a cache of `rows` rows and bases of `bases` words.
    pub(crate) fn defines(&self, attention: &Attention, to: &Lowering<'_>, rows: usize, bases: usize) -> Defines {
        let group = attention.heads / attention.kv_heads;
        let in_one_block = attention.block.is_none_or(|block| block.is_multiple_of(self.split));
        let defines = attention
            .defines(rows, bases, to.target().tokens)
            .set("CONSECUTIVE", attention.ring.is_none() && in_one_block)
            .set("SPLIT", self.split)
            .set("MAX_SPLITS", attention.context.div_ceil(self.split))
            .set("G_SPLIT", group * self.split);
        let defines = match self.shared {
            None => defines,
            Some(shared) => defines
                .set("LANES", shared.lanes)
                .set("LANE_STEPS", shared.lanes.ilog2())
                .set("KEYS", shared.keys)
                .set("STEPS", attention.head_dim / 4 / shared.lanes)
                .set("SLOTS", shared.slots)
                .set("VALUES", IN_FLIGHT)
                .set("PITCH", shared.pitch(self.split))
                .set("G_PITCH", group * shared.pitch(self.split))
                .set("HEADS", shared.heads)
                .set("HEAD_EACH", group <= shared.lanes)
                .set("BATCHES", group / shared.heads)
                .set("PARTS", shared.heads * self.threads),
        };
        grid::reduction(to, defines, self.threads)
    }

    /// Loop iterations of `attend` for one run of positions.
    pub(crate) fn turns(&self, attention: &Attention) -> u64 {
        let (d4, group) = (attention.head_dim / 4, attention.heads / attention.kv_heads);
        let Some(shared) = self.shared else {
            let run = grid::walk(self.split, self.threads);
            return run * (2 + d4 as u64)
                + 1
                + group as u64 * (1 + 2 * run + 2 * grid::REDUCTION)
                + grid::walk(d4, self.threads) * (2 + self.split as u64);
        };
        let at_once = self.threads / shared.lanes;
        let scores = grid::walk(self.split, at_once * shared.keys);
        let weights = grid::walk(group, at_once) * (1 + 3 * grid::walk(shared.pitch(self.split), shared.lanes));
        let values = grid::walk(self.split, shared.slots * IN_FLIGHT);
        let sums = grid::walk(shared.heads * d4, self.threads) * (2 + shared.slots as u64);
        scores + weights + values + (group / shared.heads) as u64 * sums
    }

    /// Invocations that rotate one head, in a kernel that needs no sum over all of them for each head.
    pub(crate) fn lanes_per_head(&self, rotary_dim: usize) -> usize {
        let lanes = (rotary_dim / 8).next_power_of_two().max(8);
        if self.shared.is_some() { lanes.min(self.threads) } else { self.threads }
    }

    /// The grid of the kernels that compute runs.
    pub(crate) fn grid(&self, attention: &Attention, tokens: usize) -> [Extent; 3] {
        let kv_heads = Extent::Fixed(attention.kv_heads as u32);
        [kv_heads, Extent::CachedRuns(self.split as u32), Extent::Fixed(tokens as u32)]
    }

    /// Emits the kernel that merges the runs of each token and head: `bindings` are the runs, the positions, and y.
    pub(crate) fn merge(
        &self,
        to: &mut Lowering<'_>,
        defines: Defines,
        bindings: Vec<Slice>,
        attention: &Attention,
        tokens: usize,
    ) -> Result<(), GpuError> {
        let (splits, d) = (attention.context.div_ceil(self.split), attention.head_dim);
        let mut grid = [attention.heads, tokens, 1].map(|n| Extent::Fixed(n as u32));
        if self.shared.is_none() {
            let turns = 2 * (splits as u64 + 1) + grid::walk(d, self.threads) * (2 + splits as u64);
            let text = KernelText { name: "attention_merge", parts: &[wgsl!("attention/merge.wgsl")], defines, turns };
            return to.emit(text, &[bindings], grid);
        }
        grid[2] = Extent::Fixed((d / 2).div_ceil(MERGE_COLUMNS) as u32);
        let slots = MERGE_THREADS / MERGE_COLUMNS;
        let turns = 2 * (grid::walk(splits, MERGE_THREADS) + grid::REDUCTION)
            + grid::walk(splits, slots * MERGE_RUNS)
            + slots as u64;
        let text = KernelText {
            name: "attention_merge_shared",
            parts: &[wgsl!("lib/reduce.wgsl"), wgsl!("attention/merge_shared.wgsl")],
            defines: grid::reduction(to, defines, MERGE_THREADS).set("RUNS", MERGE_RUNS),
            turns,
        };
        to.emit(text, &[bindings], grid)
    }
}

/// Number of values of the results of all runs.
fn elements(attention: &Attention, split: usize, tokens: usize) -> usize {
    tokens * attention.context.div_ceil(split) * attention.heads * (attention.head_dim + 2)
}
