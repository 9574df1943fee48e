//! The dispatch shared by element-wise ops of one input and one output.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::plan::{KernelText, Lowering, grid};

/// Dispatches an element-wise op of one input and one output; `text` defines the WGSL function `mapped`.
pub(crate) fn map(to: &mut Lowering<'_>, name: &str, text: &str, defines: Defines) -> Result<(), GpuError> {
    let len: usize = to.output_shape(0).iter().product();
    let threads = grid::row_threads(to, 64);
    let (extents, stride) = grid::flat_grid(to, len, threads);
    let size = to.numbers(&[len as u32, stride])?;
    let parts = [text, wgsl!("elementwise/map.wgsl")];
    let bindings = vec![to.input(0), to.output(0), size];
    let text = KernelText { name, parts: &parts, defines: defines.set("THREADS", threads), turns: 0 };
    to.emit(text, &[bindings], extents)
}
