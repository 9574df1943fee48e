//! The CPU as a device: its threads, its vector instructions, and what it reports of itself.

use std::ops::Range;
use std::sync::Arc;

use bayan_gpu::{Capabilities, GpuError};

use super::helpers::{Channel, Helpers};
use super::simd::Level;
use super::threads::{Shared, Threads};

/// Values that are worth another thread, where each takes a few instructions.
const LEAST_VALUES: usize = 1 << 13;

#[derive(Debug)]
struct Inner {
    threads: Threads,
    level: Level,
    capabilities: Capabilities,
    /// Threads that share no memory with these.
    helpers: Option<Arc<Helpers>>,
}

/// The CPU as a device. Clones share its threads.
#[derive(Debug, Clone)]
pub struct Cpu(Arc<Inner>);

impl Cpu {
    /// The CPU with this many threads; `None`: one for each core that the program may use.
    ///
    /// # Errors
    /// The system starts no threads.
    pub fn open(threads: Option<usize>) -> Result<Cpu, GpuError> {
        Cpu::with_level(threads, Level::detect(), Vec::new())
    }

    /// As [`Cpu::open`], without vector instructions beyond those that the program is compiled for: the form of every
    /// kernel that any machine runs.
    ///
    /// # Errors
    /// As [`Cpu::open`].
    pub fn portable(threads: Option<usize>) -> Result<Cpu, GpuError> {
        Cpu::with_level(threads, Level::Portable, Vec::new())
    }

    /// The CPU with one thread, and a [`super::Helper`] behind each of these channels. Models that are loaded for it
    /// have a part of their rows there.
    ///
    /// # Errors
    /// As [`Cpu::open`].
    pub fn with_helpers(channels: Vec<Box<dyn Channel>>) -> Result<Cpu, GpuError> {
        Cpu::with_level(Some(1), Level::detect(), channels)
    }

    fn with_level(threads: Option<usize>, level: Level, channels: Vec<Box<dyn Channel>>) -> Result<Cpu, GpuError> {
        let threads =
            Threads::start(threads).map_err(|reason| GpuError::OpenFailed { device: "cpu".into(), reason })?;
        let capabilities = capabilities(threads.count(), level);
        tracing::info!("device: {}, {}", capabilities.name, capabilities.driver);
        let helpers = (!channels.is_empty()).then(|| Arc::new(Helpers::new(channels)));
        Ok(Cpu(Arc::new(Inner { threads, level, capabilities, helpers })))
    }

    /// The helpers, if there are any.
    pub(crate) fn helpers(&self) -> Option<&Arc<Helpers>> {
        self.0.helpers.as_ref()
    }

    /// Number of helpers.
    pub fn helper_count(&self) -> usize {
        self.helpers().map_or(0, |helpers| helpers.count())
    }

    /// Fails if a helper has failed: what was computed since then is wrong.
    ///
    /// # Errors
    /// Why the helper failed.
    pub fn check(&self) -> Result<(), GpuError> {
        self.helpers().map_or(Ok(()), |helpers| helpers.check())
    }

    /// Number of threads that share memory.
    pub fn threads(&self) -> usize {
        self.0.threads.count()
    }

    /// What the CPU reports of itself, in the terms of GPUs.
    pub fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    pub(crate) fn level(&self) -> Level {
        self.0.level
    }

    /// Runs a function whose parallel loops use the threads of this device.
    pub(super) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.0.threads.run(work)
    }

    /// Calls `work` with consecutive ranges that cover `0..count`, on all threads; no range has fewer than `least`
    /// numbers except the last. Inside of [`Cpu::run`].
    pub(crate) fn split(&self, count: usize, least: usize, work: impl Fn(Range<usize>) + Sync) {
        self.0.threads.split(count, least, work);
    }

    /// Calls `work` with ranges of the rows of y [rows, width], and their values, on all threads; a range has at least
    /// about `LEAST_VALUES` values.
    pub(crate) fn rows<T: Send>(&self, y: &mut [T], width: usize, work: impl Fn(Range<usize>, &mut [T]) + Sync) {
        let (count, to) = (y.len() / width.max(1), Shared::new(y));
        self.split(count, LEAST_VALUES.div_ceil(width.max(1)), |rows| {
            // SAFETY: each row is in one range.
            let part = unsafe { to.part(rows.start * width..rows.end * width) };
            work(rows, part);
        });
    }

    /// Calls `work` with ranges of y's values, as [`Cpu::rows`].
    pub(crate) fn values(&self, y: &mut [f32], work: impl Fn(Range<usize>, &mut [f32]) + Sync) {
        self.rows(y, 1, work);
    }
}

fn capabilities(threads: usize, level: Level) -> Capabilities {
    Capabilities {
        name: name().unwrap_or_else(|| std::env::consts::ARCH.to_string()),
        driver: format!("{threads} threads, {}", level.name()),
        backend: "Cpu".into(),
        device_type: "Cpu".into(),
        software: false,
        f16: false,
        subgroups: false,
        subgroup_size: (1, 1),
        dot: false,
        matrix_size: None,
        timestamps: true,
        unchecked: false,
        browser: cfg!(target_arch = "wasm32"),
        memory_bytes: None,
        max_binding_bytes: u64::MAX,
        max_buffer_bytes: u64::MAX,
        max_workgroup_bytes: 0,
        max_workgroup_size: 1,
        max_workgroups: 1,
        max_storage_buffers: 0,
        max_loop_turns: None,
        offset_alignment: 64,
        instructions: Some(level.name()),
        missing: Vec::new(),
    }
}

/// The processor's name, where the system has it in a file.
fn name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}
