//! The gradient of [`super::Rope`]: rotated back by the same angles, differentiated through the head norms, and joined.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use super::rope::{HeadNorm, Rope, pair};
use crate::graph::{Dtype, Graph, Op, Operand, Tensor, Values};
use crate::plan::{Extent, KernelText, Lowering, grid};

/// Inputs: dq [T, H, d], dk and dv [T, K, d], positions \[T\], table, and with head norms also qkv, q_norm \[d\] and
/// k_norm \[d\]; output dqkv [T, (H + 2K) d], and with `parts` [T, H, d] and [T, K, d], whose sums over tokens (and
/// heads, where they share weights) are the gradients of the norms' weights.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeBackward {
    /// The op that is differentiated.
    pub rope: Rope,
    /// Whether the weights of the norms are trained.
    pub parts: bool,
}

impl Graph {
    /// The gradient [T, (H + 2K) d] of what `rope` split; `norms` are qkv and the two norms' weights. With `parts` also
    /// the products [T, H, d] and [T, K, d] of the normalised numbers and the gradients.
    pub fn rope_backward(
        &mut self,
        rope: Rope,
        gradients: [Tensor; 3],
        positions: Tensor,
        table: Tensor,
        norms: Option<[Tensor; 3]>,
        parts: bool,
    ) -> (Tensor, Vec<Tensor>) {
        let tokens = self.shape(gradients[0])[0];
        let width = (rope.heads + 2 * rope.kv_heads) * rope.head_dim;
        let mut inputs = gradients.to_vec();
        inputs.extend([positions, table]);
        inputs.extend(norms.into_iter().flatten());
        let dqkv = self.tensor(&[tokens, width], Dtype::F32);
        let heads = [rope.heads, rope.kv_heads].map(|heads| [tokens, heads, rope.head_dim]);
        let products: Vec<Tensor> =
            heads.iter().filter(|_| parts).map(|shape| self.tensor(shape, Dtype::F32)).collect();
        let outputs: Vec<Tensor> = std::iter::once(dqkv).chain(products.iter().copied()).collect();
        self.record(RopeBackward { rope, parts }, &inputs, &outputs);
        (dqkv, products)
    }
}

impl RopeBackward {
    /// (input, first head, heads, input of the norm's weight) of queries, keys and values.
    fn parts(&self) -> [(usize, usize, usize, Option<usize>); 3] {
        let Rope { heads, kv_heads, norm_eps, .. } = self.rope;
        let norm = |input: usize| norm_eps.map(|_| input);
        [(0, 0, heads, norm(6)), (1, heads, kv_heads, norm(7)), (2, heads + kv_heads, kv_heads, None)]
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
        for (input, first, heads, norm) in self.parts() {
            let defines = Defines::new()
                .set("d", d)
                .set("ROTARY", self.rope.rotary_dim)
                .set("TURN", input < 2)
                .set("INTERLEAVED", self.rope.interleaved)
                .set("NORM", norm.is_some())
                .set("PARTS", norm.is_some() && self.parts)
                .set("WHOLE", self.rope.norm == HeadNorm::RmsWhole)
                .set("MEAN", self.rope.norm == HeadNorm::Layer)
                .set("EACH", self.rope.norm.each())
                .set("EPS", self.rope.norm_eps.unwrap_or(0.0))
                .set("FIRST", first)
                .set("HEADS", heads)
                .set("ALL", self.rope.heads + 2 * self.rope.kv_heads);
            let defines = grid::reduction(to, defines, threads);
            let mut bindings = vec![to.input(input), to.output(0)];
            if input < 2 {
                bindings.extend([to.input(3), to.input(4)]);
            }
            bindings.extend(norm.into_iter().flat_map(|norm| [to.input(5), to.input(norm)]));
            bindings.extend((norm.is_some() && self.parts).then(|| to.output(1 + input)));
            let turns = 2 * grid::walk(self.rope.heads * d, threads) + 2 * grid::walk(d, threads) + 4 * grid::REDUCTION;
            let parts = [wgsl!("lib/reduce.wgsl"), wgsl!("attention/rope_backward.wgsl")];
            let grid = [Extent::Fixed(heads as u32), Extent::Fixed(tokens as u32), Extent::Fixed(1)];
            to.emit(KernelText { name: "rope_backward", parts: &parts, defines, turns }, &[bindings], grid)?;
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let d = self.rope.head_dim;
        let all = self.rope.heads + 2 * self.rope.kv_heads;
        for (input, first, heads, norm) in self.parts() {
            for (t, gradients) in inputs[input].f32().chunks_exact(heads * d).enumerate() {
                let rotated_back: Vec<f64> =
                    gradients.chunks_exact(d).flat_map(|from| self.unrotated(inputs, from, t, input < 2)).collect();
                for head in 0..heads {
                    let mut g = rotated_back[head * d..(head + 1) * d].to_vec();
                    if let (Some(norm), Some(eps)) = (norm, self.rope.norm_eps) {
                        let row = &inputs[5].f32()[(t * all + first) * d..][..heads * d];
                        let weight = inputs[norm].f32();
                        let (mean, scale, span, weights) = self.rope.norm.about(row, head, heads, eps);
                        let count = span.len() as f64;
                        let pulls: Vec<f64> = span
                            .clone()
                            .enumerate()
                            .map(|(i, at)| rotated_back[at] * f64::from(weight[weights + i]))
                            .collect();
                        let plain =
                            if self.rope.norm == HeadNorm::Layer { pulls.iter().sum::<f64>() / count } else { 0.0 };
                        let along =
                            span.clone().zip(&pulls).map(|(at, pull)| (f64::from(row[at]) - mean) * pull).sum::<f64>()
                                / count
                                * scale.powi(3);
                        for (i, g) in g.iter_mut().enumerate() {
                            let at = head * d + i;
                            if self.parts {
                                outputs[1 + input].f32_mut()[(t * heads + head) * d + i] =
                                    (*g * (f64::from(row[at]) - mean) * scale) as f32;
                            }
                            *g = scale * (pulls[at - span.start] - plain) - (f64::from(row[at]) - mean) * along;
                        }
                    }
                    let to = &mut outputs[0].f32_mut()[(t * all + first + head) * d..][..d];
                    to.iter_mut().zip(g).for_each(|(y, v)| *y = v as f32);
                }
            }
        }
    }
}

impl RopeBackward {
    /// The gradient of one head of token t; where the head was `rotated`, that before the rotation.
    fn unrotated(&self, inputs: &[Operand<'_>], from: &[f32], t: usize, rotated: bool) -> Vec<f64> {
        let half = self.rope.rotary_dim / 2;
        let table = inputs[4].f32();
        let mut g: Vec<f64> = from.iter().map(|&v| f64::from(v)).collect();
        for i in 0..if rotated { half } else { 0 } {
            let at = (inputs[3].u32()[t] as usize * half + i) * 2;
            let (cos, sin) = (f64::from(table[at]), f64::from(table[at + 1]));
            let (one, two) = pair(i, half, self.rope.interleaved);
            let (a, b) = (g[one], g[two]);
            (g[one], g[two]) = (a * cos + b * sin, b * cos - a * sin);
        }
        g
    }
}
