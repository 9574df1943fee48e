//! The recipe's fields as flags, generated from the recipe: a field and its aliases are flags of the same names.
//!
//! Rejected: a struct with one member for each field, because it would be a second list of sixty names to be kept equal
//! to the first.

use bayan_train::recipe::{ALIASES, parse_assignment};
use bayan_weights::format_names;
use clap::builder::StyledStr;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};
use serde_json::{Map, Value};

/// (field, value name, help); an empty value name means a switch. Ordered as in `--help`, with headings between.
const FIELDS: &[(&str, &str, &str)] = &[
    ("", "", "Model and data"),
    ("model", "DIR|embedded", "Base model: the directory of a checkpoint, or `embedded`"),
    ("quantize", "FORMAT", "Weight format of the frozen base model [default: as stored]"),
    ("chat_template", "NAME", "A built-in chat template instead of the model's own"),
    (
        "data",
        "PATH|NAME",
        "Training data: json, jsonl, csv, tsv (also .gz) or parquet, a directory with train and valid files, or the name of a data set that was pulled (org/name)",
    ),
    ("valid_data", "PATH", "Evaluation data; without it --val-split sets examples of the training data aside"),
    ("val_split", "N", "Fraction (below 1) or number of training examples set aside for evaluation [default: 0]"),
    ("output", "DIR", "Output directory for the adapter, checkpoints and logs"),
    (
        "columns",
        "MAP",
        "Names of the columns in the data, if they differ from Bayan's: prompt=question,completion=answer",
    ),
    ("limit", "N", "Maximum number of rows to read"),
    ("skip_bad", "", "Skip and count invalid rows instead of stopping at the first"),
    ("drop_system_message", "", "Remove system messages from the conversations"),
    ("max_seq_length", "N", "Maximum length of a sequence in tokens; longer sequences are truncated [default: 2048]"),
    ("packing", "", "Pack several short examples into one sequence"),
    ("mask_prompt", "", "Compute the loss on the assistant's turns only [default: true]"),
    (
        "turn_end",
        "WHERE",
        "Last trained token of a turn: all that the template adds (template), or the end-of-turn token (token) [default: template]",
    ),
    ("", "", "Method"),
    ("preset", "NAME", "Preset with which the recipe starts: barka, quick or dpo"),
    ("method", "NAME", "Training method: sft (supervised) or dpo (preference pairs) [default: sft]"),
    ("beta", "X", "DPO: β; a larger value keeps the model closer to the reference model [default: 0.1]"),
    ("precompute_reference", "", "DPO: compute the log-probabilities of the reference model once, before training"),
    ("full", "", "Train all parameters instead of an adapter; the result is a checkpoint in OUTPUT/model"),
    ("from_scratch", "", "With --full: start from random weights; --model needs only config.json and the tokenizer"),
    (
        "save_dtype",
        "NAME",
        "With --full: type of the weights in the resulting checkpoint, float32 or bfloat16 [default: float32]",
    ),
    ("", "", "Adapter"),
    ("rank", "N", "LoRA rank [default: 16]"),
    ("alpha", "X", "LoRA alpha; the scale is alpha / rank [default: 32]"),
    ("dropout", "X", "Dropout probability on the input of LoRA's A [default: 0]"),
    ("use_rslora", "", "rsLoRA: the scale is alpha / √rank"),
    (
        "target_modules",
        "LIST",
        "Modules that get an adapter: names separated by commas, a regular expression, or all-linear [default: all-linear]",
    ),
    ("layers_to_transform", "LIST", "Indices of the layers that get an adapter [default: all]"),
    ("rank_pattern", "JSON", "LoRA rank for modules that match a pattern: {\"q_proj\": 32}"),
    ("alpha_pattern", "JSON", "LoRA alpha for modules that match a pattern: {\"q_proj\": 64}"),
    ("", "", "Steps"),
    ("batch_size", "N", "Sequences per micro-batch [default: 4]"),
    ("gradient_accumulation_steps", "N", "Micro-batches per optimizer step [default: 1]"),
    ("epochs", "X", "Number of passes over the training data [default: 1]"),
    ("max_steps", "N", "Number of optimizer steps, instead of --epochs"),
    ("learning_rate", "X", "Peak learning rate [default: 1e-4]"),
    ("lr_scheduler", "NAME", "Learning rate schedule: cosine, linear or constant [default: cosine]"),
    ("warmup_steps", "N", "Number of warm-up steps [default: 0]"),
    ("warmup_ratio", "X", "Number of warm-up steps as a fraction of all steps"),
    ("adam_beta1", "X", "AdamW's β₁ [default: 0.9]"),
    ("adam_beta2", "X", "AdamW's β₂ [default: 0.999]"),
    ("adam_epsilon", "X", "AdamW's ε [default: 1e-8]"),
    ("weight_decay", "X", "AdamW's decoupled weight decay [default: 0]"),
    ("max_grad_norm", "X", "Clip the global gradient norm to this value; 0: no clipping [default: 1]"),
    ("loss_normalization", "HOW", "Average of the loss: token_mean or mean_of_means [default: token_mean]"),
    ("neftune_noise_alpha", "X", "NEFTune: scale of the noise added to the embeddings during training, such as 5"),
    ("seed", "N", "Random seed [default: 0]"),
    ("shuffle", "", "Shuffle the examples of each epoch [default: true]"),
    (
        "grad_checkpoint",
        "",
        "Gradient checkpointing: recompute activations instead of storing them, to save memory [default: true]",
    ),
    ("f16", "", "Mixed precision: saved activations and matrix tiles in f16, with loss scaling; for devices with f16"),
    ("", "", "Evaluations, checkpoints and logs"),
    (
        "eval_every",
        "N",
        "Number of steps between evaluations [default: one evaluation at the end, if there is evaluation data or --eval]",
    ),
    (
        "eval",
        "LIST",
        "Benchmarks to score at each evaluation: tasks or groups with choices, separated by commas (see `bayan eval list`)",
    ),
    ("eval_data", "DIR", "With --eval: the folder with the benchmarks' data sets"),
    ("eval_limit", "N", "With --eval: only the first N items of each task"),
    ("save_every", "N", "Number of steps between checkpoints [default: a tenth of the run]"),
    ("log_every", "N", "Number of steps between log entries [default: 1]"),
    ("keep_last", "N", "Number of newest checkpoints to keep, in addition to the best one [default: 2]"),
    ("keep_best", "", "Use the weights with the lowest evaluation loss as the result"),
    ("early_stopping_patience", "N", "Stop after this many evaluations without a lower loss"),
];

