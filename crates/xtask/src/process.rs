//! Runs other programs: commands are printed, and an error says which one failed and how.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs `command` with its output visible; an error unless it exits with 0.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = describe(command);
    eprintln!("$ {shown}");
    let status = command.status().with_context(|| format!("`{shown}` could not be started"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// Runs `command` silently and returns its output; unless it exits with 0, an error with the end of its output.
pub fn capture(command: &mut Command) -> Result<String> {
    let shown = describe(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("`{shown}` could not be started"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = words.trim().lines().rev().take(12).collect();
        bail!("`{shown}` failed ({}): {}", output.status, last.into_iter().rev().collect::<Vec<_>>().join("\n"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether `command` can be started and exits with 0; nothing is shown.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The first program called `name` on the PATH.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(format!("{name}{}", std::env::consts::EXE_SUFFIX)))
        .find(|candidate| candidate.is_file())
}

/// A command as a user would type it, without the variable that every child process gets.
pub fn describe(command: &Command) -> String {
    let mut words = Vec::new();
    for (name, value) in command.get_envs() {
        let Some(value) = value.filter(|_| name != "XDG_RUNTIME_DIR") else { continue };
        words.push(format!("{}={}", name.to_string_lossy(), quote(&value.to_string_lossy())));
    }
    for word in std::iter::once(command.get_program()).chain(command.get_args()) {
        words.push(quote(&word.to_string_lossy()));
    }
    words.join(" ")
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_=/.,:+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// A directory for sockets on machines without a session, where Mesa would print a warning on every start.
pub fn runtime_dir(target: &Path) -> Option<PathBuf> {
    if std::env::var_os("XDG_RUNTIME_DIR").is_some() || !cfg!(unix) {
        return None;
    }
    let directory = target.join("xtask-runtime");
    std::fs::create_dir_all(&directory).ok()?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o700)).ok()?;
    }
    Some(directory)
}
