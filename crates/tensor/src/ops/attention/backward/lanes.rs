//! For software devices with subgroups of a known size: a workgroup is one subgroup with one query, or one key, in each
//! invocation, and broadcasts the rows that it loops over.

use bayan_gpu::GpuError;

use super::{AttentionBackward, Pass};
use crate::ops::attention::forward::{QUERY_TILE, SCORE};
use crate::plan::{Extent, KernelText, Lowering, Target, Variant};

pub(super) const VARIANT: Variant<AttentionBackward> = Variant { name: "lanes", fits, emit };

fn fits(op: &AttentionBackward, target: &Target<'_>) -> bool {
    target.lanes().is_some_and(|lanes| op.0.divides_into(lanes))
}

fn emit(op: &AttentionBackward, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    let lanes = to.target().rows_shape.lanes;
    let (d4, tiles, group) = (op.0.head_dim / 4, to.input_shape(7)[0], op.0.heads / op.0.kv_heads);
    for pass in Pass::ALL {
        let (name, text) = match pass {
            Pass::Statistics => {
                ("attention_backward_lanes_statistics", wgsl!("attention/backward_lanes_statistics.wgsl"))
            }
            Pass::Queries => ("attention_backward_lanes_queries", wgsl!("attention/backward_lanes_queries.wgsl")),
            Pass::Keys => ("attention_backward_lanes_keys", wgsl!("attention/backward_lanes_keys.wgsl")),
        };
        let defines = op.defines(pass).set("LANES", lanes).set("TQ", QUERY_TILE).set("D4", d4).set("HELD", d4 / lanes);
        let turns = match pass {
            Pass::Keys => 1 + tiles * (2 + QUERY_TILE * (2 + group)),
            Pass::Statistics | Pass::Queries => op.keys(to) + 1,
        };
        let parts = [SCORE, wgsl!("lib/attention_backward_lanes.wgsl"), text];
        let workgroups = tiles * QUERY_TILE / lanes;
        let grid = [Extent::Fixed(op.heads(pass) as u32), Extent::Fixed(workgroups as u32), Extent::Fixed(1)];
        to.emit(KernelText { name, parts: &parts, defines, turns: turns as u64 }, &[pass.bindings(to)], grid)?;
    }
    Ok(())
}
