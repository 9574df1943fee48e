//! The gradient of [`super::Rope`]: rotated back by the same angles, differentiated through the head norms, and joined.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use super::rope::{HeadNorm, Rope, Section, pair};
use crate::graph::{Dtype, Graph, Op, Operand, Tensor, Values};
use crate::plan::{Extent, KernelText, Lowering, grid};

/// Inputs: dq [T, H, d], dk and dv [T, K, d], positions \[T\], table, and with head norms also qkv, q_norm \[d\] and
/// k_norm \[d\]; output dqkv, as wide as qkv, and with `parts` [T, H, d] and [T, K, d], whose sums over tokens (and
/// heads, where they share weights) are the gradients of the norms' weights. Where there are only queries, there are no
/// dk, dv and k_norm.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeBackward {
    /// The op that is differentiated.
    pub rope: Rope,
    /// Whether the weights of the norms are trained.
    pub parts: bool,
}

impl Graph {
    /// The gradient of what `rope` split, from those of its outputs; `norms` are qkv and the norms' weights, if there
    /// are any. With `parts` also the products [T, H, d] and [T, K, d] of the normalised numbers and the gradients.
    pub fn rope_backward(
        &mut self,
        rope: Rope,
        gradients: &[Tensor],
        positions: Tensor,
        table: Tensor,
        norms: &[Tensor],
        parts: bool,
    ) -> (Tensor, Vec<Tensor>) {
        let tokens = self.shape(gradients[0])[0];
        let inputs = [gradients, &[positions, table], norms].concat();
        let dqkv = self.tensor(&[tokens, rope.width()], Dtype::F32);
        let weighted = rope.sections().into_iter().filter(|section| parts && section.weighted);
        let products: Vec<Tensor> =
            weighted.map(|section| self.tensor(&[tokens, section.heads, rope.head_dim], Dtype::F32)).collect();
        let outputs: Vec<Tensor> = std::iter::once(dqkv).chain(products.iter().copied()).collect();
        self.record(RopeBackward { rope, parts }, &inputs, &outputs);
        (dqkv, products)
    }
}

/// Indices of the inputs after the gradients.
struct Inputs {
    positions: usize,
    table: usize,
    qkv: usize,
    norms: usize,
}

impl RopeBackward {
    fn inputs(&self) -> Inputs {
        let positions = self.rope.sections().len();
        Inputs { positions, table: positions + 1, qkv: positions + 2, norms: positions + 3 }
    }

    /// Whether the products for the gradient of a section's weights are written.
    fn writes_products(&self, section: &Section) -> bool {
        self.parts && section.norm && section.weighted
    }
}

impl Op for RopeBackward {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "rope_backward"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let tokens = to.input_shape(0)[0];
        let d = self.rope.head_dim;
        let threads = grid::row_threads(to, d.div_ceil(2));
        let at = self.inputs();
        for section in self.rope.sections() {
            let output = section.output;
            let weighted = section.norm && section.weighted;
            let defines = Defines::new()
                .set("d", d)
                .set("ROTARY", self.rope.rotary_dim)
                .set("TURN", output < 2)
                .set("INTERLEAVED", self.rope.interleaved)
                .set("NORM", section.norm)
                .set("QKV", if output < 2 { 4usize } else { 2 })
                .set("WEIGHTED", weighted)
                .set("PARTS", self.writes_products(&section))
                .set("ADD", section.again)
                .set("GATED", section.step == 2)
                .set("WHOLE", self.rope.norm == HeadNorm::RmsWhole)
                .set("MEAN", self.rope.norm == HeadNorm::Layer)
                .set("EACH", self.rope.norm.each())
                .set("EPS", self.rope.norm_eps.unwrap_or(0.0))
                .set("FIRST", section.first)
                .set("STEP", section.step)
                .set("HEADS", section.heads)
                .set("ALL", self.rope.row_heads());
            let defines = grid::reduction(to, defines, threads);
            let mut bindings = vec![to.input(output), to.output(0)];
            if output < 2 {
                bindings.extend([to.input(at.positions), to.input(at.table)]);
            }
            bindings.extend(section.norm.then(|| to.input(at.qkv)));
            bindings.extend(weighted.then(|| to.input(at.norms + output)));
            bindings.extend(self.writes_products(&section).then(|| to.output(1 + output)));
            let turns = 2 * grid::walk(self.rope.heads * d, threads) + 2 * grid::walk(d, threads) + 4 * grid::REDUCTION;
            let parts = [wgsl!("lib/reduce.wgsl"), wgsl!("attention/rope_backward.wgsl")];
            let grid = [Extent::Fixed(section.heads as u32), Extent::Fixed(tokens as u32), Extent::Fixed(1)];
            to.emit(KernelText { name: "rope_backward", parts: &parts, defines, turns }, &[bindings], grid)?;
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let d = self.rope.head_dim;
        let all = self.rope.row_heads();
        let tokens = inputs[0].shape[0];
        outputs[0].f32_mut().fill(0.0);
        for section in self.rope.sections() {
            for t in 0..tokens {
                for (head, g) in self.section(&section, inputs, outputs, t).chunks_exact(d).enumerate() {
                    let to = &mut outputs[0].f32_mut()[(t * all + section.at(head)) * d..][..d];
                    to.iter_mut().zip(g).for_each(|(y, v)| *y += *v as f32);
                }
            }
        }
    }
}

