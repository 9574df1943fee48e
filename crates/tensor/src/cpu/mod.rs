//! Graphs on the CPU: the second lowering of the same list of operations, for machines without a GPU.
//!
//! [`CpuPlan`] gives the tensors memory and runs each op's [`crate::Op::compute`], the op's form for the CPU beside its
//! reference; an op without such a form is computed by the reference. Ops are not fused: one thread has the results of
//! the last op in its cache anyway. Vector instructions are chosen when the program runs (`simd`). Threads are rayon's;
//! where threads cannot share memory, [`Helper`]s multiply a part of the rows of large matrices.

pub(crate) mod activations;
pub(crate) mod attend;
pub(crate) mod helpers;
mod machine;
mod plan;
pub(crate) mod product;
pub(crate) mod simd;
mod step;
mod threads;

pub use helpers::{CHANNEL_BYTES, Channel, Helper};
pub use machine::Cpu;
pub use plan::CpuPlan;
pub use step::CpuStep;
pub(crate) use threads::Shared;

/// Σ f(x) in eight lanes, of which compilers make vector instructions.
#[inline(always)]
pub(crate) fn lane_sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; 8];
    let (eights, rest) = x.as_chunks::<8>();
    for eight in eights {
        for (lane, &value) in lanes.iter_mut().zip(eight) {
            *lane += f(value);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|&value| f(value)).sum::<f32>()
}

/// e^x within 3e-7 of its value, in a form of which compilers make vector instructions; arguments beyond ±87 count as
/// ±87.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding this number rounds to an integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 87.0 { 87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let rest = x - whole * LN_2_HIGH - whole * LN_2_LOW;
    let mut series = 1.0 / 5040.0;
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * rest + factor;
    }
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    series * f32::from_bits(exponent)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_fast_exponential_is_close() {
        for step in -8700..=8700 {
            let x = step as f32 / 100.0;
            let (fast, exact) = (f64::from(super::exp(x)), f64::from(x).exp());
            assert!((fast / exact - 1.0).abs() < 3e-7, "exp({x}) = {fast}, not {exact}");
        }
        assert!(super::exp(-1e9) < 1e-37 && super::exp(f32::INFINITY).is_finite());
        assert!(super::exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_over_lanes_have_every_value() {
        let x: Vec<f32> = (0..29).map(|i| i as f32).collect();
        assert_eq!(super::lane_sum(&x, |v| 2.0 * v), 812.0);
    }
}
