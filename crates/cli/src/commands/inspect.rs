//! `bayan inspect`: the contents of a checkpoint, and the memory that it needs. Only headers are read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use bayan_gpu::{Capabilities, DeviceSummary, Disable, block_on, list_devices};
use bayan_models::Sizes;
use bayan_weights::{Checkpoint, FORMATS, Format, Policy, Stored, TensorEntry};
use clap::Args;
use serde_json::{Value, json};

use crate::support::memory::{Memory, memory};
use crate::support::options::ModelArgs;
use crate::support::{device_split, open, output};

/// Flags of `bayan inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Directory of the checkpoint (or --model)
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    directory: Option<PathBuf>,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

/// Bytes of one kind of tensor.
#[derive(Default)]
struct Group {
    tensors: usize,
    weights: u64,
    size_bytes: u64,
}

impl Group {
    fn bits_per_weight(&self) -> f64 {
        self.size_bytes as f64 * 8.0 / self.weights.max(1) as f64
    }
}

/// Prints the contents.
///
/// # Errors
/// The files are not a checkpoint.
pub fn run(args: &InspectArgs) -> Result<ExitCode> {
    let directory = args.directory.as_deref().or(args.model.checkpoint.model.as_deref());
    let checkpoint = open::checkpoint(directory)?;
    let mut groups: BTreeMap<&'static str, Group> = BTreeMap::new();
    for tensor in checkpoint.tensors() {
        let group = groups.entry(tensor.stored.name()).or_default();
        group.tensors += 1;
        group.weights += tensor.count();
        group.size_bytes += tensor.size_bytes();
    }
    // A checkpoint of an unknown architecture can be inspected too.
    let sizes = bayan_models::sizes(&checkpoint);
    let devices = block_on(list_devices(Disable::default()));
    let device = devices.first().map(|device| &device.capabilities);
    let memory = sizes.as_ref().ok().map(|sizes| memory(&checkpoint, sizes, &args.model, device));
    if args.json {
        let limit = device.map(|device| device.max_binding_bytes);
        let formats = sizes.as_ref().map_or(Value::Null, |sizes| {
            let of = |format: &&'static dyn Format| memory_in(&checkpoint, sizes, &args.model, *format, device);
            FORMATS
                .iter()
                .map(|format| (format.name().to_string(), of(format)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        });
        output::json(&as_json(&checkpoint, &groups, &sizes, memory.as_ref(), limit, args.tensors, formats))?;
        return Ok(ExitCode::SUCCESS);
    }
    print_model(&checkpoint, &sizes)?;
    let row = |name: &str, g: &Group| {
        vec![
            name.to_string(),
            g.tensors.to_string(),
            output::count(g.weights),
            output::size(g.size_bytes),
            format!("{:.2}", g.bits_per_weight()),
        ]
    };
    let mut rows: Vec<Vec<String>> = groups.iter().map(|(name, group)| row(name, group)).collect();
    rows.push(row("all", &total(&groups)));
    output::line(&output::table(&["stored as", "tensors", "weights", "size", "bits/weight"], &rows))?;
    let changes: BTreeSet<String> = checkpoint
        .tensors()
        .iter()
        .filter_map(|tensor| match tensor.stored {
            Stored::Foreign(foreign) => Some(format!(
                "{} becomes {}: {}",
                foreign.name,
                foreign.native.name(),
                foreign.change.unwrap_or("the same values")
            )),
            _ => None,
        })
        .collect();
    for change in changes {
        output::line(&change)?;
    }
    if args.tensors {
        let rows: Vec<Vec<String>> = checkpoint
            .tensors()
            .iter()
            .map(|t| {
                vec![
                    t.name.clone(),
                    t.stored.name().to_string(),
                    format!("{:?}", t.shape),
                    output::size(t.size_bytes()),
                ]
            })
            .collect();
        output::line(&output::table(&["tensor", "stored as", "shape", "size"], &rows))?;
    }
    if let Some(memory) = &memory {
        print_memory(memory, args, device)?;
        if let Ok(sizes) = &sizes {
            print_formats(&checkpoint, sizes, &args.model, device)?;
        }
        print_split(&checkpoint, memory, args, &devices)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn total(groups: &BTreeMap<&'static str, Group>) -> Group {
    groups.values().fold(Group::default(), |all, group| Group {
        tensors: all.tensors + group.tensors,
        weights: all.weights + group.weights,
        size_bytes: all.size_bytes + group.size_bytes,
    })
}

fn print_model(checkpoint: &Checkpoint, sizes: &Result<Sizes, bayan_models::ModelError>) -> Result<()> {
    let model_type = checkpoint.config().get("model_type").and_then(Value::as_str).unwrap_or("unknown");
    output::line(&format!("{}: {model_type}", checkpoint.source().describe()))?;
    match sizes {
        Ok(s) => {
            output::line(&format!(
                "{} layers, hidden size {}, intermediate size {}",
                s.num_hidden_layers, s.hidden_size, s.intermediate_size
            ))?;
            output::line(&format!(
                "{} attention heads of size {}, {} key-value heads",
                s.num_attention_heads, s.head_dim, s.num_key_value_heads
            ))?;
            let tied = if s.tie_word_embeddings { " (embedding tied to the output head)" } else { "" };
            output::line(&format!(
                "vocabulary of {} tokens{tied}; {} positions",
                s.vocab_size, s.max_position_embeddings
            ))
        }
        Err(error) => output::line(&format!("this model cannot be run: {error}")),
    }
}

fn print_memory(memory: &Memory, args: &InspectArgs, device: Option<&Capabilities>) -> Result<()> {
    let form = args.model.quantize.map_or("as stored".to_string(), |format| format!("as {}", format.name()));
    let (weights, cache) = (output::size(memory.weight_bytes), output::size(memory.cache_bytes));
    let sum = output::size(memory.weight_bytes.saturating_add(memory.cache_bytes));
    output::line(&format!(
        "device memory: weights {form} {weights} + cache for {} positions {cache} = {sum}, plus activations",
        memory.context
    ))?;
    let Some(device) = device else {
        return output::line("no GPU was found; see `bayan devices`");
    };
    let parts = memory.largest_binding_bytes.div_ceil(device.max_binding_bytes.max(1));
    let fit = if parts > 1 {
        format!("the largest matrix is split into {parts} shards")
    } else {
        "every matrix fits one binding".to_string()
    };
    output::line(&format!("{}: bindings up to {}; {fit}", device.name, output::size(device.max_binding_bytes)))?;
    if memory.cache_binding_bytes > device.max_binding_bytes {
        let longest = device.max_binding_bytes / (memory.cache_binding_bytes / memory.context as u64).max(1);
        output::line(&format!(
            "this context is too long for the device: its cache allows --context {longest} at most"
        ))?;
    }
    Ok(())
}

/// Prints the memory of the model in each format with this context, and whether it fits, if the device reports its
/// memory.
fn print_formats(
    checkpoint: &Checkpoint,
    sizes: &Sizes,
    args: &ModelArgs,
    device: Option<&Capabilities>,
) -> Result<()> {
    let software = device.is_some_and(|device| device.software);
    let available = if software { available_bytes() } else { device.and_then(|device| device.memory_bytes) };
    let mut rows: Vec<Vec<String>> = Vec::new();
    for format in [None].into_iter().chain(FORMATS.iter().copied().map(Some)) {
        let memory = memory(checkpoint, sizes, &ModelArgs { quantize: format, ..args.clone() }, device);
        let sum = memory.weight_bytes.saturating_add(memory.cache_bytes);
        let fits = available.map_or("unknown", |bytes| if sum <= bytes { "yes" } else { "no" });
        let name = format.map_or("as stored", |format| format.name());
        rows.push(vec![
            name.to_string(),
            output::size(memory.weight_bytes),
            output::size(memory.cache_bytes),
            output::size(sum),
            fits.to_string(),
        ]);
    }
    output::line(&output::table(&["on the device as", "weights", "cache", "sum", "fits"], &rows))?;
    match available {
        Some(bytes) if software => {
            output::line(&format!("this is a software device: {} of host memory is free", output::size(bytes)))
        }
        Some(bytes) => output::line(&format!("this device has {} of memory", output::size(bytes))),
        None => output::line("this device does not report how much memory it has: compare the sum with its data sheet"),
    }
}

/// Prints how the layers would be split over the devices, if there are several.
fn print_split(checkpoint: &Checkpoint, memory: &Memory, args: &InspectArgs, devices: &[DeviceSummary]) -> Result<()> {
    let Some(first) = devices.first().filter(|first| devices.len() > 1 && !first.capabilities.software) else {
        return Ok(());
    };
    let same_kind: Vec<&DeviceSummary> =
        devices.iter().filter(|device| device_split::is_same_kind(device, first)).collect();
    if same_kind.len() < 2 {
        return Ok(());
    }
    let shares =
        device_split::shares(&same_kind.iter().map(|device| device.capabilities.memory_bytes).collect::<Vec<_>>());
    let policy = args.model.quantize.map(Policy::for_format);
    let Ok(layers) = bayan_models::split_layers(checkpoint, policy.as_ref(), &shares) else { return Ok(()) };
    let of = |(number, device): (usize, &&DeviceSummary)| {
        let count = layers.iter().filter(|&&at| at == number).count();
        format!("{}: {} layers on {}", device.index, count, device.capabilities.name)
    };
    let parts: Vec<String> = same_kind.iter().enumerate().map(of).collect();
    let list: Vec<String> = same_kind.iter().map(|device| device.index.to_string()).collect();
    let needed = memory.weight_bytes.saturating_add(memory.cache_bytes);
    let when = if device_split::fewest_devices(devices, needed).is_empty() {
        format!("with --devices {}", list.join(","))
    } else {
        "because the model does not fit the first one".to_string()
    };
    output::line(&format!("layers split over the devices here, {when}: {}", parts.join("; ")))
}

fn memory_in(
    checkpoint: &Checkpoint,
    sizes: &Sizes,
    args: &ModelArgs,
    format: &'static dyn Format,
    device: Option<&Capabilities>,
) -> Value {
    let memory = memory(checkpoint, sizes, &ModelArgs { quantize: Some(format), ..args.clone() }, device);
    json!({"weight_bytes": memory.weight_bytes, "cache_bytes": memory.cache_bytes})
}

/// Free host memory, if the system reports it.
fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn as_json(
    checkpoint: &Checkpoint,
    groups: &BTreeMap<&'static str, Group>,
    sizes: &Result<Sizes, bayan_models::ModelError>,
    memory: Option<&Memory>,
    max_binding_bytes: Option<u64>,
    tensors: bool,
    formats: Value,
) -> Value {
    let group = |g: &Group| json!({"tensors": g.tensors, "weights": g.weights, "bytes": g.size_bytes, "bits_per_weight": g.bits_per_weight()});
    let mut value = json!({
        "model": checkpoint.source().describe(),
        "model_type": checkpoint.config().get("model_type"),
        "error": sizes.as_ref().err().map(ToString::to_string),
        "parameters": total(groups).weights,
        "stored": groups.iter().map(|(name, g)| (name.to_string(), group(g))).collect::<serde_json::Map<_, _>>(),
        "total": group(&total(groups)),
        "formats": formats,
        "memory": memory.map(|m| json!({
            "context": m.context,
            "weight_bytes": m.weight_bytes,
            "cache_bytes": m.cache_bytes,
            "largest_plane_bytes": m.largest_binding_bytes,
            "device_max_binding_bytes": max_binding_bytes,
        })),
    });
    if let Ok(s) = sizes {
        value["sizes"] = json!({
            "hidden_size": s.hidden_size,
            "intermediate_size": s.intermediate_size,
            "num_hidden_layers": s.num_hidden_layers,
            "num_attention_heads": s.num_attention_heads,
            "num_key_value_heads": s.num_key_value_heads,
            "head_dim": s.head_dim,
            "vocab_size": s.vocab_size,
            "max_position_embeddings": s.max_position_embeddings,
            "tie_word_embeddings": s.tie_word_embeddings,
        });
    }
    if tensors {
        let describe = |t: &TensorEntry| json!({"name": t.name, "stored": t.stored.name(), "shape": t.shape, "bytes": t.size_bytes(), "file": t.file.as_ref()});
        value["tensors"] = checkpoint.tensors().iter().map(describe).collect();
    }
    value
}
