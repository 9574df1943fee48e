//! Adapters, and the importance of matrix inputs.

use std::path::PathBuf;
use std::rc::Rc;

use bayan_generate::{Engine, EngineOptions, GenerateError};
use bayan_gpu::{GpuOptions, block_on};
use bayan_tensor::nmse;
use bayan_weights::DirectorySource;

use crate::*;

/// The tensor of this name in a safetensors file of f32.
fn tensor(file: &std::path::Path, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(file).unwrap();
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_bytes]).unwrap();
    let offsets: Vec<usize> =
        header[name]["data_offsets"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect();
    let data = &bytes[8 + header_bytes + offsets[0]..8 + header_bytes + offsets[1]];
    data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn adapters_give_what_peft_gives_and_leave_the_base_as_it_was() {
    let gpu = gpu(GpuOptions::default());
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    for (case, model) in [("llama3_r8_all", "llama3_gqa"), ("qwen2_r4_rslora", "qwen2_bias")] {
        let prompts: serde_json::Value =
            serde_json::from_slice(&std::fs::read(root.join(format!("expected/{model}/prompts.json"))).unwrap())
                .unwrap();
        let prompt: Vec<u32> = prompts["r33"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect();
        let open = |which: &str| {
            let source = DirectorySource::new(root.join(format!("lora/{case}/{which}"))).unwrap();
            block_on(bayan_models::Adapter::open(Rc::new(source))).unwrap()
        };
        let (first, last) = (open("adapter_init"), open("adapter_final"));
        let mut engine = engine(model, &gpu, exact());
        let logits = |engine: &mut Engine| block_on(engine.logits(&prompt, false)).unwrap().concat();
        let base = logits(&mut engine);
        for (adapter, key) in [(&first, "init"), (&last, "final")] {
            engine.attach("tuned", adapter, 1.0).unwrap();
            let expected =
                tensor(&root.join(format!("lora/{case}/logits.safetensors")), &format!("{key}.r33.last_logits"));
            let error = nmse(&expected, &logits(&mut engine));
            assert!(error < 1e-8, "{case} {key}: NMSE {error:.2e}");
            assert!(engine.detach("tuned"));
            assert_eq!(logits(&mut engine), base, "{case}: the base is what it was");
        }
        // Two at half scale equal one at full scale.
        engine.attach("one", &last, 0.5).unwrap();
        engine.attach("two", &last, 0.5).unwrap();
        assert!(matches!(engine.attach("one", &last, 1.0), Err(GenerateError::AdapterName(_))));
        let expected = tensor(&root.join(format!("lora/{case}/logits.safetensors")), "final.r33.last_logits");
        assert!(nmse(&expected, &logits(&mut engine)) < 1e-8, "{case}: two halves");
        assert_eq!(engine.adapters(), ["one", "two"]);
    }
    let mut engine = engine("qwen3_qknorm", &gpu, exact());
    let source = DirectorySource::new(root.join("lora/llama3_r8_all/adapter_final")).unwrap();
    let foreign = block_on(bayan_models::Adapter::open(Rc::new(source))).unwrap();
    assert!(engine.attach("foreign", &foreign, 1.0).is_err());
    assert!(engine.adapters().is_empty());
}

#[test]
fn importance_is_the_mean_square_of_each_matrix_input() {
    let gpu = gpu(GpuOptions::default());
    for name in ["llama3_tied", "phi3_fused", "jais", "lfm2"] {
        let checkpoint = checkpoint(name);
        let mut engine = engine(name, &gpu, EngineOptions { context: Some(64), prefill_chunk: Some(16), ..exact() });
        let text = ids(90, engine.decoder().sizes().vocab_size);
        let windows: Vec<&[u32]> = text.chunks(50).collect();
        let mut read = 0;
        let found = block_on(engine.importance(&windows, &mut |tokens| read = tokens)).unwrap();
        assert_eq!((read, found.tokens()), (90, 90));
        // Every matrix has input statistics, except for an embedding that is not the output head.
        let embedding = |tensor: &str| {
            (tensor.ends_with("embed_tokens.weight") || tensor.ends_with("wte.weight"))
                && checkpoint.tensor("lm_head.weight").is_some()
        };
        let matrices = checkpoint
            .tensors()
            .iter()
            .filter(|t| t.shape.len() == 2 && t.name.ends_with(".weight") && !embedding(&t.name));
        let expected: std::collections::BTreeSet<&str> = matrices.map(|t| t.name.as_str()).collect();
        assert_eq!(
            found.columns().keys().map(String::as_str).collect::<std::collections::BTreeSet<_>>(),
            expected,
            "{name}"
        );
    }
    // The first layer's input is the normalized embeddings, which are easily computed here.
    let checkpoint = checkpoint("llama3_tied");
    let mut engine = engine("llama3_tied", &gpu, EngineOptions { context: Some(64), ..exact() });
    let text = ids(50, engine.decoder().sizes().vocab_size);
    let found = block_on(engine.importance(&[&text], &mut |_| {})).unwrap();
    let table = block_on(checkpoint.read_f32("model.embed_tokens.weight")).unwrap();
    let gamma = block_on(checkpoint.read_f32("model.layers.0.input_layernorm.weight")).unwrap();
    let mut expected = vec![0f64; gamma.len()];
    for &id in &text {
        let row = &table[id as usize * gamma.len()..][..gamma.len()];
        let mean = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / gamma.len() as f64;
        let scale = 1.0 / (mean + f64::from(engine.decoder().sizes().rms_norm_eps)).sqrt();
        expected
            .iter_mut()
            .zip(row.iter().zip(&gamma))
            .for_each(|(sum, (v, g))| *sum += (f64::from(*v) * scale * f64::from(*g)).powi(2) / 50.0);
    }
    let expected: Vec<f32> = expected.iter().map(|&v| v as f32).collect();
    assert!(nmse(&expected, &found.columns()["model.layers.0.self_attn.v_proj.weight"]) < 1e-10);
    let long = ids(65, 100);
    assert!(matches!(block_on(engine.importance(&[&long], &mut |_| {})), Err(GenerateError::PromptTooLong { .. })));
}
