//! GGUF files of architectures whose converter changes more than names: written here like llama.cpp's converter, read,
//! and compared with transformers' results for the original weights. Files that `export` writes are held to the same in
//! `gguf_arch/written.rs`.

#[path = "gguf_arch/written.rs"]
mod written;

use std::path::{Path, PathBuf};
use std::rc::Rc;

use bayan_generate::{Cpu, Engine, EngineOptions};
use bayan_gpu::{Gpu, GpuOptions, block_on};
use bayan_models::CacheFormat;
use bayan_tensor::nmse;
use bayan_weights::gguf::blocks::BlockType;
use bayan_weights::gguf::writer::{Declared, Entry, GgufWriter};
use bayan_weights::{Checkpoint, DirectorySource, Policy, WriteOptions, format_by_name, quantize_checkpoint};
use serde_json::Value;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn open(path: &Path) -> Checkpoint {
    block_on(Checkpoint::open(Rc::new(DirectorySource::new(path).unwrap())))
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn fixture(name: &str) -> Checkpoint {
    open(&fixtures().join("models").join(name))
}

/// A tensor in the form in which it is written.
struct Written(String, Vec<usize>, Vec<f32>);

/// The keys that models with attention and key-value heads have.
fn common_keys(config: &Value) -> Vec<(&'static str, Entry)> {
    vec![
        ("block_count", size(config, "num_hidden_layers")),
        ("context_length", size(config, "max_position_embeddings")),
        ("embedding_length", size(config, "hidden_size")),
        ("feed_forward_length", size(config, "intermediate_size")),
        ("attention.head_count", size(config, "num_attention_heads")),
        ("attention.head_count_kv", size(config, "num_key_value_heads")),
        ("attention.key_length", size(config, "head_dim")),
        ("attention.value_length", size(config, "head_dim")),
        ("attention.layer_norm_rms_epsilon", Entry::Float(number(config, "rms_norm_eps"))),
    ]
}

fn write(path: &Path, arch: &str, keys: &[(&str, Entry)], tensors: Vec<Written>) {
    let mut metadata = vec![("general.architecture".to_string(), Entry::Text(arch.to_string()))];
    metadata.extend(keys.iter().map(|(key, entry)| (format!("{arch}.{key}"), entry.clone())));
    let declared = tensors.iter().map(|Written(name, shape, _)| Declared {
        name: name.clone(),
        shape: shape.clone(),
        kind: BlockType::F32,
    });
    let mut writer = GgufWriter::create(path, &metadata, declared.collect()).unwrap();
    for Written(_, _, values) in &tensors {
        writer.write(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    }
    writer.finish().unwrap();
}

fn number(config: &Value, key: &str) -> f32 {
    config[key].as_f64().unwrap_or_else(|| panic!("{key}")) as f32
}

fn size(config: &Value, key: &str) -> Entry {
    Entry::Number(config[key].as_u64().unwrap_or_else(|| panic!("{key}")) as u32)
}

/// Compares a checkpoint's logits at the last positions of two prompts with the fixture's, in f32 on the CPU: a file is
/// read alike for every device.
fn hold(name: &str, checkpoint: &Checkpoint) {
    let cpu = Cpu::open(None).expect("threads");
    let policy = Some(Policy::for_format(format_by_name("f32").unwrap()));
    let options = EngineOptions { cache: CacheFormat::F32, policy, context: Some(160), ..Default::default() };
    let opened = block_on(Engine::open_on_cpu(checkpoint, &cpu, &options, &mut |_, _| {}));
    hold_engine(name, opened.unwrap_or_else(|e| panic!("{name}: {e}")), "f32", 1e-8);
}

fn hold_engine(name: &str, mut engine: Engine, format: &str, bound: f64) {
    let prompts: Value = serde_json::from_str(
        &std::fs::read_to_string(fixtures().join("expected").join(name).join("prompts.json")).unwrap(),
    )
    .unwrap();
    let bytes = std::fs::read(fixtures().join("expected").join(name).join("expected.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for prompt in ["r7", "r129"] {
        let ids: Vec<u32> = serde_json::from_value(prompts[prompt].clone()).unwrap();
        let wanted: Vec<f32> = file
            .tensor(&format!("{prompt}.last_logits"))
            .unwrap()
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        let found = block_on(engine.logits(&ids, false)).unwrap();
        let error = nmse(&wanted, &found[0]);
        println!("{name} {format} {prompt}: NMSE {error:.1e}");
        assert!(error < bound, "{name} {format} {prompt}: NMSE {error:.1e}");
    }
}

fn jais(path: &Path) {
    let from = fixture("jais");
    let config = from.config().clone();
    let (embeddings, width) = (
        number(&config, "mup_embeddings_scale"),
        number(&config, "mup_output_alpha") * number(&config, "mup_width_scale"),
    );
    let names = [
        ("ln_1", "attn_norm"),
        ("attn.c_attn", "attn_qkv"),
        ("attn.c_proj", "attn_output"),
        ("ln_2", "ffn_norm"),
        ("mlp.c_fc", "ffn_up"),
        ("mlp.c_fc2", "ffn_gate"),
        ("mlp.c_proj", "ffn_down"),
    ];
    let mut tensors = Vec::new();
    for tensor in from.tensors() {
        let (values, mut shape) = (block_on(from.read_f32(&tensor.name)).unwrap(), tensor.shape.clone());
        if tensor.name == "transformer.wte.weight" {
            // The state dict contains the head too; each is multiplied by its own scale.
            tensors.push(Written(
                "token_embd.weight".into(),
                shape.clone(),
                values.iter().map(|v| v * embeddings).collect(),
            ));
            tensors.push(Written("output.weight".into(), shape, values.iter().map(|v| v * width).collect()));
            continue;
        }
        if let Some(rest) = tensor.name.strip_prefix("transformer.ln_f.") {
            tensors.push(Written(format!("output_norm.{rest}"), shape, values));
            continue;
        }
        let Some(rest) = tensor.name.strip_prefix("transformer.h.") else { continue };
        let (layer, rest) = rest.split_once('.').unwrap();
        let (module, suffix) = rest.rsplit_once('.').unwrap();
        let gguf = names.iter().find(|(hf, _)| *hf == module).unwrap().1;
        let mut values = values;
        if shape.len() == 2 {
            let (rows, columns) = (shape[0], shape[1]);
            values = (0..rows * columns).map(|i| values[i % rows * columns + i / rows]).collect();
            shape.reverse();
        }
        tensors.push(Written(format!("blk.{layer}.{gguf}.{suffix}"), shape, values));
    }
    let keys = [
        ("block_count", size(&config, "n_layer")),
        ("context_length", size(&config, "n_positions")),
        ("embedding_length", size(&config, "n_embd")),
        ("feed_forward_length", size(&config, "n_inner")),
        ("attention.head_count", size(&config, "n_head")),
        ("attention.layer_norm_epsilon", Entry::Float(number(&config, "layer_norm_epsilon"))),
        ("attention.max_alibi_bias", Entry::Float(8.0)),
    ];
    write(path, "jais", &keys, tensors);
}

fn lfm2(path: &Path) {
    let from = fixture("lfm2");
    let config = from.config().clone();
    let names = [
        ("operator_norm", "attn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.out_proj", "attn_output"),
        ("self_attn.q_layernorm", "attn_q_norm"),
        ("self_attn.k_layernorm", "attn_k_norm"),
        ("conv.in_proj", "shortconv.in_proj"),
        ("conv.conv", "shortconv.conv"),
        ("conv.out_proj", "shortconv.out_proj"),
        ("ffn_norm", "ffn_norm"),
        ("feed_forward.w1", "ffn_gate"),
        ("feed_forward.w2", "ffn_down"),
        ("feed_forward.w3", "ffn_up"),
    ];
    let mut tensors = Vec::new();
    for tensor in from.tensors() {
        let values = block_on(from.read_f32(&tensor.name)).unwrap();
        let shape: Vec<usize> =
            if tensor.shape.len() == 3 { vec![tensor.shape[0], tensor.shape[2]] } else { tensor.shape.clone() };
        let name = match tensor.name.as_str() {
            "model.embed_tokens.weight" => "token_embd.weight".to_string(),
            "model.embedding_norm.weight" => "token_embd_norm.weight".to_string(),
            other => {
                let (layer, rest) = other.strip_prefix("model.layers.").unwrap().split_once('.').unwrap();
                let module = rest.strip_suffix(".weight").unwrap();
                format!("blk.{layer}.{}.weight", names.iter().find(|(hf, _)| *hf == module).unwrap().1)
            }
        };
        tensors.push(Written(name, shape, values));
    }
    let layers = config["num_hidden_layers"].as_u64().unwrap();
    let attends = |layer: u64| config["full_attn_idxs"].as_array().unwrap().iter().any(|i| i.as_u64() == Some(layer));
    let heads = config["num_key_value_heads"].as_u64().unwrap();
    let feed_forward = from.require("model.layers.0.feed_forward.w1.weight").unwrap().shape[0] as u32;
    let keys = [
        ("block_count", size(&config, "num_hidden_layers")),
        ("context_length", size(&config, "max_position_embeddings")),
        ("embedding_length", size(&config, "hidden_size")),
        ("feed_forward_length", Entry::Number(feed_forward)),
        ("attention.head_count", size(&config, "num_attention_heads")),
        (
            "attention.head_count_kv",
            Entry::Numbers((0..layers).map(|l| if attends(l) { heads as i32 } else { 0 }).collect()),
        ),
        ("attention.layer_norm_rms_epsilon", Entry::Float(number(&config, "norm_eps"))),
        ("rope.freq_base", Entry::Float(number(&config, "rope_theta"))),
        ("shortconv.l_cache", size(&config, "conv_L_cache")),
        ("vocab_size", size(&config, "vocab_size")),
    ];
    write(path, "lfm2", &keys, tensors);
}

/// The multipliers are multiplied into the weights.
fn falcon_h1(name: &str, path: &Path) {
    let from = fixture(name);
    let config = from.config().clone();
    let of = |key: &str| number(&config, key);
    let list = |key: &str, i: usize| config[key][i].as_f64().unwrap() as f32;
    let (inner, shared) = (of("mamba_d_ssm") as usize, (of("mamba_n_groups") * of("mamba_d_state")) as usize);
    let ends = [inner, 2 * inner, 2 * inner + shared, 2 * inner + 2 * shared, usize::MAX];
    let mut tensors = Vec::new();
    let tied = from.tensor("lm_head.weight").is_none();
    for tensor in from.tensors() {
        let (values, mut shape) = (block_on(from.read_f32(&tensor.name)).unwrap(), tensor.shape.clone());
        let k = *shape.last().unwrap();
        let times = |factor: f32| -> Vec<f32> { values.iter().map(|v| v * factor).collect() };
        match tensor.name.as_str() {
            "model.embed_tokens.weight" => {
                if tied {
                    tensors.push(Written("output.weight".into(), shape.clone(), times(of("lm_head_multiplier"))));
                }
                tensors.push(Written("token_embd.weight".into(), shape, times(of("embedding_multiplier"))));
                continue;
            }
            "lm_head.weight" => {
                tensors.push(Written("output.weight".into(), shape, times(of("lm_head_multiplier"))));
                continue;
            }
            "model.final_layernorm.weight" => {
                tensors.push(Written("output_norm.weight".into(), shape, values));
                continue;
            }
            _ => {}
        }
        let (layer, rest) = tensor.name.strip_prefix("model.layers.").unwrap().split_once('.').unwrap();
        let into = of("attention_in_multiplier");
        let (gguf, values) = match rest {
            "input_layernorm.weight" => ("attn_norm.weight", values),
            // The converter's name table has the full name of this one, so that it has no suffix.
            "pre_ff_layernorm.weight" => ("ffn_norm", values),
            "self_attn.q_proj.weight" => ("attn_q.weight", times(into)),
            "self_attn.k_proj.weight" => ("attn_k.weight", times(into * of("key_multiplier"))),
            "self_attn.v_proj.weight" => ("attn_v.weight", times(into)),
            "self_attn.o_proj.weight" => ("attn_output.weight", times(of("attention_out_multiplier"))),
            "feed_forward.gate_proj.weight" => ("ffn_gate.weight", times(list("mlp_multipliers", 0))),
            "feed_forward.up_proj.weight" => ("ffn_up.weight", values),
            "feed_forward.down_proj.weight" => ("ffn_down.weight", times(list("mlp_multipliers", 1))),
            "mamba.out_proj.weight" => ("ssm_out.weight", times(of("ssm_out_multiplier"))),
            "mamba.in_proj.weight" => {
                let factor = |row: usize| {
                    of("ssm_in_multiplier") * list("ssm_multipliers", ends.iter().position(|&end| row < end).unwrap())
                };
                ("ssm_in.weight", values.iter().enumerate().map(|(i, v)| v * factor(i / k)).collect())
            }
            "mamba.conv1d.weight" => {
                shape = vec![shape[0], shape[2]];
                ("ssm_conv1d.weight", values)
            }
            "mamba.conv1d.bias" => ("ssm_conv1d.bias", values),
            "mamba.dt_bias" => ("ssm_dt.bias", values),
            "mamba.A_log" => {
                shape.push(1);
                ("ssm_a", values.iter().map(|v| -v.exp()).collect())
            }
            "mamba.D" => {
                shape.push(1);
                ("ssm_d", values)
            }
            "mamba.norm.weight" => {
                let groups = of("mamba_n_groups") as usize;
                shape = vec![groups, inner / groups];
                ("ssm_norm.weight", values)
            }
            other => panic!("{other}"),
        };
        tensors.push(Written(format!("blk.{layer}.{gguf}"), shape, values));
    }
    let mut keys = common_keys(&config);
    keys.extend([
        ("rope.freq_base", Entry::Float(number(&config, "rope_theta"))),
        ("ssm.conv_kernel", size(&config, "mamba_d_conv")),
        ("ssm.inner_size", size(&config, "mamba_d_ssm")),
        ("ssm.state_size", size(&config, "mamba_d_state")),
        ("ssm.time_step_rank", size(&config, "mamba_n_heads")),
        ("ssm.group_count", size(&config, "mamba_n_groups")),
        ("vocab_size", size(&config, "vocab_size")),
    ]);
    write(path, "falcon-h1", &keys, tensors);
}

/// Gemma 4: keys that are lists for the layers, and divisors for the frequencies of whole heads.
fn gemma4(path: &Path) {
    let from = fixture("gemma4");
    let config = from.config().clone();
    let names = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.embed_tokens_per_layer", "per_layer_token_embd"),
        ("model.per_layer_model_projection", "per_layer_model_proj"),
        ("model.per_layer_projection_norm", "per_layer_proj_norm"),
        ("input_layernorm", "attn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("post_attention_layernorm", "post_attention_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("per_layer_input_gate", "inp_gate"),
        ("per_layer_projection", "proj"),
        ("post_per_layer_input_norm", "post_norm"),
        ("layer_scalar", "layer_output_scale"),
    ];
    let mut tensors = written(&from, &names);
    let turned = number(&config["rope_parameters"]["full_attention"], "partial_rotary_factor");
    let pairs = number(&config, "global_head_dim") / 2.0;
    let divisors = (0..pairs as usize).map(|i| if (i as f32) < pairs * turned { 1.0 } else { 1e30 });
    tensors.push(Written("rope_freqs.weight".into(), vec![pairs as usize], divisors.collect()));
    let types = config["layer_types"].as_array().unwrap();
    let local: Vec<bool> = types.iter().map(|kind| kind == "sliding_attention").collect();
    let of = |local: &bool, a: &str, b: &str| number(&config, if *local { a } else { b }) as i32;
    let heads = local.iter().map(|local| of(local, "num_key_value_heads", "num_global_key_value_heads"));
    let first_shared = types.len() - config["num_kv_shared_layers"].as_u64().unwrap() as usize;
    let width = number(&config, "intermediate_size") as i32;
    let widths = (0..types.len()).map(|layer| if layer < first_shared { width } else { 2 * width });
    let theta = |kind: &str| Entry::Float(number(&config["rope_parameters"][kind], "rope_theta"));
    let keys = [
        ("block_count", size(&config, "num_hidden_layers")),
        ("context_length", size(&config, "max_position_embeddings")),
        ("embedding_length", size(&config, "hidden_size")),
        ("feed_forward_length", Entry::Numbers(widths.collect())),
        ("attention.head_count", size(&config, "num_attention_heads")),
        ("attention.head_count_kv", Entry::Numbers(heads.collect())),
        ("attention.key_length", size(&config, "global_head_dim")),
        ("attention.value_length", size(&config, "global_head_dim")),
        ("attention.key_length_swa", size(&config, "head_dim")),
        ("attention.value_length_swa", size(&config, "head_dim")),
        ("attention.layer_norm_rms_epsilon", Entry::Float(number(&config, "rms_norm_eps"))),
        ("attention.sliding_window", size(&config, "sliding_window")),
        ("attention.sliding_window_pattern", Entry::Flags(local)),
        ("attention.shared_kv_layers", size(&config, "num_kv_shared_layers")),
        ("embedding_length_per_layer_input", size(&config, "hidden_size_per_layer_input")),
        ("final_logit_softcapping", Entry::Float(number(&config, "final_logit_softcapping"))),
        ("rope.dimension_count", size(&config, "global_head_dim")),
        ("rope.dimension_count_swa", size(&config, "head_dim")),
        ("rope.freq_base", theta("full_attention")),
        ("rope.freq_base_swa", theta("sliding_attention")),
    ];
    write(path, "gemma4", &keys, tensors);
}

/// Each tensor with llama.cpp's name, from a list of the names of modules.
fn written(from: &Checkpoint, names: &[(&str, &str)]) -> Vec<Written> {
    let renamed = |name: &str| {
        let (layer, rest) = match name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
            Some((layer, rest)) => (format!("blk.{layer}."), rest),
            None => (String::new(), name),
        };
        let module = rest.strip_suffix(".weight").unwrap_or(rest);
        let found = names.iter().find(|(from, _)| *from == module).unwrap_or_else(|| panic!("{name}"));
        format!("{layer}{}.weight", found.1)
    };
    from.tensors()
        .iter()
        .map(|tensor| {
            let values = block_on(from.read_f32(&tensor.name)).unwrap();
            Written(renamed(&tensor.name), tensor.shape.clone(), values)
        })
        .collect()
}

/// Qwen 3.5: the value heads in the converter's order, norms with 1 added.
fn qwen35(path: &Path) {
    let from = fixture("qwen3_5");
    let config = from.config().clone();
    let of = |key: &str| number(&config, key) as usize;
    let (key_heads, heads) = (of("linear_num_key_heads"), of("linear_num_value_heads"));
    let (key_dim, value_dim) = (of("linear_key_head_dim"), of("linear_value_head_dim"));
    let (keys, each) = (2 * key_heads * key_dim, heads / key_heads);
    // The head of the checkpoint that is number `head` of the file: the n-th head of each key head together.
    let head_of = |head: usize| head % key_heads * each + head / key_heads;
    let ordered = |at: usize, run: usize| head_of(at / run) * run + at % run;
    let names = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "post_attention_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("linear_attn.in_proj_qkv", "attn_qkv"),
        ("linear_attn.in_proj_z", "attn_gate"),
        ("linear_attn.in_proj_b", "ssm_beta"),
        ("linear_attn.in_proj_a", "ssm_alpha"),
        ("linear_attn.conv1d", "ssm_conv1d"),
        ("linear_attn.dt_bias", "ssm_dt"),
        ("linear_attn.A_log", "ssm_a"),
        ("linear_attn.norm", "ssm_norm"),
        ("linear_attn.out_proj", "ssm_out"),
    ];
    let mut tensors = written(&from, &names);
    for Written(name, shape, values) in &mut tensors {
        let module = name.rsplit('.').nth(1).unwrap().to_string();
        if module.ends_with("norm") && module != "ssm_norm" {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        if module == "ssm_conv1d" {
            *shape = vec![shape[0], shape[2]];
        }
        let k = if shape.len() == 2 { shape[1] } else { 1 };
        let old = values.clone();
        let row = |row: usize| match module.as_str() {
            "attn_qkv" | "ssm_conv1d" if row >= keys => keys + ordered(row - keys, value_dim),
            "attn_gate" => ordered(row, value_dim),
            "ssm_beta" | "ssm_alpha" | "ssm_dt" | "ssm_a" => head_of(row),
            _ => row,
        };
        let column = |column: usize| if module == "ssm_out" { ordered(column, value_dim) } else { column };
        for (i, value) in values.iter_mut().enumerate() {
            *value = old[row(i / k) * k + column(i % k)];
        }
        if module == "ssm_a" {
            values.iter_mut().for_each(|value| *value = -value.exp());
            *name = name.replace(".weight", "");
        }
        *name = name.replace("ssm_dt.weight", "ssm_dt.bias");
    }
    let rope = &config["rope_parameters"];
    let rotary = number(&config, "head_dim") * number(rope, "partial_rotary_factor");
    let mut keys = common_keys(&config);
    keys.extend([
        ("rope.dimension_count", Entry::Number(rotary as u32)),
        ("rope.dimension_sections", Entry::Numbers(vec![2, 1, 1, 0])),
        ("rope.freq_base", Entry::Float(number(rope, "rope_theta"))),
        ("full_attention_interval", size(&config, "full_attention_interval")),
        ("ssm.conv_kernel", size(&config, "linear_conv_kernel_dim")),
        ("ssm.inner_size", Entry::Number((heads * value_dim) as u32)),
        ("ssm.state_size", size(&config, "linear_key_head_dim")),
        ("ssm.time_step_rank", size(&config, "linear_num_value_heads")),
        ("ssm.group_count", size(&config, "linear_num_key_heads")),
    ]);
    write(path, "qwen35", &keys, tensors);
}

#[test]
fn files_of_gemma4_and_qwen35_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(format!("{name}.gguf"));
    gemma4(&place("gemma4"));
    qwen35(&place("qwen3_5"));
    for name in ["gemma4", "qwen3_5"] {
        hold(name, &open(&place(name)));
    }
}

#[test]
fn files_of_jais_lfm2_and_falcon_h1_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(format!("{name}.gguf"));
    jais(&place("jais"));
    lfm2(&place("lfm2"));
    for name in ["falcon_h1", "falcon_h1_norm"] {
        falcon_h1(name, &place(name));
    }
    for name in ["jais", "lfm2", "falcon_h1", "falcon_h1_norm"] {
        hold(name, &open(&place(name)));
    }
}

