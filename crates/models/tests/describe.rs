//! A configuration's description matches the tensors of its checkpoint, and the sizes that the loaded model reports.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use bayan_gpu::block_on;
use bayan_models::{Cache, CacheFormat, CacheShape, LoadOptions, describe};
use bayan_weights::{Checkpoint, DirectorySource};

/// All test checkpoints: those that transformers wrote, and GGUF files.
fn checkpoints() -> Vec<(String, Checkpoint)> {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    let entries = ["models", "gguf"].map(|folder| std::fs::read_dir(fixtures.join(folder)).unwrap());
    let paths = entries.into_iter().flatten().map(|entry| entry.unwrap().path());
    let paths = paths.filter(|path| path.is_dir() || path.extension().is_some_and(|ending| ending == "gguf"));
    let open = |path: PathBuf| {
        let source = Rc::new(DirectorySource::new(&path).unwrap());
        (path.display().to_string(), block_on(Checkpoint::open(source)).unwrap())
    };
    paths.map(open).collect()
}

#[test]
fn a_description_lists_the_tensors_of_every_fixture() {
    let checkpoints = checkpoints();
    assert!(checkpoints.len() > bayan_models::supported().len());
    for (name, checkpoint) in checkpoints {
        let described = describe(checkpoint.config()).unwrap_or_else(|error| panic!("{name}: {error}")).tensors;
        let count = described.len();
        let described: BTreeMap<_, _> = described.into_iter().map(|tensor| (tensor.name, tensor.shape)).collect();
        assert_eq!(described.len(), count, "{name}: a tensor is listed twice");
        // ALiBi's slopes are computed from the number of heads, and not read.
        let stored = checkpoint.tensors().iter().filter(|tensor| !tensor.name.ends_with("relative_pe.slopes"));
        let stored: BTreeMap<_, _> = stored.map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect();
        assert_eq!(described, stored, "{name}");
    }
}

#[test]
fn a_description_has_the_sizes_and_cache_of_the_model() {
    for (name, checkpoint) in checkpoints() {
        let options = LoadOptions { context: 64 };
        let decoder = block_on(bayan_models::open(&checkpoint, None, &options, None, &mut |_, _| {})).unwrap();
        let described = describe(checkpoint.config()).unwrap();
        assert_eq!(&described.sizes, decoder.sizes(), "{name}");
        assert_eq!(described.cache, decoder.cache_specs(), "{name}");
        for (context, step) in [(64, None), (64, Some(8)), (1000, Some(64))] {
            let shape = CacheShape { sequences: 2, context, format: CacheFormat::F16, step, positions: None };
            let planned: u64 = described.cache.iter().map(|layer| layer.size_bytes(shape)).sum();
            assert_eq!(planned, Cache::new(None, shape, &described.cache).unwrap().size_bytes());
        }
    }
}
