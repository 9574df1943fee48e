//! `cargo xtask test`: sets up the requirements of the tests and runs all of them; those that fail fastest run first.
//!
//! The first failing step ends the run, and the summary lists the steps that were not run. Rejected: continuing after a
//! failure, because most later steps would report the same error again, more slowly.
//!
//! The site is built beside the steps between the tests and the browser tests, because much of either keeps only one
//! core busy. Rejected: building it beside the tests, some of which check times.

use crate::{kernels, process, tools, vulkan, wasm, web, workspace};
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// State shared by the steps.
struct Session {
    quick: bool,
    runtime_dir: Option<PathBuf>,
}

/// One line of the summary.
struct Step {
    title: &'static str,
    action: fn(&Session) -> Result<()>,
    /// Begins when the step with this title begins, on a thread of its own.
    beside: Option<&'static str>,
}

const fn step(title: &'static str, action: fn(&Session) -> Result<()>) -> Step {
    Step { title, action, beside: None }
}

/// Runs the steps; after a failure the exit code is 1.
pub fn run(quick: bool) -> Result<ExitCode> {
    let session = Session { quick, runtime_dir: process::runtime_dir(&workspace::target_dir()?) };
    let steps = steps(quick);
    let mut taken: Vec<Duration> = Vec::new();
    let start = Instant::now();
    let result = std::thread::scope(|scope| {
        let mut begun = HashMap::new();
        for (index, step) in steps.iter().enumerate() {
            for early in steps.iter().filter(|early| early.beside == Some(step.title)) {
                eprintln!("\n==> {}: begins now, beside the next steps", early.title);
                begun.insert(early.title, scope.spawn(|| (early.action)(&session)));
            }
            eprintln!("\n==> [{}/{}] {}", index + 1, steps.len(), step.title);
            let begin = Instant::now();
            let result = match begun.remove(step.title) {
                Some(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                None => (step.action)(&session),
            };
            taken.push(begin.elapsed());
            result?;
        }
        Ok::<(), anyhow::Error>(())
    });
    if let Err(error) = &result {
        eprintln!("error: {error:#}");
    }
    summarize(&steps, &taken, start.elapsed(), result.is_err());
    Ok(if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

const DOC_TESTS: &str = "Documentation tests (cargo test --doc)";

/// The steps for the existing parts of the project.
fn steps(quick: bool) -> Vec<Step> {
    let mut steps = vec![
        step("Tools: rustfmt, clippy, cargo-nextest, Vulkan", set_up),
        step("Formatting (cargo fmt)", format),
        step("Lints (cargo clippy, warnings are errors)", lint),
        step("Tests (cargo nextest)", tests),
    ];
    if quick {
        return steps;
    }
    if kernels::laboratory().is_some() {
        steps.push(step("Kernels for GPUs (compilers that BAYAN_GPU_LAB names)", gpu_kernels));
    }
    if workspace::has_web() {
        steps.push(step("Page: npm packages", npm_packages));
    }
    steps.push(step(DOC_TESTS, doc_tests));
    steps.push(step("Documentation (cargo doc, warnings are errors)", documentation));
    if workspace::has_wasm() && !workspace::has_web() {
        steps.push(step("Browser engine (WebAssembly)", |_| wasm::build().map(drop)));
    }
    if workspace::has_web() {
        steps.push(step("Page: types and unit tests", page_tests));
    }
    if workspace::has_web() {
        steps.push(if workspace::has_wasm() {
            Step { beside: Some(DOC_TESTS), ..step("Site: page, engine and model", |_| web::build_site().map(drop)) }
        } else {
            step("Page: build", |_| web::build_page().map(drop))
        });
    }
    if workspace::has_web() && !workspace::browser_tests().is_empty() {
        steps.push(step("Browser tests (Chromium)", browser_tests));
    }
    steps
}

fn summarize(steps: &[Step], taken: &[Duration], total: Duration, failed: bool) {
    println!("\nSummary");
    for (index, step) in steps.iter().enumerate() {
        let state = match taken.get(index) {
            Some(time) if failed && index + 1 == taken.len() => format!("FAILED {:>7.1} s", time.as_secs_f64()),
            Some(time) => format!("passed {:>7.1} s", time.as_secs_f64()),
            None => "not run".to_owned(),
        };
        println!("  {state:<17}  {}", step.title);
    }
    println!("  {:<17}  everything", format!("total  {:>7.1} s", total.as_secs_f64()));
    let failures = usize::from(failed);
    println!("steps: {} passed, {failures} failed, {} skipped", taken.len() - failures, steps.len() - taken.len());
}

impl Session {
    fn prepared(&self, mut command: Command) -> Command {
        if let Some(directory) = &self.runtime_dir {
            command.env("XDG_RUNTIME_DIR", directory);
        }
        command
    }

    fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = workspace::cargo();
        command.args(arguments);
        self.prepared(command)
    }
}

fn set_up(_: &Session) -> Result<()> {
    tools::c_compiler()?;
    tools::rust_components()?;
    vulkan::set_up()?;
    tools::nextest()
}

fn format(session: &Session) -> Result<()> {
    process::run(&mut session.cargo(&["fmt", "--all", "--check"])).context("remedy: cargo fmt --all")
}

fn lint(session: &Session) -> Result<()> {
    process::run(&mut session.cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

fn tests(session: &Session) -> Result<()> {
    let profile = if session.quick { "quick" } else { "default" };
    process::run(&mut session.cargo(&["nextest", "run", "--workspace", "--all-targets", "--profile", profile]))
}

fn gpu_kernels(session: &Session) -> Result<()> {
    let Some(lab) = kernels::laboratory() else { return Ok(()) };
    kernels::check(lab, built_program(session)?)
}

fn doc_tests(session: &Session) -> Result<()> {
    process::run(&mut session.cargo(&["test", "--workspace", "--doc", "--quiet"]))
}

fn documentation(session: &Session) -> Result<()> {
    process::run(session.cargo(&["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
}

/// Before steps that run at the same time and need them.
fn npm_packages(_: &Session) -> Result<()> {
    tools::web_modules(tools::node()?.as_deref())
}

fn page_tests(session: &Session) -> Result<()> {
    let node = tools::node()?;
    for script in ["check", "test"] {
        let mut command = tools::in_web("npm", node.as_deref())?;
        command.args(["run", script]);
        process::run(&mut session.prepared(command))?;
    }
    Ok(())
}

/// Browser tests that check how soon the page reacts: nothing else runs beside them.
const TIMED: [&str; 1] = ["page.test.mjs"];

/// The `bayan` of the everyday profile. Only with all targets are the features of its dependencies those of the native
/// tests, so that nothing is compiled again.
fn built_program(session: &Session) -> Result<PathBuf> {
    process::run(&mut session.cargo(&["build", "--workspace", "--all-targets"]))?;
    Ok(workspace::target_dir()?.join("debug").join(format!("bayan{}", std::env::consts::EXE_SUFFIX)))
}

fn browser_tests(session: &Session) -> Result<()> {
    let node = tools::node()?;
    let chromium = tools::chromium()?;
    // The browser's answers are compared with this program.
    let program = built_program(session)?;
    let (timed, others): (Vec<PathBuf>, Vec<PathBuf>) =
        workspace::browser_tests().into_iter().partition(|path| TIMED.iter().any(|name| path.ends_with(name)));
    // Each file starts a Chromium with a software GPU, whose compiler uses one core most of the time.
    for (files, at_once) in [(others, 2), (timed, 1)] {
        if files.is_empty() {
            continue;
        }
        let mut command = tools::in_web("node", node.as_deref())?;
        command.args(["--test", &format!("--test-concurrency={at_once}")]).args(files);
        command.env("BAYAN_CHROMIUM", &chromium).env("BAYAN_NATIVE", &program);
        // The path of the engine for the engine's tests.
        command.env("BAYAN_ENGINE", workspace::target_dir()?.join("wasm/engine"));
        process::run(&mut session.prepared(command))?;
    }
    Ok(())
}
