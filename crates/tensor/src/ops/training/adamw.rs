//! AdamW (Loshchilov and Hutter, 2019) over one flat arena of all trained parameters, after clipping the gradients by
//! their global norm. The norm and the clipping factor stay on the device.

use std::sync::Arc;

use bayan_gpu::shader::Defines;
use bayan_gpu::{GpuError, Slice};

use crate::graph::{Dtype, ELEMENT_BYTES, Graph, Op, Operand, State, Tensor, Values};
use crate::plan::{Extent, KernelText, Lowering, grid};

/// The optimizer's settings for one update, as a state of [`Hyper::LEN`] floats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hyper {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decay of the first and the second moment.
    pub betas: (f64, f64),
    /// Added to the root of the second moment, in the denominator.
    pub eps: f64,
    /// Decoupled decay of the parameters.
    pub weight_decay: f64,
    /// Largest global norm of the gradients; 0: no clipping.
    pub max_norm: f64,
    /// Number of this update, counted from 1, for the bias corrections.
    pub update: u64,
    /// The gradients were multiplied by this loss scale, and are divided by it before the norm is computed. A power of
    /// two, so that the division is exact; 1 in f32.
    pub loss_scale: f64,
}

impl Hyper {
    /// Number of floats.
    pub const LEN: usize = 8;

    /// The floats that the kernels read; the bias corrections are computed here in f64.
    pub fn numbers(&self) -> [f32; Hyper::LEN] {
        let (beta1, beta2) = self.betas;
        let t = self.update.max(1) as i32;
        let first = self.learning_rate / (1.0 - beta1.powi(t));
        let second = (1.0 - beta2.powi(t)).sqrt();
        [
            1.0 - self.learning_rate * self.weight_decay,
            beta1,
            beta2,
            self.eps,
            first,
            second,
            self.max_norm,
            1.0 / self.loss_scale,
        ]
        .map(|v| v as f32)
    }
}

/// The global norm of a gradient arena: inputs gradients \[N\], hyper \[8\]; outputs partial sums, and \[4\]: the norm
/// of the unscaled gradients, and the factor that unscales and clips a gradient.
#[derive(Debug, Clone, PartialEq)]
pub struct GradientNorm {
    /// Number of elements that are bound at a time.
    pub window: usize,
}

/// One update in place: inputs gradients \[N\], norm \[4\], hyper \[8\], and parameters, first and second moment \[N\],
/// which are also the outputs. If the norm is not finite, nothing changes.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// Number of elements, from the beginning, to which weight decay applies.
    pub decayed: usize,
    /// Number of elements that are bound at a time.
    pub window: usize,
}

/// The arenas of an optimizer, all \[N\].
#[derive(Debug, Clone)]
pub struct Arenas {
    /// The trained parameters.
    pub parameters: Arc<State>,
    /// Their gradients.
    pub gradients: Arc<State>,
    /// First moment.
    pub first: Arc<State>,
    /// Second moment.
    pub second: Arc<State>,
    /// Number of elements, from the beginning, to which weight decay applies; the rest (norms and biases) is not
    /// decayed.
    pub decayed: usize,
}

/// Number of elements that fit into one binding of 128 MiB, which every WebGPU device supports.
const WINDOW: usize = 1 << 25;

/// Offset and length of each window of the arena.
fn windows(len: usize, window: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len).step_by(window.max(1)).map(move |start| (start, window.min(len - start)))
}

/// A window of an arena as a binding.
fn part(whole: Slice, start: usize, len: usize) -> Slice {
    whole.buffer.slice(whole.offset_bytes + start as u64 * ELEMENT_BYTES, len as u64 * ELEMENT_BYTES)
}

/// Workgroups that sum the squares of one window.
const PARTS: usize = 64;

impl Graph {
    /// Records the norm of the gradients into `norm` \[4\] and the update; see [`Hyper`].
    pub fn adamw(&mut self, arenas: &Arenas, hyper: &Arc<State>, norm: &Arc<State>) {
        self.adamw_in_windows(arenas, hyper, norm, WINDOW);
    }

