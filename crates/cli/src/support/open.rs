//! Opens checkpoints and models as the flags specify.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bayan_generate::text::BUILTIN_TEMPLATES;
use bayan_generate::{Engine, EngineOptions, Model, ModelOptions};
use bayan_gpu::block_on;
use bayan_models::Adapter;
use bayan_weights::{Checkpoint, Coverage, DirectorySource, Importance, MemorySource, Policy, Source};

use crate::support::device_split::{self, Devices};
use crate::support::hub::{self, HubName};
use crate::support::options::{AdapterArg, ModelArgs};
use crate::support::output::{self, Progress};
use crate::support::{random, tuning};

/// The name of the embedded model.
pub const EMBEDDED: &str = "embedded";

/// The files of the selected model, or of the embedded one.
///
/// # Errors
/// The files are not a checkpoint.
pub fn source(model: Option<&Path>) -> Result<Rc<dyn Source>> {
    if let Some(shape) = model.and_then(|path| path.to_str()?.strip_prefix(random::PREFIX)) {
        return Ok(Rc::new(random::RandomSource::new(shape)?));
    }
    if let Some(path) = model.filter(|path| *path != Path::new(EMBEDDED) || path.exists()) {
        return match HubName::from_path(path) {
            Some(name) => Ok(Rc::new(DirectorySource::new(hub::open(&name)?)?)),
            None => Ok(Rc::new(DirectorySource::new(path)?)),
        };
    }
    let files = bayan_embedded::files();
    if files.is_empty() {
        bail!(
            "this program was built without the embedded model: expected `--model DIR` with the directory of a Hugging Face checkpoint"
        );
    }
    let empty = MemorySource::new().named("the embedded model");
    Ok(Rc::new(files.iter().fold(empty, |source, &(name, bytes)| source.with(name, bytes))))
}

/// The selected checkpoint.
///
/// # Errors
/// As [`source`], or the files are damaged.
pub fn checkpoint(model: Option<&Path>) -> Result<Checkpoint> {
    let checkpoint = block_on(Checkpoint::open(source(model)?))?;
    checkpoint.notes().iter().for_each(|note| output::note(note));
    Ok(checkpoint)
}

/// The value of `--chat-template`: a built-in name is returned, a file is read.
///
/// # Errors
/// The value is neither a built-in name nor a readable file.
pub fn chat_template(argument: Option<&str>) -> Result<Option<String>> {
    match argument {
        None => Ok(None),
        Some(name) if BUILTIN_TEMPLATES.contains(&name) || name.contains("{%") || name.contains("{{") => {
            Ok(Some(name.to_string()))
        }
        Some(file) => {
            let names = BUILTIN_TEMPLATES.join(", ");
            let text = std::fs::read_to_string(file);
            text.map(Some)
                .with_context(|| format!("--chat-template {file}: expected one of {names}, or a file that can be read"))
        }
    }
}

/// A loaded model and its loading time.
pub struct Loaded {
    /// The model.
    pub model: Model,
    /// Time from the command's start to a model that can answer, without the device's own start.
    pub load: Duration,
}

/// Loads the model that the flags specify; `least_context` is the caller's minimum where the user sets no context.
///
/// # Errors
/// The files are invalid, or the model does not fit the device.
pub fn model(args: &ModelArgs, least_context: Option<usize>) -> Result<Loaded> {
    model_for(args, least_context, 1)
}

/// As [`model`], with cache slots for several sequences.
///
/// # Errors
/// As [`model`].
pub fn model_for(args: &ModelArgs, least_context: Option<usize>, sequences: usize) -> Result<Loaded> {
    model_with(args, least_context, EngineOptions { sequences, ..Default::default() })
}

/// As [`model`], with options of the engine that no flag of `args` sets.
///
/// # Errors
/// As [`model`].
pub fn model_with(args: &ModelArgs, least_context: Option<usize>, engine: EngineOptions) -> Result<Loaded> {
    let checkpoint = checkpoint(args.checkpoint.model.as_deref())?;
    bayan_models::sizes(&checkpoint)?;
    let devices = device_split::devices(&checkpoint, args)?;
    load(&checkpoint, &devices, args, least_context, engine)
}

