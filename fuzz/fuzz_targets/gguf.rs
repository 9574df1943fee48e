//! One GGUF file: open it, read every tensor as rows and as planes, and read its tokenizer.
#![no_main]

use bayan_weights::{Checkpoint, MemorySource};
use libfuzzer_sys::fuzz_target;
use pollster::block_on;
use std::rc::Rc;

const MAX_ROWS: usize = 256;

fuzz_target!(|bytes: &[u8]| {
    let source = MemorySource::new().with("m.gguf", bytes.to_vec());
    let checkpoint = match block_on(Checkpoint::open(Rc::new(source))) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(checkpoint.size_bytes() <= bytes.len() as u64);
    for entry in checkpoint.tensors() {
        let rows = entry.rows().min(MAX_ROWS);
        if let Ok(values) = block_on(checkpoint.read_rows_f32(&entry.name, 0..rows)) {
            assert_eq!(values.len(), rows * entry.k());
        }
        let format = entry.loaded_format(None);
        if let Ok(planes) = block_on(checkpoint.read_planes(&entry.name, 0..rows, format)) {
            assert_eq!(planes.dequantize().len(), rows * entry.k());
        }
    }
    for file in ["tokenizer.json", "tokenizer_config.json", "config.json"] {
        let _ = block_on(checkpoint.text(file));
    }
});
