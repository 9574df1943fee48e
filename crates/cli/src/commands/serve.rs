//! `bayan serve`: a server with the interfaces of OpenAI and Anthropic.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bayan_generate::{EngineOptions, Model, StepSizes};
use bayan_gpu::block_on;
use bayan_server::{Limits, Opened, Server, ServerOptions};
use clap::{Args, ValueEnum};
use serde_json::json;

use crate::support::open::EMBEDDED;
use crate::support::options::ModelArgs;
use crate::support::output::{self, Progress};
use crate::support::sampling::SamplingArgs;
use crate::support::speculation::SpeculationArgs;
use crate::support::text::SYSTEM_IN_USER;

/// Flags of `bayan serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address to listen on; other machines reach the server only under another one than this
    #[arg(long, env = "BAYAN_HOST", value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, env = "BAYAN_PORT", value_name = "N", default_value_t = 8080)]
    port: u16,
    /// Name of the model in requests [default: the last part of --model]
    #[arg(long, visible_alias = "alias", env = "BAYAN_SERVED_MODEL_NAME", value_name = "NAME")]
    served_model_name: Option<String>,
    /// Answers computed in parallel
    #[arg(long, visible_alias = "np", env = "BAYAN_PARALLEL", value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    parallel: u32,
    /// Further slots of the cache: they keep the tokens of ended answers for requests that begin alike
    #[arg(long, env = "BAYAN_KEPT_PREFIXES", value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1024))]
    kept_prefixes: u32,
    /// Positions in the cache for all slots together; answers that find no room wait [default: a whole context for each
    /// slot]
    #[arg(long, env = "BAYAN_CACHE_POSITIONS", value_name = "N")]
    cache_positions: Option<u64>,
    /// Tokens of a prompt that are read between two tokens of other answers [default: by device]
    #[arg(long, env = "BAYAN_PREFILL_CHUNK", value_name = "N", value_parser = clap::value_parser!(u32).range(16..=4096))]
    prefill_chunk: Option<u32>,
    /// A LoRA adapter that requests name as their model: its name and its directory in PEFT's layout (repeatable)
    #[arg(long, env = "BAYAN_LORA_MODULES", value_name = "NAME=DIR", value_delimiter = ',', value_parser = named_directory)]
    lora_modules: Vec<(String, PathBuf)>,
    /// Requests may load adapters from this directory, and unload them
    #[arg(long, env = "BAYAN_ADAPTER_DIR", value_name = "DIR")]
    adapter_dir: Option<PathBuf>,
    /// Compute every answer in steps of one size: it is then equal to the bit alone and beside others, and slower
    #[arg(long, env = "BAYAN_BATCH_INVARIANT")]
    batch_invariant: bool,
    /// Start without compiling the kernels of all step sizes; the first requests wait for them instead
    #[arg(long, env = "BAYAN_NO_WARM_UP")]
    no_warm_up: bool,
    /// Answer programs only, without the chat page at `/`
    #[arg(long, env = "BAYAN_NO_UI")]
    no_ui: bool,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    limits: LimitArgs,
    /// A TOML file whose keys are names of these flags; flags and variables go before it
    #[arg(long, env = "BAYAN_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Format of the log on stderr
    #[arg(long, env = "BAYAN_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    speculation: SpeculationArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// Who may ask.
#[derive(Debug, Args)]
#[command(next_help_heading = "Access")]
struct AccessArgs {
    /// A key that clients must show (repeatable); --api-key-file does not show it in lists of processes
    #[arg(long, env = "BAYAN_API_KEY", value_name = "KEY", value_delimiter = ',', hide_env_values = true)]
    api_key: Vec<String>,
    /// A file with one key on each line; empty lines and lines with # are left out
    #[arg(long, env = "BAYAN_API_KEY_FILE", value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Listen on other addresses than loopback without a key
    #[arg(long, env = "BAYAN_INSECURE")]
    insecure: bool,
    /// A host name under which clients may ask (repeatable) [default: on loopback its names, else all]
    #[arg(long, env = "BAYAN_ALLOWED_HOST", value_name = "NAME", value_delimiter = ',')]
    allowed_host: Vec<String>,
    /// An origin of web pages that may ask, such as `https://example.org` (repeatable); `*` allows all
    #[arg(long, env = "BAYAN_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    cors_origin: Vec<String>,
}

