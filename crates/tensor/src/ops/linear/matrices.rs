//! Cooperative matrices, for many tokens on hardware that has them: f16 factors, f32 sums. Activations are rounded to
//! f16 by a rewrite, each token scaled by a power of two, so that no activation is too large for f16.
//!
//! Each factor of a product is rounded to 11 bits, and products and sums are those of f32: the NMSE of a result is at
//! most 5e-7 against f64, and sums of integers that f16 and f32 represent are exact.

use bayan_gpu::shader::Defines;
use bayan_gpu::{Capabilities, GpuError};

use super::{Linear, Rounding, ShardKernel};
use crate::format_shaders;
use crate::plan::{Extent, Lowering, Target, Variant, grid};

pub(super) const VARIANT: Variant<Linear> = Variant { name: "matrices", fits, emit };

/// The text that computes the sums, for this variant and that of the gradient.
pub(super) const KERNEL: &str = wgsl!("lib/matrices.wgsl");

/// Inner values of a step: one block of weights.
const STEP: usize = 32;

/// Values by which rows of a tile in workgroup memory are longer than what they hold.
const PADDING: usize = 8;

/// Which tile a workgroup computes, and by which subgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Side of a matrix.
    size: usize,
    /// Matrices of a subgroup: along the tokens, along the results.
    matrices: (usize, usize),
    /// Subgroups: along the tokens, along the results.
    parts: (usize, usize),
    /// Expected invocations of a subgroup. With others the results are the same, and more slowly computed.
    lanes: usize,
    /// Whether tiles of weights have a row for each inner value.
    inner_rows: bool,
}

impl Shape {
    /// The largest shape for which workgroup memory suffices, if the device has matrices and a fitting size of
    /// subgroups.
    pub(super) fn of(capabilities: &Capabilities, inner_rows: bool) -> Option<Shape> {
        let size = capabilities.matrix_size? as usize;
        let lanes = match capabilities.subgroup_size {
            // Matrices of 8 are Apple's, whose subgroups have 32 lanes, whatever the interface says.
            (least, most) if size == 8 && least < 32 && most > 32 => 32,
            // AMD's driver chooses the larger of two sizes.
            (_, most) => most as usize,
        };
        if !(capabilities.f16 && capabilities.subgroups && (8..=64).contains(&lanes)) {
            return None;
        }
        // Larger subgroups compute larger parts, so that the number of lanes stays.
        let parts = if lanes == 64 { (1, 2) } else { (2, 2) };
        // Subgroups of 8 are those of software devices, which unroll all that a lane computes.
        let tiles = if lanes == 8 { [(32, 32), (16, 32)] } else { [(64, 128), (32, 128)] };
        let shapes = tiles.map(|(tokens, results)| Shape {
            size,
            matrices: (tokens / parts.0 / size, results / parts.1 / size),
            parts,
            lanes,
            inner_rows,
        });
        let fits = |shape: &Shape| {
            shape.workgroup_bytes() <= capabilities.max_workgroup_bytes as usize
                && shape.threads() <= capabilities.max_workgroup_size as usize
                && shape.results().is_multiple_of(shape.threads())
        };
        shapes.into_iter().find(fits)
    }

    /// Tokens of a tile.
    pub(super) fn tokens(&self) -> usize {
        self.parts.0 * self.matrices.0 * self.size
    }

    /// Results of a tile for each token.
    pub(super) fn results(&self) -> usize {
        self.parts.1 * self.matrices.1 * self.size
    }

    /// Number of subgroups.
    fn subgroups(&self) -> usize {
        self.parts.0 * self.parts.1
    }

    /// Invocations of a workgroup.
    pub(super) fn threads(&self) -> usize {
        self.subgroups() * self.lanes
    }

    /// Values of a row of weights in workgroup memory.
    fn pitch(&self) -> usize {
        PADDING + if self.inner_rows { self.results() } else { STEP }
    }

    /// Values of one step in workgroup memory.
    fn step_values(&self) -> usize {
        let rows = if self.inner_rows { STEP } else { self.results() };
        self.tokens() * (STEP + PADDING) + rows * self.pitch()
    }

    fn workgroup_bytes(&self) -> usize {
        2 * 2 * self.step_values() + 4 * self.subgroups() * self.size * self.size
    }

    /// Loop iterations of one step, and of everything else; where subgroups are larger than `lanes`, all of that is
    /// repeated, at most once for each part.
    pub(super) fn turns(&self) -> (u64, u64) {
        let parts = self.subgroups() as u64;
        let stores = (self.matrices.0 * self.matrices.1) as u64
            * grid::walk(self.subgroups() * self.size * self.size, self.threads());
        (parts, parts * (stores + 2) + 1)
    }

    /// The names that the kernel reads.
    pub(super) fn defines(&self, defines: Defines) -> Defines {
        defines
            .set("SIZE", self.size)
            .set("FM", self.matrices.0)
            .set("FN", self.matrices.1)
            .set("PN", self.parts.1)
            .set("PARTS", self.subgroups())
            .set("TM", self.tokens())
            .set("TN", self.results())
            .set("THREADS", self.threads())
            .set("INNER", STEP / self.size)
            .set("INNER_ROWS", self.inner_rows)
            .set("W_PITCH", self.pitch())
            .set("STEP_VALUES", self.step_values())
            .set("STEP_VALUES_2", 2 * self.step_values())
            .set("RESULTS", self.subgroups() * self.size * self.size)
            .set("X_LOADS", self.tokens() * STEP / 4 / self.threads())
            .set("W_LOADS", self.results() / self.threads())
    }
}

fn fits(linear: &Linear, target: &Target<'_>) -> bool {
    target.hardware()
        && !target.few_tokens()
        && linear.is_plain()
        && linear.rounded == Some(Rounding::F16)
        && Shape::of(target.capabilities, false).is_some()
}

fn emit(linear: &Linear, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    let Some(shape) = Shape::of(to.capabilities(), false) else { unreachable!("it fits") };
    let tokens = to.target().tokens;
    let (step_turns, other_turns) = shape.turns();
    for shard in linear.weight.shards() {
        let sizes = [shard.rows, shard.first_row, linear.weight.rows(), tokens];
        let mut bindings = vec![to.input(0)];
        bindings.extend(linear.bindings(to, 1, &sizes)?);
        let kernel = ShardKernel {
            library: format_shaders::constants(&linear.weight),
            texts: &[wgsl!("linear/matrices.wgsl"), KERNEL],
            defines: shape.defines(linear.defines()),
            bindings,
            grid: [shard.rows.div_ceil(shape.results()), tokens.div_ceil(shape.tokens()), 1]
                .map(|n| Extent::Fixed(n as u32)),
            turns: linear.weight.blocks() as u64 * step_turns + other_turns,
        };
        linear.emit(to, VARIANT.name, shard, kernel)?;
    }
    Ok(())
}
