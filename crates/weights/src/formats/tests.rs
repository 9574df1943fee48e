//! Tests of every format: round trips, error compared with the plain method, odd sizes, extremes.

use super::*;
use proptest::prelude::*;

/// A fixed pseudo-random sequence (xorshift), so that failures are reproducible.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 40) as f32 + 0.5) / (1u64 << 24) as f32
    }

    fn normal(&mut self) -> f32 {
        let (a, b) = (self.uniform(), self.uniform());
        (-2.0 * a.ln()).sqrt() * (std::f32::consts::TAU * b).cos()
    }

    /// Student's t with 3 degrees of freedom: a few outliers, as in trained models.
    fn heavy(&mut self) -> f32 {
        let chi: f32 = (0..3).map(|_| self.normal().powi(2)).sum();
        self.normal() / (chi / 3.0).sqrt()
    }
}

const DISTRIBUTIONS: &[(&str, fn(&mut Random) -> f32)] =
    &[("normal", |r| 0.02 * r.normal()), ("uniform", |r| 0.1 * (r.uniform() - 0.5)), ("heavy", |r| 0.02 * r.heavy())];

fn rows_of(of: fn(&mut Random) -> f32, count: usize) -> Vec<f32> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    (0..count).map(|_| of(&mut random)).collect()
}

fn through(format: &'static dyn Format, values: &[f32], k: usize) -> Vec<f32> {
    let mut planes = Planes::new(format, k);
    planes.push_rows(values, None).expect("the values fit");
    planes.dequantize()
}

fn squared_error(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum()
}

fn relative_error(values: &[f32], back: &[f32]) -> f64 {
    (squared_error(values, back) / squared_error(values, &vec![0.0; values.len()])).sqrt()
}

/// The levels of one block, in units of its scale.
fn levels(format: &dyn Format) -> Vec<i32> {
    match format.codes() {
        Codes::Values => (-1000..=1000).collect(),
        Codes::Signed { top } => (-i32::from(top)..=i32::from(top)).collect(),
        Codes::Table(levels) => levels.iter().copied().map(i32::from).collect(),
        Codes::Unsigned { bits, minimum: Minimum::Stored } => (0..1 << bits).collect(),
        Codes::Unsigned { bits, minimum: Minimum::Centred(zero) } => {
            (0..1 << bits).map(|code| code - i32::from(zero)).collect()
        }
    }
}

/// Whether each block has a minimum of its own.
fn has_minimum(format: &dyn Format) -> bool {
    matches!(format.codes(), Codes::Unsigned { minimum: Minimum::Stored, .. })
}

/// The plain method: one grid that covers the block, round to nearest.
fn plain(format: &dyn Format, values: &[f32]) -> Option<Vec<f32>> {
    let levels: Vec<f32> = levels(format).into_iter().map(|level| level as f32).collect();
    let (low, high) = (levels[0], levels[levels.len() - 1]);
    match format.codes() {
        Codes::Values => None,
        _ if has_minimum(format) => Some(values.chunks(256).flat_map(|block| plain_affine(block, high)).collect()),
        _ => {
            let nearest =
                |x: f32| levels.iter().copied().min_by(|a, b| (a - x).abs().total_cmp(&(b - x).abs())).expect("levels");
            let group = |group: &[f32]| -> Vec<f32> {
                let scale = round_half(peak_of(group).value / low).expect("fits");
                let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
                group.iter().map(|v| scale * nearest(v * inverse)).collect()
            };
            Some(values.chunks(format.group()).flat_map(group).collect())
        }
    }
}

fn plain_affine(values: &[f32], top: f32) -> Vec<f32> {
    let ranges: Vec<(f32, f32)> = values
        .chunks(32)
        .map(|block| {
            let low = block.iter().copied().fold(0.0, f32::min);
            (block.iter().copied().fold(low, f32::max) - low, -low)
        })
        .collect();
    let unit = |values: Vec<f32>| round_half(values.into_iter().fold(0.0, f32::max) / 63.0).expect("fits");
    let scale_unit = unit(ranges.iter().map(|(range, _)| range / top).collect());
    let min_unit = unit(ranges.iter().map(|(_, min)| *min).collect());
    let steps = |value: f32, unit: f32| if unit == 0.0 { 0.0 } else { (value / unit).round().min(63.0) };
    let mut out = Vec::new();
    for (block, (range, min)) in values.chunks(32).zip(ranges) {
        let scale = scale_unit * steps(range / top, scale_unit);
        let min = min_unit * steps(min, min_unit);
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        out.extend(block.iter().map(|v| scale * ((v + min) * inverse).round().clamp(0.0, top) - min));
    }
    out
}