/// Jais stores its matrices as [in, out]; in GGUF blocks they are transposed, and must equal the result of quantizing
/// while loading.
#[test]
fn a_jais_checkpoint_is_quantized_to_files() {
    let gpu = block_on(Gpu::open(&GpuOptions::default())).expect("a device");
    let folder = tempfile::tempdir().unwrap();
    let from = fixture("jais");
    let logits = |checkpoint: &Checkpoint, policy: Option<Policy>| {
        let options = EngineOptions { cache: CacheFormat::F32, policy, context: Some(64), ..Default::default() };
        let mut engine = block_on(Engine::open(checkpoint, &gpu, &options, &mut |_, _| {})).unwrap();
        block_on(engine.logits(&[5, 900, 33, 71], true)).unwrap()
    };
    for (format, bound) in [("q8_0", 1e-3), ("q4_k", 0.2), ("f16", 1e-8)] {
        let policy = Policy::for_format(format_by_name(format).unwrap());
        let out = folder.path().join(format);
        let report =
            block_on(quantize_checkpoint(&from, &out, &policy, &WriteOptions::default(), &mut |_| {})).unwrap();
        assert!(report.tensors.iter().all(|tensor| tensor.relative_error < 0.12));
        let written = open(&out);
        assert_eq!(
            written.config()["transposed_conv1d"] == true,
            format != "f16",
            "{format}: matrices of plain numbers stay as published"
        );
        assert!(
            logits(&written, None) == logits(&from, Some(policy)),
            "{format}: not what quantizing while loading gives"
        );
        let options = EngineOptions { cache: CacheFormat::F32, context: Some(160), ..Default::default() };
        let engine = block_on(Engine::open(&written, &gpu, &options, &mut |_, _| {})).unwrap();
        hold_engine("jais", engine, format, bound);
    }
}

