//! What a configuration says that is to be remembered is what the loaded model says, and what a cache then takes.

use std::path::PathBuf;
use std::rc::Rc;

use bayan_gpu::block_on;
use bayan_models::{Cache, CacheFormat, CacheShape, Opening};
use bayan_weights::{Checkpoint, DirectorySource};

#[test]
fn a_configuration_tells_what_a_model_remembers() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models");
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let checkpoint = block_on(Checkpoint::open(Rc::new(DirectorySource::new(entry.path()).unwrap()))).unwrap();
        let opening = Opening { context: 64 };
        let decoder = block_on(bayan_models::open(&checkpoint, None, &opening, None, &mut |_, _| {})).unwrap();
        let needs = bayan_models::cache_needs(&checkpoint).unwrap();
        assert_eq!(needs, decoder.cache_needs(), "{}", entry.path().display());
        for (context, step) in [(64, None), (64, Some(8)), (1000, Some(64))] {
            let shape = CacheShape { sequences: 2, context, format: CacheFormat::F16, step };
            let planned: u64 = needs.iter().map(|layer| layer.size_bytes(shape)).sum();
            assert_eq!(planned, Cache::new(None, shape, &needs).unwrap().size_bytes());
        }
    }
}
