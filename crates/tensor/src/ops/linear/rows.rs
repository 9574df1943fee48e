//! By rows, for few tokens on hardware, and for any number on software devices without subgroups: an invocation
//! computes whole rows, so that no sum over invocations is needed, except where K is split among them.

use bayan_gpu::shader::Defines;
use bayan_gpu::{GpuError, Slice};

use super::{ACTIVATE, Linear, ShardKernel};
use crate::format_shaders::{self, Unpacking};
use crate::graph::{Shard, row_bytes};
use crate::plan::{Extent, Lowering, Target, Variant, grid_2d};

pub(super) const VARIANT: Variant<Linear> = Variant { name: "rows", fits, emit };

/// The bindings of both kernels by rows, and how they read and write.
pub(super) const SHARED: &str = wgsl!("lib/linear_rows.wgsl");

fn fits(linear: &Linear, _: &Target<'_>) -> bool {
    linear.fits_rows()
}

fn emit(linear: &Linear, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    let shape = to.target().rows_shape;
    let lanes = shape.lanes;
    for shard in linear.weight.shards() {
        let division = Division::of(linear, to, shard)?;
        let (own, tokens) = (division.own, division.tokens);
        let (parts, at_once) = in_flight(linear, to, shard, &division, shape.parts);
        let defines = division
            .defines(linear)
            .set("OFFSET", format_shaders::has_offset(shard.format))
            .set("PARTS", parts)
            .set("AT_ONCE", at_once)
            .set("SEVERAL", at_once > 1)
            // With a lane for each input of a block, its square needs no loop, and is loaded with the weights.
            .set("OWN_SQUARE", linear.norm.is_some() && lanes == 32)
            .set("LOOP_SQUARES", linear.norm.is_some() && lanes != 32)
            .set("THREADS", lanes * parts)
            .set("SPLIT_K", parts > 1)
            .set("BARRIER", parts > 1 || linear.norm.is_some())
            .set("SHARED_SUMS", own * tokens * lanes * parts)
            .set("SHARED_SQUARES", tokens * lanes * parts);
        let ragged = if linear.whole_blocks() { 0 } else { 5 * tokens * 8 };
        let norms = if linear.norm.is_some() { tokens * (32usize.div_ceil(lanes) + 1) * 6 } else { 0 };
        let steps = linear.weight.blocks().div_ceil(parts * at_once);
        let joins = tokens * (lanes + 1 + (2 + own) * (parts + 1));
        let kernel = ShardKernel {
            library: format_shaders::variables(Unpacking::Plain),
            texts: &[ACTIVATE, SHARED, wgsl!("linear/rows.wgsl")],
            defines,
            bindings: division.bindings,
            grid: division.grid,
            turns: (1 + steps * (1 + at_once * (2 * ragged + norms)) + joins) as u64,
        };
        linear.emit(to, VARIANT.name, shard, kernel)?;
    }
    Ok(())
}

/// Groups of rows below which a large device has too few workgroups, so that each gets more invocations.
const FEW_GROUPS: usize = 256;

/// Vectors of 16 bytes of weights that an invocation loads before it uses the first.
const VECTORS_IN_FLIGHT: usize = 4;

/// The sets of lanes that share K, and the blocks of which an invocation loads the weights together. On hardware the
/// speed is the number of bytes in flight, as long as registers last.
fn in_flight(linear: &Linear, to: &Lowering<'_>, shard: &Shard, division: &Division, parts: usize) -> (usize, usize) {
    let capabilities = to.capabilities();
    if capabilities.software {
        return (parts, 1);
    }
    // Scales that 8 blocks share come from memory once.
    let block_bytes = row_bytes(shard.format, 256).iter().sum::<usize>() / 8;
    let vectors = ((block_bytes + 8) / 16).max(1) * division.own * division.tokens;
    let at_once = (VECTORS_IN_FLIGHT / vectors).max(1);
    let wider = division.groups < FEW_GROUPS
        && division.own * division.tokens <= 2
        && 2 * parts * division.lanes <= capabilities.max_workgroup_size as usize
        && linear.weight.blocks() >= 4 * parts;
    (if wider { 2 * parts } else { parts }, at_once)
}

/// How both kernels by rows divide a shard among workgroups.
pub(super) struct Division {
    lanes: usize,
    /// Workgroups for each `tokens` tokens: groups of 32 rows.
    groups: usize,
    /// Rows of one invocation, those of all sets together.
    pub own: usize,
    /// Tokens of one workgroup.
    pub tokens: usize,
    pub bindings: Vec<Slice>,
    pub grid: [Extent; 3],
}

impl Division {
    pub(super) fn of(linear: &Linear, to: &Lowering<'_>, shard: &Shard) -> Result<Division, GpuError> {
        let Target { rows_shape: shape, tokens, .. } = to.target();
        let sets = match linear.gate {
            Some(_) => 2,
            None if shard.rows.is_multiple_of(32 * shape.sets) => shape.sets,
            None => 1,
        };
        let rows = shard.rows / sets;
        let most = tokens.min((shape.columns * shape.sets / sets).max(1));
        // Hardware takes equal shares: 9 tokens as 5 and 4. Software devices compile long for each number of tokens.
        let together = if to.target().hardware() { tokens.div_ceil(tokens.div_ceil(most)) } else { most };
        let mut grid = grid_2d(rows.div_ceil(32), to.capabilities().max_workgroups);
        grid[2] = Extent::Fixed(tokens.div_ceil(together) as u32);
        let (x, width) = (grid[0].resolve(1) as usize, to.output_shape(0)[1]);
        let sizes = [rows, shard.first_row, width, x, tokens, linear.weight.blocks(), linear.weight.columns()];
        let bindings = linear.bindings(to, 1, &sizes)?;
        Ok(Division {
            lanes: shape.lanes,
            groups: rows.div_ceil(32),
            own: 32 / shape.lanes * sets,
            tokens: together,
            bindings,
            grid,
        })
    }

    pub(super) fn defines(&self, linear: &Linear) -> Defines {
        linear
            .gate_defines()
            .set("NORM", linear.norm.is_some())
            .set("EPS", linear.norm.unwrap_or(0.0))
            .set("LANES", self.lanes)
            .set("TOKENS", self.tokens)
            .set("ROWS", self.own)
            .set("OUTPUT_ROWS", if linear.gate.is_some() { self.own / 2 } else { self.own })
    }
}
