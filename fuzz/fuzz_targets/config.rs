//! A config.json, read as sizes, rotary frequencies and sampling defaults.
#![no_main]

use bayan_generate::text::GenerationDefaults;
use bayan_models::{Fields, Rotary};
use bayan_weights::{Checkpoint, Dtype, MemorySource};
use libfuzzer_sys::fuzz_target;
use pollster::block_on;
use std::rc::Rc;

fuzz_target!(|bytes: &[u8]| {
    let mut weights = bayan_weights::safetensors::encode_header(&[("w", Dtype::F32, &[1], 4)], &Default::default());
    weights.extend([0; 4]);
    let source = MemorySource::new().with("config.json", bytes.to_vec()).with("model.safetensors", weights);
    let Ok(checkpoint) = block_on(Checkpoint::open(Rc::new(source))) else { return };
    if let Ok(sizes) = bayan_models::sizes(&checkpoint) {
        let fields = Fields(checkpoint.config());
        if let Ok(rotary) = Rotary::read(&fields, sizes.head_dim, sizes.max_position_embeddings, 64) {
            assert_eq!(rotary.table(3).len(), 3 * 2 * rotary.frequencies.len());
        }
    }
    let _ = GenerationDefaults::from_json(checkpoint.config());
});