#[test]
fn names_are_unique_and_found() {
    for format in FORMATS {
        assert_eq!(format_by_name(format.name()).map(|f| f.name()), Some(format.name()));
    }
    let names: std::collections::HashSet<_> = FORMATS.iter().map(|f| f.name()).collect();
    assert_eq!(names.len(), FORMATS.len());
    assert!(format_by_name("q3_z").is_none());
}

#[test]
fn formats_say_what_is_true_of_them() {
    for format in FORMATS {
        let name = format.name();
        assert!(!format.help().is_empty() && format.help().len() <= 70, "{name}: one line of help");
        assert_eq!(format.is_dense(), format.codes() == Codes::Values, "{name}");
        assert!(format.block().is_multiple_of(format.group()), "{name}");
        assert!(format.is_dense() || format.block() == 32, "{name}: kernels read blocks of 32");
        if let Codes::Unsigned { bits, .. } = format.codes() {
            assert!(bits <= 7, "{name}");
            let codes = format.planes()[0].bytes * 8 / format.block();
            assert!(bits != 4 || (codes == 4 && format.planes().len() == 2), "{name}: codes of 4 bits and scales");
        }
        let finer = format.finer().unwrap_or(*format);
        assert!(finer.bits_per_weight() >= format.bits_per_weight() && finer.finer().is_none(), "{name}");
        assert!(format.wgsl().is_some_and(|text| text.contains("fn codes32(") && text.contains("fn scales32(")));
        let packed = format.wgsl().is_some_and(|text| text.contains("fn packed32("));
        assert!(packed || format.is_dense(), "{name}: packed32");
    }
    // Formats are sorted from exact to smallest, and every type that is read belongs to one format.
    assert!(FORMATS.is_sorted_by(|a, b| a.bits_per_weight() >= b.bits_per_weight()));
    for kind in BlockType::ALL {
        let readers: Vec<&str> =
            FORMATS.iter().filter(|f| f.block_types().read.contains(&kind)).map(|f| f.name()).collect();
        assert_eq!(readers.len(), 1, "{}: read by {readers:?}", kind.name());
    }
}

/// Relative root-mean-square error on normal, uniform and heavy-tailed rows; it must be below the plain method's error
/// times the format's factor.
#[test]
fn errors_are_bounded_and_below_the_plain_method() {
    for format in FORMATS {
        for ((name, of), (limit, factor)) in DISTRIBUTIONS.iter().zip(format.error_limits()) {
            let values = rows_of(*of, 64 * 1024);
            let error = relative_error(&values, &through(*format, &values, 1024));
            let baseline = plain(*format, &values).map(|back| relative_error(&values, &back));
            println!("{} {name}: {error:.5}, plain {baseline:.5?}", format.name());
            assert!(error <= limit, "{} {name}: {error} > {limit}", format.name());
            if let Some(baseline) = baseline {
                assert!(error < baseline * factor, "{} {name}: {error} against {baseline}", format.name());
            }
        }
    }
}

/// The extra error of 6-bit steps for scale and minimum compared with independent f16 numbers in the same plane.
#[test]
fn q4_k_steps_cost_little() {
    for (name, of) in DISTRIBUTIONS {
        let values = rows_of(*of, 64 * 1024);
        let stepped = relative_error(&values, &through(&Q4K, &values, 1024));
        let mut free = Vec::new();
        for block in values.as_chunks::<32>().0 {
            let grid = super::affine::best_affine(block, &[1.0; 32], 15.0, false);
            let (scale, min) = (round_half(grid.scale).expect("fits"), round_half(grid.min).expect("fits"));
            free.extend(block.iter().map(|v| scale * ((v + min) / scale).round().clamp(0.0, 15.0) - min));
        }
        let free = relative_error(&values, &free);
        println!("q4_k {name}: 6-bit steps {stepped:.5}, free f16 {free:.5}");
        assert!(stepped < free * 1.06, "{name}: {stepped} against {free}");
    }
}

/// Values already on a format's grid are reproduced exactly: codes, nibble order, high bits and signs are in their
/// places.
#[test]
fn grid_values_round_trip_exactly() {
    for format in FORMATS {
        let levels = levels(*format);
        let affine = has_minimum(*format);
        for scale in [0.5f32, -0.25] {
            let scale = if affine { scale.abs() } else { scale };
            // Every block of 16 holds the lowest level, so that the grid is determined. 63 steps of the q4_k unit must
            // be this scale: the unit 0.5 / 63 is rounded to f16.
            let level = |i: usize| if i % 16 == 3 { levels[0] } else { levels[(i * 37 + i / 32) % levels.len()] };
            let values: Vec<f32> = (0..256).map(|i| scale * level(i) as f32).collect();
            let back = through(*format, &values, 256);
            if affine {
                assert!(relative_error(&values, &back) < 5e-4, "{format:?}");
            } else {
                assert_eq!(values, back, "{format:?} {scale}");
            }
        }
    }
}

