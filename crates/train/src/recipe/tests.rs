//! Recipes from every source, and those that are refused.

use super::*;
use serde_json::json;

fn map(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap()
}

fn error(value: Value) -> String {
    Recipe::resolve([map(value)]).unwrap_err().to_string()
}

#[test]
fn toml_yaml_and_flags_say_the_same() {
    let toml = "rank = 8\nlearning_rate = 2e-4\nepochs = 3\ntarget_modules = ['q_proj', 'v_proj']\nlr_scheduler = 'linear'\n[rank_pattern]\n\"layers.0.*\" = 4\n";
    let yaml = "lora_r: 8\nlr: 2e-4\nnum_train_epochs: 3\ntarget_modules: [q_proj, v_proj]\nlr_scheduler_type: linear\nrank_pattern:\n  layers.0.*: 4\n";
    let flags = [
        "rank=8",
        "learning-rate=2e-4",
        "epochs=3",
        "target_modules=[\"q_proj\",\"v_proj\"]",
        "lr_scheduler=linear",
        "rank_pattern={\"layers.0.*\":4}",
    ];
    let a = Recipe::from_file("a.toml", toml, Map::new()).unwrap();
    let b = Recipe::from_file("a.yaml", yaml, Map::new()).unwrap();
    let c = Recipe::resolve([flags.iter().map(|f| parse_assignment(f).unwrap()).collect()]).unwrap();
    assert_eq!((a.rank, a.learning_rate, a.epochs, a.lr_scheduler), (8, 2e-4, Some(3.0), Scheduler::Linear));
    assert_eq!(a, b);
    assert_eq!(a, c);
    assert_eq!(Recipe::from_file("again.toml", &a.to_toml(), Map::new()).unwrap(), a, "what is written is read");
    assert!(Recipe::from_file("a.json", "{}", Map::new()).is_err());
    assert_eq!(Recipe::from_file("empty.yml", "", Map::new()).unwrap(), Recipe::default());
}

#[test]
fn presets_are_bases_that_later_layers_change() {
    let barka = Recipe::resolve([map(json!({"preset": "barka"}))]).unwrap();
    assert_eq!(
        (barka.rank, barka.learning_rate, barka.lr_scheduler, barka.epochs),
        (128, 1e-4, Scheduler::Cosine, Some(4.0))
    );
    let changed = Recipe::resolve([map(json!({"max_steps": 10, "rank": 4})), map(json!({"preset": "barka"}))]).unwrap();
    assert_eq!((changed.max_steps, changed.epochs, changed.rank), (Some(10), None, 4));
    for name in PRESETS {
        assert!(Recipe::resolve([map(json!({"preset": name}))]).is_ok(), "{name}");
    }
    assert!(error(json!({"preset": "braka"})).contains("`barka`"));
    // A name without a value is ignored; a recipe survives being saved and read.
    let unsaid = Recipe::from_file("r.yaml", "preset: barka\nepochs:\nrank: ~\nbetas:", Map::new()).unwrap();
    assert_eq!(unsaid, barka);
    assert_eq!(Recipe::from_file("r.toml", &unsaid.to_toml(), Map::new()).unwrap(), unsaid);
}

