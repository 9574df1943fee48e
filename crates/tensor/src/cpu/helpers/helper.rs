//! The helper's side of the messages.

use std::collections::HashMap;

use bayan_weights::{Format, format_by_name};

use super::{Channel, HEAD_BYTES, Kind, Layout};
use crate::cpu::activations::Activations;
use crate::cpu::product::{self, Rows};
use crate::cpu::simd::Level;
use crate::graph::host::HostRows;

/// Rows that this helper keeps.
struct Kept {
    format: &'static dyn Format,
    rows: usize,
    columns: usize,
    host: HostRows,
}

/// A helper: the rows that it keeps, by the number of their matrix.
pub struct Helper {
    level: Level,
    kept: HashMap<u32, Kept>,
    /// The results of the current product.
    y: Vec<f32>,
}

impl Default for Helper {
    fn default() -> Self {
        Helper { level: Level::detect(), kept: HashMap::new(), y: Vec::new() }
    }
}

impl Helper {
    /// Answers messages until the channel ends; returns why it did.
    ///
    /// # Panics
    /// If a message is not one of [`crate::Cpu`]'s.
    pub fn serve(channel: &dyn Channel) -> String {
        let mut helper = Helper::default();
        loop {
            if let Err(reason) = channel.wait() {
                return reason;
            }
            helper.answer(channel);
            channel.pass();
        }
    }

    fn answer(&mut self, channel: &dyn Channel) {
        let mut head = [0u32; HEAD_BYTES / 4];
        channel.read(0, bytemuck::cast_slice_mut(&mut head));
        let numbers: Vec<usize> = head[1..].iter().map(|&number| number as usize).collect();
        let kind = Kind::ALL.into_iter().find(|kind| *kind as u32 == head[0]);
        match kind.unwrap_or_else(|| panic!("a message of kind {}", head[0])) {
            Kind::Reserve => self.reserve(channel, head[1], &numbers[1..4]),
            Kind::Write => {
                let mut rows = vec![0; numbers[3]];
                channel.read(HEAD_BYTES, &mut rows);
                self.of(head[1]).host.write(numbers[1], numbers[2], &rows);
            }
            Kind::Forget => drop(self.kept.remove(&head[1])),
            Kind::Row => {
                let Kept { format, columns, host, .. } = self.of(head[1]);
                let mut row = vec![0f32; columns.next_multiple_of(32)];
                host.dequantize(*format, numbers[1], &mut row);
                channel.write(HEAD_BYTES, bytemuck::cast_slice(&row));
            }
            Kind::Multiply => self.multiply(channel, &numbers, &head[6..]),
        }
    }

    fn of(&mut self, id: u32) -> &mut Kept {
        self.kept.get_mut(&id).unwrap_or_else(|| panic!("no rows of matrix {id}"))
    }

    fn reserve(&mut self, channel: &dyn Channel, id: u32, numbers: &[usize]) {
        let (rows, columns) = (numbers[0], numbers[1]);
        let mut name = vec![0; numbers[2]];
        channel.read(HEAD_BYTES, &mut name);
        let name = String::from_utf8_lossy(&name);
        let format = format_by_name(&name).unwrap_or_else(|| panic!("no format {name}"));
        self.kept.insert(id, Kept { format, rows, columns, host: HostRows::new(format, rows, columns) });
    }

    fn multiply(&mut self, channel: &dyn Channel, numbers: &[usize], ids: &[u32]) {
        let (tokens, columns, rounded, dense) = (numbers[0], numbers[1], numbers[2] == 1, numbers[3] == 1);
        let (layout, blocks) = (Layout::new(tokens, columns, rounded, dense), columns.div_ceil(32));
        let rounded = rounded.then(|| {
            let mut x =
                Activations { codes: vec![0; tokens * blocks * 32], scales: vec![0.0; tokens * blocks * 4], blocks };
            channel.read(layout.codes, bytemuck::cast_slice_mut(&mut x.codes));
            channel.read(layout.scales, bytemuck::cast_slice_mut(&mut x.scales));
            x
        });
        let mut x = vec![0f32; if dense { tokens * columns } else { 0 }];
        channel.read(layout.dense, bytemuck::cast_slice_mut(&mut x));
        let mut at = layout.results;
        for id in &ids[..numbers[4]] {
            let kept = self.kept.get(id).unwrap_or_else(|| panic!("no rows of matrix {id}"));
            self.y.resize(tokens * kept.rows, 0.0);
            let rows = Rows { host: &kept.host, format: kept.format, count: kept.rows, columns };
            product::rows(self.level, &rows, &x, rounded.as_ref(), &mut self.y);
            channel.write(at, bytemuck::cast_slice(&self.y));
            at += 4 * self.y.len();
        }
    }
}
