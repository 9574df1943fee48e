//! Helpers: threads that share no memory with the CPU's own, such as a browser's workers without shared WebAssembly
//! memory. Each keeps a part of the rows of the large matrices and multiplies them.
//!
//! The rows of a matrix are divided when they are loaded, so that weights are in memory once. A product sends its
//! input to every helper, computes the rows that stayed here meanwhile, and collects the other results: the same bits
//! as on one thread, because a row's result does not depend on other rows. Rejected: memory that all threads share,
//! which WebAssembly has only with a standard library that no stable toolchain ships.

mod helper;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bayan_gpu::GpuError;
use bayan_weights::Format;

use super::activations::Activations;
use super::product;
use crate::graph::host::LANES;
pub use helper::Helper;

/// Memory of [`CHANNEL_BYTES`] through which two threads talk that share no other. One side at a time uses it.
pub trait Channel: std::fmt::Debug + Send + Sync {
    /// Copies bytes into it.
    fn write(&self, at: usize, bytes: &[u8]);
    /// Copies bytes out of it.
    fn read(&self, at: usize, bytes: &mut [u8]);
    /// Gives it to the other side.
    fn pass(&self);
    /// Waits until the other side gives it back.
    ///
    /// # Errors
    /// Why that will not happen.
    fn wait(&self) -> Result<(), String>;
}

/// Bytes of a channel: the results of a head of 262,144 rows several times over. Unused pages take no memory.
pub const CHANNEL_BYTES: usize = 16 << 20;

/// Bytes of a message before its contents: a kind, and its numbers.
const HEAD_BYTES: usize = 64;

/// Multiply-adds of a matrix that is worth a helper. Below this, the exchange takes longer than a second thread saves.
const LEAST_DIVIDED: usize = 3 << 19;

/// Parts of a stacked matrix in one message.
const MOST_PARTS: usize = 8;

/// Tokens in one message.
const MOST_TOKENS: usize = 64;

/// What a message asks of a helper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Kind {
    /// Make room for rows: id, rows, columns, length of the format's name; then the name.
    Reserve = 1,
    /// Write rows of a plane: id, plane, first row, bytes; then the bytes.
    Write = 2,
    /// Free the rows: id.
    Forget = 3,
    /// One row as f32: id, row. The answer has the row, padded to whole blocks.
    Row = 4,
    /// Products: tokens, columns, whether x is there rounded, whether it is there in f32, number of parts, their ids;
    /// then x. The answer has [tokens, rows] of each part.
    Multiply = 5,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Reserve, Kind::Write, Kind::Forget, Kind::Row, Kind::Multiply];
}

/// Where the parts of x are in a message, and where the results begin.
#[derive(Debug, Clone, Copy)]
struct Layout {
    codes: usize,
    scales: usize,
    dense: usize,
    results: usize,
}

impl Layout {
    fn new(tokens: usize, columns: usize, rounded: bool, dense: bool) -> Layout {
        let blocks = columns.div_ceil(32);
        let codes = HEAD_BYTES;
        let scales = codes + if rounded { tokens * blocks * 32 } else { 0 };
        let values = scales + if rounded { tokens * blocks * 16 } else { 0 };
        let results = values + if dense { tokens * columns * 4 } else { 0 };
        Layout { codes, scales, dense: values, results }
    }
}

/// The helpers of a CPU.
#[derive(Debug)]
pub(crate) struct Helpers {
    channels: Vec<Box<dyn Channel>>,
    next: AtomicU32,
    /// Why one of the helpers answers no more.
    failure: Mutex<Option<String>>,
    /// Whoever holds this talks to the helpers.
    turn: Mutex<()>,
}

impl Helpers {
    pub(crate) fn new(channels: Vec<Box<dyn Channel>>) -> Helpers {
        Helpers { channels, next: AtomicU32::new(1), failure: Mutex::new(None), turn: Mutex::new(()) }
    }

    pub(crate) fn count(&self) -> usize {
        self.channels.len()
    }

