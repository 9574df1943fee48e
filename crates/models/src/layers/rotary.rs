//! Rotary angles: the frequencies of each scaling method, and the table of cosines and sines that kernels read.
//!
//! The table is computed here in f64: for positions beyond 16,000, the f32 product of position and frequency has an
//! error of up to a thousandth of a full rotation, and a GPU's cosine of a large angle may be worse.

use std::f64::consts::PI;
use std::sync::Arc;

use bayan_tensor::State;
use serde_json::{Value, json};

use crate::config::{Fields, Sizes};
use crate::load::Loader;
use crate::{LoadOptions, ModelError};

/// Frequencies of the R/2 pairs, and the factor on cosine and sine.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Radians per position, for each pair.
    pub frequencies: Vec<f64>,
    /// Multiplies cosines and sines (yarn's attention factor).
    pub factor: f64,
}

impl Rotary {
    /// Reads `rope_theta` and `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5) for heads of size
    /// `dim`. Some methods depend on `context`, the number of positions for which the model is opened.
    ///
    /// # Errors
    /// An unknown scaling method, or a field that is missing or impossible.
    pub fn read(fields: &Fields<'_>, dim: usize, max_positions: usize, context: usize) -> Result<Rotary, ModelError> {
        let empty = json!({});
        let (name, value) = match fields.get("rope_parameters") {
            Some(value) => ("rope_parameters", value),
            None => ("rope_scaling", fields.get("rope_scaling").unwrap_or(&empty)),
        };
        if !value.is_object() {
            return fields.refuse(name, "an object");
        }
        let rope = Fields(value);
        let theta = rope.number("rope_theta", fields.number("rope_theta", 10_000.0)?)?;
        if theta <= 1.0 {
            return fields.refuse("rope_theta", "a number above 1");
        }
        let partial = rope.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0)?)?;
        if !(partial > 0.0 && partial <= 1.0) {
            return fields.refuse("partial_rotary_factor", "a number above 0, at most 1");
        }
        let kind = rope.text("rope_type").or(rope.text("type")).unwrap_or("default");
        if kind == "proportional" {
            return proportional(&rope, theta, partial, dim);
        }
        let dim = ((dim as f64 * partial) as usize) / 2 * 2;
        let plain: Vec<f64> = (0..dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim as f64)).collect();
        match kind {
            "default" => Ok(Rotary { frequencies: plain, factor: 1.0 }),
            "linear" => {
                let factor = positive(&rope, "factor", None)?;
                Ok(Rotary { frequencies: plain.iter().map(|f| f / factor).collect(), factor: 1.0 })
            }
            "llama3" => llama3(&rope, &plain),
            "frequency_factors" => divided(&rope, &plain),
            "yarn" => yarn(&rope, &plain, theta, dim, max_positions),
            "dynamic" => dynamic(&rope, theta, dim, max_positions, context),
            "longrope" | "su" => longrope(fields, &rope, &plain, max_positions, context),
            _ => fields.refuse(name, "a rope_type of default, linear, dynamic, llama3, yarn, longrope or proportional"),
        }
    }

    /// Cosines and sines [positions, R/2, 2] for positions 0..`positions`.
    pub fn table(&self, positions: usize) -> Vec<f32> {
        let mut table = Vec::with_capacity(positions * self.frequencies.len() * 2);
        for position in 0..positions {
            for frequency in &self.frequencies {
                let angle = position as f64 * frequency;
                table.extend([(angle.cos() * self.factor) as f32, (angle.sin() * self.factor) as f32]);
            }
        }
        table
    }
}

fn positive(rope: &Fields<'_>, field: &str, default: Option<f64>) -> Result<f64, ModelError> {
    let value = rope.number(field, default.unwrap_or(0.0))?;
    if value > 0.0 { Ok(value) } else { rope.refuse(field, "a positive number") }
}

/// Gemma 4: the first pairs of the whole head turn, by the frequencies of the whole head; the others stand still.
fn proportional(rope: &Fields<'_>, theta: f64, partial: f64, dim: usize) -> Result<Rotary, ModelError> {
    let factor = positive(rope, "factor", Some(1.0))?;
    let turned = (dim as f64 * partial) as usize / 2;
    let frequency = |i: usize| if i < turned { theta.powf(-2.0 * i as f64 / dim as f64) / factor } else { 0.0 };
    Ok(Rotary { frequencies: (0..dim / 2).map(frequency).collect(), factor: 1.0 })
}

/// Factors from a GGUF file, which replace a method: each divides a frequency.
fn divided(rope: &Fields<'_>, plain: &[f64]) -> Result<Rotary, ModelError> {
    let factors: Option<Vec<f64>> =
        rope.get("factors").and_then(Value::as_array).and_then(|list| list.iter().map(Value::as_f64).collect());
    match factors.filter(|factors| factors.len() == plain.len() && factors.iter().all(|factor| *factor > 0.0)) {
        Some(factors) => Ok(Rotary {
            frequencies: plain.iter().zip(factors).map(|(frequency, factor)| frequency / factor).collect(),
            factor: 1.0,
        }),
        None => rope.refuse("factors", &format!("{} positive numbers", plain.len())),
    }
}