#[test]
fn peft_settings_that_are_not_trained_are_refused() {
    for (name, value) in [
        ("use_dora", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("trainable_token_indices", json!([3])),
        ("init_lora_weights", json!("eva")),
        ("bias", json!("all")),
    ] {
        let message = error(json!({name: value}));
        assert!(message.contains(&format!("`{name}`")) && message.contains("does not train"), "{message}");
    }
    // An adapter_config.json of plain LoRA as the source of a recipe: these values change nothing.
    let plain = json!({"use_dora": false, "modules_to_save": null, "init_lora_weights": true, "bias": "none",
        "eva_config": null, "trainable_token_indices": [], "r": 16});
    assert_eq!(Recipe::resolve([map(plain)]).unwrap(), Recipe::default());
    let recipe = Recipe::resolve([map(json!({"target_modules": ["q_proj", "embed_tokens"]}))]).unwrap();
    let message = recipe.adapter_config_for(&["model.layers.0.self_attn.q_proj".to_owned()]).unwrap_err().to_string();
    assert!(message.contains("LoRA of the embedding"), "{message}");
}

#[test]
fn mistakes_are_named_with_a_remedy() {
    for (recipe, parts) in [
        (json!({"learning_rat": 1}), ["learning_rat", "did you mean `learning_rate`"]),
        (json!({"lora_parameters": {"rank": 8}}), ["lora_parameters", "top level"]),
        (json!({"rank": "many"}), ["`rank`", "many"]),
        (json!({"rank": 0}), ["`rank`", "1..="]),
        (json!({"rank": 1.5}), ["`rank`", "1.5"]),
        (json!({"rank": -1}), ["`rank`", "-1"]),
        (json!({"rank": 8, "r": 8}), ["`rank`", "two"]),
        (json!({"lr": 0}), ["`learning_rate`", "above 0"]),
        (json!({"lr": "1e999"}), ["`learning_rate`", "1e999"]),
        (json!({"lr_scheduler": "cosin"}), ["`lr_scheduler`", "cosine"]),
        (json!({"epochs": 1, "max_steps": 5}), ["`epochs`", "leave one out"]),
        (json!({"warmup_steps": 9, "max_steps": 5}), ["`warmup_steps`", "at most"]),
        (json!({"warmup_steps": 1, "warmup_ratio": 0.1}), ["`warmup_steps`", "leave one out"]),
        (json!({"betas": [0.9]}), ["`betas`", "two numbers"]),
        (json!({"dropout": 1.0}), ["`dropout`", "0..1"]),
        (json!({"target_modules": "q_proj("}), ["`target_modules`", "expression"]),
        (json!({"target_modules": 3}), ["`target_modules`", "all-linear"]),
        (json!({"rank_pattern": {"q": 0}}), ["`rank_pattern`", "whole number"]),
        (json!({"early_stopping_patience": 2}), ["`early_stopping_patience`", "eval_every"]),
        (json!({"from_scratch": true}), ["`from_scratch`", "full"]),
        (json!({"full": true, "quantize": "q8_0"}), ["`quantize`", "f32"]),
        (json!({"full": true, "rank": 4}), ["`rank`", "no adapter"]),
        (json!({"full": true, "method": "dpo"}), ["`method`", "sft"]),
        (json!({"neftune_noise_alpha": 5, "method": "dpo"}), ["`neftune_noise_alpha`", "dpo"]),
        (json!({"method": "dpo", "packing": true}), ["`packing`", "dpo"]),
        (json!({"max_seq_length": 1}), ["`max_seq_length`", "2..="]),
        (json!({"val_split": 1.5}), ["`val_split`", "whole"]),
        (json!({"seed": -1}), ["`seed`", "-1"]),
        (json!({"eval_every": 5, "data": "train.jsonl"}), ["`eval_every`", "val_split"]),
        (json!({"layers_to_transform": [0], "target_modules": ".*q_proj"}), ["`layers_to_transform`", "expression"]),
    ] {
        let error = error(recipe.clone());
        assert!(parts.iter().all(|part| error.contains(part)), "{recipe}: {error}");
    }
    assert!(parse_toml("rank == 3").unwrap_err().to_string().contains("TOML"));
    assert!(parse_yaml("rank: [").unwrap_err().to_string().contains("YAML"));
    assert!(parse_yaml("- a").is_err());
    assert!(parse_assignment("rank").is_err());
}

#[test]
fn a_run_has_the_steps_of_the_trainer_of_transformers() {
    let recipe = Recipe {
        batch_size: 4,
        gradient_accumulation_steps: 4,
        epochs: Some(1.5),
        warmup_ratio: Some(0.1),
        ..Recipe::default()
    };
    let length = recipe.run_length(100);
    assert_eq!((length.steps_per_epoch, length.total_steps, length.schedule.warmup_steps), (7, 11, 2));
    let fixed = Recipe { max_steps: Some(5), warmup_steps: Some(3), ..Recipe::default() }.run_length(100);
    assert_eq!((fixed.total_steps, fixed.schedule.warmup_steps), (5, 3));
    assert_eq!(Recipe { val_split: 0.1, ..Recipe::default() }.validation_count(95), 10);
    assert_eq!(Recipe { val_split: 20.0, ..Recipe::default() }.validation_count(10), 9);
}

#[test]
fn targets_are_written_out_for_a_model() {
    let endings = ["self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"];
    let mut linears: Vec<String> = (0..2).flat_map(|l| endings.map(|e| format!("model.layers.{l}.{e}"))).collect();
    linears.push("lm_head".into());
    let (config, modules) = Recipe::default().adapter_config_for(&linears).unwrap();
    assert_eq!(config.target_modules.to_json(), json!(["down_proj", "k_proj", "q_proj"]));
    assert_eq!(modules, linears[..6]);
    let some = Recipe { target_modules: json!(["q_proj"]), layers_to_transform: Some(vec![1]), ..Recipe::default() };
    assert_eq!(some.adapter_config_for(&linears).unwrap().1, ["model.layers.1.self_attn.q_proj"]);
    let refused = |recipe: Recipe| recipe.adapter_config_for(&linears).unwrap_err().to_string();
    assert!(refused(Recipe { target_modules: json!(["q_proj", "w1"]), ..Recipe::default() }).contains("w1"));
    assert!(
        refused(Recipe { layers_to_transform: Some(vec![7]), ..Recipe::default() }).contains("layers_to_transform")
    );
    assert!(refused(Recipe { target_modules: json!("nothing"), ..Recipe::default() }).contains("at least one"));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]

    /// Any text is a recipe or an error; a recipe survives being saved and read.
    #[test]
    fn hostile_texts_are_read_or_refused(lines in proptest::collection::vec("(rank|alpha|epochs|lr|learning_rate|target_modules|max_steps|preset|layers|rank_pattern|[a-z_]{1,9}) ?[=:] ?(-?[0-9]{1,20}|[0-9]e[0-9]{3}|nan|'[a-z*(\\[]{0,6}'|\\[[0-9, ]{0,8}\\]|\\{ ?\\}|true|.{0,6})", 0..5), toml: bool) {
        let name = if toml { "a.toml" } else { "a.yaml" };
        match Recipe::from_file(name, &lines.join("\n"), Map::new()) {
            Ok(recipe) => proptest::prop_assert_eq!(Recipe::from_file("b.toml", &recipe.to_toml(), Map::new()).map_err(|e| e.to_string()), Ok(recipe)),
            Err(error) => proptest::prop_assert!(!error.to_string().is_empty()),
        }
    }
}
