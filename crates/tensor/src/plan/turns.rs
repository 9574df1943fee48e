//! Counts the loop iterations (turns) that kernels really take, to check the numbers that ops state.
//!
//! The condition of every loop in a kernel's text is instrumented, and an additional buffer stores the maximum over all
//! invocations, which each updates once, when it ends. Only tests make such plans.

use std::sync::{Mutex, PoisonError};

use bayan_gpu::{Buffer, Gpu, GpuError, ReadRequest, Slice};

/// Number of dispatches that one counter can record.
const MAX_DISPATCHES: usize = 1024;

/// The stated and the counted loop iterations of a dispatch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turns {
    /// The kernel's name.
    pub kernel: String,
    /// Largest number of iterations of one invocation, as the op states it.
    pub stated: u64,
    /// Largest number of iterations that one invocation took.
    pub taken: u64,
}

/// Counts loop iterations for the plans that are made with it.
#[derive(Debug)]
pub struct TurnCounter {
    buffer: Buffer,
    /// Bytes from one dispatch's count to the next. Each dispatch binds its own, so that kernels with the same text
    /// are compiled once.
    stride: u64,
    stated: Mutex<Vec<(String, u64)>>,
}

impl TurnCounter {
    /// A counter on this device.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(gpu: &Gpu) -> Result<TurnCounter, GpuError> {
        let stride = u64::from(gpu.capabilities().offset_alignment.max(16));
        Ok(TurnCounter {
            buffer: gpu.allocate("turns", MAX_DISPATCHES as u64 * stride)?,
            stride,
            stated: Mutex::default(),
        })
    }

    /// Adds the counting to a kernel's text and the counter's buffer to its bindings. Kernels without loops and
    /// dispatches beyond `MAX_DISPATCHES` stay unchanged.
    pub(super) fn instrument(&self, name: &str, stated: u64, source: &mut String, groups: &mut Vec<Vec<Slice>>) {
        // A kernel without loops takes no iterations; unchanged, it is one that other tests have compiled before.
        if !source.lines().any(|line| next_condition(line.split("//").next().unwrap_or("")).is_some()) {
            return;
        }
        let mut list = self.stated.lock().unwrap_or_else(PoisonError::into_inner);
        if list.len() == MAX_DISPATCHES {
            return;
        }
        *source = counted(source, groups.len());
        groups.push(vec![self.buffer.slice(list.len() as u64 * self.stride, 16)]);
        list.push((name.to_string(), stated));
    }

    /// The stated and counted iterations of all dispatches, in order. The plans must have run.
    ///
    /// # Errors
    /// The device fails.
    pub async fn read(&self, gpu: &Gpu) -> Result<Vec<Turns>, GpuError> {
        let request = ReadRequest {
            buffer: self.buffer.clone(),
            offset_bytes: 0,
            size_bytes: MAX_DISPATCHES as u64 * self.stride,
        };
        let mut taken = Vec::new();
        for read in gpu.submit([], &[request]) {
            let bytes = read.wait().await?;
            let counts = bytes.chunks_exact(self.stride as usize).filter_map(|bytes| bytes.first_chunk());
            taken.extend(counts.map(|bytes| u64::from(u32::from_le_bytes(*bytes))));
        }
        let list = self.stated.lock().unwrap_or_else(PoisonError::into_inner);
        let turns = list.iter().zip(taken);
        Ok(turns.map(|((kernel, stated), taken)| Turns { kernel: kernel.clone(), stated: *stated, taken }).collect())
    }
}

/// The text with every loop's condition counted, including the test that ends the loop. Group `group` holds the count,
/// which a new `main` updates after the kernel's own.
fn counted(source: &str, group: usize) -> String {
    let mut text = String::with_capacity(source.len() * 2);
    let mut entry = "";
    let mut main = None;
    for line in source.lines() {
        let mut rest = line.split("//").next().unwrap_or("");
        if rest.starts_with("@compute") {
            entry = rest;
            continue;
        }
        if let Some(parameters) = rest.strip_prefix("fn main(").and_then(|rest| rest.strip_suffix(") {")) {
            let own = without_attributes(parameters);
            let names: Vec<&str> = own.split(", ").filter_map(|parameter| parameter.split(':').next()).collect();
            main = Some(format!(
                "{entry}\nfn main({parameters}) {{\n  own_main({});\n  atomicMax(&turn_count, turns_taken);\n}}\n",
                names.join(", ")
            ));
            text.push_str(&format!("fn own_main({own}) {{\n"));
            continue;
        }
        while let Some((condition, end)) = next_condition(rest) {
            text.push_str(&rest[..condition]);
            text.push_str(" count_turn(");
            text.push_str(&rest[condition..end]);
            text.push(')');
            rest = &rest[end..];
        }
        text.push_str(rest);
        text.push('\n');
    }
    text.push_str(&main.unwrap_or_else(|| unreachable!("a kernel has an entry point on one line: {source}")));
    text.push_str(&format!(
        "@group({group}) @binding(0) var<storage, read_write> turn_count: atomic<u32>;\n\
         var<private> turns_taken: u32;\n\
         fn count_turn(goes_on: bool) -> bool {{ turns_taken += 1u; return goes_on; }}\n"
    ));
    text
}

/// Parameters of an entry point as those of an ordinary function, which has no `@builtin(…)`.
fn without_attributes(parameters: &str) -> String {
    let mut pieces = parameters.split("@builtin(");
    let first = pieces.next().unwrap_or("").to_string();
    pieces.fold(first, |all, piece| all + piece.split_once(") ").map_or("", |(_, rest)| rest))
}

/// The start and end of the condition of a line's first loop. Conditions contain no semicolon, and a loop opens on one
/// line.
fn next_condition(text: &str) -> Option<(usize, usize)> {
    let found = |word: &'static str| text.find(word).map(|at| (at + word.len(), word));
    let (start, word) = [found("for ("), found("while (")].into_iter().flatten().min()?;
    if word == "for (" {
        let condition = start + text[start..].find(';')? + 1;
        return Some((condition, condition + text[condition..].find(';')?));
    }
    let mut depth = 1;
    let end = text[start..].find(|letter| {
        depth += i32::from(letter == '(') - i32::from(letter == ')');
        depth == 0
    })?;
    Some((start, start + end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_is_counted() {
        let text = "@compute @workgroup_size(64)\n\
                    fn main(@builtin(workgroup_id) group: vec3<u32>, me: Invocation) {\n\
                    for (var i = min(a, b); i < 4u; i++) { for (var j = 0u; j < n(i); j++) { x(); } } // for (no)\n\
                    while ((a < b) && c) {\n}\n}\n";
        let counted = counted(text, 2);
        let expected = "fn own_main(group: vec3<u32>, me: Invocation) {\n\
                        for (var i = min(a, b); count_turn( i < 4u); i++) { for (var j = 0u; count_turn( j < n(i)); j++) ";
        assert!(counted.starts_with(expected), "{counted}");
        assert!(counted.contains("while ( count_turn((a < b) && c)) {"), "{counted}");
        let entry = "@compute @workgroup_size(64)\n\
                     fn main(@builtin(workgroup_id) group: vec3<u32>, me: Invocation) {\n  own_main(group, me);\n";
        assert!(counted.contains(entry) && counted.contains("@group(2) @binding(0)"), "{counted}");
    }
}