impl RopeBackward {
    /// The gradients of all heads of a section, for token t.
    fn section(&self, section: &Section, inputs: &[Operand<'_>], outputs: &mut [Values], t: usize) -> Vec<f64> {
        let (d, heads, output) = (self.rope.head_dim, section.heads, section.output);
        let at = self.inputs();
        let gradients = &inputs[output].f32()[t * heads * d..][..heads * d];
        let rotated_back: Vec<f64> =
            gradients.chunks_exact(d).flat_map(|from| self.unrotated(inputs, from, t, output < 2)).collect();
        let Some(eps) = self.rope.norm_eps.filter(|_| section.norm) else { return rotated_back };
        let all = &inputs[at.qkv].f32()[t * self.rope.row_heads() * d..];
        let row: Vec<f32> = (0..heads).flat_map(|head| all[section.at(head) * d..][..d].iter().copied()).collect();
        let mut result = Vec::with_capacity(heads * d);
        for head in 0..heads {
            let (mean, scale, span, weights) = self.rope.norm.about(&row, head, heads, eps);
            let weight =
                |i: usize| if section.weighted { f64::from(inputs[at.norms + output].f32()[weights + i]) } else { 1.0 };
            let count = span.len() as f64;
            let pulls: Vec<f64> = span.clone().enumerate().map(|(i, at)| rotated_back[at] * weight(i)).collect();
            let plain = if self.rope.norm == HeadNorm::Layer { pulls.iter().sum::<f64>() / count } else { 0.0 };
            let along = span.clone().zip(&pulls).map(|(at, pull)| (f64::from(row[at]) - mean) * pull).sum::<f64>()
                / count
                * scale.powi(3);
            for at in head * d..(head + 1) * d {
                let centred = f64::from(row[at]) - mean;
                if self.writes_products(section) {
                    outputs[1 + output].f32_mut()[t * heads * d + at] = (rotated_back[at] * centred * scale) as f32;
                }
                result.push(scale * (pulls[at - span.start] - plain) - centred * along);
            }
        }
        result
    }

    /// The gradient of one head of token t; where the head was `rotated`, that before the rotation.
    fn unrotated(&self, inputs: &[Operand<'_>], from: &[f32], t: usize, rotated: bool) -> Vec<f64> {
        let half = self.rope.rotary_dim / 2;
        let Inputs { positions, table, .. } = self.inputs();
        let table = inputs[table].f32();
        let mut g: Vec<f64> = from.iter().map(|&v| f64::from(v)).collect();
        for i in 0..if rotated { half } else { 0 } {
            let at = (inputs[positions].u32()[t] as usize * half + i) * 2;
            let (cos, sin) = (f64::from(table[at]), f64::from(table[at + 1]));
            let (one, two) = pair(i, half, self.rope.interleaved);
            let (a, b) = (g[one], g[two]);
            (g[one], g[two]) = (a * cos + b * sin, b * cos - a * sin);
        }
        g
    }
}
