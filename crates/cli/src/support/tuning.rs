//! Measured kernel variants, cached on disk for each device, driver and model shape.
//!
//! Each key has its own file, so that two programs that start at once cannot damage each other's entry.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use bayan_generate::Engine;
use bayan_gpu::block_on;
use bayan_tensor::{RowsShape, Tuning};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::support::output;

/// When kernel variants are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Autotune {
    /// On hardware, once for each device and model shape; software devices use built-in variants
    Auto,
    /// Now, even if a cached result exists
    Always,
    /// Never; cached results are not used either
    Off,
}

/// Uses the cached variants, or measures and caches them.
///
/// # Errors
/// The device fails while measuring. A cache that cannot be read or written is no error: it only costs measuring again.
pub fn apply(engine: &mut Engine, mode: Autotune) -> Result<()> {
    if engine.cpu().is_some() {
        if mode == Autotune::Always {
            output::note("--autotune always: the CPU has no kernel variants to measure");
        }
        return Ok(());
    }
    let software = engine.capabilities().software;
    if engine.gpus().iter().any(|gpu| !gpu.runs()) || mode == Autotune::Off || (mode == Autotune::Auto && software) {
        return Ok(());
    }
    let key = key(engine);
    let file = directory().map(|directory| directory.join(format!("{:016x}.json", hash(&key))));
    let cached = file.as_ref().filter(|_| mode == Autotune::Auto).and_then(|file| read(file, &key));
    if let Some(shape) = cached {
        engine.set_tuning(Tuning { rows: Some(shape), ..engine.tuning().clone() });
        return Ok(());
    }
    let start = Instant::now();
    let measured = block_on(engine.autotune(&|| start.elapsed().as_secs_f64() * 1e3))?;
    if let (Some(best), Some(file)) = (measured.first(), file) {
        write(&file, &key, best.shape);
    }
    Ok(())
}

fn key(engine: &Engine) -> String {
    let capabilities = engine.capabilities();
    let sizes = engine.decoder().sizes();
    let formats: Vec<&str> = engine.decoder().matrices().iter().map(|matrix| matrix.format().name()).take(4).collect();
    format!(
        "2 {} | {} | {} | {} {} {} | {}",
        capabilities.name,
        capabilities.driver,
        capabilities.path(),
        sizes.hidden_size,
        sizes.intermediate_size,
        sizes.vocab_size,
        formats.join(" ")
    )
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Where measured variants are cached, if the user has a place for caches.
pub fn directory() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME")
        .or_else(|| set("LOCALAPPDATA"))
        .or_else(|| set("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("bayan").join("tuning"))
}

fn read(file: &PathBuf, key: &str) -> Option<RowsShape> {
    let value: Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    let number = |name: &str| value[name].as_u64().and_then(|n| usize::try_from(n).ok());
    let shape = RowsShape {
        lanes: number("lanes")?,
        parts: number("parts")?,
        columns: number("columns")?,
        sets: number("sets")?,
        shuffle: value["shuffle"].as_bool()?,
    };
    // An edited file must not select sizes that no kernel has.
    let sound = [4, 8, 16, 32].contains(&shape.lanes)
        && (1..=32).contains(&shape.parts)
        && (1..=16).contains(&shape.columns)
        && (1..=2).contains(&shape.sets)
        && !(shape.shuffle && shape.parts > 1);
    (value["key"] == key && sound).then_some(shape)
}

fn write(file: &PathBuf, key: &str, shape: RowsShape) {
    let value = json!({"key": key, "lanes": shape.lanes, "parts": shape.parts, "columns": shape.columns, "sets": shape.sets, "shuffle": shape.shuffle});
    let written = file.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| {
        let temporary = file.with_extension(format!("{}.tmp", std::process::id()));
        std::fs::write(&temporary, value.to_string())?;
        std::fs::rename(&temporary, file)
    });
    if let Err(error) = written {
        tracing::debug!("cannot cache the measured kernel shapes in {}: {error}", file.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_and_damaged_ones_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep").join("entry.json");
        let shape = RowsShape { lanes: 16, parts: 4, columns: 8, sets: 1, shuffle: false };
        write(&file, "a key", shape);
        assert_eq!(read(&file, "a key"), Some(shape));
        assert_eq!(read(&file, "another key"), None);
        write(&file, "a key", RowsShape { lanes: 7, ..shape });
        assert_eq!(read(&file, "a key"), None);
        std::fs::write(&file, "{").unwrap();
        assert_eq!(read(&file, "a key"), None);
    }
}
