//! Checks whether this machine can run Vulkan, and installs what is missing.
//!
//! Vulkan is a loader (`libvulkan.so.1`) and one driver per kind of device, each described by a small JSON file. The
//! check looks for files: loading the library would crash this program if a driver is broken, and a driver without its
//! library (a GPU container without its graphics part) must count as missing.

use crate::{packages, process};
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The result of the check.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    /// Whether the loader exists.
    loader: bool,
    /// Driver files whose library exists too.
    drivers: Vec<PathBuf>,
}

/// Installs a loader if there is none, and a software driver if there is no driver. Does nothing on a machine with a
/// GPU driver.
pub fn set_up() -> Result<()> {
    if !cfg!(target_os = "linux") {
        // Metal and Direct3D are part of the system.
        return Ok(());
    }
    let found = look(&driver_directories(), &Libraries::of_this_machine());
    let missing = missing_packages(&found);
    if missing.is_empty() {
        return Ok(());
    }
    let why = match (found.loader, found.drivers.is_empty()) {
        (true, _) => "no Vulkan driver was found, so models run on the CPU through Mesa's software driver",
        (false, true) => {
            "no Vulkan loader and no driver were found, so models run on the CPU through Mesa's software driver"
        }
        (false, false) => "a Vulkan driver is here, but not the loader that finds it",
    };
    packages::install(&missing, why)
}

fn missing_packages(found: &Found) -> Vec<&'static str> {
    let mut packages = Vec::new();
    if !found.loader {
        packages.push("libvulkan1");
    }
    if found.drivers.is_empty() {
        packages.push("mesa-vulkan-drivers");
    }
    packages
}

fn look(directories: &[PathBuf], libraries: &Libraries) -> Found {
    let mut drivers = Vec::new();
    for directory in directories {
        let Ok(entries) = std::fs::read_dir(directory) else { continue };
        let files = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|end| end == "json"));
        drivers.extend(files.filter(|path| is_usable(path, libraries)));
    }
    for path in named_drivers() {
        if is_usable(&path, libraries) {
            drivers.push(path);
        }
    }
    drivers.sort();
    Found { loader: libraries.has("libvulkan.so.1"), drivers }
}

/// Whether a driver file parses and its library exists.
fn is_usable(manifest: &Path, libraries: &Libraries) -> bool {
    let Ok(text) = std::fs::read_to_string(manifest) else { return false };
    let Ok(json) = serde_json::from_str::<serde_json::Value>(&text) else { return false };
    let Some(library) = json["ICD"]["library_path"].as_str() else { return false };
    if library.contains('/') {
        return manifest.parent().is_some_and(|directory| directory.join(library).exists());
    }
    libraries.has(library)
}

/// The directories that the loader searches for driver files.
fn driver_directories() -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> =
        ["/etc", "/usr/local/etc", "/usr/local/share", "/usr/share"].map(PathBuf::from).to_vec();
    if let Some(list) = std::env::var_os("XDG_DATA_DIRS") {
        roots.extend(std::env::split_paths(&list));
    }
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let data =
        std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).or_else(|| home.map(|home| home.join(".local/share")));
    roots.extend(data);
    roots.sort();
    roots.dedup();
    roots.into_iter().map(|root| root.join("vulkan/icd.d")).collect()
}

/// The driver files named in the environment.
fn named_drivers() -> Vec<PathBuf> {
    ["VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_ADD_DRIVER_FILES"]
        .iter()
        .filter_map(std::env::var_os)
        .flat_map(|list| std::env::split_paths(&list).collect::<Vec<_>>())
        .collect()
}

/// The shared libraries known to the dynamic linker.
struct Libraries {
    /// `ldconfig -p`, empty where it cannot be run.
    cache: String,
    directories: Vec<PathBuf>,
}

impl Libraries {
    fn of_this_machine() -> Self {
        let cache = ["ldconfig", "/sbin/ldconfig", "/usr/sbin/ldconfig"]
            .iter()
            .find_map(|program| process::capture(Command::new(program).arg("-p")).ok())
            .unwrap_or_default();
        let mut directories: Vec<PathBuf> =
            ["/lib", "/usr/lib", "/usr/lib64", "/usr/local/lib"].map(PathBuf::from).to_vec();
        directories.push(PathBuf::from(format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH)));
        if let Some(list) = std::env::var_os("LD_LIBRARY_PATH") {
            directories.extend(std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()));
        }
        Self { cache, directories }
    }

    fn has(&self, name: &str) -> bool {
        let cached = self.cache.lines().any(|line| line.split_whitespace().next() == Some(name));
        cached || self.directories.iter().any(|directory| directory.join(name).exists())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn libraries(directory: &Path) -> Libraries {
        Libraries { cache: String::new(), directories: vec![directory.to_path_buf()] }
    }

    fn driver(directory: &Path, name: &str, library: &str) {
        fs::write(directory.join(name), format!(r#"{{"ICD":{{"api_version":"1.3.0","library_path":"{library}"}}}}"#))
            .expect("a file in a temporary directory");
    }

    #[test]
    fn a_bare_machine_gets_both_packages() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let found = look(&[directory.path().to_path_buf()], &libraries(directory.path()));
        assert_eq!(missing_packages(&found), ["libvulkan1", "mesa-vulkan-drivers"]);
    }

    #[test]
    fn a_machine_with_a_driver_gets_nothing() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(directory.path().join("libvulkan.so.1"), "").expect("a file in a temporary directory");
        fs::write(directory.path().join("libGLX_gpu.so.0"), "").expect("a file in a temporary directory");
        driver(directory.path(), "gpu_icd.json", "libGLX_gpu.so.0");
        let found = look(&[directory.path().to_path_buf()], &libraries(directory.path()));
        assert!(missing_packages(&found).is_empty(), "{found:?}");
    }

    #[test]
    fn a_driver_file_without_its_library_is_no_driver() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(directory.path().join("libvulkan.so.1"), "").expect("a file in a temporary directory");
        driver(directory.path(), "gpu_icd.json", "libGLX_gpu.so.0");
        driver(directory.path(), "absolute.json", "/nowhere/libdriver.so");
        fs::write(directory.path().join("broken.json"), "{").expect("a file in a temporary directory");
        let found = look(&[directory.path().to_path_buf()], &libraries(directory.path()));
        assert_eq!(missing_packages(&found), ["mesa-vulkan-drivers"]);
    }

    #[test]
    fn the_linker_cache_is_read_by_whole_names() {
        let libraries = Libraries {
            cache: "\tlibvulkan.so.1 (libc6,x86-64) => /usr/lib/libvulkan.so.1\n".to_owned(),
            directories: Vec::new(),
        };
        assert!(libraries.has("libvulkan.so.1"));
        assert!(!libraries.has("libvulkan.so"));
    }
}