/// Quantizing dequantized weights again changes them only by the f16 rounding of a scale.
#[test]
fn a_second_pass_is_stable() {
    for format in FORMATS {
        let values = rows_of(DISTRIBUTIONS[0].1, 4096);
        let once = through(*format, &values, 512);
        let twice = through(*format, &once, 512);
        assert!(relative_error(&once, &twice) < 1e-2, "{format:?}: {}", relative_error(&once, &twice));
    }
}

#[test]
fn short_rows_are_padded_and_cut() {
    for format in FORMATS {
        for k in [1, 7, 31, 33, 224, 260, 300] {
            let values = rows_of(DISTRIBUTIONS[0].1, 3 * k);
            let mut planes = Planes::new(*format, k);
            planes.push_rows(&values, Some(&vec![1.0; k])).expect("the values fit");
            for (plane, bytes) in planes.bytes.iter().enumerate() {
                assert_eq!(bytes.len() as u64, 3 * format.row_bytes(plane, k), "{format:?} K = {k}");
            }
            let back = planes.dequantize();
            assert_eq!(back.len(), values.len());
            assert!(relative_error(&values, &back) < 0.15, "{format:?} K = {k}");
            planes.pad_to_words();
            assert!(planes.bytes.iter().all(|bytes| bytes.len().is_multiple_of(4)));
            assert_eq!(planes.dequantize(), back);
        }
    }
}

#[test]
fn aligned_rows_are_whole_words() {
    for format in FORMATS {
        for k in [1, 2, 32, 33, 64, 96] {
            let rows = format.rows_alignment(k) as u64;
            assert!((0..format.planes().len()).all(|plane| (rows * format.row_bytes(plane, k)).is_multiple_of(4)));
        }
    }
}

#[test]
fn zeros_and_tiny_values_give_no_nan() {
    for format in FORMATS {
        let zeros = vec![0.0; 256];
        assert_eq!(through(*format, &zeros, 256), zeros, "{format:?}");
        let tiny: Vec<f32> = (0..256).map(f32::from_bits).collect();
        let back = through(*format, &tiny, 256);
        assert!(back.iter().all(|v| v.is_finite() && v.abs() < 1e-6), "{format:?}");
        let mut spike = vec![0.0; 256];
        spike[200] = -3.0;
        let back = through(*format, &spike, 256);
        assert!((back[200] + 3.0).abs() < 0.02, "{format:?}: {}", back[200]);
        // With a minimum, zero is exact only up to the f16 rounding of minimum and scale; a table may have no zero.
        let least = levels(*format).into_iter().map(|level| level.abs()).min().unwrap_or(0) as f32;
        let limit = if has_minimum(*format) { 5e-3 } else { 1e-6 + least * 3.0 / 113.0 };
        assert!(back.iter().enumerate().all(|(i, v)| i == 200 || v.abs() < limit), "{format:?}");
    }
}

#[test]
fn overflow_names_the_value() {
    for format in FORMATS.iter().filter(|format| format.planes()[0].dtype != Dtype::F32) {
        let mut values = vec![1.0; 512];
        values[300] = -1e9;
        let mut planes = Planes::new(*format, 256);
        let error = planes.push_rows(&values, None).expect_err("1e9 has no f16 scale");
        assert_eq!((error.index, error.value), (300, -1e9), "{format:?}");
    }
}

#[test]
fn importance_moves_the_error_away() {
    for format in FORMATS.iter().filter(|format| !format.is_dense()) {
        let values = rows_of(DISTRIBUTIONS[2].1, 16 * 1024);
        let importance: Vec<f32> = (0..256).map(|i| if i % 4 == 0 { 100.0 } else { 0.01 }).collect();
        let weighted_error = |importance: Option<&[f32]>| {
            let mut planes = Planes::new(*format, 256);
            planes.push_rows(&values, importance).expect("the values fit");
            let back = planes.dequantize();
            let pick = |v: &[f32]| -> Vec<f32> { v.iter().step_by(4).copied().collect() };
            squared_error(&pick(&values), &pick(&back))
        };
        let (blind, guided) = (weighted_error(None), weighted_error(Some(&importance)));
        println!("{}: error of the important quarter {:.3} of blind", format.name(), guided / blind);
        assert!(guided < blind * 0.9, "{format:?}: {guided} against {blind}");
    }
}