    /// Fails if a helper has failed.
    pub(crate) fn check(&self) -> Result<(), GpuError> {
        match &*self.failure.lock().unwrap_or_else(|e| e.into_inner()) {
            Some(reason) => Err(GpuError::DeviceLost(format!("a helper thread of the CPU ended: {reason}"))),
            None => Ok(()),
        }
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Starts a message. Nothing is sent to helpers of which one has failed: their results are of no use.
    fn start(&self, helper: usize, kind: Kind, numbers: &[usize]) -> Option<&dyn Channel> {
        self.check().ok()?;
        let mut head = vec![kind as u32];
        head.extend(numbers.iter().map(|&number| number as u32));
        let channel = self.channels[helper].as_ref();
        channel.write(0, bytemuck::cast_slice(&head));
        Some(channel)
    }

    /// Waits for the answer; returns whether there is one.
    fn answered(&self, channel: &dyn Channel) -> bool {
        match channel.wait() {
            Ok(()) => true,
            Err(reason) => {
                *self.failure.lock().unwrap_or_else(|e| e.into_inner()) = Some(reason);
                false
            }
        }
    }

    /// Divides the rows of a new matrix, if that pays.
    pub(crate) fn divide(
        self: &Arc<Self>,
        format: &'static dyn Format,
        rows: usize,
        columns: usize,
    ) -> Option<Divided> {
        let fits = HEAD_BYTES + 8 * columns.next_multiple_of(32) + 4 * rows <= CHANNEL_BYTES / MOST_PARTS;
        let pays = rows.saturating_mul(columns) >= LEAST_DIVIDED;
        if self.channels.is_empty() || !fits || !pays || !product::is_fast(format) {
            return None;
        }
        let (groups, threads) = (rows.div_ceil(LANES), self.channels.len() + 1);
        let bound = |thread: usize| (groups * thread / threads * LANES).min(rows);
        let bounds: Vec<usize> = (1..=threads).map(bound).collect();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let divided = Divided { helpers: self.clone(), id, bounds, columns };
        let _turn = self.turn();
        for helper in 0..self.channels.len() {
            let name = format.name().as_bytes();
            let numbers = [id as usize, divided.rows(helper).len(), columns, name.len()];
            if let Some(channel) = self.start(helper, Kind::Reserve, &numbers) {
                channel.write(HEAD_BYTES, name);
                channel.pass();
                self.answered(channel);
            }
        }
        Some(divided)
    }

    /// Sends x to all helpers, for the products with these matrices.
    pub(crate) fn begin<'a>(&'a self, x: &Input<'_>, parts: Vec<Part<'a>>) -> Exchange<'a> {
        assert!(parts.len() <= MOST_PARTS, "{} parts in one message", parts.len());
        let turn = self.turn();
        let layout = Layout::new(x.tokens, x.columns, x.rounded.is_some(), x.dense.is_some());
        let mut numbers = vec![x.tokens, x.columns, x.rounded.is_some().into(), x.dense.is_some().into(), parts.len()];
        numbers.extend(parts.iter().map(|part| part.divided.id as usize));
        let mut waiting = 0;
        for helper in 0..self.channels.len() {
            let Some(channel) = self.start(helper, Kind::Multiply, &numbers) else { break };
            if let Some(rounded) = x.rounded {
                channel.write(layout.codes, bytemuck::cast_slice(&rounded.codes));
                channel.write(layout.scales, bytemuck::cast_slice(&rounded.scales));
            }
            if let Some(dense) = x.dense {
                channel.write(layout.dense, bytemuck::cast_slice(dense));
            }
            channel.pass();
            waiting += 1;
        }
        Exchange { helpers: self, tokens: x.tokens, results: layout.results, parts, waiting, _turn: turn }
    }
}

/// The input of products.
pub(crate) struct Input<'a> {
    pub(crate) tokens: usize,
    pub(crate) columns: usize,
    /// Where a part is quantized.
    pub(crate) rounded: Option<&'a Activations>,
    /// Where a part is dense.
    pub(crate) dense: Option<&'a [f32]>,
}

/// A matrix that takes part in an exchange; its row 0 gives column `first` of y.
pub(crate) struct Part<'a> {
    pub(crate) divided: &'a Divided,
    pub(crate) first: usize,
}

