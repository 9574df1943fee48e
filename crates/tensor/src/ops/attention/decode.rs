//! Rope, append and attention of single tokens fused into one dispatch, followed by the merge of the runs. A rewrite
//! creates this op from the three.

use bayan_gpu::{Capabilities, GpuError};

use super::append::Append;
use super::cache::ROW;
use super::forward::{Attention, Run, SCORE};
use super::rope::{Projection, Rope};
use crate::graph::{Dtype, Op, Operand, Values};
use crate::plan::{KernelText, Lowering, Target, Variant, grid};

/// Inputs: qkv [T, (H + 2K) d], positions \[T\], table, bases \[T\], then with head norms q_norm \[d\] and k_norm
/// \[d\]. Outputs: y [T, H, d], k cache, v cache, and the runs [T, splits, H, d + 2]. Tokens belong to different
/// sequences.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionDecode {
    /// The rotary embedding, applied first.
    pub rope: Rope,
    /// The attention, applied last.
    pub attention: Attention,
}

impl AttentionDecode {
    /// Whether there is a kernel for these sizes on this device.
    pub(crate) fn has_variant(&self, target: &Target<'_>) -> bool {
        Variant::first(VARIANTS, self, target).is_some()
    }

    /// Sizes of the results of the runs into which this device divides the cached positions.
    pub fn runs(&self, capabilities: &Capabilities, tokens: usize) -> [usize; 4] {
        Run::of(&self.attention, capabilities, tokens).results(&self.attention, tokens)
    }
}

/// The kernels; the first that fits is used. Where none does, the three ops stay separate.
const VARIANTS: &[Variant<AttentionDecode>] = &[Variant { name: "decode", fits, emit }];

/// No vector of four may straddle the two halves of a head that are rotated together.
fn fits(op: &AttentionDecode, target: &Target<'_>) -> bool {
    op.rope.projection == Projection::Separate
        && !op.rope.norm_values
        && !op.attention.element.is_quantized()
        && op.rope.rotary_dim.is_multiple_of(8)
        && op.rope.head_dim.is_multiple_of(4)
        && (op.rope.norm_eps.is_none() || target.capabilities.max_storage_buffers >= 9)
}

fn emit(op: &AttentionDecode, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    let Attention { heads, kv_heads, head_dim, .. } = op.attention;
    let tokens = to.target().tokens;
    let run = Run::of(&op.attention, to.capabilities(), tokens);
    let threads = run.threads;
    let defines = run.defines(&op.attention, to, to.output_shape(1)[0], to.input_shape(3)[0]);
    let rotate = if op.rope.norm_eps.is_some() { threads } else { run.lanes_per_head(op.rope.rotary_dim) };
    let defines = op.rope.name(defines).set("G_D4", heads / kv_heads * head_dim / 4).set("ROTATE", rotate);
    let mut bindings: Vec<_> = (0..4).map(|i| to.input(i)).chain((1..4).map(|i| to.output(i))).collect();
    bindings.extend((4..to.input_count()).map(|i| to.input(i)));
    let [common, attend] = run.text();
    let parts = [
        wgsl!("lib/reduce.wgsl"),
        wgsl!("lib/head_norm.wgsl"),
        wgsl!("lib/cache.wgsl"),
        ROW,
        SCORE,
        common,
        attend,
        wgsl!("attention/decode.wgsl"),
    ];
    // First every query head of the group, and the key, are normalised and rotated; then come the loops of the run
    // itself.
    let heads_turns = (1 + (heads / kv_heads + 1).div_ceil(threads / rotate)) as u64
        * (1 + 3 * grid::walk(head_dim.div_ceil(4), rotate)
            + 2 * grid::walk(heads * head_dim / 4, threads)
            + 2 * grid::REDUCTION);
    let turns = 1 + heads_turns + grid::walk(head_dim / 4, threads) + run.turns(&op.attention);
    let text = KernelText { name: "attention_decode", parts: &parts, defines: defines.clone(), turns };
    to.emit(text, &[bindings], run.grid(&op.attention, tokens))?;
    let bindings = vec![to.output(3), to.input(1), to.output(0)];
    run.merge(to, defines, bindings, &op.attention, tokens)
}

impl Op for AttentionDecode {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "attention_decode"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        to.emit_first(VARIANTS, self)
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let Rope { heads, kv_heads, head_dim, .. } = self.rope;
        let tokens = inputs[0].shape[0];
        let shapes = [heads, kv_heads, kv_heads].map(|h| [tokens, h, head_dim]);
        let mut rotated: Vec<Values> = shapes.iter().map(|s| Values::zeros(s.iter().product(), Dtype::F32)).collect();
        let mut roped = vec![inputs[0], inputs[1], inputs[2]];
        roped.extend(&inputs[4..]);
        self.rope.reference(&roped, &mut rotated);
        let operand = |i: usize| Operand { shape: &shapes[i], values: &rotated[i] };
        let append = Append { rows: self.attention.rows(), element: self.attention.element };
        append.reference(&[operand(1), operand(2), inputs[1], inputs[3]], &mut outputs[1..3]);
        let (y, caches) = outputs.split_at_mut(1);
        let cached = |i: usize| Operand { shape: &[], values: &caches[i] };
        self.attention.reference(&[operand(0), cached(0), cached(1), inputs[1], inputs[3]], y);
    }
}
