//! Flags of speculative decoding.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bayan_generate::{EngineOptions, MOST_PROPOSALS, Model, Usage};
use clap::Args;
use serde_json::{Value, json};

use crate::support::device_split::{self, Devices};
use crate::support::open::{self, Loaded};
use crate::support::options::{CheckpointArgs, ModelArgs};

/// Proposals of a draft model when the user names no number.
const DRAFT_TOKENS: u32 = 4;

/// How next tokens are proposed, to be verified several in one step.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Speculative decoding")]
pub struct SpeculationArgs {
    /// Propose N next tokens by what followed the last ones before, in prompt or answer; one step verifies them
    #[arg(long, env = "BAYAN_LOOKUP", value_name = "N", conflicts_with = "draft_model", value_parser = proposals())]
    lookup: Option<u32>,
    /// Propose next tokens by a smaller model with the same tokenizer; --quantize and the device are those of the model
    #[arg(long, env = "BAYAN_DRAFT_MODEL", value_name = "DIR|FILE|NAME")]
    draft_model: Option<PathBuf>,
    /// Tokens that the draft model proposes for a step [default: 4]
    #[arg(long, env = "BAYAN_DRAFT_TOKENS", value_name = "N", requires = "draft_model", value_parser = proposals())]
    draft_tokens: Option<u32>,
}

fn proposals() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=MOST_PROPOSALS as i64)
}

impl SpeculationArgs {
    /// Loads the model with options of the engine that no flag of `args` sets, and what proposes its tokens.
    ///
    /// # Errors
    /// As [`open::model`], the model cannot go back before rejected proposals, or the draft model does not fit the
    /// model.
    pub fn open(&self, args: &ModelArgs, engine: EngineOptions) -> Result<Loaded> {
        let checkpoint = open::checkpoint(args.checkpoint.model.as_deref())?;
        bayan_models::sizes(&checkpoint)?;
        let devices = device_split::devices(&checkpoint, args)?;
        let mut loaded = open::load(&checkpoint, &devices, args, None, engine.clone())?;
        let model = &mut loaded.model;
        match (self.lookup, &self.draft_model) {
            // clap does not see that a file sets both.
            (Some(_), Some(_)) => bail!("--lookup and --draft-model: expected one of them, got both; leave one out"),
            (Some(count), None) => model.engine.propose_by_lookup(count as usize).context("--lookup")?,
            (None, Some(path)) => {
                let count = self.draft_tokens.unwrap_or(DRAFT_TOKENS) as usize;
                let drafted = draft(path, args, &devices, model.engine.context(), engine)
                    .and_then(|draft| Ok(model.propose_by_draft(draft, count)?));
                drafted.with_context(|| format!("--draft-model {}", path.display()))?;
            }
            (None, None) if self.draft_tokens.is_some() => bail!("--draft-tokens: expected --draft-model beside it"),
            (None, None) => {}
        }
        Ok(loaded)
    }
}

/// Loads a draft model on the first of the model's devices.
fn draft(path: &Path, args: &ModelArgs, devices: &Devices, context: usize, engine: EngineOptions) -> Result<Model> {
    let args = ModelArgs {
        checkpoint: CheckpointArgs { model: Some(path.to_path_buf()), chat_template: None },
        imatrix: None,
        gpu_layers: None,
        adapter: Vec::new(),
        ..args.clone()
    };
    let checkpoint = open::checkpoint(args.checkpoint.model.as_deref())?;
    let longest = bayan_models::sizes(&checkpoint)?.max_position_embeddings;
    let args = ModelArgs { context: Some(context.min(longest) as u64), ..args };
    let devices = match devices {
        Devices::Gpus { gpus, .. } => Devices::Gpus { gpus: gpus[..1].to_vec(), shares: vec![1.0] },
        Devices::Cpu(cpu) => Devices::Cpu(cpu.clone()),
    };
    Ok(open::load(&checkpoint, &devices, &args, None, EngineOptions { kept: 0, ..engine })?.model)
}

/// OpenAI's `completion_tokens_details`.
pub fn details(usage: &Usage) -> Value {
    json!({
        "accepted_prediction_tokens": usage.accepted_tokens,
        "rejected_prediction_tokens": usage.rejected_tokens,
    })
}
