//! Grids of workgroups, invocations of a workgroup, and the names by which a kernel reads them.

use bayan_gpu::shader::Defines;

use super::lower::{Extent, Lowering};

/// Splits a count of workgroups over two dimensions, since one may hold only 65,535: the kernel multiplies them again.
pub fn grid_2d(count: usize, limit: u32) -> [Extent; 3] {
    let limit = limit as usize;
    let x = count.min(limit).max(1);
    [Extent::Fixed(x as u32), Extent::Fixed(count.div_ceil(x).max(1) as u32), Extent::Fixed(1)]
}

/// Invocations a workgroup for kernels that walk along a row.
pub(crate) fn row_threads(to: &Lowering<'_>, width: usize) -> usize {
    // Software devices pay for every barrier and every idle invocation; real ones want enough of them to hide latency.
    let most = if to.capabilities().software { to.capabilities().subgroup_size.0.max(4) as usize } else { 256 };
    width.next_power_of_two().clamp(1, most)
}

/// Turns of a loop in which `threads` invocations together walk along `len` numbers. The test that ends a loop counts as
/// a turn: it does where devices count them.
pub(crate) fn walk(len: usize, threads: usize) -> u64 {
    len.div_ceil(threads) as u64 + 1
}

/// The most turns of one reduction over a workgroup (`lib/reduce.wgsl`): one for each subgroup, and its end.
pub(crate) const REDUCTION: u64 = 65;

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

/// A flat grid over `count` elements with `threads` invocations a workgroup, folded over two dimensions; also the
/// number of invocations in x, by which the kernel unfolds it.
pub(crate) fn flat_grid(to: &Lowering<'_>, count: usize, threads: usize) -> ([Extent; 3], u32) {
    let grid = grid_2d(count.div_ceil(threads), to.capabilities().max_workgroups);
    let Extent::Fixed(x) = grid[0] else { unreachable!("a flat grid is fixed") };
    (grid, x * threads as u32)
}
