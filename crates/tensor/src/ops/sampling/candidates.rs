//! The choice for hardware: the largest logits are found from the peaks of short chunks, sorted in workgroup memory,
//! and only they are read again.

use bayan_gpu::GpuError;

use super::sample::{BEST_OF, FLOAT_ORDER, SHARED, SHORTEST_CHUNK, Sample};
use super::scan;
use crate::plan::{KernelText, Lowering, Target, Variant, grid};

pub(super) const VARIANT: Variant<Sample> = Variant { name: "candidates", fits, emit };

/// Most chunks: their peaks are in workgroup memory.
const MOST_CHUNKS: usize = 1024;
/// Bytes of workgroup memory of a chunk, and of an invocation.
const CHUNK_BYTES: usize = 8;
const INVOCATION_BYTES: usize = 16;
/// Passes of a search that divides a range of 32 bits in five each time, with one more for the rest of the divisions.
const PASSES: u64 = 16;

/// Invocations of the workgroup, each of which holds one candidate: the most that the device's workgroups and their
/// memory allow, and `None` for fewer than 64.
fn threads(target: &Target<'_>) -> Option<usize> {
    let capabilities = target.capabilities;
    let fits = |&threads: &usize| {
        let bytes = MOST_CHUNKS * CHUNK_BYTES + threads * INVOCATION_BYTES + 64;
        threads <= capabilities.max_workgroup_size as usize && bytes <= capabilities.max_workgroup_bytes as usize
    };
    [1024, 512, 256, 128, 64].into_iter().find(fits)
}

fn fits(_: &Sample, target: &Target<'_>) -> bool {
    target.hardware() && threads(target).is_some()
}

fn emit(_: &Sample, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    let (rows, vocabulary) = (to.input_shape(0)[0], to.input_shape(0)[1]);
    let chunk = vocabulary.div_ceil(MOST_CHUNKS).next_power_of_two().max(SHORTEST_CHUNK);
    let defines = scan::emit(to, chunk, (chunk / 4).min(256), true)?;
    let threads = threads(&to.target()).unwrap_or(64);
    let text = KernelText {
        name: "sample_pick",
        parts: &[FLOAT_ORDER, BEST_OF, SHARED, wgsl!("sampling/pick_candidates.wgsl")],
        defines: defines.set("THREADS", threads),
        turns: turns(vocabulary, vocabulary.div_ceil(chunk), chunk, threads),
    };
    let bindings = vec![to.output(0), to.input(1), to.output(1), to.output(2), to.output(3), to.output(4)];
    to.emit(text, &[bindings], grid::rows_grid(rows))
}

/// Upper bound of the loop iterations of `sampling/pick_candidates.wgsl`.
fn turns(vocabulary: usize, chunks: usize, chunk: usize, threads: usize) -> u64 {
    let tree = u64::from(threads.ilog2()) + 1;
    let peaks = grid::walk(chunks, threads);
    let row = grid::walk(vocabulary, 4 * threads);
    let above = row + 4 * tree;
    let gather = peaks * (2 + chunks as u64) + peaks + grid::walk(chunks * chunk, 4 * threads) + threads as u64 + 1;
    let search = 1 + PASSES * (1 + above);
    peaks + 2 * tree + gather + 2 * search + 2 * above + 2 * tree + row
}