/// A file of mixed precision: matrices that are stacked into one product keep their formats.
#[test]
fn stacked_matrices_of_mixed_types_stay_quantized() {
    let gpu = block_on(Gpu::open(&GpuOptions::default())).expect("a device");
    let file = open(&fixtures().join("gguf/llama3_k256-mix.gguf"));
    let logits = |policy: Option<Policy>, gpu_layers| {
        let options =
            EngineOptions { cache: CacheFormat::F32, context: Some(64), policy, gpu_layers, ..Default::default() };
        let mut engine = block_on(Engine::open(&file, &gpu, &options, &mut |_, _| {})).unwrap();
        let matrices = engine.decoder().matrices().into_iter().filter(|matrix| matrix.label().contains("layers"));
        let formats: Vec<Vec<&str>> =
            matrices.map(|matrix| matrix.shards().iter().map(|shard| shard.format.name()).collect()).collect();
        (block_on(engine.logits(&[5, 300, 33, 71, 8, 9, 10, 11, 12, 13], true)).unwrap().concat(), formats)
    };
    let (found, formats) = logits(None, None);
    // Q3_K, Q5_1 and F16; then BF16 and Q5_K.
    for mixed in [vec!["q6_k", "q5_1", "f16"], vec!["f16", "q5_k"]] {
        assert!(formats.contains(&mixed), "{formats:?}");
    }
    let (exact, dense) = logits(Some(Policy::for_format(format_by_name("f32").unwrap())), None);
    assert!(dense.iter().all(|shards| *shards == ["f32"]));
    let error = nmse(&exact, &found);
    assert!(error < 1e-3, "NMSE {error:.1e}");
    assert!(logits(None, Some(0)).0 == found, "streamed from host memory");
}
