//! One table of cases for every operation, run by the tests, by `bayan ops` and in the browser.
//!
//! A case records a small graph twice, on the device and on the host, from the same random numbers, and states which
//! tensors to compare.

mod attention;
mod case;
mod large;
mod sampling;
pub mod training;

use std::collections::BTreeMap;

use bayan_gpu::{Gpu, GpuError};
use bayan_weights::{FORMATS, Format};

use case::case;
pub use case::{Case, CaseResult, RandomTensors, Recorded};
pub use large::cases as large_cases;

use crate::cpu::{Cpu, CpuPlan};
use crate::graph::{Graph, State, Values, interpret, nmse};
use crate::ops::{Activation, Attention, CacheRows, Causality, Columns, GateColumns, Linear, Rope};
use crate::passes::{count_ops, fuse, round_inputs};
use crate::plan::{Plan, Tuning, TurnCounter, Turns};

/// All cases.
pub fn cases() -> Vec<Case> {
    let mut all = element_cases();
    all.extend(linear_cases());
    all.extend(attention::cases());
    all.extend(attention::projection_cases());
    all.extend(attention::recurrent_cases());
    all.extend(sampling::cases());
    all.extend(layer_cases());
    all.extend(training::f16::cases());
    choose_for_repeats(&mut all);
    all
}

/// Marks every fifth case of each operation, and of each format's products and layers, for forms of the kernels that
/// repeat another with a feature less.
fn choose_for_repeats(cases: &mut [Case]) {
    let mut groups: BTreeMap<String, (usize, Vec<usize>)> = BTreeMap::new();
    for (index, case) in cases.iter().enumerate() {
        let mut words = case.name.split_whitespace();
        let op = words.next().unwrap_or_default();
        let format = if matches!(op, "linear" | "layer") { words.next().unwrap_or_default() } else { "" };
        let number = groups.len();
        groups.entry(format!("{op} {format}")).or_insert((number, Vec::new())).1.push(index);
    }
    for (number, members) in groups.values() {
        let first = number % members.len().min(REPEATED);
        for (place, &index) in members.iter().enumerate() {
            cases[index].in_repeats = place % REPEATED == first;
        }
    }
}

/// One case of so many is in a repeat.
const REPEATED: usize = 5;

