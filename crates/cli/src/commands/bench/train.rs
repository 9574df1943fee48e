//! `bayan bench --train`: the speed of a LoRA training step, compared with that of the device's matrix product.
//!
//! The figure counts the necessary products only: forward and the gradient of the inputs (2 + 2 operations for each
//! weight and token) and three times the adapter's. Recomputation by checkpointing is not counted, so that the figure
//! measures training progress.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use bayan_gpu::{Gpu, block_on};
use bayan_models::{AdapterConfig, Decoder, LoadOptions, TargetModules};
use bayan_tensor::{Dtype, Graph, MatrixBuilder, Plan, State, Tuning};
use bayan_train::engine::{Trainer, TrainerOptions, new_adapter};
use bayan_train::{MicroBatch, Rng};
use bayan_weights::{Planes, Policy, format_by_name};
use serde_json::json;

use super::super::compiled::{self, CompileArgs, Step};
use super::kernels::{by_kernel, print_kernels};
use crate::support::open;
use crate::support::options::ModelArgs;
use crate::support::output::{self, Progress};

/// Settings of the measurement.
pub struct TrainBench {
    /// Tokens of the single sequence.
    pub tokens: usize,
    /// Number of repetitions.
    pub repetitions: u32,
    /// LoRA rank.
    pub rank: usize,
    /// Gradient checkpointing.
    pub recompute: bool,
    /// Saved activations and tiles in f16, with loss scaling.
    pub f16: bool,
    /// Also time each kernel.
    pub profile: bool,
    /// Print JSON.
    pub json: bool,
}

/// A sequence in which every token is trained.
fn batch(tokens: usize, vocabulary: usize) -> MicroBatch {
    let ids: Vec<u32> =
        (0..tokens as u64).map(|i| (i.wrapping_mul(2_654_435_761) % vocabulary.max(1) as u64) as u32).collect();
    let labels = ids.iter().enumerate().map(|(t, &id)| if t == 0 { -100 } else { id as i32 }).collect();
    MicroBatch { labels, positions: (0..tokens as u32).collect(), sequences: vec![0; tokens], starts: vec![0], ids }
}

/// Operations of a step per token.
fn operations_per_token(decoder: &mut dyn Decoder, adapter_parameters: u64, tokens: usize) -> f64 {
    let sizes = decoder.sizes().clone();
    let linear: usize = decoder.linears_mut().iter().map(|linear| linear.weight.rows() * linear.weight.columns()).sum();
    // Attention scores and sums: half the positions on average, forward once and backward two and a half times.
    let attention = sizes.num_hidden_layers * sizes.num_attention_heads * sizes.head_dim * tokens / 2 * 4;
    4.0 * linear as f64 + 6.0 * adapter_parameters as f64 + 3.5 * attention as f64
}

/// Operations per second of a product [T, 1024] × [1024, 1024]ᵀ with f32 weights on this device, by the same tiles as
/// in the step.
fn product_rate(gpu: &Gpu, tokens: usize) -> Result<f64> {
    const SIZE: usize = 1024;
    let Some(format) = format_by_name("f32") else { anyhow::bail!("there is no format f32") };
    let mut builder = MatrixBuilder::new(Some(gpu), "product", format, SIZE, SIZE)?;
    let mut planes = Planes::new(format, SIZE);
    planes.push_rows(&vec![0.5; SIZE * SIZE], None).map_err(|error| anyhow::anyhow!("{error:?}"))?;
    builder.push(&planes);
    let (weight, x) = (builder.finish(), State::zeros(Some(gpu), "x", &[tokens, SIZE], Dtype::F32)?);
    let mut graph = Graph::new();
    let x = graph.state(&x);
    let y = graph.linear(x, &weight, None);
    let plan = Plan::new(gpu, graph, &[y], &Tuning { fuse: false, ..Tuning::defaults(gpu.capabilities()) })?;
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let started = Instant::now();
        plan.submit(gpu, tokens, &[]);
        block_on(gpu.flush())?;
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(2.0 * (tokens * SIZE * SIZE) as f64 / best)
}

/// Compiles the kernels of a step, and prints what the driver makes of them.
///
/// # Errors
/// The driver does not say, or a kernel does not compile.
pub fn compile(bench: &TrainBench, compile: &CompileArgs, args: &ModelArgs) -> Result<ExitCode> {
    let tokens = bench.tokens.max(2);
    let mut args = args.clone();
    args.device.purpose = compile.purpose();
    let checkpoint = open::checkpoint(args.checkpoint.model.as_deref())?;
    let gpu = crate::support::device::gpu_to_train(&args.device, bench.f16)?;
    let policy = args.quantize.map(Policy::for_format);
    let load = LoadOptions { context: tokens };
    let mut decoder = block_on(bayan_models::open(&checkpoint, Some(&gpu), &load, policy, &mut |_, _| {}))?;
    let config = AdapterConfig::new(bench.rank, 2.0 * bench.rank as f64, TargetModules::AllLinear);
    let adapter = new_adapter(&mut *decoder, config, &mut Rng::new(1, 1))?;
    let batch = batch(tokens, decoder.sizes().vocab_size);
    let options =
        TrainerOptions { context: tokens, recompute: bench.recompute, f16: bench.f16, ..TrainerOptions::default() };
    let mut trainer = Trainer::new(Some(&gpu), decoder, &adapter, options)?;
    let kernels = trainer.kernels(&batch)?;
    let step = Step { name: "LoRA training step".into(), tokens, cached: tokens, kernels };
    let model = json!({"model": args.checkpoint.model, "rank": bench.rank, "f16": bench.f16});
    compiled::report(compile, bench.json, &gpu, model, &[step])
}

