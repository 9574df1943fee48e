//! A PEFT adapter: the input is split at 0xff 0xff into adapter_config.json and adapter_model.safetensors.
#![no_main]

use bayan_models::{ADAPTER_CONFIG, ADAPTER_MODEL, Adapter};
use bayan_weights::MemorySource;
use libfuzzer_sys::fuzz_target;
use pollster::block_on;
use std::rc::Rc;

fuzz_target!(|bytes: &[u8]| {
    let cut = bytes.windows(2).position(|pair| pair == [0xff, 0xff]);
    let (config, weights) = cut.map_or((bytes, &[][..]), |cut| (&bytes[..cut], &bytes[cut + 2..]));
    let source = MemorySource::new().with(ADAPTER_CONFIG, config.to_vec()).with(ADAPTER_MODEL, weights.to_vec());
    let adapter = match block_on(Adapter::open(Rc::new(source))) {
        Ok(adapter) => adapter,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    // An adapter that was read must survive being written and read again.
    let written = adapter.encode_weights().expect("the sizes were checked");
    let again = MemorySource::new().with(ADAPTER_CONFIG, adapter.encode_config()).with(ADAPTER_MODEL, written);
    let again = block_on(Adapter::open(Rc::new(again))).expect("its own files");
    let arrays = |adapter: &Adapter| {
        adapter.modules.iter().map(|(n, m)| (n.clone(), m.rank, bits(&m.a), bits(&m.b))).collect::<Vec<_>>()
    };
    assert_eq!(arrays(&again), arrays(&adapter));
});

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}
