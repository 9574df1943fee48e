//! Builds the browser engine: from `crates/wasm` to `bayan.js` and `bayan_bg.wasm`.
//!
//! There are three sources of a compiler for `wasm32-unknown-unknown`, tried in this order: the target is installed;
//! rustup adds it; Debian's `rustc-web` with the standard library compiled from source, for machines where rustup
//! cannot download.

use crate::{packages, process, tools, workspace};
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const TARGET: &str = "wasm32-unknown-unknown";

/// The engine's package, which is also the file name of its library.
const PACKAGE: &str = "bayan-wasm";

/// The name under which the page imports the engine.
const NAME: &str = "bayan";

/// WebAssembly features that rustc's output uses and all browsers have that the page supports (web/package/README.md).
const FEATURES: &[&str] = &[
    "--enable-bulk-memory",
    "--enable-mutable-globals",
    "--enable-multivalue",
    "--enable-nontrapping-float-to-int",
    "--enable-reference-types",
    "--enable-sign-ext",
    "--enable-simd",
];

/// Debian's compiler, the sources of its standard library, and the required linker.
const DEBIAN: &[&str] = &["rustc-web", "rust-web-src", "libstd-rust-web-dev", "lld-19"];

/// The compiler for the browser target.
enum Compiler {
    /// The installed Rust has the target.
    Installed,
    /// Debian's compiler, which builds the standard library as well.
    Debian,
}

/// Builds the engine of this workspace; returns the directory of `bayan.js` and `bayan_bg.wasm`.
pub fn build() -> Result<PathBuf> {
    build_package(&workspace::root(), PACKAGE, &workspace::target_dir()?)
}

/// Builds the `cdylib` of `package` in the workspace at `root`.
pub fn build_package(root: &Path, package: &str, target_dir: &Path) -> Result<PathBuf> {
    // Separate from the native build, because the flags differ and two cargo processes then need not wait for each
    // other.
    let build_dir = target_dir.join("wasm");
    let mut cargo = workspace::cargo();
    cargo
        .current_dir(root)
        .args(["build", "--release", "--package", package, "--target", TARGET, "--target-dir"])
        .arg(&build_dir);
    if matches!(compiler()?, Compiler::Debian) {
        cargo.args(["-Z", "build-std=std,panic_abort"]);
        cargo
            .env("RUSTC", "/usr/bin/rustc")
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", "wasm-ld-19");
        // cargo and rustup set these variables for their own compiler.
        cargo.env_remove("LD_LIBRARY_PATH").env_remove("RUSTUP_TOOLCHAIN");
    }
    process::run(&mut cargo)?;
    let wasm = build_dir.join(TARGET).join("release").join(format!("{}.wasm", package.replace('-', "_")));
    let out = build_dir.join("engine");
    if out.exists() {
        std::fs::remove_dir_all(&out).with_context(|| format!("{} could not be emptied", out.display()))?;
    }
    std::fs::create_dir_all(&out).with_context(|| format!("{} could not be made", out.display()))?;
    bindgen(&wasm, &out)?;
    append_helper(root, &out)?;
    optimize(&out.join(format!("{NAME}_bg.wasm")), &build_dir)?;
    Ok(out)
}

fn compiler() -> Result<Compiler> {
    if has_target() {
        return Ok(Compiler::Installed);
    }
    let debian_is_here = || {
        Path::new("/usr/bin/rustc").is_file() && process::find_program("wasm-ld-19").is_some() && debian_has_sources()
    };
    if debian_is_here() {
        return Ok(Compiler::Debian);
    }
    if process::find_program("rustup").is_some() {
        eprintln!("Installing the Rust target {TARGET}: the browser engine is compiled for it");
        let added = run_for(Command::new("rustup").args(["target", "add", TARGET]), Duration::from_secs(300));
        if added && has_target() {
            return Ok(Compiler::Installed);
        }
        eprintln!("rustup could not add {TARGET}; trying Debian's compiler instead");
    }
    packages::install(DEBIAN, "the browser engine needs a compiler for WebAssembly")?;
    if !debian_is_here() {
        bail!(
            "{} are installed, but /usr/bin/rustc has no sources of the standard library; remedy: rustup target add {TARGET}",
            DEBIAN.join(" ")
        );
    }
    Ok(Compiler::Debian)
}

/// Whether the installed Rust has a standard library for the browser.
fn has_target() -> bool {
    let mut command = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let Ok(directory) = process::capture(command.args(["--print", "target-libdir", "--target", TARGET])) else {
        return false;
    };
    std::fs::read_dir(directory.trim()).is_ok_and(|mut entries| entries.next().is_some())
}

