//! Training rows: the first byte selects the file type, the rest is the file. Parquet is excluded: its decoder panics
//! on damaged pages and runs inside `catch_unwind`, which a fuzzer counts as a crash; the ordinary tests cover it.
#![no_main]

use bayan_train::data::{DataOptions, Examples};
use libfuzzer_sys::fuzz_target;

const ENDINGS: [&str; 6] = ["json", "jsonl", "csv", "tsv", "json.gz", "csv.gz"];

fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, file)) = bytes.split_first() else { return };
    let ending = ENDINGS[usize::from(kind) % ENDINGS.len()];
    let path = std::env::temp_dir().join(format!("bayan-fuzz-{}.{ending}", std::process::id()));
    if std::fs::write(&path, file).is_err() {
        return;
    }
    let mut examples = Examples::new(&[path], DataOptions { skip_bad: true, ..Default::default() });
    let read = examples.by_ref().take_while(Result::is_ok).count() as u64;
    assert!(read <= examples.report.read);
});
