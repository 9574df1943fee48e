//! The logs of a run: a JSONL file, TensorBoard events, and at the end a loss plot as PNG and as a self-contained HTML
//! page.
//!
//! Each format is written here in a few lines. Rejected: plotting and protobuf crates, because each is larger than the
//! rest of this crate.

mod page;
mod picture;
mod tensorboard;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Result, TrainError};
use crate::files::replace_file;
pub use crate::log_entry::LogEntry;

/// The name of the JSONL log in a run's directory.
pub const LOG_FILE: &str = "train_log.jsonl";

/// Writes a run's logs.
#[derive(Debug)]
pub struct RunLog {
    directory: PathBuf,
    lines: File,
    events: tensorboard::EventFile,
}

fn seconds_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

impl RunLog {
    /// Opens the logs of a run in `directory`. When resuming, entries from `next_step` on are removed first, because
    /// their steps are repeated. A new run (`next_step` 0) starts an empty log.
    ///
    /// # Errors
    /// A file operation was refused.
    pub fn open(directory: &Path, next_step: u64) -> Result<Self> {
        fs::create_dir_all(directory).map_err(|source| TrainError::io("create", directory, source))?;
        let path = directory.join(LOG_FILE);
        let kept: Vec<LogEntry> = if next_step > 0 { read_log(directory)? } else { vec![] };
        let mut text = Vec::new();
        for entry in kept.iter().filter(|entry| entry.step < next_step) {
            text.extend(line(entry));
        }
        replace_file(&path, &text)?;
        let lines =
            OpenOptions::new().append(true).open(&path).map_err(|source| TrainError::io("open", &path, source))?;
        let now = seconds_now();
        let events = tensorboard::EventFile::create(&directory.join("tensorboard"), now)?;
        Ok(Self { directory: directory.to_owned(), lines, events })
    }

    /// Adds an entry to both logs.
    ///
    /// # Errors
    /// A write was refused.
    pub fn add(&mut self, entry: &LogEntry) -> Result<()> {
        let path = self.directory.join(LOG_FILE);
        self.lines.write_all(&line(entry)).map_err(|source| TrainError::io("write", &path, source))?;
        let scalars: Vec<(String, f64)> = entry.scalars().collect();
        let named: Vec<(&str, f64)> = scalars.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        self.events.add(seconds_now(), entry.step, &named)
    }

    /// Draws `loss.png` and `loss.html` from the log, with `title` as the heading.
    ///
    /// # Errors
    /// The log cannot be read, or a write was refused.
    pub fn plot(&self, title: &str) -> Result<()> {
        plot(&self.directory, title)
    }
}

fn line(entry: &LogEntry) -> Vec<u8> {
    let mut line = serde_json::to_vec(entry).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Reads a run's JSONL log. An incomplete last line, left by a kill, is ignored.
///
/// # Errors
/// The file cannot be read, or a line other than the last is not an entry.
pub fn read_log(directory: &Path) -> Result<Vec<LogEntry>> {
    let path = directory.join(LOG_FILE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(source) => return Err(TrainError::io("open", &path, source)),
    };
    let (mut entries, mut broken) = (vec![], None);
    for (number, line) in BufReader::new(file).split(b'\n').enumerate() {
        let line = line.map_err(|source| TrainError::io("read", &path, source))?;
        if let Some((number, error)) = broken {
            let shown = path.display().to_string();
            return Err(TrainError::data(
                &shown,
                "a log entry on each line",
                format!("{error} in line {number}"),
                "move the log away",
            ));
        }
        match serde_json::from_slice(&line) {
            Ok(entry) => entries.push(entry),
            Err(error) => broken = Some((number + 1, error.to_string())),
        }
    }
    Ok(entries)
}

/// Draws `loss.png` and `loss.html` of a run's directory.
///
/// # Errors
/// The log cannot be read, or a write was refused.
pub fn plot(directory: &Path, title: &str) -> Result<()> {
    let entries = read_log(directory)?;
    replace_file(&directory.join("loss.png"), &picture::png(&entries))?;
    replace_file(&directory.join("loss.html"), page::html(&entries, title).as_bytes())
}

/// Points (step, value) of one curve, without values that are not finite.
fn curve(entries: &[LogEntry], value: impl Fn(&LogEntry) -> Option<f64>) -> Vec<(f64, f64)> {
    entries.iter().filter_map(|e| value(e).filter(|v| v.is_finite()).map(|v| (e.step as f64, v))).collect()
}

/// An exponential moving average with bias correction.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = if points.len() > 400 { 0.97 } else { 0.9 };
    let (mut sum, mut weight) = (0.0, 0.0);
    let next = |(x, y): &(f64, f64)| {
        sum = keep * sum + (1.0 - keep) * y;
        weight = keep * weight + (1.0 - keep);
        (*x, sum / weight)
    };
    points.iter().map(next).collect()
}