/// What requests may ask for.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
struct LimitArgs {
    /// Largest body of a request
    #[arg(long, env = "BAYAN_MAX_BODY", value_name = "BYTES", default_value_t = 4 << 20)]
    max_body: usize,
    /// Answers that may wait for a slot; more are refused with status 429
    #[arg(long, env = "BAYAN_QUEUE", value_name = "N", default_value_t = 256)]
    queue: usize,
    /// Longest time in the queue
    #[arg(long, env = "BAYAN_QUEUE_TIMEOUT", value_name = "SECONDS", default_value_t = 120)]
    queue_timeout: u64,
    /// Longest time of an answer
    #[arg(long, env = "BAYAN_ANSWER_TIMEOUT", value_name = "SECONDS", default_value_t = 3600)]
    answer_timeout: u64,
    /// Longest time that a client may take to send its request
    #[arg(long, env = "BAYAN_RECEIVE_TIMEOUT", value_name = "SECONDS", default_value_t = 60)]
    receive_timeout: u64,
    /// Time that running answers have to finish after SIGTERM or Ctrl-C
    #[arg(long, env = "BAYAN_DRAIN", value_name = "SECONDS", default_value_t = 30)]
    drain: u64,
}

/// Formats of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// Warnings as text
    Text,
    /// Warnings and every request, one JSON object a line, without prompts and answers
    Json,
}

impl ServeArgs {
    /// The file with other defaults.
    pub fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// Whether the log is JSON.
    pub fn logs_json(&self) -> bool {
        self.log_format == LogFormat::Json
    }
}

/// Serves until SIGTERM or Ctrl-C.
///
/// # Errors
/// The model does not fit, the address is taken, or a flag is wrong.
pub fn run(args: &ServeArgs) -> Result<ExitCode> {
    let keys = keys(&args.access)?;
    let loopback = is_loopback(&args.host);
    if !loopback && keys.is_empty() && !args.access.insecure {
        bail!(
            "--host {}: expected a key (--api-key-file FILE) where other machines can ask, got none; add one, or allow everybody with --insecure",
            args.host
        );
    }
    let name = args.served_model_name.clone().unwrap_or_else(|| model_name(&args.model));
    let options = ServerOptions {
        model: name.clone(),
        adapters: args.lora_modules.clone(),
        adapter_dir: args.adapter_dir.clone(),
        limits: limits(args),
        keys,
        origins: args.access.cors_origin.clone(),
        hosts: hosts(args, loopback),
        ui: !args.no_ui,
    };
    let mut names: Vec<&String> = args.lora_modules.iter().map(|(adapter, _)| adapter).chain([&name]).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("--lora-modules: the name {} is there twice; every model needs a name of its own", twice[0]);
    }
    let (model, sampling, speculation) = (args.model.clone(), args.sampling.clone(), args.speculation.clone());
    let engine = EngineOptions {
        sequences: args.parallel as usize,
        kept: args.kept_prefixes as usize,
        cache_positions: args.cache_positions.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        prefill_chunk: args.prefill_chunk.map(|n| n as usize),
        sizes: if args.batch_invariant { StepSizes::Invariant } else { StepSizes::Listed },
        ..Default::default()
    };
    let (warm_up, first) = (!args.no_warm_up, AtomicBool::new(true));
    let open = move || {
        let loaded = speculation.open(&model, engine.clone());
        let report = first.swap(false, Ordering::Relaxed);
        let opened = loaded.and_then(|loaded| opened(loaded.model, &sampling, warm_up, report));
        opened.map_err(|error| output::describe(&error))
    };
    let address = if args.host.contains(':') && !args.host.starts_with('[') {
        format!("[{}]:{}", args.host, args.port)
    } else {
        format!("{}:{}", args.host, args.port)
    };
    let on_ready = |address| {
        // A closed stdout must not end the server.
        let _ = output::line(&format!("serving {name} on http://{address}"));
    };
    Server::run_until_signal(&address, options, open, on_ready)?;
    Ok(ExitCode::SUCCESS)
}