fn element_cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (rows, width) in [(1, 64), (3, 100), (2, 2304), (5, 33)] {
        all.push(case(format!("rms_norm {rows}x{width}"), 1e-7, move |make| {
            let mut graph = Graph::new();
            let values = make.numbers(rows * width, width == 2304);
            let x = make.state(&[rows, width], values)?;
            let x = graph.state(&x);
            let y = graph.rms_norm(x, &make.random(&[width])?, 1e-6);
            Ok((graph, vec![y]))
        }));
        all.push(case(format!("add {rows}x{width}"), 1e-12, move |make| {
            let mut graph = Graph::new();
            let (a, b) = (make.random(&[rows, width])?, make.random(&[rows, width])?);
            let (a, b) = (graph.state(&a), graph.state(&b));
            let y = graph.add(a, b);
            Ok((graph, vec![y]))
        }));
        for activation in [Activation::Silu, Activation::GeluTanh] {
            all.push(case(format!("gated {} {rows}x{width}", activation.name()), 1e-7, move |make| {
                let mut graph = Graph::new();
                let values = make.numbers(rows * width * 2, true);
                let x = make.state(&[rows, 2 * width], values)?;
                let x = graph.state(&x);
                let y = graph.gated(x, activation);
                Ok((graph, vec![y]))
            }));
        }
        for bias in [false, true] {
            all.push(case(
                format!("layer_norm {rows}x{width}{}", if bias { ", bias" } else { "" }),
                1e-7,
                move |make| {
                    let mut graph = Graph::new();
                    let values = make.numbers(rows * width, width == 2304).iter().map(|v| v + 3.0).collect();
                    let x = make.state(&[rows, width], values)?;
                    let x = graph.state(&x);
                    let bias = if bias { Some(make.random(&[width])?) } else { None };
                    let y = graph.layer_norm(x, &make.random(&[width])?, bias.as_ref(), 1e-5);
                    Ok((graph, vec![y]))
                },
            ));
        }
        all.push(case(format!("rms_norm add {rows}x{width}"), 1e-7, move |make| {
            let mut graph = Graph::new();
            let (x, residual) = (make.random(&[rows, width])?, make.random(&[rows, width])?);
            let (x, residual) = (graph.state(&x), graph.state(&residual));
            let y = graph.rms_norm(x, &make.random(&[width])?, 1e-6);
            let y = graph.add(residual, y);
            Ok((graph, vec![y]))
        }));
        all.push(case(format!("softcap {rows}x{width}"), 1e-7, move |make| {
            let mut graph = Graph::new();
            let values = make.numbers(rows * width, true).iter().map(|v| v * 20.0).collect();
            let x = make.state(&[rows, width], values)?;
            let x = graph.state(&x);
            let y = graph.softcap(x, 30.0);
            Ok((graph, vec![y]))
        }));
        all.push(case(format!("column_squares {rows}x{width}"), 1e-10, move |make| {
            let mut graph = Graph::new();
            let values = make.numbers(rows * width, true);
            let x = make.state(&[rows, width], values)?;
            let (x, sums) = (graph.state(&x), make.random(&[width])?);
            let sums = graph.state(&sums);
            graph.column_squares(x, sums);
            Ok((graph, vec![sums]))
        }));
        all.push(case(format!("activate {rows}x{width}"), 1e-7, move |make| {
            let mut graph = Graph::new();
            let x = make.random(&[rows, width])?;
            let x = graph.state(&x);
            let y = graph.activate(x, Activation::Relu2);
            let z = graph.scale_columns(y, &make.random(&[width])?);
            Ok((graph, vec![z]))
        }));
        let name = format!("gate_columns and norm of runs {rows}x{width}");
        all.push(case(name, 1e-7, move |make| {
            let mut graph = Graph::new();
            // Runs of `width` of the gates lie between others, as the gates of heads do.
            let (x, gate) = (make.random(&[rows, 2 * width + 3])?, make.random(&[rows, 4 * width + 1])?);
            let (x, gate) = (graph.state(&x), graph.state(&gate));
            let op = GateColumns {
                count: 2 * width,
                activation: Activation::Sigmoid,
                x: Columns::from(3, 2 * width),
                gate: Columns { first: width, run: width, step: 2 * width },
            };
            let y = graph.gate_columns(op, x, gate);
            let z = graph.rms_norm(y, &make.random(&[width])?, 1e-6);
            let one = graph.scale_columns(z, &make.random(&[1])?);
            Ok((graph, vec![y, one]))
        }));
        all.push(case(format!("select_rows {rows}x{width}"), 0.0, move |make| {
            let mut graph = Graph::new();
            let x = make.random(&[rows, width])?;
            let x = graph.state(&x);
            let chosen = make.indices(&[2], vec![rows as u32 - 1, 0])?;
            let chosen = graph.state(&chosen);
            let y = graph.select_rows(x, chosen);
            Ok((graph, vec![y]))
        }));
    }
    all
}

