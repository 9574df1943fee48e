//! llama.cpp from its npm package, which contains compiled Vulkan and CPU backends.

use super::{Speed, Workload, checkpoint::Checkpoint};
use crate::{process, tools};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The compared release. After an update by hand, measure again.
const VERSION: &str = "3.22.1";

/// Backend of llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Vulkan, on the same device as Bayan.
    Vulkan,
    /// Its own CPU code, for comparison.
    Cpu,
}

impl Backend {
    fn word(self) -> &'static str {
        match self {
            Self::Vulkan => "vulkan",
            Self::Cpu => "cpu",
        }
    }
}

/// An installed llama.cpp.
pub struct LlamaCpp {
    directory: PathBuf,
    node: PathBuf,
}

/// Installs the packages in `cache` unless they exist.
pub fn install(cache: &Path) -> Result<LlamaCpp> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!(
            "expected Linux on x86-64, where the npm package node-llama-cpp brings a compiled Vulkan backend; remedy: run the comparison there"
        );
    }
    let bin = tools::node()?;
    let directory = cache.join("llama.cpp");
    fs::create_dir_all(&directory).with_context(|| format!("{} could not be made", directory.display()))?;
    let names = ["node-llama-cpp", "@node-llama-cpp/linux-x64-vulkan", "@node-llama-cpp/linux-x64"];
    let installed = |name: &&str| installed_version(&directory, name).as_deref() == Some(VERSION);
    if !names.iter().all(installed) {
        eprintln!("Installing llama.cpp (node-llama-cpp {VERSION}) into {}", directory.display());
        let mut npm = Command::new("npm");
        npm.args(["install", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix"])
            .arg(&directory);
        process::run(npm.args(names.map(|name| format!("{name}@{VERSION}"))))?;
    }
    let script = directory.join("bench.mjs");
    fs::write(&script, include_str!("llama_cpp.mjs"))
        .with_context(|| format!("{} could not be written", script.display()))?;
    let node = bin.map_or_else(|| PathBuf::from("node"), |bin| bin.join("node"));
    Ok(LlamaCpp { directory, node })
}

pub fn installed_version(directory: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(directory.join("node_modules").join(name).join("package.json")).ok()?;
    let json: Value = serde_json::from_str(&text).ok()?;
    Some(json["version"].as_str()?.to_owned())
}

impl LlamaCpp {
    /// Runs another script of this program, which answers a request in a file with a last line of JSON.
    pub fn answer(&self, script: &str, request: &Value) -> Result<Value> {
        let (program, file) = (self.directory.join("answer.mjs"), self.directory.join("request.json"));
        for (path, text) in [(&program, script), (&file, &request.to_string())] {
            fs::write(path, text).with_context(|| format!("{} could not be written", path.display()))?;
        }
        let mut node = Command::new(&self.node);
        node.current_dir(&self.directory).arg(&program).arg(&file);
        super::last_json(&process::capture(&mut node)?).context("llama.cpp printed no result")
    }

    /// Runs a Python script that calls llama.cpp's C library, which the Node package brings: it quantizes, and renders
    /// chats with templates that are part of llama.cpp.
    pub fn library(&self, request: &Value) -> Result<Value> {
        let folder = self.directory.join("node_modules/@node-llama-cpp/linux-x64/bins/linux-x64");
        let entries = fs::read_dir(&folder).with_context(|| format!("{} could not be read", folder.display()))?;
        let is_library = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with("libllama.") && name.ends_with(".so")
        };
        let library = entries.flatten().map(|entry| entry.path()).find(is_library);
        let library = library.with_context(|| format!("{} has no libllama", folder.display()))?;
        let (program, file) = (self.directory.join("libllama.py"), self.directory.join("library.json"));
        let mut request = request.clone();
        request["library"] = Value::from(library.to_string_lossy());
        for (path, text) in [(&program, include_str!("../real/libllama.py")), (&file, &request.to_string())] {
            fs::write(path, text).with_context(|| format!("{} could not be written", path.display()))?;
        }
        let mut python = Command::new("python3");
        super::last_json(&process::capture(python.arg(&program).arg(&file))?).context("libllama.py printed no result")
    }

    /// Measures tokens per second; also returns the devices used.
    pub fn measure(&self, checkpoint: &Checkpoint, workload: &Workload, backend: Backend) -> Result<(Speed, String)> {
        let mut node = Command::new(&self.node);
        node.current_dir(&self.directory).arg("bench.mjs").arg(&checkpoint.gguf).arg(backend.word());
        for number in [workload.prompt, workload.generate, workload.repetitions, threads()] {
            node.arg(number.to_string());
        }
        // Without this variable the backend ignores software devices and silently computes on the CPU.
        node.env("GGML_VK_VISIBLE_DEVICES", workload.device.to_string());
        let json = super::last_json(&process::capture(&mut node)?).context("llama.cpp printed no result")?;
        let number =
            |key: &str| json[key].as_f64().with_context(|| format!("llama.cpp's result has no number {key}: {json}"));
        let speed = Speed { prefill: number("prefill")?, decode: number("decode")? };
        let devices: Vec<&str> =
            json["devices"].as_array().map(|list| list.iter().filter_map(Value::as_str).collect()).unwrap_or_default();
        let place = if devices.is_empty() { format!("{} threads", threads()) } else { devices.join(", ") };
        let cpu = format!("per CPU second {:.2} and {:.2}", number("prefill_per_cpu_s")?, number("decode_per_cpu_s")?);
        Ok((speed, format!("{} on {place}; {cpu}", json["version"].as_str().unwrap_or("unknown version"))))
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
