//! `bayan export`: writes a checkpoint, or an adapter, as a GGUF file for llama.cpp.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use bayan_generate::text::sentencepiece_to_json;
use bayan_gpu::block_on;
use bayan_models::Adapter;
use bayan_weights::gguf::arch::Arch;
use bayan_weights::gguf::blocks::BlockType;
use bayan_weights::gguf::export::{change_adapter, export};
use bayan_weights::gguf::tokenizer_entries;
use bayan_weights::gguf::vocabulary;
use bayan_weights::gguf::writer::{Declared, Entry, GgufWriter};
use bayan_weights::{Checkpoint, DirectorySource};
use clap::Args;
use serde_json::Value;

use crate::support::open;
use crate::support::options::CheckpointArgs;
use crate::support::output::{self, Progress};

/// Flags of `bayan export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The file to write
    #[arg(long, value_name = "OUT")]
    gguf: PathBuf,
    /// Write this adapter instead of the model; the model provides names and sizes
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    checkpoint: CheckpointArgs,
}

/// Exports a model or an adapter.
///
/// # Errors
/// GGUF has no form for the architecture or the tokenizer, or a file cannot be read or written.
pub fn run(args: &ExportArgs) -> Result<ExitCode> {
    let checkpoint = open::checkpoint(args.checkpoint.model.as_deref())?;
    match &args.adapter {
        Some(path) => write_adapter(&checkpoint, path, &args.gguf)?,
        None => write_model(args, &checkpoint)?,
    }
    let size = std::fs::metadata(&args.gguf).map_or(0, |data| data.len());
    output::line(&format!("{}: {}", args.gguf.display(), output::size(size)))?;
    Ok(ExitCode::SUCCESS)
}

fn write_model(args: &ExportArgs, checkpoint: &Checkpoint) -> Result<()> {
    let chosen = open::chat_template(args.checkpoint.chat_template.as_deref())?;
    let files = open::source(args.checkpoint.model.as_deref())?;
    let metadata = match block_on(tokenizer_entries(files.as_ref()))? {
        Some(mut entries) => {
            if let Some(template) = chosen {
                entries.retain(|(key, _)| key != "tokenizer.chat_template");
                entries.push(("tokenizer.chat_template".to_string(), Entry::Text(template)));
            }
            entries
        }
        None => tokenizer_metadata(checkpoint, chosen)?,
    };
    let mut progress = Progress::new("exporting", false);
    Ok(block_on(export(checkpoint, &args.gguf, metadata, &mut |done, total| progress.set(done, total)))?)
}

/// The tokenizer's keys from Hugging Face's files: a `tokenizer.json`, or a SentencePiece `tokenizer.model`.
fn tokenizer_metadata(checkpoint: &Checkpoint, template: Option<String>) -> Result<Vec<(String, Entry)>> {
    let read = |file: &str| -> Result<Option<Value>> {
        let text = block_on(checkpoint.text(file))?;
        Ok(text.map(|text| bayan_weights::json::parse(file, text.as_bytes())).transpose()?)
    };
    let config = read("tokenizer_config.json")?.unwrap_or(Value::Null);
    let place = checkpoint.source().describe();
    let tokenizer = match (read("tokenizer.json")?, block_on(checkpoint.bytes("tokenizer.model"))?) {
        (Some(tokenizer), _) => tokenizer,
        (None, Some(model)) => serde_json::from_slice(&sentencepiece_to_json(&model, &config)?)?,
        (None, None) => bail!(
            "{place} has neither tokenizer.json nor tokenizer.model: copy one from where the weights came from, then \
             export again"
        ),
    };
    let shipped = block_on(checkpoint.text("chat_template.jinja"))?
        .or_else(|| config.get("chat_template")?.as_str().map(str::to_string));
    Ok(vocabulary::metadata(&tokenizer, &config, checkpoint.config(), template.or(shipped).as_deref())?)
}

/// Writes PEFT's LoRA pairs with llama.cpp's names. GGUF has one alpha for all pairs, so other scales are multiplied
/// into B.
fn write_adapter(checkpoint: &Checkpoint, path: &Path, target: &Path) -> Result<()> {
    let adapter =
        block_on(Adapter::open_for(Rc::new(DirectorySource::new(path)?), bayan_models::sizes(checkpoint)?.head_dim))?;
    adapter.require_plain()?;
    let config = checkpoint.config();
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or("none");
    let arch = Arch::by_model_type(model_type)
        .with_context(|| format!("model_type {model_type}: expected an architecture that GGUF supports"))?;
    let alpha = adapter.modules.values().next().map_or(1.0, |module| module.scale * module.rank as f32);
    let metadata = [
        ("general.type", Entry::Text("adapter".into())),
        ("general.architecture", Entry::Text(arch.gguf.into())),
        ("adapter.type", Entry::Text("lora".into())),
        ("adapter.lora.alpha", Entry::Float(alpha)),
    ]
    .map(|(key, entry)| (key.to_string(), entry));
    let (mut declared, mut arrays) = (Vec::new(), Vec::new());
    for (name, module) in &adapter.modules {
        let base = format!("{name}.weight");
        let gguf = arch.to_gguf(&base).with_context(|| format!("{name}: llama.cpp has no tensor of this name"))?;
        let factor = module.scale * module.rank as f32 / alpha;
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let (mut a, mut b) = (module.a.clone(), module.b.iter().map(|value| value * factor).collect());
        change_adapter(checkpoint, &base, module.rank, &mut a, &mut b)?;
        declared.push(Declared {
            name: format!("{gguf}.lora_a"),
            shape: vec![module.rank, module.in_features],
            kind: BlockType::F32,
        });
        declared.push(Declared {
            name: format!("{gguf}.lora_b"),
            shape: vec![module.out_features, module.rank],
            kind: BlockType::F32,
        });
        arrays.extend([bytes(&a), bytes(&b)]);
    }
    let mut writer = GgufWriter::create(target, &metadata, declared)?;
    for array in arrays {
        writer.write(&array)?;
    }
    Ok(writer.finish()?)
}