/// Llama 3.1: low frequencies are divided by the factor, high ones are kept, and those between are interpolated.
fn llama3(rope: &Fields<'_>, plain: &[f64]) -> Result<Rotary, ModelError> {
    let factor = positive(rope, "factor", None)?;
    let low = positive(rope, "low_freq_factor", Some(1.0))?;
    let high = positive(rope, "high_freq_factor", Some(4.0))?;
    let original = positive(rope, "original_max_position_embeddings", None)?;
    if high <= low {
        return rope.refuse("high_freq_factor", "a number above low_freq_factor");
    }
    let scaled = |frequency: f64| {
        let wavelength = 2.0 * PI / frequency;
        if wavelength > original / low {
            frequency / factor
        } else if wavelength < original / high {
            frequency
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            (1.0 - smooth) * frequency / factor + smooth * frequency
        }
    };
    Ok(Rotary { frequencies: plain.iter().copied().map(scaled).collect(), factor: 1.0 })
}

/// Dynamic NTK scaling: the base grows with the context. The context for which the model is opened determines it once:
/// cached keys keep the angles by which they were rotated, so the base cannot follow the length of each step, as it
/// does in transformers without a cache.
fn dynamic(
    rope: &Fields<'_>,
    theta: f64,
    dim: usize,
    max_positions: usize,
    context: usize,
) -> Result<Rotary, ModelError> {
    let factor = positive(rope, "factor", None)?;
    if dim < 4 || factor < 1.0 {
        return rope.refuse("factor", "at least 1, with at least 4 rotated numbers in a head");
    }
    let length = context.max(max_positions) as f64;
    let base = theta * (factor * length / max_positions as f64 - (factor - 1.0)).powf(dim as f64 / (dim as f64 - 2.0));
    Ok(Rotary { frequencies: (0..dim / 2).map(|i| base.powf(-2.0 * i as f64 / dim as f64)).collect(), factor: 1.0 })
}

/// LongRoPE (Ding et al., 2024): a divisor for each frequency, with different divisors beyond the original context. As
/// with `dynamic`, the context for which the model is opened decides.
fn longrope(
    fields: &Fields<'_>,
    rope: &Fields<'_>,
    plain: &[f64],
    max_positions: usize,
    context: usize,
) -> Result<Rotary, ModelError> {
    let original = fields.number("original_max_position_embeddings", max_positions as f64)?;
    let original = positive(rope, "original_max_position_embeddings", Some(original))?;
    let name = if context as f64 > original { "long_factor" } else { "short_factor" };
    let divisors: Option<Vec<f64>> = rope
        .get(name)
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_f64).filter(|&v| v > 0.0).collect());
    let Some(divisors) = divisors.filter(|divisors| divisors.len() == plain.len()) else {
        return rope.refuse(name, &format!("a list of {} positive numbers", plain.len()));
    };
    let factor = rope.number("factor", max_positions as f64 / original)?;
    let default = if factor <= 1.0 || original <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
    let attention = rope.number("attention_factor", default)?;
    Ok(Rotary {
        frequencies: plain.iter().zip(divisors).map(|(frequency, divisor)| frequency / divisor).collect(),
        factor: attention,
    })
}