/// The flags that were given, as a layer of a recipe.
#[derive(Debug, Clone, Default)]
pub struct RecipeFlags(pub Map<String, Value>);

/// Parses a typed value: as JSON if it is JSON, as a comma-separated list if the field takes a list, otherwise as text.
fn typed(field: &str, text: &str) -> Result<Value, String> {
    let (_, value) = parse_assignment(&format!("x={text}")).map_err(|error| error.to_string())?;
    let parts = || text.split(',').map(str::trim).filter(|part| !part.is_empty());
    Ok(match (field, value) {
        (
            "model" | "data" | "valid_data" | "output" | "preset" | "chat_template" | "quantize" | "eval" | "eval_data",
            _,
        ) => Value::from(text),
        ("target_modules", Value::String(text)) if text.contains(',') && !text.contains(['(', '\\', '[']) => {
            parts().map(Value::from).collect()
        }
        // A single name is a name; a regular expression contains a character that no name has.
        ("target_modules", Value::String(text))
            if text != "all-linear" && text.chars().all(|c| c.is_alphanumeric() || c == '_') =>
        {
            vec![Value::from(text)].into()
        }
        ("layers_to_transform", Value::Number(number)) => vec![Value::Number(number)].into(),
        ("layers_to_transform", Value::String(_)) => {
            let numbers = parts()
                .map(|part| part.parse::<u64>().map(Value::from).map_err(|_| format!("`{part}` is no layer number")));
            numbers.collect::<Result<Vec<_>, _>>()?.into()
        }
        ("columns", Value::String(text)) => {
            let pairs = bayan_train::DataOptions::parse_columns(&text).map_err(|error| error.to_string())?;
            Value::Object(pairs.into_iter().map(|(ours, theirs)| (ours, Value::from(theirs))).collect())
        }
        (_, value) => value,
    })
}

