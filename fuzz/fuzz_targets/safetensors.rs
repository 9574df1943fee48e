//! One safetensors file: open it and read every tensor as rows and as planes.
#![no_main]

use bayan_weights::{Checkpoint, FORMATS, MemorySource};
use libfuzzer_sys::fuzz_target;
use pollster::block_on;
use std::rc::Rc;

/// A shape with a zero may have billions of rows; reading a few of them is enough.
const MAX_ROWS: usize = 1024;

fuzz_target!(|bytes: &[u8]| {
    let source = MemorySource::new().with("config.json", &b"{}"[..]).with("model.safetensors", bytes.to_vec());
    let Ok(checkpoint) = block_on(Checkpoint::open(Rc::new(source))) else { return };
    assert!(checkpoint.size_bytes() <= bytes.len() as u64);
    for entry in checkpoint.tensors() {
        let rows = entry.rows().min(MAX_ROWS);
        if let Ok(values) = block_on(checkpoint.read_rows_f32(&entry.name, 0..rows)) {
            assert_eq!(values.len(), rows * entry.k());
        }
        for format in FORMATS {
            if let Ok(planes) = block_on(checkpoint.read_planes(&entry.name, 0..rows, *format)) {
                assert_eq!(planes.dequantize().len(), rows * entry.k());
            }
        }
    }
});
