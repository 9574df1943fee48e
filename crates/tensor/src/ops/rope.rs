//! Rotary position embedding (Su et al., 2021) of queries and keys, after splitting a fused projection and, where the
//! architecture asks for it, normalising each head.

use std::sync::Arc;

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::autodiff::{Backward, BackwardError};
use crate::graph::{Dtype, Graph, Tensor};
use crate::lower::{Extent, KernelText, Lowering};
use crate::op::{Op, Operand};
use crate::state::State;
use crate::values::Values;

/// Inputs: qkv [T, (H + 2K) d], positions \[T\], table [positions, R] with cosine and sine of each of the R/2 angles in turn, and with
/// `norm_eps` also q_norm \[d\] and k_norm \[d\]. Outputs: q [T, H, d], k [T, K, d], v [T, K, d]. Pairs are (i, i + R/2).
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Query heads H.
    pub heads: usize,
    /// Key-value heads K.
    pub kv_heads: usize,
    /// Head size d.
    pub head_dim: usize,
    /// How many of the d values turn: R.
    pub rotary_dim: usize,
    /// Root-mean-square normalisation of each head of q and k before turning.
    pub norm_eps: Option<f32>,
}

impl Graph {
    /// Splits, normalises and turns; see [`Rope`]. `norms` are the weights of queries and keys.
    pub fn rope(&mut self, rope: Rope, qkv: Tensor, positions: Tensor, table: &Arc<State>, norms: Option<(&Arc<State>, &Arc<State>)>) -> [Tensor; 3] {
        let tokens = self.shape(qkv)[0];
        assert_eq!(self.width(qkv), (rope.heads + 2 * rope.kv_heads) * rope.head_dim, "rope: width of qkv");
        assert_eq!(norms.is_some(), rope.norm_eps.is_some(), "rope: weights and epsilon of the head norms");
        let mut inputs = vec![qkv, positions, self.state(table)];
        if let Some((q_norm, k_norm)) = norms {
            inputs.extend([self.state(q_norm), self.state(k_norm)]);
        }
        let outputs = [rope.heads, rope.kv_heads, rope.kv_heads].map(|heads| self.tensor(&[tokens, heads, rope.head_dim], Dtype::F32));
        self.record(rope, &inputs, &outputs);
        outputs
    }
}

impl Rope {
    pub(crate) fn defines(&self) -> Defines {
        Defines::new()
            .set("H", self.heads)
            .set("K", self.kv_heads)
            .set("d", self.head_dim)
            .set("ROTARY", self.rotary_dim)
            .set("QK_NORM", self.norm_eps.is_some())
            .set("EPS", self.norm_eps.unwrap_or(0.0))
            .set("INVERSE_D", 1.0 / self.head_dim as f32)
    }
}

impl Op for Rope {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "rope"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let tokens = to.input_shape(0)[0];
        let threads = super::row_threads(to, self.head_dim.div_ceil(2));
        let defines = super::reduction(to, self.defines(), threads);
        let mut bindings = vec![to.input(0), to.input(1), to.input(2), to.output(0), to.output(1), to.output(2)];
        if self.norm_eps.is_some() {
            bindings.extend([to.input(3), to.input(4)]);
        }
        let parts = [include_str!("../../../../shaders/lib/reduce.wgsl"), include_str!("../../../../shaders/rope.wgsl")];
        let grid = [Extent::Fixed((self.heads + 2 * self.kv_heads) as u32), Extent::Fixed(tokens as u32), Extent::Fixed(1)];
        to.emit(KernelText { name: "rope", parts: &parts, defines }, &[bindings], grid)
    }

    fn backward(&self, to: &mut Backward<'_>) -> Result<(), BackwardError> {
        let (qkv, positions, table) = (to.input(0), to.input(1), to.input(2));
        let norms = self.norm_eps.map(|_| [qkv, to.input(3), to.input(4)]);
        if norms.is_some_and(|norms| norms[1..].iter().any(|&norm| to.wants(norm))) {
            return Err(BackwardError("rope with trained head norms"));
        }
        if let (Some(dq), Some(dk), Some(dv), true) = (to.gradient(0), to.gradient(1), to.gradient(2), to.wants(qkv)) {
            let dqkv = to.graph().rope_backward(self.clone(), [dq, dk, dv], positions, table, norms);
            to.pass(dqkv, qkv);
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let d = self.head_dim;
        let half = self.rotary_dim / 2;
        let table = inputs[2].f32();
        for (t, (row, &position)) in inputs[0].rows().zip(inputs[1].u32()).enumerate() {
            for (head, from) in row.chunks_exact(d).enumerate() {
                let (output, index, norm) = match head {
                    h if h < self.heads => (0, t * self.heads + h, inputs.get(3)),
                    h if h < self.heads + self.kv_heads => (1, t * self.kv_heads + h - self.heads, inputs.get(4)),
                    h => (2, t * self.kv_heads + h - self.heads - self.kv_heads, None),
                };
                let to = &mut outputs[output].f32_mut()[index * d..(index + 1) * d];
                let mut values: Vec<f64> = from.iter().map(|&v| f64::from(v)).collect();
                if let (Some(weight), Some(eps)) = (norm, self.norm_eps) {
                    let scale = 1.0 / (values.iter().map(|v| v * v).sum::<f64>() / d as f64 + f64::from(eps)).sqrt();
                    values.iter_mut().zip(weight.f32()).for_each(|(v, &w)| *v *= scale * f64::from(w));
                }
                if output < 2 {
                    for i in 0..half {
                        let at = (position as usize * half + i) * 2;
                        let (cos, sin) = (f64::from(table[at]), f64::from(table[at + 1]));
                        let (a, b) = (values[i], values[i + half]);
                        (values[i], values[i + half]) = (a * cos - b * sin, b * cos + a * sin);
                    }
                }
                to.iter_mut().zip(values).for_each(|(y, v)| *y = v as f32);
            }
        }
    }
}
