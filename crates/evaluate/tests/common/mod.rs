//! What the comparisons share: the fixtures, and small models with random weights.

// Each test binary uses some of these.
#![allow(dead_code)]

use std::path::PathBuf;
use std::rc::Rc;

use bayan_evaluate::run::Pending;
use bayan_evaluate::suites::select;
use bayan_evaluate::task::Task;
use bayan_generate::{Cpu, EngineOptions, Model, ModelOptions, StepSizes};
use bayan_gpu::block_on;
use bayan_models::CacheFormat;
use bayan_weights::{Checkpoint, DirectorySource, Policy, format_by_name};
use serde_json::Value;

pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

pub fn json(name: &str) -> Value {
    let path = fixtures().join("evaluate").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).expect("a fixture")).expect("JSON")
}

pub fn task(name: &str) -> Task {
    select(&[name.to_owned()]).expect("a task").tasks.remove(0)
}

pub fn checkpoint(name: &str) -> (Checkpoint, ModelOptions) {
    let path = fixtures().join("models").join(name);
    let checkpoint = block_on(Checkpoint::open(Rc::new(DirectorySource::new(path).unwrap()))).unwrap();
    let engine = EngineOptions {
        cache: CacheFormat::F32,
        policy: format_by_name("f32").map(Policy::for_format),
        sequences: 9,
        context: Some(2048),
        sizes: StepSizes::Listed,
        ..Default::default()
    };
    (checkpoint, ModelOptions { engine, chat_template: None })
}

/// A model on the CPU, which is faster than the software device.
pub fn open_on_cpu(name: &str) -> Model {
    let (checkpoint, options) = checkpoint(name);
    let cpu = Cpu::open(Some(2)).expect("a CPU");
    block_on(Model::open_on_cpu(&checkpoint, &cpu, &options, &mut |_, _| {})).unwrap()
}

pub fn wait(work: Pending<'_>) -> bayan_evaluate::Result<()> {
    block_on(work)
}
