//! `bayan bench`: the speed of a model on this device, in llama-bench's terms, compared with the limit that memory
//! bandwidth sets.
//!
//! Generating one token reads every weight once, so memory bandwidth limits its speed. The reference is the copy
//! bandwidth measured on the same device. Rejected: the datasheet's figure, because no copy reaches it, and because a
//! browser does not provide one.

mod kernels;
mod train;

use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bayan_generate::{Engine, Request, SampleSettings};
use bayan_gpu::{Gpu, block_on};
use bayan_tensor::Cost;
use clap::Args;
use serde_json::{Value, json};

use kernels::{Kernel, by_kernel, print_kernels};
use train::TrainBench;

use super::compiled::{self, CompileArgs, Step};
use crate::support::options::ModelArgs;
use crate::support::output::{self, Progress};

/// Flags of `bayan bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Tokens of the prompt; 0 skips this measurement
    #[arg(short, long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(..1 << 20))]
    prompt: u32,
    /// Tokens to generate; 0 skips this measurement
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(..1 << 20))]
    generate: u32,
    /// Number of repetitions
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..1000))]
    repetitions: u32,
    /// Sequences to generate in parallel; the speed counts the tokens of all sequences
    #[arg(long, visible_alias = "np", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    parallel: u32,
    /// Positions in the cache before the first generated token; several, such as 0,4000, are measured one after the
    /// other. Without this flag and --sampled, generation is measured twice: greedily from an empty cache, and sampled
    /// after the prompt
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(..1 << 20), conflicts_with = "train")]
    depth: Vec<u32>,
    /// Sample as `bayan chat` does without flags, instead of taking the most likely token
    #[arg(long, conflicts_with = "train")]
    sampled: bool,
    /// Measure a LoRA training step instead, over one sequence of --prompt tokens
    #[arg(long)]
    train: bool,
    /// With --train: LoRA rank on all linear layers
    #[arg(long, value_name = "N", default_value_t = 16, requires = "train", value_parser = clap::value_parser!(u32).range(1..=1024))]
    rank: u32,
    /// With --train: keep activations instead of recomputing them (no gradient checkpointing)
    #[arg(long, requires = "train")]
    no_grad_checkpoint: bool,
    /// With --train: mixed precision, as in `bayan finetune --f16`
    #[arg(long, requires = "train")]
    f16: bool,
    /// Also show the time of each kernel
    #[arg(long, conflicts_with = "compile_only")]
    profile: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compile: CompileArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// Tokens per second over the repetitions.
struct Speed {
    tokens: u32,
    samples: Vec<f64>,
}

impl Speed {
    fn mean(&self) -> f64 {
        self.samples.iter().sum::<f64>() / self.samples.len().max(1) as f64
    }

    /// The sample standard deviation, as in llama-bench.
    fn deviation(&self) -> f64 {
        let mean = self.mean();
        let squares: f64 = self.samples.iter().map(|s| (s - mean).powi(2)).sum();
        if self.samples.len() > 1 { (squares / (self.samples.len() - 1) as f64).sqrt() } else { 0.0 }
    }

    fn json(&self) -> Value {
        json!({"tokens": self.tokens, "mean": self.mean(), "deviation": self.deviation(), "samples": self.samples})
    }

    fn row(&self, name: &str) -> Vec<String> {
        vec![name.to_string(), self.tokens.to_string(), format!("{:.2} ± {:.2}", self.mean(), self.deviation())]
    }
}

/// One measurement of generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Generation {
    /// Positions in the cache before the first token.
    depth: usize,
    /// Whether tokens are sampled, as `bayan chat` does without flags.
    sampled: bool,
}

impl Generation {
    /// Those that the flags ask for; the first is the one that is compared with the bandwidth.
    fn of(args: &BenchArgs) -> Vec<Generation> {
        match (args.generate, args.depth.as_slice(), args.sampled) {
            (0, _, _) => Vec::new(),
            (_, [], false) => {
                vec![Generation { depth: 0, sampled: false }, Generation { depth: args.prompt as usize, sampled: true }]
            }
            (_, [], true) => vec![Generation { depth: 0, sampled: true }],
            (_, depths, sampled) => depths.iter().map(|&depth| Generation { depth: depth as usize, sampled }).collect(),
        }
    }