/// The layout of q6_k's high bits as a kernel unpacks them: four codes a word.
#[test]
fn q6_k_unpacks_by_words() {
    let values = rows_of(DISTRIBUTIONS[0].1, 32);
    let mut planes = Planes::new(&Q6K, 32);
    planes.push_rows(&values, None).expect("the values fit");
    let back = planes.dequantize();
    let word = |plane: usize, i: usize| {
        u32::from_le_bytes(planes.bytes[plane][4 * i..4 * i + 4].try_into().expect("four bytes"))
    };
    for i in 0..4 {
        let first = (word(0, i) & 0x0f0f_0f0f) | ((word(1, 0) >> (2 * i)) & 0x0303_0303) << 4;
        let second = ((word(0, i) >> 4) & 0x0f0f_0f0f) | ((word(1, 1) >> (2 * i)) & 0x0303_0303) << 4;
        for b in 0..4 {
            let value = |q: u8, group: usize| StepScales::at(&planes.bytes[2], 0).scale(group) * (f32::from(q) - 32.0);
            assert_eq!(value(first.to_le_bytes()[b], 0), back[4 * i + b]);
            assert_eq!(value(second.to_le_bytes()[b], 1), back[16 + 4 * i + b]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Any finite rows are either quantized with every error within one step of the block, or refused with an index.
    #[test]
    fn any_row_is_close_or_refused(mantissas in prop::collection::vec(-1.0f32..1.0, 1..300), exponent in -60i32..60) {
        let values: Vec<f32> = mantissas.iter().map(|m| m * 2f32.powi(exponent)).collect();
        let k = values.len();
        for format in FORMATS {
            let mut planes = Planes::new(*format, k);
            match planes.push_rows(&values, None) {
                Ok(()) => {
                    let back = planes.dequantize();
                    // The largest weight of the row bounds every block's step; below 2^-25 f16 scales vanish.
                    let peak = peak_of(&values).value.abs();
                    let step = match levels(*format).len() { 16 => 0.20, 32 => 0.10, _ => 0.04 };
                    for (value, got) in values.iter().zip(&back) {
                        prop_assert!((value - got).abs() <= step * peak + 4.5e-6, "{}: {value} became {got}, peak {peak}", format.name());
                    }
                }
                Err(error) => {
                    prop_assert_eq!(values[error.index], error.value);
                    prop_assert!(error.value.abs() > 60_000.0);
                }
            }
        }
    }

    /// Dequantizing arbitrary bytes never panics.
    #[test]
    fn any_bytes_dequantize(seed in any::<u64>()) {
        let mut random = Random(seed | 1);
        for format in FORMATS {
            let k = 64;
            let mut planes = Planes::new(*format, k);
            planes.rows = 2;
            for plane in 0..planes.bytes.len() {
                let len = 2 * format.row_bytes(plane, k);
                planes.bytes[plane] = (0..len).map(|_| (random.uniform() * 256.0) as u8).collect();
            }
            prop_assert_eq!(planes.dequantize().len(), 2 * k);
        }
    }
}

#[test]
fn many_rows_on_several_threads_are_the_rows_one_by_one() {
    let (rows, k) = (700, 257);
    let values: Vec<f32> = (0..rows * k).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 100.0).collect();
    let importance: Vec<f32> = (0..k).map(|i| 1.0 + (i % 7) as f32).collect();
    for format in FORMATS {
        let (mut together, mut single) = (Planes::new(*format, k), Planes::new(*format, k));
        together.push_rows(&values, Some(&importance)).expect("finite values");
        values.chunks_exact(k).for_each(|row| single.push_rows(row, Some(&importance)).expect("finite values"));
        assert_eq!((together.rows, &together.bytes), (rows, &single.bytes), "{}", format.name());
    }
    let mut broken = values.clone();
    broken[600 * k + 5] = 1e9;
    let found =
        Planes::new(format_by_name("f16").expect("f16"), k).push_rows(&broken, None).expect_err("1e9 is no f16");
    assert_eq!(found.index, 600 * k + 5);
}

/// Prints how fast each format quantizes; not a check of speed, which is the machine's.
#[test]
#[ignore = "a measurement: cargo test --release -p bayan-weights speed -- --ignored --nocapture"]
fn speed_of_the_quantizers() {
    let mut random = Random(7);
    let k = 4096;
    let values: Vec<f32> = (0..256 * k).map(|_| 0.02 * random.normal()).collect();
    for format in FORMATS {
        let start = std::time::Instant::now();
        let mut planes = Planes::new(*format, k);
        values.chunks_exact(k).for_each(|row| planes.push_rows(row, None).expect("finite values"));
        println!(
            "{}: {:.0} million weights a second on one core",
            format.name(),
            values.len() as f64 / start.elapsed().as_secs_f64() / 1e6
        );
    }
}
