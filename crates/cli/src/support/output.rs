//! Output for people and programs: errors, the log, progress bars, tables, sizes.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;

/// Shorter work needs no progress bar.
const PROGRESS_DELAY: Duration = Duration::from_millis(700);

/// Logs to stderr. Errors are not logged: they are returned and printed once. Warnings are always logged; `verbose` 1
/// adds what is loaded and chosen, 2 what is compiled, 3 everything of the libraries below. `RUST_LOG` says it for each
/// module (`bayan_gpu=debug`), `BAYAN_LOG` for all (`debug`); both take precedence. With `json`, every line is a JSON
/// object with its time, and a server's requests are logged too.
pub fn set_up_log(json: bool, verbose: u8) {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let mut filter = default_levels(json, verbose);
    for name in ["RUST_LOG", "BAYAN_LOG"] {
        let Some(value) = set(name) else { continue };
        match value.parse::<Targets>() {
            Ok(wanted) => filter = wanted,
            Err(error) => note(&format!(
                "{name}={value} has no effect ({error}): expected a level (error, warn, info, debug, trace), or pairs \
                 of module and level such as bayan_gpu=debug"
            )),
        }
        break;
    }
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let layer = match json {
        true => layer.json().flatten_event(true).with_filter(filter).boxed(),
        false => {
            layer.without_time().with_target(false).with_ansi(io::stderr().is_terminal()).with_filter(filter).boxed()
        }
    };
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer));
}

/// The levels without environment variables.
fn default_levels(json: bool, verbose: u8) -> Targets {
    let ours = match verbose {
        0 if json => LevelFilter::INFO,
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    };
    let others = if verbose > 2 { LevelFilter::DEBUG } else { LevelFilter::WARN };
    Targets::new().with_default(others).with_target("bayan", ours)
}

/// The message and its causes, without causes that the message already contains.
pub fn describe(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str("\n  because: ");
            text.push_str(&cause);
        }
    }
    text
}

/// Prints an error on stderr.
pub fn print_error(error: &anyhow::Error) {
    note(&format!("error: {}", describe(error)));
}

/// Prints one line on stderr, which may be closed.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Whether the error is a closed output.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

/// Prints one line on stdout.
pub fn line(text: &str) -> Result<()> {
    piece(&format!("{text}\n"))
}

/// Prints text on stdout immediately.
pub fn piece(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to stdout")
}

/// Prints JSON on stdout, indented.
pub fn json(value: &Value) -> Result<()> {
    line(&format!("{value:#}"))
}

/// Formats bytes for people.
pub fn size(bytes: u64) -> String {
    let value = bytes as f64;
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", value / 1e6),
        _ => format!("{:.2} GB", value / 1e9),
    }
}

/// Formats a count for people.
pub fn count(number: u64) -> String {
    match number {
        0..10_000 => number.to_string(),
        10_000..10_000_000 => format!("{:.2} M", number as f64 / 1e6),
        10_000_000..1_000_000_000 => format!("{:.0} M", number as f64 / 1e6),
        _ => format!("{:.2} B", number as f64 / 1e9),
    }
}

/// Formats rows in columns, the first aligned left and the others right.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([headings[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let format_row = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).enumerate().map(|(i, (cell, &width))| match i {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    let mut lines = vec![format_row(headings.to_vec())];
    lines.extend(rows.iter().map(|row| format_row(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}

/// A progress bar on stderr that appears only when the work takes long, and only on a terminal.
pub struct Progress {
    bar: ProgressBar,
    started: Instant,
    visible: bool,
}

impl Progress {
    /// A bar that counts bytes, or other things, with their rate and the time left.
    pub fn new(what: &str, bytes: bool) -> Progress {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let counts = if bytes { "{bytes}/{total_bytes} {bytes_per_sec}" } else { "{pos}/{len} {per_sec}" };
        if let Ok(style) = ProgressStyle::with_template(&format!("{{msg}} {{bar:30}} {counts} {{eta}}")) {
            bar.set_style(style);
        }
        bar.set_message(what.to_string());
        Progress { bar, started: Instant::now(), visible: false }
    }

    /// Sets the progress.
    pub fn set(&mut self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
        if !self.visible && self.started.elapsed() > PROGRESS_DELAY {
            self.visible = true;
            // Nothing is drawn when stderr is not a terminal.
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }

    /// Sets the progress to what was done before: the rate and the time left do not count it.
    pub fn skip(&mut self, done: u64, total: u64) {
        self.set(done, total);
        self.bar.reset_eta();
    }

    /// Sets the text of the bar.
    pub fn message(&self, text: &str) {
        self.bar.set_message(text.to_string());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_printed_once() {
        let inner = anyhow::anyhow!("no space left");
        let repeated = anyhow::Error::msg("cannot write x: no space left");
        assert_eq!(describe(&inner.context("cannot write x: no space left")), repeated.to_string());
        let chain = anyhow::anyhow!("the disk").context("the file").context("the model");
        assert_eq!(describe(&chain), "the model\n  because: the file\n  because: the disk");
    }

    #[test]
    fn tables_line_up() {
        let rows = vec![vec!["a".to_string(), "1".to_string()], vec!["long".to_string(), "22".to_string()]];
        assert_eq!(table(&["name", "n"], &rows), "name   n\na      1\nlong  22");
    }

    #[test]
    fn sizes_keep_three_figures_or_so() {
        assert_eq!(
            [size(999), size(1500), size(2_500_000), size(7_250_000_000)],
            ["999 B", "1.5 kB", "2.5 MB", "7.25 GB"]
        );
        assert_eq!(
            [count(9_999), count(112_000), count(500_000_000), count(7_000_000_000)],
            ["9999", "0.11 M", "500 M", "7.00 B"]
        );
    }
}
