//! The operations. One file here and one WGSL file in `shaders/` each; the kernel and its plain-Rust reference stand
//! together.

mod accumulate;
mod activate;
mod adamw;
mod add;
mod affine;
mod append;
mod attention;
mod attention_backward;
mod attention_decode;
mod cache_element;
mod column_sum;
mod cross_entropy;
mod dropout;
mod embed;
mod embed_backward;
mod gated;
mod gated_backward;
mod layer_norm;
mod layer_norm_backward;
mod linear;
mod linear_backward;
mod narrow;
mod noise;
mod norm_product;
mod objective;
mod product;
mod quantize;
mod rms_norm;
mod rms_norm_backward;
mod rope;
mod rope_backward;
mod sample;
mod scale_columns;
mod select_rows;
mod select_rows_backward;
mod short_conv;
mod short_conv_backward;
mod short_conv_product;
mod softcap;
mod state_space;
mod state_space_backward;

pub use accumulate::Accumulate;
pub use activate::Activate;
pub use adamw::{AdamW, Arenas, GradientNorm, Hyper};
pub use add::Add;
pub use affine::Affine;
pub use append::Append;
pub(crate) use append::pack_f16;
pub use attention::{Attention, Causality, FEW_TOKENS, QUERY_TILE};
pub use attention_backward::AttentionBackward;
pub use attention_decode::AttentionDecode;
pub use cache_element::{CacheElement, CacheRows};
pub use column_sum::ColumnSum;
pub use cross_entropy::{CrossEntropy, CrossEntropyBackward, CrossEntropyScan, IGNORED};
pub use dropout::Dropout;
pub use embed::Embed;
pub use embed_backward::EmbedBackward;
pub use gated::{Activation, Gated};
pub use gated_backward::GatedBackward;
pub use layer_norm::LayerNorm;
pub use layer_norm_backward::LayerNormBackward;
pub use linear::Linear;
pub(crate) use linear::{by_rows, sweeps, takes_int8};
pub use linear_backward::LinearBackward;
pub use narrow::{Narrow, Widen};
pub use noise::Noise;
pub use norm_product::NormProduct;
pub use objective::{PreferenceLoss, WeightedLoss};
pub use product::{Product, View};
pub use quantize::{Packing, Quantize};
pub use rms_norm::RmsNorm;
pub use rms_norm_backward::RmsNormBackward;
pub use rope::{HeadNorm, Rope};
pub use rope_backward::RopeBackward;
pub use sample::{SETTINGS, Sample, SampleSettings, SampleStates};
pub use scale_columns::ScaleColumns;
pub use select_rows::SelectRows;
pub use select_rows_backward::{AppendBackward, SelectRowsBackward};
pub use short_conv::ShortConv;
pub use short_conv_backward::ShortConvBackward;
pub use short_conv_product::ShortConvProduct;
pub use softcap::SoftCap;
pub use state_space::StateSpace;
pub use state_space_backward::{Part, StateSpaceBackward, StateSpaceRead};

use bayan_gpu::shader::Defines;

use crate::lower::{Extent, Lowering};

/// Invocations a workgroup for kernels that walk along a row.
pub(crate) fn row_threads(to: &Lowering<'_>, width: usize) -> usize {
    // Software devices pay for every barrier and every idle invocation; real ones want enough of them to hide latency.
    let most = if to.capabilities().software { to.capabilities().subgroup_size.0.max(4) as usize } else { 256 };
    width.next_power_of_two().clamp(1, most)
}

/// Names for kernels that reduce over `threads` invocations.
pub(crate) fn reduction(to: &Lowering<'_>, defines: Defines, threads: usize) -> Defines {
    let (smallest, _) = to.capabilities().subgroup_size;
    defines.set("THREADS", threads).set("ONE_SUBGROUP", to.capabilities().subgroups && threads <= smallest as usize)
}

/// `vec4<f32>` where rows are whole vectors, else scalars: the names and the width in them.
pub(crate) fn vectors(defines: Defines, width: usize) -> (Defines, usize) {
    if width.is_multiple_of(4) {
        (defines.set("VEC", "vec4<f32>").set("SCALAR", false), width / 4)
    } else {
        (defines.set("VEC", "f32").set("SCALAR", true), width)
    }
}

/// A grid with one workgroup a row.
pub(crate) fn rows_grid(rows: usize) -> [Extent; 3] {
    [Extent::Fixed(rows as u32), Extent::Fixed(1), Extent::Fixed(1)]
}

/// Dispatches an op of one input and one output, element by element; `text` has the function `mapped`.
pub(crate) fn map(to: &mut Lowering<'_>, name: &str, text: &str, defines: Defines) -> Result<(), bayan_gpu::GpuError> {
    let len: usize = to.output_shape(0).iter().product();
    let threads = row_threads(to, 64);
    let (grid, stride) = flat_grid(to, len, threads);
    let size = to.numbers(&[len as u32, stride])?;
    let parts = [text, include_str!("../../../../shaders/map.wgsl")];
    let bindings = vec![to.input(0), to.output(0), size];
    to.emit(
        crate::lower::KernelText { name, parts: &parts, defines: defines.set("THREADS", threads) },
        &[bindings],
        grid,
    )
}

/// A flat grid over `count` elements with `threads` invocations a workgroup, folded over two dimensions; also the
/// number of invocations in x, by which the kernel unfolds it.
pub(crate) fn flat_grid(to: &Lowering<'_>, count: usize, threads: usize) -> ([Extent; 3], u32) {
    let grid = crate::lower::grid_2d(count.div_ceil(threads), to.capabilities().max_workgroups);
    let Extent::Fixed(x) = grid[0] else { unreachable!("a flat grid is fixed") };
    (grid, x * threads as u32)
}