/// Attaches an adapter under the name of its directory.
///
/// # Errors
/// The files are not an adapter, or it does not fit the model.
pub fn attach(engine: &mut Engine, argument: &AdapterArg) -> Result<()> {
    let name = argument.path.display().to_string();
    let opened = DirectorySource::new(&argument.path).map_err(anyhow::Error::from);
    let adapter = opened.and_then(|source| Ok(block_on(Adapter::open_for(Rc::new(source), engine.sizes().head_dim))?));
    let attached = adapter.and_then(|adapter| Ok(engine.attach(&name, &adapter, argument.scale)?));
    attached.with_context(|| format!("--adapter {name}"))
}

fn policy(checkpoint: &Checkpoint, args: &ModelArgs) -> Result<Option<Policy>> {
    let Some(mut policy) = args.quantize.map(Policy::for_format) else { return Ok(None) };
    if let Some(file) = &args.imatrix {
        apply_importance(checkpoint, file, &mut policy)?;
    }
    note_requantized(checkpoint, &policy)?;
    Ok(Some(policy))
}

/// Says which matrices the policy quantizes a second time, and what that loses.
///
/// # Errors
/// The rows that are measured cannot be read.
pub fn note_requantized(checkpoint: &Checkpoint, policy: &Policy) -> Result<()> {
    block_on(checkpoint.requantized(policy))?.iter().for_each(|group| output::note(&group.note()));
    Ok(())
}

/// Applies the importance in a file of `bayan imatrix`, or of llama.cpp, to a policy, and reports the matrices that it
/// does not cover.
///
/// # Errors
/// The file cannot be read, or belongs to another model.
pub fn apply_importance(checkpoint: &Checkpoint, file: &Path, policy: &mut Policy) -> Result<Coverage> {
    let mut apply = || -> Result<Coverage> {
        let name = file.file_name().and_then(|name| name.to_str()).context("expected the name of a file")?;
        let folder = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let model_type = checkpoint.config().get("model_type").and_then(|kind| kind.as_str()).unwrap_or("none");
        let importance = block_on(Importance::read(&DirectorySource::new(folder)?, name, model_type))?;
        let coverage = importance.apply(checkpoint, policy)?;
        if coverage.covered == 0 {
            bail!(
                "the file has no importance for any matrix that is quantized: expected the file of this model, and a quantized format"
            );
        }
        Ok(coverage)
    };
    let coverage = apply().with_context(|| format!("--imatrix {}", file.display()))?;
    if !coverage.without.is_empty() {
        output::note(&format!(
            "--imatrix has no importance for {}; all inputs of these matrices have equal weight",
            coverage.without.join(", ")
        ));
    }
    Ok(coverage)
}

/// As [`model_with`], of a checkpoint and devices that are open; `args` names neither then.
///
/// # Errors
/// As [`model`].
pub fn load(
    checkpoint: &Checkpoint,
    devices: &Devices,
    args: &ModelArgs,
    least_context: Option<usize>,
    engine: EngineOptions,
) -> Result<Loaded> {
    let chat_template = chat_template(args.checkpoint.chat_template.as_deref())?;
    let engine = EngineOptions {
        context: args.context.map(|n| n as usize).or(least_context),
        cache: args.cache.format(),
        policy: policy(checkpoint, args)?,
        gpu_layers: args.gpu_layers,
        ..engine
    };
    let started = Instant::now();
    let mut progress = Progress::new("loading", true);
    let options = ModelOptions { engine, chat_template };
    let mut set = |done, total| progress.set(done, total);
    let mut model = match devices {
        Devices::Gpus { gpus, shares } => {
            block_on(Model::open_on_devices(checkpoint, gpus, shares, &options, &mut set))?
        }
        Devices::Cpu(cpu) => block_on(Model::open_on_cpu(checkpoint, cpu, &options, &mut set))?,
    };
    drop(progress);
    device_split::print_placement(&mut model.engine)?;
    if let streamed @ 1.. = model.engine.streamed_bytes() {
        output::note(&format!(
            "{} of weights stay in host memory and are uploaded to the device for every step",
            output::size(streamed)
        ));
    }
    tuning::apply(&mut model.engine, args.autotune)?;
    for adapter in &args.adapter {
        attach(&mut model.engine, adapter)?;
    }
    Ok(Loaded { model, load: started.elapsed() })
}
