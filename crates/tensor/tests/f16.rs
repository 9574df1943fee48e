//! f16 in training: packed rows of all kinds of values, and products with tiles in f16.

use bayan_gpu::{Disable, Gpu, GpuOptions, block_on};
use bayan_tensor::{Dtype, Graph, Plan, State, Tuning, Values, interpret, suite};

fn gpu(disable: &str) -> Gpu {
    let options = GpuOptions { disable: Disable::parse(disable).unwrap(), ..Default::default() };
    block_on(Gpu::open(&options)).expect("a device")
}

/// Rows whose range exceeds that of f16, and rows with infinities and NaNs.
fn hostile(width: usize) -> Vec<Vec<f32>> {
    let wave = |scale: f32| (0..width).map(|i| scale * ((i * 37 % 101) as f32 - 50.0)).collect::<Vec<f32>>();
    let with = |mut row: Vec<f32>, at: usize, value: f32| {
        row[at % width] = value;
        row
    };
    vec![
        vec![0.0; width],
        wave(1.0),
        wave(3e36),
        wave(1e-30),
        wave(1e-38),
        with(wave(1.0), 3, 3e8),
        with(wave(1.0), 2, f32::MAX),
        with(vec![0.0; width], 0, 65519.9),
        with(vec![0.0; width], 1, -f32::MIN_POSITIVE),
        with(wave(1.0), 4, f32::INFINITY),
        with(wave(2e20), 5, f32::NEG_INFINITY),
        with(wave(1e-20), 6, f32::NAN),
        vec![f32::NAN; width],
    ]
}

fn through_f16(gpu: Option<&Gpu>, rows: &[Vec<f32>]) -> Vec<f32> {
    let shape = [rows.len(), rows[0].len()];
    let x = State::new(gpu, "x", &shape, Values::F32(rows.concat())).unwrap();
    let mut graph = Graph::new();
    let x = graph.state(&x);
    let packed = graph.to_f16(x);
    let y = graph.from_f16(packed, &shape);
    let Some(gpu) = gpu else { return interpret(&graph)[y.index()].as_ref().expect("computed").f32().to_vec() };
    let plan = Plan::new(gpu, graph, &[y], &Tuning::defaults(gpu.capabilities())).unwrap();
    plan.poison(gpu);
    let read = plan.submit(gpu, 0, &[plan.read_request(y)]).remove(0);
    Values::from_bytes(&block_on(read.wait()).unwrap(), Dtype::F32).f32().to_vec()
}

#[test]
fn any_row_keeps_eleven_bits_and_what_is_not_finite_stays_so() {
    let (plain, subgroups, hardware) = (gpu("f16,subgroups,dot"), gpu("dot"), gpu("software,dot"));
    for width in [16, 33, 100, 2305] {
        let rows = hostile(width);
        for gpu in [None, Some(&plain), Some(&subgroups), Some(&hardware)] {
            let found = through_f16(gpu, &rows);
            for (number, (row, found)) in rows.iter().zip(found.chunks_exact(width)).enumerate() {
                let peak = row.iter().filter(|v| v.is_finite()).fold(0f32, |peak, v| peak.max(v.abs()));
                for (&v, &f) in row.iter().zip(found) {
                    // Half a unit of the value's last bit or, for values far below the row's largest, of the smallest
                    // f16. Devices may flush subnormal f32 to zero.
                    let allowed = (v.abs() * 2f32.powi(-11)).max(peak * 2f32.powi(-38)).max(f32::MIN_POSITIVE);
                    let right = if v.is_nan() {
                        f.is_nan()
                    } else if v.is_infinite() {
                        f == v
                    } else {
                        (f - v).abs() <= allowed
                    };
                    assert!(
                        right,
                        "row {number} of width {width}, {:?}: {v:e} became {f:e}",
                        gpu.map(|gpu| gpu.capabilities().path())
                    );
                }
            }
        }
    }
}

/// Tiles in f16 round both factors of a product to 11 bits, each by at most 2⁻¹¹ of its magnitude; for a sum that is an
/// NMSE of about 1e-7.
#[test]
fn gradients_by_tiles_in_f16() {
    let gpu = gpu("software,dot");
    assert!(gpu.capabilities().f16, "this test needs a device with f16");
    let mut worst = (0.0, String::new());
    let mut ran = 0;
    for (index, case) in suite::training::cases().iter().enumerate() {
        if !["linear_backward f32", "linear_backward q4_k", "lora"].iter().any(|name| case.name.starts_with(name)) {
            continue;
        }
        ran += 1;
        let found = block_on(suite::run(&gpu, case, index as u64)).unwrap();
        if found.nmse > worst.0 {
            worst = (found.nmse, found.name);
        }
    }
    println!("{ran} cases, the worst {:.1e} in {}", worst.0, worst.1);
    assert!(ran > 10 && worst.0 > 1e-9, "f16 leaves its mark: {worst:?}");
    assert!(worst.0 < 5e-7, "NMSE {:.1e} in {}", worst.0, worst.1);
}

/// A value that f16 cannot represent is not clamped to the largest f16: it makes the sums non-finite.
#[test]
fn a_gradient_beyond_f16_is_seen() {
    let gpu = gpu("software,dot");
    let run = |peak: f32| {
        let (tokens, n, k) = (40, 64, 64);
        let values: Vec<f32> = (0..tokens * n).map(|i| if i == 7 { peak } else { 1.0 }).collect();
        let [dy, b, c] = [(tokens, values), (n, vec![0.5; n * k]), (tokens, vec![0.0; tokens * k])]
            .map(|(rows, values)| State::new(Some(&gpu), "x", &[rows, 64], Values::F32(values)).unwrap());
        let mut graph = Graph::new();
        let [dy, b, c] = [&dy, &b, &c].map(|state| graph.state(state));
        let view = bayan_tensor::ops::View::of(64);
        let product = bayan_tensor::ops::Product {
            m: tokens,
            n: k,
            k: n,
            a: view,
            b: view,
            c: view,
            alpha: 1.0,
            add: false,
            packed: false,
        };
        graph.product(product, dy, b, c);
        let plan = Plan::new(&gpu, graph, &[c], &Tuning::defaults(gpu.capabilities())).unwrap();
        let read = plan.submit(&gpu, 0, &[plan.read_request(c)]).remove(0);
        Values::from_bytes(&block_on(read.wait()).unwrap(), Dtype::F32).f32().to_vec()
    };
    assert!(run(65504.0).iter().all(|v| v.is_finite()));
    assert!(run(-7e4)[..64].iter().all(|v| !v.is_finite()));
}