    fn settings(self) -> SampleSettings {
        if self.sampled { crate::support::sampling::chat_defaults() } else { SampleSettings::default() }
    }

    fn name(self) -> String {
        let how = if self.sampled { "sampled" } else { "greedy" };
        if self.depth == 0 { format!("generate, {how}") } else { format!("generate, {how}, after {}", self.depth) }
    }
}

struct Measured {
    load: Duration,
    prompt: Option<Speed>,
    generations: Vec<(Generation, Speed)>,
    first_token_ms: Option<f64>,
    weight_bytes: u64,
    copy_bytes_per_s: f64,
    cost: Cost,
    profiles: Vec<(&'static str, Vec<Kernel>)>,
}

/// Measures and prints the results.
///
/// # Errors
/// The model does not fit the device, or the device fails.
pub fn run(args: &BenchArgs) -> Result<ExitCode> {
    if args.train {
        let request = TrainBench {
            tokens: args.prompt as usize,
            repetitions: args.repetitions,
            rank: args.rank as usize,
            recompute: !args.no_grad_checkpoint,
            f16: args.f16,
            profile: args.profile,
            json: args.json,
        };
        return match args.compile.compile_only {
            true => train::compile(&request, &args.compile, &args.model),
            false => train::run(&request, &args.model),
        };
    }
    let (prompt, generate) = (args.prompt as usize, args.generate as usize);
    if prompt + generate == 0 {
        bail!("bayan bench has nothing to measure: expected --prompt or --generate above 0");
    }
    // The prompt's run has one more token, which is not timed.
    let generations = Generation::of(args);
    let deepest = generations.iter().map(|generation| generation.depth).max().unwrap_or(0);
    let least = (prompt + 1).max(deepest + generate + 1) + 1;
    if let Some(context) = args.model.context.filter(|&n| (n as usize) < least) {
        bail!(
            "a context of {context} is too short: this measurement needs {least} positions; use a larger --context or fewer tokens"
        );
    }
    let mut model = args.model.clone();
    model.device.purpose = args.compile.purpose();
    let mut loaded = crate::support::open::model_for(&model, Some(least), args.parallel as usize)?;
    let engine = &mut loaded.model.engine;
    if args.compile.compile_only {
        return compile(args, engine, &generations);
    }
    let mut progress = Progress::new("measuring", false);
    let repetitions = u64::from(args.repetitions);
    let (mut prompt_samples, mut first_token) = (Vec::new(), Vec::new());
    let mut generate_samples = vec![Vec::new(); generations.len()];
    // The first run compiles pipelines and is not timed.
    for repetition in 0..=repetitions {
        if prompt > 0 {
            let (per_second, first_ms) = measure_prompt(engine, prompt)?;
            prompt_samples.push(per_second);
            first_token.push(first_ms);
        }
        // The deepest first: the prompt is in the cache already.
        for (generation, samples) in generations.iter().zip(&mut generate_samples).rev() {
            samples.push(measure_generate(engine, generate, *generation)?);
        }
        progress.set(repetition + 1, repetitions + 1);
    }
    drop(progress);
    let speed = |tokens, samples: Vec<f64>| (tokens > 0).then(|| Speed { tokens, samples: samples[1..].to_vec() });
    let measured = Measured {
        load: loaded.load,
        prompt: speed(args.prompt, prompt_samples),
        generations: (generations.into_iter().zip(generate_samples))
            .filter_map(|(generation, samples)| Some((generation, speed(args.generate, samples)?)))
            .collect(),
        first_token_ms: (prompt > 0).then(|| first_token[1..].iter().sum::<f64>() / repetitions as f64),
        weight_bytes: weight_bytes(engine),
        copy_bytes_per_s: match engine.gpus().first() {
            Some(gpu) => copy_bandwidth(gpu)?,
            None => host_copy_bandwidth(),
        },
        cost: engine.decode_cost()?,
        profiles: if args.profile { profiles(engine, prompt, generate)? } else { Vec::new() },
    };
    if args.json {
        output::json(&as_json(args, engine, &measured))?
    } else {
        print(engine, &measured)?
    }
    Ok(ExitCode::SUCCESS)
}

/// Compiles the kernels of the measurements, and prints what the driver makes of them.
fn compile(args: &BenchArgs, engine: &mut Engine, generations: &[Generation]) -> Result<ExitCode> {
    let mut steps = Vec::new();
    for generation in generations {
        // In the middle of the answer.
        let cached = generation.depth + (args.generate as usize).div_ceil(2);
        let kernels = engine.decode_kernels(engine.sequences(), cached)?;
        steps.push(Step { name: generation.name(), tokens: engine.sequences(), cached, kernels });
    }
    if args.prompt > 0 {
        let cached = args.prompt as usize;
        let tokens = cached.min(engine.prefill_chunk());
        let kernels = engine.prompt_kernels(tokens, cached)?;
        steps.push(Step { name: "the prompt's last piece".into(), tokens, cached, kernels });
    }
    let model = json!({"model": args.model.checkpoint.model, "formats": formats(engine)});
    let Some(gpu) = engine.gpus().first() else {
        bail!(
            "--compile-only: expected a GPU or a software device of `bayan devices`, got the CPU, which compiles nothing"
        )
    };
    compiled::report(&args.compile, args.json, gpu, model, &steps)
}

/// Different token ids, so that embeddings are not all read from one cache line.
fn tokens(engine: &Engine, count: usize) -> Vec<u32> {
    let vocabulary = engine.decoder().sizes().vocab_size.max(1) as u64;
    (0..count as u64).map(|i| (i.wrapping_mul(2_654_435_761) % vocabulary) as u32).collect()
}

/// Prompt tokens per second, and milliseconds from the start to the first new token.
fn measure_prompt(engine: &mut Engine, count: usize) -> Result<(f64, f64)> {
    let prompt = tokens(engine, count + 1);
    engine.reset();
    let settings = SampleSettings::default();
    let started = Instant::now();
    block_on(engine.generate(&prompt, &settings, &[], &[], 0, &mut |_| ControlFlow::Continue(())))?;
    let prefilled = started.elapsed();
    // The prompt is cached now: this adds the step of its last token and reads the sampled token.
    block_on(engine.generate(&prompt, &settings, &[], &[], 1, &mut |_| ControlFlow::Continue(())))?;
    Ok((count as f64 / prefilled.as_secs_f64(), started.elapsed().as_secs_f64() * 1e3))
}

/// New tokens per second of all sequences together.
fn measure_generate(engine: &mut Engine, count: usize, generation: Generation) -> Result<f64> {
    let prompts = tokens(engine, engine.sequences() + generation.depth);
    // Each sequence has its own first token, so that none finds its prompt in the cache of another.
    let prompts: Vec<&[u32]> = prompts.windows(generation.depth + 1).collect();
    let settings = generation.settings();
    let requests = |max_tokens| -> Vec<_> {
        prompts
            .iter()
            .map(|prompt| Request { prompt, settings, bias: &[], stop: &[], max_tokens, grammar: None, scores: None })
            .collect()
    };
    if generation.depth == 0 {
        engine.reset();
    } else {
        block_on(engine.generate_many(&requests(0), &mut |_, _, _| ControlFlow::Continue(())))?;
    }
    let started = Instant::now();
    block_on(engine.generate_many(&requests(count), &mut |_, _, _| ControlFlow::Continue(())))?;
    Ok((count * prompts.len()) as f64 / started.elapsed().as_secs_f64())
}

/// Bytes of weights that one decoded token reads: every matrix once; of an embedding that is not also the output head,
/// one row.
fn weight_bytes(engine: &Engine) -> u64 {
    let decoder = engine.decoder();
    let tied = decoder.sizes().tie_word_embeddings;
    let mut bytes = 0;
    for matrix in decoder.distinct_matrices() {
        let only_looked_up = !tied && matrix.label().contains("embed_tokens");
        bytes += if only_looked_up { matrix.size_bytes() / matrix.rows().max(1) as u64 } else { matrix.size_bytes() };
    }
    bytes
}

/// Bytes per second that the device reads and writes while it copies one large buffer to another.
fn copy_bandwidth(gpu: &Gpu) -> Result<f64> {
    let capabilities = gpu.capabilities();
    // Far larger than every cache, and small compared with the memory of a device that holds a model.
    let wanted: u64 = if capabilities.software { 128 << 20 } else { 512 << 20 };
    let size = wanted.min(capabilities.max_buffer_bytes / 16 * 16);
    let (from, to) = (gpu.allocate("copy source", size)?, gpu.allocate("copy target", size)?);
    let copies = if capabilities.software { 2 } else { 16 };
    let mut best = 0.0f64;
    for _ in 0..4 {
        block_on(gpu.flush())?;
        let started = Instant::now();
        for _ in 0..copies {
            gpu.copy(&from, 0, &to, 0, size);
        }
        block_on(gpu.flush())?;
        best = best.max((2 * size * copies) as f64 / started.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// As [`copy_bandwidth`], of the CPU with two threads.
fn host_copy_bandwidth() -> f64 {
    const SIZE: usize = 64 << 20;
    let (from, mut to) = (vec![1u8; SIZE], vec![0u8; SIZE]);
    let mut best = 0.0f64;
    for _ in 0..4 {
        let started = Instant::now();
        std::thread::scope(|scope| {
            for (from, to) in from.chunks(SIZE / 2).zip(to.chunks_mut(SIZE / 2)) {
                scope.spawn(move || to.copy_from_slice(from));
            }
        });
        best = best.max((2 * SIZE) as f64 / started.elapsed().as_secs_f64());
        std::hint::black_box(&mut to);
    }
    best
}

fn profiles(engine: &mut Engine, prompt: usize, generate: usize) -> Result<Vec<(&'static str, Vec<Kernel>)>> {
    let mut all = Vec::new();
    if generate > 0 {
        all.push(("one generated token", by_kernel(block_on(engine.profile_decode())?)));
    }
    if prompt > 0 {
        // No more tokens than one submission of a real prompt has.
        let chunk = prompt.min(if engine.capabilities().software { 128 } else { 512 });
        all.push(("one chunk of the prompt", by_kernel(block_on(engine.profile_prefill(chunk))?)));
    }
    Ok(all)
}

fn formats(engine: &Engine) -> String {
    let mut names: Vec<&str> = engine.decoder().matrices().iter().map(|m| m.format().name()).collect();
    names.sort_unstable();
    names.dedup();
    names.join("+")
}

fn as_json(args: &BenchArgs, engine: &Engine, measured: &Measured) -> Value {
    let c = engine.capabilities();
    let generate = measured.generations.first().map(|(_, speed)| speed);
    let read_per_s = generate.map(|speed| speed.mean() * measured.weight_bytes as f64);
    let generations = measured.generations.iter().map(|(generation, speed)| {
        let mut fields = speed.json();
        fields["depth"] = generation.depth.into();
        fields["sampled"] = generation.sampled.into();
        fields
    });
    let kernels = |list: &[Kernel]| -> Value {
        list.iter().map(|k| json!({"kernel": k.name, "dispatches": k.dispatches, "ms": k.elapsed_ms})).collect()
    };
    let profiles = measured
        .profiles
        .iter()
        .map(|(name, list)| (name.replace(' ', "_"), kernels(list)))
        .collect::<serde_json::Map<_, _>>();
    json!({
        "model": args.model.checkpoint.model,
        "formats": formats(engine),
        "context": engine.context(),
        "parallel": engine.sequences(),
        "device": c.name,
        "driver": c.driver,
        "backend": c.backend,
        "path": c.path(),
        "load_s": measured.load.as_secs_f64(),
        "prompt": measured.prompt.as_ref().map(Speed::json),
        "generate": generate.map(Speed::json),
        "generations": generations.collect::<Vec<_>>(),
        "first_token_ms": measured.first_token_ms,
        "weight_bytes_per_token": measured.weight_bytes,
        "weight_gb_per_s": read_per_s.map(|v| v / 1e9),
        "copy_gb_per_s": measured.copy_bytes_per_s / 1e9,
        "percent_of_copy": read_per_s.map(|v| 100.0 * v / measured.copy_bytes_per_s),
        "cost_per_token": {
            "dispatches": measured.cost.dispatches,
            "passes": measured.cost.passes,
            "bound_bytes": measured.cost.bound_bytes,
            "activation_bytes": measured.cost.activation_bytes,
        },
        "streamed_bytes_per_step": engine.streamed_bytes(),
        "cache_bytes": engine.cache_bytes(),
        "allocated_bytes": engine.allocated_bytes(),
        "profile": profiles,
    })
}

fn print(engine: &Engine, measured: &Measured) -> Result<()> {
    let c = engine.capabilities();
    output::line(&format!("{} ({}), {}, {}; weights {}", c.name, c.backend, c.driver, c.path(), formats(engine)))?;
    let prompt = measured.prompt.iter().map(|speed| speed.row("prompt"));
    let generations = measured.generations.iter().map(|(generation, speed)| speed.row(&generation.name()));
    let rows: Vec<Vec<String>> = prompt.chain(generations).collect();
    output::line(&output::table(&["test", "tokens", "tokens/s"], &rows))?;
    output::line(&format!("load: {:.2} s", measured.load.as_secs_f64()))?;
    if let Some(first) = measured.first_token_ms {
        output::line(&format!("time to first token: {first:.1} ms"))?;
    }
    if let Some((_, speed)) = measured.generations.first() {
        let read = speed.mean() * measured.weight_bytes as f64;
        let share = 100.0 * read / measured.copy_bytes_per_s;
        let (weights, copy) = (output::size(measured.weight_bytes), measured.copy_bytes_per_s / 1e9);
        output::line(&format!(
            "weights: {weights} per token, {:.2} GB/s, {share:.0} % of the copy bandwidth of {copy:.1} GB/s",
            read / 1e9
        ))?;
    }
    let cost = measured.cost;
    let (bound, activations) = (output::size(cost.bound_bytes), output::size(cost.activation_bytes));
    output::line(&format!(
        "one token: {} dispatches, {} compute passes, {bound} of bound buffers, {activations} of activations",
        cost.dispatches, cost.passes
    ))?;
    let (allocated, cache) = (output::size(engine.allocated_bytes()), output::size(engine.cache_bytes()));
    output::line(&format!(
        "device memory: {allocated}, of which the cache of {} positions takes {cache}",
        engine.context()
    ))?;
    if let streamed @ 1.. = engine.streamed_bytes() {
        let per_second = measured
            .generations
            .first()
            .map_or(0.0, |(_, speed)| speed.mean() / f64::from(engine.sequences() as u32) * streamed as f64 / 1e9);
        output::line(&format!(
            "weights streamed from host memory: {} for every step, {per_second:.2} GB/s while generating",
            output::size(streamed)
        ))?;
    }
    for (title, kernels) in &measured.profiles {
        print_kernels(title, kernels)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bayan_gpu::KernelTime;

    use super::*;

    #[test]
    fn speeds_have_the_deviation_of_a_sample() {
        let speed = Speed { tokens: 1, samples: vec![1.0, 2.0, 3.0] };
        assert_eq!((speed.mean(), speed.deviation()), (2.0, 1.0));
        assert_eq!(Speed { tokens: 1, samples: vec![4.0] }.deviation(), 0.0);
    }

    #[test]
    fn generation_is_measured_as_the_flags_ask() {
        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            bench: BenchArgs,
        }
        let of = |flags: &[&str]| {
            let flags = <Flags as clap::Parser>::try_parse_from([&["x"], flags].concat()).expect("flags");
            Generation::of(&flags.bench).iter().map(|g| (g.depth, g.sampled)).collect::<Vec<_>>()
        };
        assert_eq!(of(&[]), [(0, false), (512, true)]);
        assert_eq!(of(&["--prompt", "0"]), [(0, false), (0, true)]);
        assert_eq!(of(&["--depth", "0"]), [(0, false)]);
        assert_eq!(of(&["--depth", "4000", "--sampled"]), [(4000, true)]);
        assert_eq!(of(&["--depth", "0,300"]), [(0, false), (300, false)]);
        assert_eq!(of(&["--sampled"]), [(0, true)]);
        assert_eq!(of(&["--generate", "0", "--depth", "9"]), []);
    }

    #[test]
    fn kernels_are_summed_and_sorted() {
        let time = |name: &str, elapsed_ms| KernelTime { name: name.into(), elapsed_ms };
        let kernels = by_kernel(vec![time("a", 1.0), time("b", 5.0), time("a", 2.0)]);
        let seen: Vec<_> = kernels.iter().map(|k| (k.name.as_str(), k.dispatches, k.elapsed_ms)).collect();
        assert_eq!(seen, [("b", 1, 5.0), ("a", 2, 3.0)]);
    }
}