fn linear_cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (index, &format) in FORMATS.iter().enumerate() {
        for width in [64, 100, 544] {
            all.push(case(format!("embed {} 300x{width}", format.name()), 1e-12, move |make| {
                let mut graph = Graph::new();
                let table = make.matrix(format, 300, width)?;
                let tokens = make.indices(&[4], vec![0, 299, 7, 7])?;
                let tokens = graph.state(&tokens);
                let y = graph.embed(tokens, &table, 1.5);
                Ok((graph, vec![y]))
            }));
        }
        // Odd row counts, a single block, block counts that do not divide evenly among invocations; few, odd and many
        // tokens. A format has each shape and each number of tokens, and every second pair of them; the next format has
        // the other pairs.
        for (shape, (n, k)) in [(7, 32), (33, 96), (64, 1056), (130, 512), (70, 100)].into_iter().enumerate() {
            for (count, tokens) in [1, 2, 5, 9, 45, 65].into_iter().enumerate() {
                for bias in [false, true] {
                    let skipped = (index + shape + count + usize::from(bias)).is_multiple_of(2);
                    if skipped || bias && tokens != 2 && tokens != 45 {
                        continue;
                    }
                    let name = format!(
                        "linear {} {n}x{k}, {tokens} tokens{}",
                        format.name(),
                        if bias { ", bias" } else { "" }
                    );
                    all.push(case(name, LINEAR_BOUND, move |make| {
                        let mut graph = Graph::new();
                        let weight = make.matrix(format, n, k)?;
                        let x = make.random(&[tokens, k])?;
                        let x = graph.state(&x);
                        let bias = if bias { Some(make.random(&[n])?) } else { None };
                        let y = graph.linear(x, &weight, bias.as_ref());
                        Ok((graph, vec![y]))
                    }));
                }
            }
        }
    }
    // Sums of whole numbers that f16 and f32 represent: every kernel is exact, however it orders its sums.
    for (n, k, tokens) in [(7, 32, 1), (33, 96, 45), (130, 1056, 65), (200, 100, 130)] {
        all.push(case(format!("linear of whole numbers {n}x{k}, {tokens} tokens"), 0.0, move |make| {
            let mut graph = Graph::new();
            let values = make.whole_numbers(n * k, 7.0);
            let weight = make.matrix_of(format_of("f16"), n, k, &values)?;
            let values = make.whole_numbers(tokens * k, 15.0);
            let x = make.state(&[tokens, k], values)?;
            let (x, bias) = (graph.state(&x), make.whole_numbers(n, 100.0));
            let bias = make.state(&[n], bias)?;
            let y = graph.linear(x, &weight, Some(&bias));
            let [dy, dx] = [n, k].map(|width| (width, make.whole_numbers(tokens * width, 15.0)));
            let (dy, dx) = (make.state(&[tokens, dy.0], dy.1)?, make.state(&[tokens, dx.0], dx.1)?);
            let (dy, dx) = (graph.state(&dy), graph.state(&dx));
            graph.linear_backward(dy, &weight, dx, true);
            Ok((graph, vec![y, dx]))
        }));
    }
    // Stacked parts with different formats, as in files of mixed precision.
    for tokens in [1, 5, 40] {
        for (k, names) in [(96, ["q4_k", "q6_k", "q5_k"]), (256, ["q4_0", "f16", "q8_0"])] {
            all.push(case(format!("linear stacked {}, {tokens} tokens", names.join(" ")), LINEAR_BOUND, move |make| {
                let mut graph = Graph::new();
                let weight = make.stacked(&names, k)?;
                let x = make.random(&[tokens, k])?;
                let (x, bias, residual) =
                    (graph.state(&x), make.random(&[weight.rows()])?, make.random(&[tokens, weight.rows()])?);
                let y = graph.rms_norm(x, &make.random(&[k])?, 1e-6);
                let y = graph.linear(y, &weight, Some(&bias));
                let residual = graph.state(&residual);
                let z = graph.linear(x, &weight, None);
                let z = graph.add(residual, z);
                Ok((graph, vec![y, z]))
            }));
        }
    }
    all
}

/// The format of this name.
fn format_of(name: &str) -> &'static dyn Format {
    FORMATS.iter().copied().find(|format| format.name() == name).unwrap_or(FORMATS[0])
}

/// Tiles in f16 round each factor of a product to 11 bits.
const LINEAR_BOUND: f64 = 5e-7;

/// Whole layers, so that rewrites and fused kernels are compared with the operations that were recorded.
fn layer_cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (index, &format) in FORMATS.iter().enumerate() {
        for tokens in [1, 4, 40] {
            // One format has norms and an f16 cache, the next one neither.
            let norms = (index + tokens / 4) % 2 == 1;
            let norms_name = if norms { ", head norms, f16 cache" } else { "" };
            let name = format!("layer {} {tokens} tokens{norms_name}", format.name());
            let position = [0, 5, 255, 256, 300, 510 - tokens][index % 6];
            all.push(case(name, 2e-6, move |make| layer_case(make, format, tokens, position, norms)));
        }
        let tokens = [1, 40][index % 2];
        let name = format!("layer {} {tokens} tokens, norms after, squared ReLU", format.name());
        all.push(case(name, 2e-6, move |make| post_norm_case(make, format, tokens)));
    }
    all
}

/// A sub-layer without a gate and with its norm at the end, and capped results.
fn post_norm_case(
    make: &mut RandomTensors<'_>,
    format: &'static dyn Format,
    tokens: usize,
) -> Result<Recorded, GpuError> {
    let (width, inner) = (96, 160);
    let mut graph = Graph::new();
    let x = make.random(&[tokens, width])?;
    let x = graph.state(&x);
    let (up_bias, down_bias) = (make.random(&[inner])?, make.random(&[width])?);
    let y = graph.layer_norm(x, &make.random(&[width])?, Some(&make.random(&[width])?), 1e-5);
    let y = graph.linear(y, &make.matrix(format, inner, width)?, Some(&up_bias));
    let y = graph.activate(y, Activation::Relu2);
    let y = graph.linear(y, &make.matrix(format, width, inner)?, Some(&down_bias));
    let y = graph.rms_norm(y, &make.random(&[width])?, 1e-6);
    let x = graph.add(x, y);
    let y = graph.linear(x, &make.matrix(format, 70, width)?, None);
    let y = graph.softcap(y, 2.0);
    Ok((graph, vec![x, y]))
}