/// YaRN (Peng et al., 2023): interpolation increases gradually over the dimensions, and attention gets a temperature.
fn yarn(rope: &Fields<'_>, plain: &[f64], theta: f64, dim: usize, max_positions: usize) -> Result<Rotary, ModelError> {
    let original = positive(rope, "original_max_position_embeddings", Some(max_positions as f64))?;
    let factor = positive(rope, "factor", Some(max_positions as f64 / original))?;
    let beta_fast = positive(rope, "beta_fast", Some(32.0))?;
    let beta_slow = positive(rope, "beta_slow", Some(1.0))?;
    let temperature = |scale: f64, m: f64| if scale <= 1.0 { 1.0 } else { 0.1 * m * scale.ln() + 1.0 };
    let mscale = rope.number("mscale", 0.0)?;
    let mscale_all = rope.number("mscale_all_dim", 0.0)?;
    let default = if mscale != 0.0 && mscale_all != 0.0 {
        temperature(factor, mscale) / temperature(factor, mscale_all)
    } else {
        temperature(factor, 1.0)
    };
    let attention = rope.number("attention_factor", default)?;
    let dimension = |rotations: f64| dim as f64 * (original / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let truncate = rope.get("truncate").and_then(Value::as_bool).unwrap_or(true);
    let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
    if low == high {
        high += 0.001;
    }
    let scaled = plain.iter().enumerate().map(|(i, &frequency)| {
        let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        frequency / factor * ramp + frequency * (1.0 - ramp)
    });
    Ok(Rotary { frequencies: scaled.collect(), factor: attention })
}

/// A table of cosines and sines on the device; `dim` is R, the number of rotated values per head.
pub(crate) struct RotaryTable {
    pub state: Arc<State>,
    pub dim: usize,
}

/// The rotary table for a configuration.
pub(crate) fn rotary_table(
    config: &Fields<'_>,
    sizes: &Sizes,
    options: &LoadOptions,
    loader: &Loader<'_>,
) -> Result<RotaryTable, ModelError> {
    let rotary = Rotary::read(config, sizes.head_dim, sizes.max_position_embeddings, options.context)?;
    let dim = 2 * rotary.frequencies.len();
    let state = loader.computed("rotary table", &[options.context, dim], || rotary.table(options.context))?;
    Ok(RotaryTable { state, dim })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_key_styles_agree() {
        let old = json!({"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}});
        let new = json!({"rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}});
        assert_eq!(
            Rotary::read(&Fields(&old), 64, 128, 128).unwrap(),
            Rotary::read(&Fields(&new), 64, 128, 128).unwrap()
        );
    }

    #[test]
    fn llama3_keeps_high_and_divides_low_frequencies() {
        let config = json!({"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}});
        let rotary = Rotary::read(&Fields(&config), 128, 131072, 4096).unwrap();
        assert_eq!(rotary.frequencies[0], 1.0);
        let last = 500000f64.powf(-126.0 / 128.0);
        assert!((rotary.frequencies[63] - last / 8.0).abs() < 1e-18);
    }

    /// (cos pθ, sin pθ) as e^(i θ)ᵖ by repeated squaring: independent of the cosine of pθ.
    fn power(theta: f64, mut p: usize) -> (f64, f64) {
        let (mut square, mut result) = ((theta.cos(), theta.sin()), (1.0, 0.0));
        while p > 0 {
            let times = |a: (f64, f64), b: (f64, f64)| (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0);
            if p % 2 == 1 {
                result = times(result, square);
            }
            square = times(square, square);
            p /= 2;
        }
        result
    }

    #[test]
    fn angles_stay_exact_far_out() {
        let config = json!({"rope_theta": 1e6});
        let rotary = Rotary::read(&Fields(&config), 128, 32768, 32768).unwrap();
        let table = rotary.table(32768);
        let (mut worst, mut in_f32) = (0f64, 0f64);
        for position in [16_385, 20_011, 24_576, 30_001, 32_767] {
            for (i, &frequency) in rotary.frequencies.iter().enumerate() {
                let (cos, sin) = power(frequency, position);
                let found = &table[(position * 64 + i) * 2..][..2];
                worst = worst.max((cos - f64::from(found[0])).abs()).max((sin - f64::from(found[1])).abs());
                in_f32 = in_f32.max((cos - f64::from((position as f32 * frequency as f32).cos())).abs());
            }
        }
        // The only error is rounding to f32; that of a product in f32 is ten thousand times as large.
        assert!(worst < 6.1e-8 && in_f32 > 3e-4, "{worst:.1e}, in f32 {in_f32:.1e}");
    }

    #[test]
    fn dynamic_and_longrope_choose_by_the_context() {
        let config = json!({"rope_theta": 10000.0, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}});
        let at = |context| Rotary::read(&Fields(&config), 64, 2048, context).unwrap().frequencies;
        assert_eq!(at(1000), at(2048));
        let base: f64 = 10000.0 * 3f64.powf(64.0 / 62.0); // 2 · 4096 / 2048 − 1
        assert!((at(4096)[5] - base.powf(-10.0 / 64.0)).abs() < 1e-15);
        let factors = |value: f64| vec![value; 4];
        let scaling = json!({"type": "longrope", "short_factor": factors(1.0), "long_factor": factors(4.0)});
        let config = json!({"rope_theta": 10000.0, "rope_scaling": scaling, "original_max_position_embeddings": 4096});
        let at = |context| Rotary::read(&Fields(&config), 8, 131072, context).unwrap();
        assert_eq!(at(4096).frequencies[1] / 4.0, at(4097).frequencies[1]);
        assert!((at(4096).factor - (1.0 + 32f64.ln() / 4096f64.ln()).sqrt()).abs() < 1e-12);
        assert!(Rotary::read(&Fields(&config), 16, 131072, 4096).unwrap_err().to_string().contains("a list of 8"));
    }

    #[test]
    fn proportional_turns_the_first_pairs_of_the_whole_head() {
        let config = json!({"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e6,
            "partial_rotary_factor": 0.25}});
        let rotary = Rotary::read(&Fields(&config), 32, 2048, 2048).unwrap();
        assert_eq!(rotary.frequencies.len(), 16);
        assert_eq!(rotary.frequencies[3], 1e6f64.powf(-6.0 / 32.0));
        assert!(rotary.frequencies[4..].iter().all(|frequency| *frequency == 0.0));
    }

    #[test]
    fn unknown_methods_are_refused() {
        let config = json!({"rope_scaling": {"type": "spiral", "factor": 2.0}});
        assert!(Rotary::read(&Fields(&config), 64, 128, 128).unwrap_err().to_string().contains("spiral"));
    }
}