fn debian_has_sources() -> bool {
    let sysroot =
        process::capture(Command::new("/usr/bin/rustc").env_remove("LD_LIBRARY_PATH").args(["--print", "sysroot"]));
    sysroot.is_ok_and(|sysroot| Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/std").is_dir())
}

/// Runs a command that may block on an unresponsive network; returns whether it succeeded in time.
fn run_for(command: &mut Command, limit: Duration) -> bool {
    eprintln!("$ {}", process::describe(command));
    let Ok(mut child) = command.spawn() else { return false };
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) if start.elapsed() < limit => std::thread::sleep(Duration::from_millis(100)),
            Ok(None) | Err(_) => {
                // It may have ended meanwhile; either way it is no longer running.
                let _ = child.kill();
                let _ = child.wait();
                return false;
            }
        }
    }
}

fn bindgen(wasm: &Path, out: &Path) -> Result<()> {
    let mut cargo = workspace::cargo();
    cargo.args(["run", "--quiet", "--package", "xtask", "--features", "bindgen", "--bin", "bindgen", "--"]);
    process::run(cargo.arg(wasm).arg(out).arg(NAME))
}

/// Appends the code of helper workers to the engine's module: they are the same file, started under another name.
fn append_helper(root: &Path, out: &Path) -> Result<()> {
    let from = root.join("crates/wasm/src/helper.js");
    if !from.is_file() {
        return Ok(());
    }
    let helper = std::fs::read_to_string(&from).with_context(|| format!("{} could not be read", from.display()))?;
    let module = out.join(format!("{NAME}.js"));
    let text = std::fs::read_to_string(&module).with_context(|| format!("{} could not be read", module.display()))?;
    std::fs::write(&module, text + &helper).with_context(|| format!("{} could not be written", module.display()))
}

/// Makes the module smaller and faster, in place. This takes a minute, so the result is cached by the digest of the
/// input.
fn optimize(wasm: &Path, build_dir: &Path) -> Result<()> {
    let Some(mut optimizer) = optimizer()? else {
        eprintln!(
            "wasm-opt {OLDEST_OPTIMIZER} or newer was not found: the engine is left as it is, larger but right; remedy: npm ci in web/"
        );
        return Ok(());
    };
    let bytes = std::fs::read(wasm).with_context(|| format!("{} could not be read", wasm.display()))?;
    let digest: String = Sha256::digest(&bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let kept = build_dir.join("optimized").join(format!("{digest}.wasm"));
    if !kept.is_file() {
        let folder = build_dir.join("optimized");
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("{} could not be emptied", folder.display()))?;
        }
        std::fs::create_dir_all(&folder).with_context(|| format!("{} could not be made", folder.display()))?;
        let unfinished = kept.with_extension("part");
        // `--strip-target-features`: the section has feature names that make older versions of wasm-opt fail.
        let flags = ["-O2", "--strip-debug", "--strip-producers", "--strip-target-features"];
        process::run(optimizer.args(flags).args(FEATURES).arg(wasm).arg("-o").arg(&unfinished))?;
        std::fs::rename(&unfinished, &kept)
            .with_context(|| format!("{} could not be renamed", unfinished.display()))?;
    }
    std::fs::copy(&kept, wasm).with_context(|| format!("{} could not be replaced", wasm.display()))?;
    let packed = gzipped(wasm).map_or_else(String::new, |bytes| format!(", {:.2} MB gzipped", bytes as f64 / 1e6));
    eprintln!("{}: {:.2} MB, was {:.2} MB{packed}", wasm.display(), size(wasm)? as f64 / 1e6, bytes.len() as f64 / 1e6);
    Ok(())
}

/// Older versions of wasm-opt write a module whose table of JavaScript references has the type of functions; such a
/// module does not start.
const OLDEST_OPTIMIZER: u32 = 116;

/// The wasm-opt of the page's npm packages, whose version is locked; otherwise the system's, if it is new enough.
fn optimizer() -> Result<Option<Command>> {
    if workspace::has_web() {
        let node = tools::node()?;
        tools::web_modules(node.as_deref())?;
        let script = workspace::root().join("web/node_modules/binaryen/bin/wasm-opt");
        if script.is_file() {
            let mut command = tools::in_web("node", node.as_deref())?;
            command.arg(script);
            return Ok(Some(command));
        }
    }
    let version = || {
        process::find_program("wasm-opt")?;
        let text = process::capture(Command::new("wasm-opt").arg("--version")).ok()?;
        // `wasm-opt version 116 (…)`
        text.split_whitespace().find_map(|word| word.parse::<u32>().ok())
    };
    Ok(version().filter(|&version| version >= OLDEST_OPTIMIZER).map(|_| Command::new("wasm-opt")))
}

fn size(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).with_context(|| format!("{} could not be read", path.display()))?.len())
}

/// Size of the file compressed by gzip, if gzip is installed.
fn gzipped(path: &Path) -> Option<usize> {
    let output = Command::new("gzip").args(["-9", "--stdout"]).arg(path).output().ok()?;
    output.status.success().then_some(output.stdout.len())
}