/// The range of the values of curves, never empty.
fn range(curves: &[&[(f64, f64)]], pick: fn(&(f64, f64)) -> f64) -> (f64, f64) {
    let values = || curves.iter().flat_map(|c| c.iter().map(pick));
    let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
    match low.partial_cmp(&high) {
        Some(std::cmp::Ordering::Less) => (low, high),
        Some(std::cmp::Ordering::Equal) => (low - 0.5, high + 0.5),
        _ => (0.0, 1.0),
    }
}

/// About `count` round values for the ticks of an axis.
fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let rough = (high - low) / count.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough).unwrap_or(power);
    let first = (low / step).ceil() as i64;
    (first..).map(|n| n as f64 * step).take_while(|v| *v <= high + 1e-9 * step).take(3 * count).collect()
}

/// Formats a number for an axis.
fn label(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e6).contains(&size) {
        return format!("{value:.0e}");
    }
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(count: u64) -> Vec<LogEntry> {
        let entry = |step: u64| LogEntry {
            step,
            loss: Some(3.0 / (1.0 + step as f64 / 20.0)),
            learning_rate: Some(1e-4),
            eval_loss: (step % 10 == 9).then_some(2.0),
            ..LogEntry::default()
        };
        (0..count).map(entry).collect()
    }

    #[test]
    fn a_resumed_log_has_every_step_once() {
        let place = tempfile::tempdir().unwrap();
        let all = entries(10);
        let mut log = RunLog::open(place.path(), 0).unwrap();
        all[..8].iter().for_each(|e| log.add(e).unwrap());
        drop(log);
        // An incomplete line, as a kill leaves it.
        let path = place.path().join(LOG_FILE);
        let mut text = fs::read(&path).unwrap();
        text.extend(b"{\"step\": 8, \"lo");
        fs::write(&path, text).unwrap();
        let mut log = RunLog::open(place.path(), 5).unwrap();
        all[5..].iter().for_each(|e| log.add(e).unwrap());
        assert_eq!(read_log(place.path()).unwrap(), all);
        fs::write(&path, "x\n{}\n").unwrap();
        assert!(read_log(place.path()).unwrap_err().to_string().contains("line 1"));
    }

    #[test]
    fn plots_are_drawn_for_any_log() {
        let place = tempfile::tempdir().unwrap();
        for count in [0, 1, 2, 300] {
            let mut log = RunLog::open(place.path(), 0).unwrap();
            let mut all = entries(count);
            if let Some(entry) = all.get_mut(1) {
                entry.loss = Some(7e9);
            }
            all.iter().for_each(|e| log.add(e).unwrap());
            log.plot("a <run> & its \"loss\"").unwrap();
            let png = fs::read(place.path().join("loss.png")).unwrap();
            assert!(png.starts_with(b"\x89PNG\r\n\x1a\n") && png.ends_with(b"IEND\xaeB`\x82"));
            let html = fs::read_to_string(place.path().join("loss.html")).unwrap();
            assert!(
                html.contains("a &lt;run&gt; &amp; its &quot;loss&quot;") && !html.contains("http"),
                "self-contained and escaped"
            );
            assert_eq!(html.contains("<polyline"), count > 1);
        }
    }

    #[test]
    fn axes_have_round_marks() {
        assert_eq!(ticks(0.0, 10.0, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(label(0.25), "0.25");
        assert_eq!(label(0.0001), "1e-4");
        assert_eq!(label(3.0), "3");
        let smooth = smoothed(&[(0.0, 2.0), (1.0, 2.0), (2.0, 2.0)]);
        assert!(smooth.iter().all(|p| (p.1 - 2.0).abs() < 1e-12));
    }
}