fn opened(mut model: Model, sampling: &SamplingArgs, warm_up: bool, report: bool) -> Result<Opened> {
    let defaults = sampling.generation(&model.defaults, model.engine.decoder().sizes().vocab_size)?;
    if warm_up {
        let mut progress = Progress::new("compiling", false);
        block_on(model.engine.warm_up(&mut |done, total| progress.set(done as u64, total as u64)))?;
    }
    if report {
        let conversation = [("system", "x"), ("user", "x")].map(|(role, text)| json!({"role": role, "content": text}));
        // A model without a template refuses conversations when they come.
        if model.system_in_user(&conversation).unwrap_or(false) {
            output::note(SYSTEM_IN_USER);
        }
        let engine = &model.engine;
        output::note(&format!(
            "{} slots of up to {} positions, {} in all; pieces of {} tokens; {} step sizes compiled; cache {}, {} on the device in all",
            engine.slots(),
            engine.context(),
            engine.cache_positions().0,
            engine.prefill_chunk(),
            engine.compiled_steps(),
            output::size(engine.cache_bytes()),
            output::size(engine.allocated_bytes())
        ));
    }
    Ok(Opened { model, defaults, seed: sampling.seed.and_then(|seed| seed.0) })
}

/// `NAME=DIR`.
fn named_directory(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=').filter(|(name, path)| !name.is_empty() && !path.is_empty()) {
        Some((name, path)) => Ok((name.to_string(), PathBuf::from(path))),
        None => Err("expected NAME=DIR".into()),
    }
}

/// The last part of the model's name: `model.gguf` is `model`.
fn model_name(args: &ModelArgs) -> String {
    let path = args.checkpoint.model.as_deref();
    let stem = path.and_then(|path| path.file_name()?.to_str());
    let name = stem.map(|name| name.strip_suffix(".gguf").unwrap_or(name));
    name.filter(|name| !name.is_empty()).unwrap_or(EMBEDDED).to_string()
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn hosts(args: &ServeArgs, loopback: bool) -> Vec<String> {
    let mut hosts = args.access.allowed_host.clone();
    if loopback {
        hosts.extend(["localhost", "127.0.0.1", "[::1]", &args.host].map(str::to_string));
    }
    hosts
}

fn limits(args: &ServeArgs) -> Limits {
    let flags = &args.limits;
    Limits {
        body_bytes: flags.max_body,
        max_tokens: args.sampling.max_tokens.and_then(|most| most.0).map(|n| n as usize),
        queue: flags.queue,
        queue_time: Duration::from_secs(flags.queue_timeout),
        answer_time: Duration::from_secs(flags.answer_timeout),
        receive_time: Duration::from_secs(flags.receive_timeout),
        drain_time: Duration::from_secs(flags.drain),
        ..Limits::default()
    }
}

fn keys(args: &AccessArgs) -> Result<Vec<String>> {
    let mut keys = args.api_key.clone();
    if let Some(file) = &args.api_key_file {
        let text = std::fs::read_to_string(file).with_context(|| format!("--api-key-file {}", file.display()))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let before = keys.len();
        keys.extend(lines.map(str::to_string));
        if keys.len() == before {
            bail!("--api-key-file {}: expected at least one key, got none", file.display());
        }
    }
    if keys.iter().any(|key| key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic())) {
        bail!("a key is empty or has other characters than ASCII ones without spaces, which no client can send");
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_many_names() {
        assert!(["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"].iter().all(|host| is_loopback(host)));
        assert!(!["0.0.0.0", "::", "192.168.1.5", "example.org", ""].iter().any(|host| is_loopback(host)));
    }

    #[test]
    fn keys_come_from_flags_and_files() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        let access = |api_key: &[&str]| AccessArgs {
            api_key: api_key.iter().map(|key| key.to_string()).collect(),
            api_key_file: Some(file.clone()),
            insecure: false,
            allowed_host: Vec::new(),
            cors_origin: Vec::new(),
        };
        assert!(keys(&access(&[])).unwrap_err().to_string().contains("--api-key-file"));
        std::fs::write(&file, "# ours\n\n one \ntwo\n").unwrap();
        assert_eq!(keys(&access(&["zero"])).unwrap(), ["zero", "one", "two"]);
        std::fs::write(&file, "# none\n").unwrap();
        assert!(keys(&access(&[])).is_err());
        std::fs::write(&file, "a b\n").unwrap();
        assert!(keys(&access(&[])).is_err());
    }
}
