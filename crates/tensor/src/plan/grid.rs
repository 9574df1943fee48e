//! Sizes of grids and workgroups, and the names by which kernels read them.

use bayan_gpu::Capabilities;
use bayan_gpu::shader::Defines;

use super::lower::{Extent, Lowering};

/// Splits a number of workgroups over two dimensions, since one may hold only 65,535. The kernel recombines the two
/// indices.
pub fn grid_2d(count: usize, limit: u32) -> [Extent; 3] {
    let limit = limit as usize;
    let x = count.min(limit).max(1);
    [Extent::Fixed(x as u32), Extent::Fixed(count.div_ceil(x).max(1) as u32), Extent::Fixed(1)]
}

/// Invocations per workgroup for kernels that loop over a row.
pub(crate) fn row_threads(to: &Lowering<'_>, width: usize) -> usize {
    width.next_power_of_two().clamp(1, group_threads(to.capabilities(), 256))
}

/// Invocations per workgroup for kernels that use `hardware` of them where invocations are cheap.
///
/// On software devices every barrier and every idle invocation costs time, so workgroups are one subgroup there;
/// hardware needs many invocations to hide latency.
pub(crate) fn group_threads(capabilities: &Capabilities, hardware: usize) -> usize {
    if capabilities.software { capabilities.subgroup_size.0.max(4) as usize } else { hardware }
}

/// Loop iterations (turns) per invocation when `threads` invocations share a loop over `len` elements. The failing test
/// that ends the loop is included, because devices that limit iterations count it.
pub(crate) fn walk(len: usize, threads: usize) -> u64 {
    len.div_ceil(threads) as u64 + 1
}

/// Largest number of loop iterations in one reduction over a workgroup (`lib/reduce.wgsl`): one for each subgroup, and
/// the test that ends the loop.
pub(crate) const REDUCTION: u64 = 65;

/// The names that kernels which reduce over `threads` invocations read.
pub(crate) fn reduction(to: &Lowering<'_>, defines: Defines, threads: usize) -> Defines {
    let (smallest, _) = to.capabilities().subgroup_size;
    defines.set("THREADS", threads).set("ONE_SUBGROUP", to.capabilities().subgroups && threads <= smallest as usize)
}

/// Lets a kernel process `vec4<f32>` where the width is a multiple of 4, and scalars elsewhere. Returns the names, and
/// the width in these units.
pub(crate) fn vectors(defines: Defines, width: usize) -> (Defines, usize) {
    if width.is_multiple_of(4) {
        (defines.set("VEC", "vec4<f32>").set("SCALAR", false), width / 4)
    } else {
        (defines.set("VEC", "f32").set("SCALAR", true), width)
    }
}

/// A grid of one workgroup per row.
pub(crate) fn rows_grid(rows: usize) -> [Extent; 3] {
    [Extent::Fixed(rows as u32), Extent::Fixed(1), Extent::Fixed(1)]
}

/// A grid of one workgroup per run of `width` values in the rows of a tensor of these sizes: rows in x, the runs of a
/// row in y. Also returns the number of runs in a row.
pub(crate) fn runs_grid(shape: &[usize], width: usize) -> ([Extent; 3], usize) {
    let runs = shape.last().map_or(1, |last| last / width);
    let rows = shape.iter().product::<usize>() / (runs * width);
    ([Extent::Fixed(rows as u32), Extent::Fixed(runs as u32), Extent::Fixed(1)], runs)
}

/// A grid over `count` elements with `threads` invocations per workgroup, split over two dimensions. Also returns the
/// number of invocations in x, from which the kernel computes the element's index.
pub(crate) fn flat_grid(to: &Lowering<'_>, count: usize, threads: usize) -> ([Extent; 3], u32) {
    let grid = grid_2d(count.div_ceil(threads), to.capabilities().max_workgroups);
    let Extent::Fixed(x) = grid[0] else { unreachable!("a flat grid is fixed") };
    (grid, x * threads as u32)
}
