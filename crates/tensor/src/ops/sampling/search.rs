//! The choice for software devices: thresholds are searched bit by bit, with few invocations, because barriers cost
//! much there and reads of logits little.

use bayan_gpu::GpuError;

use super::sample::{FLOAT_ORDER, SHARED, Sample};
use super::scan;
use crate::plan::{KernelText, Lowering, Target, Variant, grid};

pub(super) const VARIANT: Variant<Sample> = Variant { name: "search", fits, emit };

/// Logits per chunk in the first pass.
const CHUNK: usize = 2048;

fn fits(_: &Sample, _: &Target<'_>) -> bool {
    true
}

fn emit(_: &Sample, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    let (rows, vocabulary) = (to.input_shape(0)[0], to.input_shape(0)[1]);
    let chunks = vocabulary.div_ceil(CHUNK);
    let mut threads = grid::row_threads(to, 256);
    let defines = scan::emit(to, CHUNK, threads, false)?;
    // More invocations where a large vocabulary would need more loop iterations than the device allows.
    let most = to.capabilities().max_workgroup_size as usize;
    while turns(chunks, threads) > to.turn_limit() && threads * 2 <= most {
        threads *= 2;
    }
    let text = KernelText {
        name: "sample_pick",
        parts: &[FLOAT_ORDER, SHARED, wgsl!("sampling/pick.wgsl")],
        defines: defines.set("THREADS", threads),
        turns: turns(chunks, threads),
    };
    let bindings = vec![to.output(0), to.input(1), to.output(1), to.output(2), to.output(3), to.output(4)];
    to.emit(text, &[bindings], grid::rows_grid(rows))
}

/// Upper bound of the loop iterations of `sampling/pick.wgsl`: two searches over the 32 bits of a key, each step of
/// which sums over the row, then the total mass and the draw.
fn turns(chunks: usize, threads: usize) -> u64 {
    let row = 1 + chunks as u64 * (1 + grid::walk(CHUNK, threads));
    let sum = row + u64::from(threads.ilog2()) + 2;
    let search = 33 * (1 + sum);
    chunks as u64 + 2 * search + sum + row + threads as u64 + 2
}