/// A layer as in LLaMA; with `norms`, heads have norms and the cache is in f16.
fn layer_case(
    make: &mut RandomTensors<'_>,
    format: &'static dyn Format,
    tokens: usize,
    position: usize,
    norms: bool,
) -> Result<Recorded, GpuError> {
    let (width, inner, h, k, d, context) = (96, 160, 4, 2, 32, 512);
    let mut graph = Graph::new();
    let x = make.random(&[tokens, width])?;
    let x = graph.state(&x);
    let positions = make.indices(&[tokens], (0..tokens).map(|t| (position + t) as u32).collect())?;
    let bases = make.indices(&[tokens], vec![0; tokens])?;
    let tile = crate::ops::QUERY_TILE;
    let tiles = make.indices(
        &[tokens.div_ceil(tile), 2],
        (0..tokens).step_by(tile).flat_map(|s| [s as u32, tile.min(tokens - s) as u32]).collect(),
    )?;
    let over = Causality { positions: graph.state(&positions), bases: graph.state(&bases), tiles: graph.state(&tiles) };
    let angles = (0..context).flat_map(|p| {
        (0..d / 2)
            .flat_map(move |i| [(p as f32 * 0.5f32.powi(i as i32)).cos(), (p as f32 * 0.5f32.powi(i as i32)).sin()])
    });
    let table = make.state(&[context, d], angles.collect())?;
    let mut cache = || {
        let values = make.numbers(context * k * d, false);
        match norms {
            false => State::new(make.gpu, "cache", &[context, k * d], Values::F32(values)),
            true => State::new(
                make.gpu,
                "cache",
                &[context, k * d / 2],
                Values::U32(values.chunks_exact(2).map(|v| crate::graph::pack_f16(v[0], v[1])).collect()),
            ),
        }
    };
    let (keys, values) = (cache()?, cache()?);
    let y = graph.rms_norm(x, &make.random(&[width])?, 1e-5);
    let bias = make.random(&[(h + 2 * k) * d])?;
    let qkv = graph.linear(y, &make.matrix(format, (h + 2 * k) * d, width)?, Some(&bias));
    let weights = if norms { Some((make.random(&[d])?, make.random(&[d])?)) } else { None };
    let rope = Rope {
        heads: h,
        kv_heads: k,
        head_dim: d,
        rotary_dim: d,
        norm_eps: norms.then_some(1e-6),
        ..Default::default()
    };
    let [q, new_k, new_v] = graph.rope(rope, qkv, over.positions, &table, weights.as_ref().map(|(q, k)| (q, k)));
    let (keys, values) =
        graph.append(CacheRows::direct(context), new_k, new_v, over.positions, over.bases, [&keys, &values]);
    let attention = Attention {
        heads: h,
        kv_heads: k,
        head_dim: d,
        scale: 0.2,
        softcap: None,
        window: None,
        context,
        ..Default::default()
    };
    let y = graph.attention(attention, q, keys, values, over);
    let y = graph.flatten(y);
    let y = graph.linear(y, &make.matrix(format, width, h * d)?, None);
    let x = graph.add(x, y);
    let y = graph.rms_norm(x, &make.random(&[width])?, 1e-5);
    let gate_up = graph.linear(y, &make.matrix(format, 2 * inner, width)?, None);
    let y = graph.gated(gate_up, Activation::Silu);
    let y = graph.linear(y, &make.matrix(format, width, inner)?, None);
    let x = graph.add(x, y);
    Ok((graph, vec![x]))
}

/// NMSE of floats. For integers: 0 if they are equal, infinity otherwise.
fn difference(reference: &Values, found: &Values) -> f64 {
    match (reference, found) {
        (Values::F32(a), Values::F32(b)) => nmse(a, b),
        (a, b) if a == b => 0.0,
        _ => f64::INFINITY,
    }
}

/// Links and compiles a case's kernels without running them.
///
/// # Errors
/// A kernel does not compile.
pub fn compile(gpu: &Gpu, case: &Case) -> Result<(), GpuError> {
    let (graph, outputs) = (case.record)(&mut RandomTensors { gpu: Some(gpu), seed: 0 })?;
    Plan::new(gpu, graph, &outputs, &Tuning::defaults(gpu.capabilities())).map(|_| ())
}

