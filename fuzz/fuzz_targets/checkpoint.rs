//! A sharded checkpoint: the input is split at 0xff 0xff into config, index and two shards.
#![no_main]

use bayan_weights::{Checkpoint, MemorySource};
use libfuzzer_sys::fuzz_target;
use pollster::block_on;
use std::rc::Rc;

fuzz_target!(|bytes: &[u8]| {
    const FILES: [&str; 4] = ["config.json", "model.safetensors.index.json", "a.safetensors", "b.safetensors"];
    let mut source = MemorySource::new();
    let mut rest = bytes;
    for file in FILES {
        let cut = rest.windows(2).position(|pair| pair == [0xff, 0xff]);
        let (part, after) = cut.map_or((rest, &[][..]), |cut| (&rest[..cut], &rest[cut + 2..]));
        source.insert(file, part.to_vec());
        rest = after;
    }
    let Ok(checkpoint) = block_on(Checkpoint::open(Rc::new(source))) else { return };
    for entry in checkpoint.tensors() {
        let rows = entry.rows().min(1024);
        let _ = block_on(checkpoint.read_rows_f32(&entry.name, 0..rows));
    }
    let _ = block_on(checkpoint.text("config.json"));
    let Err(error) = block_on(checkpoint.read_f32("no such tensor")) else { return };
    assert!(!error.to_string().is_empty());
});