/// Measures and prints the results.
///
/// # Errors
/// The model does not fit the device, or the device fails.
pub fn run(bench: &TrainBench, args: &ModelArgs) -> Result<ExitCode> {
    let tokens = bench.tokens.max(2);
    let checkpoint = open::checkpoint(args.checkpoint.model.as_deref())?;
    let gpu = crate::support::device::gpu_to_train(&args.device, bench.f16)?;
    let mut progress = Progress::new("loading", true);
    let policy = args.quantize.map(Policy::for_format);
    let load = LoadOptions { context: tokens };
    let mut decoder = block_on(bayan_models::open(&checkpoint, Some(&gpu), &load, policy, &mut |done, total| {
        progress.set(done, total)
    }))?;
    drop(progress);
    let base_bytes = gpu.allocated_bytes();
    let config = AdapterConfig::new(bench.rank, 2.0 * bench.rank as f64, TargetModules::AllLinear);
    let adapter = new_adapter(&mut *decoder, config, &mut Rng::new(1, 1))?;
    let operations = operations_per_token(&mut *decoder, adapter.parameters(), tokens);
    let batch = batch(tokens, decoder.sizes().vocab_size);
    let options =
        TrainerOptions { context: tokens, recompute: bench.recompute, f16: bench.f16, ..TrainerOptions::default() };
    let mut trainer = Trainer::new(Some(&gpu), decoder, &adapter, options)?;
    let hyper = bayan_tensor::ops::Hyper {
        learning_rate: 1e-4,
        betas: (0.9, 0.999),
        eps: 1e-8,
        weight_decay: 0.0,
        max_norm: 1.0,
        update: 0,
        loss_scale: 1.0,
    };
    let (mut samples, mut loss) = (Vec::new(), 0.0);
    let mut progress = Progress::new("measuring", false);
    // The first step compiles pipelines and is not timed.
    for repetition in 0..=bench.repetitions {
        let started = Instant::now();
        loss = block_on(trainer.accumulate(&batch, 1.0 / batch.target_count() as f64))?;
        // A skipped update takes as long as any other.
        block_on(trainer.try_update(&hyper))?;
        if repetition > 0 {
            samples.push(tokens as f64 / started.elapsed().as_secs_f64());
        }
        progress.set(u64::from(repetition) + 1, u64::from(bench.repetitions) + 1);
    }
    drop(progress);
    let peak_bytes = gpu.peak_allocated_bytes();
    let kernels =
        if bench.profile { block_on(trainer.profile(&batch, 1.0 / tokens as f64))?.map(by_kernel) } else { None };
    let rate = product_rate(&gpu, tokens)?;
    let mean = samples.iter().sum::<f64>() / samples.len().max(1) as f64;
    let flops = mean * operations;
    let c = gpu.capabilities();
    if bench.json {
        let profile = kernels.map(|list| {
            list.iter()
                .map(|k| json!({"kernel": k.name, "dispatches": k.dispatches, "ms": k.elapsed_ms}))
                .collect::<Vec<_>>()
        });
        output::json(&json!({
            "model": args.checkpoint.model, "device": c.name, "driver": c.driver, "path": c.path(), "tokens": tokens, "rank": bench.rank, "recompute": bench.recompute, "f16": bench.f16,
            "tokens_per_second": mean, "samples": samples, "tflops": flops / 1e12, "product_tflops": rate / 1e12, "percent_of_product": 100.0 * flops / rate,
            "base_bytes": base_bytes, "peak_bytes": peak_bytes, "dispatches": trainer.cost().1, "loss": loss, "profile": profile,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(&format!("{} ({}), {}, {}", c.name, c.backend, c.driver, c.path()))?;
    output::line(&format!(
        "LoRA training step: rank {}, {tokens} tokens, {}, {} dispatches: {mean:.1} tokens/s",
        bench.rank,
        if bench.f16 { "f16" } else { "f32" },
        trainer.cost().1
    ))?;
    output::line(&format!(
        "arithmetic: {:.4} TFLOP/s, {:.0} % of the {:.4} TFLOP/s of a matrix product alone",
        flops / 1e12,
        100.0 * flops / rate,
        rate / 1e12
    ))?;
    output::line(&format!(
        "peak device memory: {}, of which the base model takes {}",
        output::size(peak_bytes),
        output::size(base_bytes)
    ))?;
    if let Some(kernels) = kernels {
        print_kernels("one step", &kernels)?;
    }
    Ok(ExitCode::SUCCESS)
}