/// Runs a case on the CPU, with each of these sets of instructions, and compares the results with the reference. Where
/// weights are quantized, the reference rounds the inputs of products to 8 bits as the CPU does.
///
/// # Errors
/// The case cannot be made.
pub fn run_on_cpu(cpus: &[Cpu], case: &Case, seed: u64) -> Result<CaseResult, GpuError> {
    let (host_graph, outputs) = (case.record)(&mut RandomTensors { gpu: None, seed })?;
    let expected = interpret(&round_inputs(&host_graph));
    // The reference rounds neither inputs whose width is no multiple of 32, nor those of matrices with dense parts.
    let linears = host_graph.nodes().iter().filter_map(|node| node.op.as_any().downcast_ref::<Linear>());
    let differs = |linear: &Linear| !linear.fits_int8() && !linear.weight.all_rows(|format| format.is_dense());
    let unrounded = linears.into_iter().any(differs);
    let mut worst = 0.0f64;
    for cpu in cpus {
        let (graph, _) = (case.record)(&mut RandomTensors { gpu: None, seed })?;
        let plan = CpuPlan::new(cpu, graph, &outputs);
        for (&tensor, found) in outputs.iter().zip(plan.run(&outputs)) {
            let reference =
                expected[tensor.index()].as_ref().unwrap_or_else(|| unreachable!("{}: output was computed", case.name));
            worst = worst.max(difference(reference, &found));
        }
    }
    // A code that is rounded in the other direction contributes about 1e-7.
    Ok(CaseResult { name: case.name.clone(), nmse: worst, bound: case.bound.max(if unrounded { 5e-4 } else { 1e-6 }) })
}

/// Runs a case on the device and compares it with its reference. Outputs are filled with NaN first, so that a value
/// that no kernel wrote makes the case fail.
///
/// # Errors
/// The device failed, or a kernel does not compile.
pub async fn run(gpu: &Gpu, case: &Case, seed: u64) -> Result<CaseResult, GpuError> {
    let (host_graph, outputs) = (case.record)(&mut RandomTensors { gpu: None, seed })?;
    // The kernels are compared with the rewritten graph, and where a rewrite rounds activations, also with the recorded
    // one: rounding to f16 stays within the case's bound, to int8 within a bound of its own.
    let tuning = Tuning::defaults(gpu.capabilities());
    let rewritten = fuse(&host_graph, &outputs, gpu.capabilities(), &tuning);
    let added = |name| count_ops(&rewritten).get(name) > count_ops(&host_graph).get(name);
    let (int8, f16) = (added("quantize"), added("to_f16"));
    let recorded =
        if int8 || f16 { interpret(&(case.record)(&mut RandomTensors { gpu: None, seed })?.0) } else { Vec::new() };
    let expected = interpret(&rewritten);
    let (graph, _) = (case.record)(&mut RandomTensors { gpu: Some(gpu), seed })?;
    let plan = Plan::new(gpu, graph, &outputs, &tuning)?;
    plan.poison(gpu);
    let requests: Vec<_> = outputs.iter().map(|&t| plan.read_request(t)).collect();
    let (mut worst, mut rounding) = (0.0f64, 0.0f64);
    for (&tensor, read) in outputs.iter().zip(plan.submit(gpu, case.cached, &requests)) {
        let bytes = read.wait().await?;
        let reference =
            expected[tensor.index()].as_ref().unwrap_or_else(|| unreachable!("{}: output was computed", case.name));
        let found = Values::from_bytes(&bytes, reference.dtype());
        worst = worst.max(difference(reference, &found));
        if let Some(Some(recorded)) = recorded.get(tensor.index()) {
            rounding = rounding.max(difference(recorded, &found));
        }
    }
    // A code that the device rounds in the other direction contributes about 1e-7; the rounding itself 1e-5 to 1e-4.
    let bound = if int8 { case.bound.max(2e-6) } else { case.bound };
    let nmse = match int8 {
        true if rounding > 5e-4 => f64::INFINITY,
        true => worst,
        false => worst.max(rounding),
    };
    Ok(CaseResult { name: case.name.clone(), nmse, bound })
}

/// Runs a case once, with kernels that count the iterations of their loops.
///
/// # Errors
/// As [`run`].
pub async fn count_turns(gpu: &Gpu, case: &Case, seed: u64) -> Result<Vec<Turns>, GpuError> {
    let counter = TurnCounter::new(gpu)?;
    let (graph, outputs) = (case.record)(&mut RandomTensors { gpu: Some(gpu), seed })?;
    let plan = Plan::counting_turns(gpu, graph, &outputs, &Tuning::defaults(gpu.capabilities()), &counter)?;
    plan.submit(gpu, case.cached, &[]);
    counter.read(gpu).await
}
