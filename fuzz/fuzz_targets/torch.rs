//! One PyTorch archive: its directory, its pickle, its tensors.
#![no_main]

use bayan_weights::{Checkpoint, MemorySource};
use libfuzzer_sys::fuzz_target;
use pollster::block_on;
use std::rc::Rc;

fuzz_target!(|bytes: &[u8]| {
    let source = MemorySource::new().with("config.json", &b"{}"[..]).with("pytorch_model.bin", bytes.to_vec());
    let checkpoint = match block_on(Checkpoint::open(Rc::new(source))) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    for entry in checkpoint.tensors() {
        assert!(entry.offsets[0] + entry.size_bytes() <= bytes.len() as u64);
        let rows = entry.rows().min(256);
        let _ = block_on(checkpoint.read_rows_f32(&entry.name, 0..rows));
    }
});
