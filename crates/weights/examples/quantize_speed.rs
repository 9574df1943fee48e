//! How fast one core quantizes and dequantizes each format: `cargo run --release -p bayan-weights --example
//! quantize_speed`.

use bayan_weights::{FORMATS, Planes};
use std::time::Instant;

fn main() {
    let k = 2048;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    // A sum of uniforms is close enough to a normal distribution for a timing.
    let mut next = || {
        let mut sum = -4.0;
        for _ in 0..8 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            sum += (state >> 40) as f32 / (1u64 << 24) as f32;
        }
        0.02 * sum
    };
    let values: Vec<f32> = (0..1024 * k).map(|_| next()).collect();
    for format in FORMATS {
        let mut planes = Planes::new(*format, k);
        let start = Instant::now();
        if let Err(error) = planes.push_rows(&values, None) {
            println!("{}: {error:?}", format.name());
            continue;
        }
        let quantized = start.elapsed();
        let back = planes.dequantize();
        let dequantized = start.elapsed() - quantized;
        let million_per_s = |elapsed: std::time::Duration| values.len() as f64 / 1e6 / elapsed.as_secs_f64();
        let error: f64 = values.iter().zip(back).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let square: f64 = values.iter().map(|a| f64::from(*a).powi(2)).sum();
        println!(
            "{:5} {:6.3} bits  quantize {:6.1} M weights/s  dequantize {:6.1} M weights/s  relative error {:.5}",
            format.name(),
            format.bits_per_weight(),
            million_per_s(quantized),
            million_per_s(dequantized),
            (error / square).sqrt()
        );
    }
}
