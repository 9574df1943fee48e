//! Directories that are either complete or absent: written under a temporary name, flushed, renamed.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Result, TrainError};

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// Writes files into a new directory and moves it to `target` (replacing an existing one) in one rename. Until then
/// `target` is unchanged.
///
/// # Errors
/// A file operation was refused; the partial directory is removed.
pub(crate) fn replace_directory(target: &Path, files: &[(&str, &[u8])]) -> Result<()> {
    let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|source| TrainError::io("create", parent, source))?;
    let name = target.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let partial = parent.join(format!(".{name}.partial-{}-{serial}", std::process::id()));
    let written = fill(&partial, files).and_then(|()| move_into_place(&partial, target));
    if written.is_err() {
        let _ = fs::remove_dir_all(&partial);
    }
    written
}

fn fill(partial: &Path, files: &[(&str, &[u8])]) -> Result<()> {
    fs::create_dir(partial).map_err(|source| TrainError::io("create", partial, source))?;
    for (name, bytes) in files {
        let path = partial.join(name);
        write_through(&path, bytes)?;
    }
    sync_directory(partial)
}

fn write_through(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(|source| TrainError::io("create", path, source))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|source| TrainError::io("write", path, source))
}

/// Flushes a directory's entries, so that renames survive a power failure, where the system supports it.
fn sync_directory(path: &Path) -> Result<()> {
    if cfg!(unix) {
        let synced = File::open(path).and_then(|directory| directory.sync_all());
        synced.map_err(|source| TrainError::io("flush", path, source))?;
    }
    Ok(())
}

fn move_into_place(partial: &Path, target: &Path) -> Result<()> {
    let rename = |from: &Path, to: &Path| fs::rename(from, to).map_err(|source| TrainError::io("rename", from, source));
    let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match fs::symlink_metadata(target) {
        Err(_) => rename(partial, target)?,
        Ok(data) if !data.is_dir() => {
            return Err(TrainError::checkpoint(
                target,
                "a directory, or a path that does not exist",
                "a file",
                "choose another output directory",
            ));
        }
        Ok(_) => {
            let mut old = partial.to_path_buf().into_os_string();
            old.push("-old");
            let old = PathBuf::from(old);
            rename(target, &old)?;
            if let Err(error) = rename(partial, target) {
                rename(&old, target)?;
                return Err(error);
            }
            fs::remove_dir_all(&old).map_err(|source| TrainError::io("remove", &old, source))?;
        }
    }
    sync_directory(parent)
}

/// Replaces one file in one rename.
///
/// # Errors
/// A file operation was refused.
pub(crate) fn replace_file(target: &Path, bytes: &[u8]) -> Result<()> {
    let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|source| TrainError::io("create", parent, source))?;
    let name = target.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let partial =
        parent.join(format!(".{name}.partial-{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed)));
    let written = write_through(&partial, bytes)
        .and_then(|()| fs::rename(&partial, target).map_err(|source| TrainError::io("rename", &partial, source)))
        .and_then(|()| sync_directory(parent));
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}