impl FromArgMatches for RecipeFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut flags = RecipeFlags::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        let invalid = |field: &str, problem: String| {
            Error::raw(clap::error::ErrorKind::InvalidValue, format!("--{}: {problem}\n", field.replace('_', "-")))
        };
        for (field, _, _) in FIELDS.iter().filter(|(field, _, _)| !field.is_empty()) {
            if let Some(text) = matches.get_one::<String>(field) {
                self.0.insert((*field).to_owned(), typed(field, text).map_err(|problem| invalid(field, problem))?);
            }
        }
        for text in matches.get_many::<String>("set").into_iter().flatten() {
            let (name, value) = parse_assignment(text).map_err(|error| invalid("set", error.to_string()))?;
            self.0.insert(name, value);
        }
        Ok(())
    }
}

impl Args for RecipeFlags {
    fn augment_args(mut command: Command) -> Command {
        let mut heading = "Recipe";
        for &(field, value, help) in FIELDS {
            if field.is_empty() {
                heading = help;
                continue;
            }
            let kebab = field.replace('_', "-");
            let others = ALIASES.iter().filter(|(_, ours)| *ours == field).map(|(alias, _)| alias.replace('_', "-"));
            let mut arg = Arg::new(field)
                .long(kebab)
                .aliases(others)
                .help(StyledStr::from(help))
                .help_heading(heading)
                .action(ArgAction::Set);
            arg = match value {
                "" => arg.num_args(0..=1).default_missing_value("true").require_equals(true).value_name("true|false"),
                value => arg.value_name(value).allow_hyphen_values(true),
            };
            command = command.arg(match field {
                "model" => arg.short('m').env("BAYAN_MODEL"),
                "output" => arg.short('o'),
                "quantize" => arg.help(format!("{help}: {}", format_names())),
                _ => arg,
            });
        }
        let set = Arg::new("set").long("set").value_name("NAME=VALUE").action(ArgAction::Append).help_heading("Recipe");
        command.arg(set.help(
            "Any field of a recipe by name, also under the names of mlx_lm.lora, PEFT and transformers (repeatable)",
        ))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bayan_train::Recipe;

    fn parse(arguments: &[&str]) -> Result<Map<String, Value>, String> {
        let matches = RecipeFlags::augment_args(Command::new("x"))
            .try_get_matches_from([&["x"], arguments].concat())
            .map_err(|e| e.to_string())?;
        RecipeFlags::from_arg_matches(&matches).map(|flags| flags.0).map_err(|e| e.to_string())
    }

    #[test]
    fn every_field_of_a_recipe_is_a_flag_and_no_other() {
        let fields = serde_json::to_value(Recipe::default()).unwrap();
        let fields: Vec<&String> = fields.as_object().unwrap().keys().collect();
        let flags: Vec<&str> = FIELDS.iter().map(|(name, _, _)| *name).filter(|name| !name.is_empty()).collect();
        assert!(
            fields.iter().all(|field| flags.contains(&field.as_str())),
            "{:?}",
            fields.iter().find(|f| !flags.contains(&f.as_str()))
        );
        assert_eq!(fields.len(), flags.len());
    }

    #[test]
    fn flags_become_a_recipe() {
        let layer = parse(&[
            "--lora-r=8",
            "--iters",
            "20",
            "--target-modules",
            "q_proj,v_proj",
            "--packing",
            "--mask-prompt=false",
            "--layers-to-transform",
            "0,2",
            "--lr",
            "2e-4",
            "--columns",
            "prompt=سؤال,response=جواب",
            "--set",
            "eps=1e-6",
            "--data",
            "12",
        ])
        .unwrap();
        let recipe = Recipe::resolve([layer]).unwrap();
        assert_eq!((recipe.rank, recipe.max_steps, recipe.packing, recipe.mask_prompt), (8, Some(20), true, false));
        assert_eq!(recipe.target_modules, serde_json::json!(["q_proj", "v_proj"]));
        assert_eq!(
            (recipe.layers_to_transform, recipe.learning_rate, recipe.adam_epsilon),
            (Some(vec![0, 2]), 2e-4, 1e-6)
        );
        assert_eq!(recipe.data.as_deref(), Some("12"));
        assert_eq!(parse(&["--target-modules", "q_proj"]).unwrap()["target_modules"], serde_json::json!(["q_proj"]));
        assert_eq!(parse(&["--target-modules", ".*q_proj"]).unwrap()["target_modules"], ".*q_proj");
        assert!(parse(&["--layers-to-transform", "a"]).unwrap_err().contains("layer number"));
        assert!(parse(&["--columns", "prompt"]).unwrap_err().contains("name=column"));
        assert!(parse(&["--rnak", "3"]).is_err());
    }
}