/// Products that the helpers compute.
pub(crate) struct Exchange<'a> {
    helpers: &'a Helpers,
    tokens: usize,
    results: usize,
    parts: Vec<Part<'a>>,
    /// Helpers that were asked.
    waiting: usize,
    _turn: MutexGuard<'a, ()>,
}

impl Exchange<'_> {
    /// Waits for the results, and puts them into y [tokens, width]. Where a helper has failed, y keeps its values.
    pub(crate) fn finish(self, bias: Option<&[f32]>, y: &mut [f32], width: usize) {
        for helper in 0..self.waiting {
            let channel = self.helpers.channels[helper].as_ref();
            if !self.helpers.answered(channel) {
                continue;
            }
            let mut at = self.results;
            for part in &self.parts {
                let rows = part.divided.rows(helper);
                let (from, to) = (part.first + rows.start, part.first + rows.end);
                for token in 0..self.tokens {
                    let values = &mut y[token * width + from..token * width + to];
                    channel.read(at, bytemuck::cast_slice_mut(values));
                    at += 4 * rows.len();
                    if let Some(bias) = bias {
                        values.iter_mut().zip(&bias[from..to]).for_each(|(value, bias)| *value += bias);
                    }
                }
            }
        }
    }
}

/// Which rows of a matrix the helpers keep.
#[derive(Debug)]
pub(crate) struct Divided {
    helpers: Arc<Helpers>,
    id: u32,
    /// For each thread, the row after its last; this thread is the first.
    bounds: Vec<usize>,
    columns: usize,
}

impl Divided {
    /// Number of rows that are not with a helper: the first ones.
    pub(crate) fn own_rows(&self) -> usize {
        self.bounds[0]
    }

    fn rows(&self, helper: usize) -> Range<usize> {
        self.bounds[helper]..self.bounds[helper + 1]
    }

    /// The most tokens of which products with these matrices fit a message.
    pub(crate) fn most_tokens(parts: &[Part<'_>]) -> usize {
        let Some(first) = parts.first() else { return usize::MAX };
        let helpers = 0..first.divided.helpers.count();
        let rows = helpers.map(|helper| parts.iter().map(|part| part.divided.rows(helper).len()).sum::<usize>());
        let each = 6 * first.divided.columns.next_multiple_of(32) + 4 * rows.max().unwrap_or(0);
        ((CHANNEL_BYTES - HEAD_BYTES) / each).clamp(1, MOST_TOKENS)
    }

    /// Passes consecutive rows of a plane, from row `first` on, to the helpers that keep them.
    pub(crate) fn write(&self, plane: usize, first: usize, rows: &[u8], row_bytes: usize) {
        let _turn = self.helpers.turn();
        let most = ((CHANNEL_BYTES - HEAD_BYTES) / row_bytes).max(1);
        for helper in 0..self.helpers.count() {
            let kept = self.rows(helper);
            let (start, end) = (kept.start.max(first), kept.end.min(first + rows.len() / row_bytes));
            for from in (start..end).step_by(most) {
                let bytes = &rows[(from - first) * row_bytes..(end.min(from + most) - first) * row_bytes];
                let numbers = [self.id as usize, plane, from - kept.start, bytes.len()];
                let Some(channel) = self.helpers.start(helper, Kind::Write, &numbers) else { return };
                channel.write(HEAD_BYTES, bytes);
                channel.pass();
                self.helpers.answered(channel);
            }
        }
    }

    /// A row of a helper as f32; `out` has the number of columns, rounded up to whole blocks.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        let _turn = self.helpers.turn();
        let Some(helper) = (0..self.helpers.count()).find(|helper| self.rows(*helper).contains(&row)) else { return };
        let numbers = [self.id as usize, row - self.rows(helper).start];
        let Some(channel) = self.helpers.start(helper, Kind::Row, &numbers) else { return };
        channel.pass();
        if self.helpers.answered(channel) {
            channel.read(HEAD_BYTES, bytemuck::cast_slice_mut(out));
        }
    }
}

impl Drop for Divided {
    fn drop(&mut self) {
        let _turn = self.helpers.turn();
        for helper in 0..self.helpers.count() {
            if let Some(channel) = self.helpers.start(helper, Kind::Forget, &[self.id as usize]) {
                channel.pass();
                self.helpers.answered(channel);
            }
        }
    }
}