    pub(crate) fn adamw_in_windows(&mut self, arenas: &Arenas, hyper: &Arc<State>, norm: &Arc<State>, window: usize) {
        let [parameters, gradients, first, second] =
            [&arenas.parameters, &arenas.gradients, &arenas.first, &arenas.second].map(|state| self.state(state));
        let (hyper, norm) = (self.state(hyper), self.state(norm));
        let partial: Tensor = self.tensor(&[PARTS * windows(self.info(gradients).len(), window).count()], Dtype::F32);
        self.record(GradientNorm { window }, &[gradients, hyper], &[partial, norm]);
        self.record(
            AdamW { decayed: arenas.decayed, window },
            &[gradients, norm, hyper, parameters, first, second],
            &[parameters, first, second],
        );
    }
}

impl Op for GradientNorm {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "gradient_norm"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let len = to.input_shape(0)[0];
        let threads = grid::row_threads(to, 256);
        let reduce = wgsl!("lib/reduce.wgsl");
        let defines = grid::reduction(to, Defines::new().set("PARTS", to.output_shape(0)[0]), threads);
        for (index, (start, count)) in windows(len, self.window).enumerate() {
            let defines =
                defines.clone().set("N", count).set("PART", count.div_ceil(PARTS)).set("FIRST", index * PARTS);
            let turns = grid::walk(count.div_ceil(PARTS), threads) + grid::REDUCTION;
            let parts = [reduce, wgsl!("training/gradient_norm.wgsl")];
            let text = KernelText { name: "gradient_norm", parts: &parts, defines, turns };
            to.emit(text, &[vec![part(to.input(0), start, count), to.output(0), to.input(1)]], grid::rows_grid(PARTS))?;
        }
        let parts = [reduce, wgsl!("training/gradient_clip.wgsl")];
        let turns = grid::walk(to.output_shape(0)[0], threads) + grid::REDUCTION;
        let text = KernelText { name: "gradient_clip", parts: &parts, defines, turns };
        to.emit(
            text,
            &[vec![to.output(0), to.input(1), to.output(1)]],
            [Extent::Fixed(1), Extent::Fixed(1), Extent::Fixed(1)],
        )
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let [limit, unscale] = [6, 7].map(|i| f64::from(inputs[1].f32()[i]));
        let norm = inputs[0].f32().iter().map(|&g| (f64::from(g) * unscale).powi(2)).sum::<f64>().sqrt();
        let factor = if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 };
        outputs[1].f32_mut()[..2].copy_from_slice(&[norm as f32, (factor * unscale) as f32]);
    }
}

impl Op for AdamW {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "adamw"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let threads = grid::row_threads(to, 64);
        for (start, count) in windows(to.input_shape(0)[0], self.window) {
            let (grid, stride) = grid::flat_grid(to, count, threads);
            let decayed = self.decayed.saturating_sub(start).min(count);
            let defines =
                Defines::new().set("THREADS", threads).set("N", count).set("STRIDE", stride).set("DECAYED", decayed);
            let of = |whole: Slice| part(whole, start, count);
            let bindings =
                vec![of(to.input(0)), to.input(1), to.input(2), of(to.output(0)), of(to.output(1)), of(to.output(2))];
            let text = KernelText { name: "adamw", parts: &[wgsl!("training/adamw.wgsl")], defines, turns: 0 };
            to.emit(text, &[bindings], grid)?;
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let norm = inputs[1].f32();
        if !norm[0].is_finite() {
            return;
        }
        let h: Vec<f64> = inputs[2].f32().iter().map(|&v| f64::from(v)).collect();
        let [parameters, first, second] = outputs else { unreachable!("three outputs") };
        let moments = first.f32_mut().iter_mut().zip(second.f32_mut());
        for (i, ((p, (m, v)), &g)) in parameters.f32_mut().iter_mut().zip(moments).zip(inputs[0].f32()).enumerate() {
            let decay = if i < self.decayed { h[0] } else { 1.0 };
            let g = f64::from(g) * f64::from(norm[1]);
            let (m64, v64) = (h[1] * f64::from(*m) + (1.0 - h[1]) * g, h[2] * f64::from(*v) + (1.0 - h[2]) * g * g);
            *p = (decay * f64::from(*p) - h[4] * m64 / (v64.sqrt() / h[5] + h[3])) as f32;
            (*m, *v) = (m64 as f32, v64 as f32);
        }
    }
}
