//! The first pass over the logits: bias, penalties, and the largest logit of each chunk.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::plan::{Extent, KernelText, Lowering, grid};

/// Emits the pass, and returns the names that the second one reads, apart from its number of invocations. `tree`:
/// whether the invocations of a workgroup are joined in steps, instead of one after the other.
pub(super) fn emit(to: &mut Lowering<'_>, chunk: usize, threads: usize, tree: bool) -> Result<Defines, GpuError> {
    let (rows, vocabulary) = (to.input_shape(0)[0], to.input_shape(0)[1]);
    let chunks = vocabulary.div_ceil(chunk);
    let defines = Defines::new().set("V", vocabulary).set("CHUNK", chunk).set("CHUNKS", chunks);
    let (vectors, _) = grid::vectors(defines.clone(), vocabulary);
    let counts = if vocabulary.is_multiple_of(4) { "vec4<u32>" } else { "u32" };
    let bindings = vec![to.output(0), to.input(2), to.input(3), to.input(1), to.output(1)];
    let text = KernelText {
        name: "sample_scan",
        parts: &[wgsl!("sampling/scan.wgsl")],
        defines: vectors.set("COUNTS", counts).set("THREADS", threads).set("TREE", tree),
        turns: grid::walk(chunk, threads) + threads as u64 + 1,
    };
    to.emit(text, &[bindings], [Extent::Fixed(chunks as u32), Extent::Fixed(rows as u32), Extent::Fixed(1)])?;
    Ok(defines)
}
