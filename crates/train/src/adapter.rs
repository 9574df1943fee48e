//! Writes a trained adapter in PEFT's layout, which Bayan reads too.
//!
//! [`bayan_models::Adapter`] encodes and decodes the bytes (in the browser too); this module writes them as a
//! directory, which is either complete or not written at all. A directory that holds anything but an adapter is not
//! replaced.

use std::path::Path;

use bayan_models::{ADAPTER_CONFIG, ADAPTER_MODEL, Adapter};

use crate::error::{Result, TrainError};
use crate::files::replace_directory;

/// Writes `adapter_config.json` and `adapter_model.safetensors` into `directory`, which is created, or replaced if it
/// holds an adapter.
///
/// # Errors
/// The directory holds other files, or a file operation was refused; the directory is then unchanged.
pub fn write_adapter(directory: &Path, adapter: &Adapter) -> Result<()> {
    check_replaceable(directory)?;
    let (config, weights) = (adapter.encode_config(), adapter.encode_weights()?);
    replace_directory(directory, &[(ADAPTER_CONFIG, &config), (ADAPTER_MODEL, &weights)])
}

fn check_replaceable(directory: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Ok(()) };
    for entry in entries {
        let name = entry.map_err(|source| TrainError::io("list", directory, source))?.file_name();
        if name != ADAPTER_CONFIG && name != ADAPTER_MODEL && name != "README.md" {
            let got = format!("{} in it", name.to_string_lossy());
            return Err(TrainError::checkpoint(
                directory,
                "a new directory, or one with nothing but an adapter",
                got,
                "name another directory",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bayan_weights::DirectorySource;
    use std::rc::Rc;

    #[test]
    fn an_adapter_survives_the_disk_and_nothing_else_is_overwritten() {
        let source = DirectorySource::new(crate::testing::path(&["lora", "qwen2_r4_rslora", "adapter_final"])).unwrap();
        let adapter = pollster::block_on(Adapter::open(Rc::new(source))).unwrap();
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("runs/first");
        for _ in 0..2 {
            write_adapter(&target, &adapter).unwrap();
            let back = pollster::block_on(Adapter::open(Rc::new(DirectorySource::new(&target).unwrap()))).unwrap();
            assert_eq!(back, adapter);
        }
        let left: Vec<_> =
            std::fs::read_dir(place.path().join("runs")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["first"], "nothing partial stays");
        std::fs::write(target.join("thesis.txt"), "years of work").unwrap();
        assert!(write_adapter(&target, &adapter).unwrap_err().to_string().contains("thesis.txt"));
        assert!(target.join("thesis.txt").exists());
        std::fs::write(place.path().join("file"), "").unwrap();
        assert!(write_adapter(&place.path().join("file"), &adapter).is_err());
    }
}
