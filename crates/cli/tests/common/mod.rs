//! Runs the program, and finds the fixtures.

#![allow(dead_code)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A folder of `tests/fixtures`.
pub fn fixtures(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(part)
}

/// A checkpoint of random weights.
pub fn model(name: &str) -> PathBuf {
    fixtures("models").join(name)
}

/// The names of all checkpoints, sorted.
pub fn every_model() -> Vec<String> {
    let entries = std::fs::read_dir(fixtures("models")).expect("tests/fixtures/models");
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    assert!(!names.is_empty(), "tests/fixtures/models has checkpoints");
    names
}

/// The program on the first GPU or software device, so that tests of kernels never take the CPU that is the default
/// where there is no GPU; without the environment variables of the person who runs the tests.
pub fn bayan() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bayan"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("BAYAN_") {
            command.env_remove(name);
        }
    }
    command.env("BAYAN_DEVICE", "0").stdin(Stdio::null());
    command
}

/// Runs the program; a crash fails the test, whatever was expected.
pub fn run(arguments: &[&str]) -> Output {
    finish(bayan().args(arguments))
}

/// Runs a prepared command.
pub fn finish(command: &mut Command) -> Output {
    let output = command.output().expect("the program starts");
    let errors = text(&output.stderr);
    assert!(output.status.code().is_some(), "killed by a signal: {errors}");
    assert!(!errors.contains("panicked"), "{errors}");
    output
}

/// Runs the program with lines on stdin.
pub fn run_with_input(arguments: &[&str], input: &str) -> Output {
    let mut child = bayan()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    // A program that stops early closes its stdin.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("the program ends")
}

/// The stdout of a successful run.
pub fn succeed(output: &Output) -> String {
    assert!(output.status.success(), "{:?}: {}", output.status, text(&output.stderr));
    text(&output.stdout)
}

/// The stderr of a run that failed with this code.
pub fn fail(output: &Output, code: i32) -> String {
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}{}", text(&output.stdout));
    assert!(!errors.is_empty(), "a failure without a message");
    errors
}

/// Decodes bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8 output")
}

/// A copy of a fixture's checkpoint, for tests that damage it.
pub fn copy_of(name: &str, into: &Path) -> PathBuf {
    let target = into.join(name);
    std::fs::create_dir_all(&target).expect("a directory");
    for entry in std::fs::read_dir(model(name)).expect("the fixture is there").flatten() {
        std::fs::copy(entry.path(), target.join(entry.file_name())).expect("a copy");
    }
    target
}
