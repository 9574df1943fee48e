//! `cargo xtask chat`: from a machine with only Rust to a conversation.

use crate::{process, vulkan, workspace};
use anyhow::{Context, Result};
use std::process::{Command, ExitCode};

/// Sets up Vulkan, builds `bayan` in release mode, and replaces this process by it.
pub fn run(arguments: &[String]) -> Result<ExitCode> {
    vulkan::set_up()?;
    let bayan = build_bayan()?;
    let mut command = Command::new(bayan);
    command.arg("chat").args(arguments);
    if let Some(directory) = process::runtime_dir(&workspace::target_dir()?) {
        command.env("XDG_RUNTIME_DIR", directory);
    }
    become_program(command)
}

/// Builds the release program; returns its path.
pub fn build_bayan() -> Result<std::path::PathBuf> {
    process::run(workspace::cargo().args(["build", "--release", "--package", "bayan-cli"]))?;
    Ok(workspace::target_dir()?.join("release").join(format!("bayan{}", std::env::consts::EXE_SUFFIX)))
}

#[cfg(unix)]
fn become_program(mut command: Command) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    let shown = process::describe(&command);
    Err(command.exec()).with_context(|| format!("`{shown}` could not be started"))
}

#[cfg(not(unix))]
fn become_program(mut command: Command) -> Result<ExitCode> {
    let shown = process::describe(&command);
    let status = command.status().with_context(|| format!("`{shown}` could not be started"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
