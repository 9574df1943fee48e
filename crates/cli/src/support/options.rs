//! Flags that several subcommands share: model, device, formats.

use std::path::PathBuf;

use bayan_gpu::{Disable, Purpose};
use bayan_models::CacheFormat;
use bayan_weights::{FORMATS, Format, format_by_name, format_names};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};

use crate::support::tuning::Autotune;

/// A longer context is a typing mistake: no published model supports one, and tables of this length must fit in memory.
const LONGEST_CONTEXT: u64 = 1 << 20;

/// The device.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Device")]
pub struct DeviceArgs {
    /// Device to use: its number in `bayan devices`, a part of its name, or `cpu` [default: the first GPU, else cpu]
    #[arg(long, env = "BAYAN_DEVICE", value_name = "N|NAME")]
    pub device: Option<String>,
    /// Threads of `--device cpu` [default: one for each core]
    #[arg(long, env = "BAYAN_THREADS", value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub threads: Option<u64>,
    /// Features to disable, separated by commas: f16, subgroups, dot, matrices, unchecked
    #[arg(long, env = "BAYAN_DISABLE", value_name = "LIST", value_parser = Disable::parse, default_value = "", hide_default_value = true)]
    pub disable: Disable,
    /// Largest binding in bytes, below the device's own limit, to test sharded matrices
    #[arg(long, env = "BAYAN_MAX_BINDING_BYTES", value_name = "BYTES", hide = true, value_parser = clap::value_parser!(u64).range(1 << 16..))]
    pub max_binding_bytes: Option<u64>,
    /// What is done with kernels; subcommands set it.
    #[arg(skip)]
    pub purpose: Purpose,
}

/// The flags of subcommands that only read a checkpoint's files.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct CheckpointArgs {
    /// Directory of a Hugging Face checkpoint, a GGUF file, `org/name[:revision][/file.gguf]` on a hub, or random:SHAPE
    /// for random weights: a known shape, or a config.json
    #[arg(short, long, env = "BAYAN_MODEL", value_name = "DIR|FILE|NAME")]
    pub model: Option<PathBuf>,
    /// Chat template instead of the checkpoint's own: a built-in name, or a file
    #[arg(long, env = "BAYAN_CHAT_TEMPLATE", value_name = "NAME|FILE")]
    pub chat_template: Option<String>,
}

/// The flags of subcommands that load a checkpoint onto a device.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    #[command(flatten)]
    pub checkpoint: CheckpointArgs,
    /// Quantize weights on load
    #[arg(long, env = "BAYAN_QUANTIZE", value_name = "FORMAT", value_parser = format_parser(), ignore_case = true)]
    pub quantize: Option<&'static dyn Format>,
    /// Weight quantization errors by importance: a file of `bayan imatrix`, or of llama.cpp
    #[arg(long, value_name = "FILE", requires = "quantize")]
    pub imatrix: Option<PathBuf>,
    /// Length of the context in tokens [default: the model's own limit, at most 4096]
    #[arg(short, long, visible_alias = "ctx-size", env = "BAYAN_CONTEXT", value_name = "N", value_parser = clap::value_parser!(u64).range(2..=LONGEST_CONTEXT))]
    pub context: Option<u64>,
    /// Number of layers on the device; the others stay in host memory and are uploaded for every step [default: all]
    #[arg(long, visible_aliases = ["n-gpu-layers", "ngl"], env = "BAYAN_GPU_LAYERS", value_name = "N")]
    pub gpu_layers: Option<usize>,
    /// Devices over which the layers are split, separated by commas: numbers in `bayan devices`, or parts of names
    #[arg(long, env = "BAYAN_DEVICES", value_name = "LIST", value_delimiter = ',', conflicts_with = "device")]
    pub devices: Vec<String>,
    /// Share of the weights for each of --devices, separated by commas [default: by memory if all devices report it,
    /// else equal]
    #[arg(
        long,
        visible_alias = "ts",
        env = "BAYAN_TENSOR_SPLIT",
        value_name = "LIST",
        value_delimiter = ',',
        requires = "devices"
    )]
    pub tensor_split: Vec<f64>,
    /// Number format of the key-value cache
    #[arg(long, visible_alias = "cache-type", env = "BAYAN_CACHE", value_name = "FORMAT", default_value = "f16")]
    pub cache: CacheArg,
    /// LoRA adapter in PEFT's layout: its directory, and a factor on its scale (repeatable)
    #[arg(long, env = "BAYAN_ADAPTER", value_name = "DIR[:SCALE]", value_parser = AdapterArg::parse)]
    pub adapter: Vec<AdapterArg>,
    /// Measure which kernel variants are fastest on this device, and cache the result
    #[arg(long, env = "BAYAN_AUTOTUNE", value_name = "WHEN", default_value = "auto")]
    pub autotune: Autotune,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Element formats of the cache.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum CacheArg {
    /// 4 bytes
    F32,
    /// 2 bytes
    F16,
    /// A byte per number, and a scale for 32 numbers
    #[value(name = "q8_0")]
    Q8_0,
    /// Half a byte per number, and a scale for 32 numbers
    #[value(name = "q4_0")]
    Q4_0,
}

impl CacheArg {
    /// The engine's format.
    pub fn format(self) -> CacheFormat {
        match self {
            CacheArg::F32 => CacheFormat::F32,
            CacheArg::F16 => CacheFormat::F16,
            CacheArg::Q8_0 => CacheFormat::Q8_0,
            CacheArg::Q4_0 => CacheFormat::Q4_0,
        }
    }
}

/// A weight format by name.
pub fn format_argument(name: &str) -> Result<&'static dyn Format, String> {
    format_by_name(&name.to_lowercase())
        .ok_or_else(|| format!("there is no weight format of this name: expected one of {}", format_names()))
}

/// The weight formats as values of a flag, each with its help line.
pub fn format_values() -> impl Iterator<Item = PossibleValue> {
    FORMATS.iter().map(|format| PossibleValue::new(format.name()).help(format.help()))
}

/// Parses a flag that takes a weight format.
pub fn format_parser() -> impl TypedValueParser<Value = &'static dyn Format> {
    PossibleValuesParser::new(format_values()).try_map(|name| format_argument(&name))
}

/// An adapter and a factor on its scale.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterArg {
    /// Its directory.
    pub path: PathBuf,
    /// Factor on its own scale.
    pub scale: f32,
}

impl AdapterArg {
    /// Parses `DIR` or `DIR:SCALE`; a colon that no number follows belongs to the directory.
    ///
    /// # Errors
    /// The scale is not finite.
    pub fn parse(text: &str) -> Result<AdapterArg, String> {
        let split = text.rsplit_once(':').and_then(|(path, scale)| Some((path, scale.parse::<f32>().ok()?)));
        let (path, scale) = split.unwrap_or((text, 1.0));
        if path.is_empty() || !scale.is_finite() {
            return Err(format!("`{text}`: expected DIR or DIR:SCALE with a finite scale, such as `my-adapter:0.5`"));
        }
        Ok(AdapterArg { path: PathBuf::from(path), scale })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_have_an_optional_scale() {
        let parsed = |text: &str| AdapterArg::parse(text).map(|a| (a.path.display().to_string(), a.scale));
        assert_eq!(parsed("dir"), Ok(("dir".into(), 1.0)));
        assert_eq!(parsed("dir:0.5"), Ok(("dir".into(), 0.5)));
        assert_eq!(parsed("c:/dir"), Ok(("c:/dir".into(), 1.0)));
        assert!(parsed(":1").is_err() && parsed("dir:inf").is_err());
    }
}
