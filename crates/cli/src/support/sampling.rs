//! Sampling flags, and their defaults: the checkpoint's recommendation, then llama.cpp's defaults.

use anyhow::{Result, bail};
use bayan_generate::text::GenerationDefaults;
use bayan_generate::{Generation, LARGEST_BIAS, SampleSettings};
use clap::Args;

/// llama.cpp's defaults.
const TEMPERATURE: f32 = 0.8;
const TOP_K: u32 = 40;
const TOP_P: f32 = 0.95;
const MIN_P: f32 = 0.05;

/// The settings of a chat without flags and without a checkpoint's recommendation, with a fixed seed.
pub fn chat_defaults() -> SampleSettings {
    SampleSettings { temperature: TEMPERATURE, top_k: TOP_K, top_p: TOP_P, min_p: MIN_P, ..Default::default() }
}

/// A number, or nothing for the -1 that leaves the choice free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrFree<T>(pub Option<T>);

/// Flags of sampling and stopping.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Sampling temperature; 0 always takes the most likely token [default: the model's, else 0.8]
    #[arg(long, visible_alias = "temp", env = "BAYAN_TEMPERATURE", value_name = "T", value_parser = not_negative, allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Keep this many of the most likely tokens; 0 keeps all [default: the model's, else 40]
    #[arg(long, env = "BAYAN_TOP_K", value_name = "K")]
    pub top_k: Option<u32>,
    /// Keep the most likely tokens until their probabilities reach this sum [default: the model's, else 0.95]
    #[arg(long, env = "BAYAN_TOP_P", value_name = "P", value_parser = fraction, allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Keep tokens at least this likely relative to the most likely one [default: the model's, else 0.05]
    #[arg(long, env = "BAYAN_MIN_P", value_name = "P", value_parser = fraction, allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Penalty that makes earlier tokens less likely; 1 is off [default: the model's, else 1]
    #[arg(long, env = "BAYAN_REPEAT_PENALTY", value_name = "F", value_parser = positive, allow_negative_numbers = true)]
    pub repeat_penalty: Option<f32>,
    /// Subtracted from the logits of tokens seen before
    #[arg(long, env = "BAYAN_PRESENCE_PENALTY", value_name = "F", default_value = "0", value_parser = finite, allow_negative_numbers = true)]
    pub presence_penalty: f32,
    /// Subtracted from the logits for each time a token was seen before
    #[arg(long, env = "BAYAN_FREQUENCY_PENALTY", value_name = "F", default_value = "0", value_parser = finite, allow_negative_numbers = true)]
    pub frequency_penalty: f32,
    /// Added to the logit of a token, such as 15043+1 or 15043-inf; may be repeated
    #[arg(long, value_name = "ID±B", value_parser = bias)]
    pub logit_bias: Vec<(u32, f32)>,
    /// Random seed: the same seed, device and flags give the same answer; -1 for a new seed [default: -1]
    #[arg(short, long, env = "BAYAN_SEED", value_name = "N", value_parser = seed, allow_negative_numbers = true)]
    pub seed: Option<OrFree<u64>>,
    /// Maximum number of new tokens; -1 for as many as fit the context [default: the model's, else -1]
    #[arg(short = 'n', long, visible_alias = "predict", env = "BAYAN_MAX_TOKENS", value_name = "N", value_parser = max_tokens, allow_negative_numbers = true)]
    pub max_tokens: Option<OrFree<u32>>,
    /// Text that ends the answer and is not shown; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Continue after the tokens that end an answer
    #[arg(long)]
    pub ignore_eos: bool,
}

fn number(text: &str, expected: &str, fits: impl Fn(f32) -> bool) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|&value: &f32| value.is_finite() && fits(value))
        .ok_or_else(|| format!("expected {expected}"))
}

fn finite(text: &str) -> Result<f32, String> {
    number(text, "a number", |_| true)
}

/// Parses a number, 0 or more.
pub fn not_negative(text: &str) -> Result<f32, String> {
    number(text, "a number, 0 or more", |v| v >= 0.0)
}

/// Parses a number above 0.
pub fn positive(text: &str) -> Result<f32, String> {
    number(text, "a number above 0", |v| v > 0.0)
}

/// Parses a number from 0 to 1.
pub fn fraction(text: &str) -> Result<f32, String> {
    number(text, "a number from 0 to 1", |v| (0.0..=1.0).contains(&v))
}

/// Parses a seed; nothing for -1, which stands for a new one.
pub fn seed(text: &str) -> Result<OrFree<u64>, String> {
    match text.trim() {
        "-1" => Ok(OrFree(None)),
        other => other
            .parse()
            .map(|seed| OrFree(Some(seed)))
            .map_err(|_| "expected a whole number, or -1 for a new seed".to_string()),
    }
}

/// Parses a number of tokens; nothing for -1, which stands for as many as fit.
pub fn max_tokens(text: &str) -> Result<OrFree<u32>, String> {
    let count = || text.trim().parse().ok().filter(|&count: &u32| count > 0).map(|count| OrFree(Some(count)));
    match text.trim() {
        "-1" => Ok(OrFree(None)),
        _ => count().ok_or_else(|| "expected a number of tokens above 0, or -1 for as many as fit".to_string()),
    }
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let expected = || "expected a token id, a sign and a number, such as 15043+1 or 15043-inf".to_string();
    let sign = text.find(['+', '-']).ok_or_else(expected)?;
    let id = text[..sign].trim().parse().map_err(|_| expected())?;
    let value: f32 = text[sign..].parse().map_err(|_| expected())?;
    if value.is_nan() { Err(expected()) } else { Ok((id, value.clamp(-LARGEST_BIAS, LARGEST_BIAS))) }
}

/// A random seed.
pub fn new_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library seeds this with the system's randomness.
    let seed = std::collections::hash_map::RandomState::new().build_hasher().finish();
    // Short enough to type, and exact in JSON readers that store numbers as doubles.
    seed & 0xffff_ffff
}

impl SamplingArgs {
    /// The settings for a model with these recommendations and this vocabulary size.
    ///
    /// # Errors
    /// A bias is for a token that the model does not have.
    pub fn generation(&self, defaults: &GenerationDefaults, vocabulary: usize) -> Result<Generation> {
        if let Some((id, _)) = self.logit_bias.iter().find(|(id, _)| *id as usize >= vocabulary) {
            bail!("--logit-bias names token {id}, and this model has {vocabulary} tokens; see `bayan tokenize`");
        }
        let advised = if defaults.do_sample == Some(false) { Some(0.0) } else { defaults.temperature };
        let settings = SampleSettings {
            temperature: self.temperature.or(advised).unwrap_or(TEMPERATURE),
            top_k: self.top_k.or(defaults.top_k).unwrap_or(TOP_K),
            top_p: self.top_p.or(defaults.top_p).unwrap_or(TOP_P),
            min_p: self.min_p.or(defaults.min_p).unwrap_or(MIN_P),
            repeat_penalty: self.repeat_penalty.or(defaults.repetition_penalty).unwrap_or(1.0),
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            biased: !self.logit_bias.is_empty(),
            seed: self.seed.and_then(|seed| seed.0).unwrap_or_else(new_seed),
        };
        let advised = defaults.max_new_tokens.filter(|&n| n > 0);
        let max_tokens = self.max_tokens.map_or(advised, |given| given.0).map(|n| n as usize);
        Ok(Generation {
            settings,
            bias: self.logit_bias.clone(),
            max_tokens,
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            grammar: None,
            scores: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        sampling: SamplingArgs,
    }

    fn flags(arguments: &[&str]) -> Result<SamplingArgs, clap::Error> {
        Flags::try_parse_from([&["x"], arguments].concat()).map(|flags| flags.sampling)
    }

    #[test]
    fn flags_override_the_checkpoint_which_overrides_defaults() {
        let advice = GenerationDefaults {
            top_p: Some(0.5),
            temperature: Some(0.6),
            max_new_tokens: Some(7),
            ..Default::default()
        };
        let generation = flags(&["--temp", "0.1", "--seed", "5"]).unwrap().generation(&advice, 10).unwrap();
        assert_eq!(
            (generation.settings.temperature, generation.settings.top_p, generation.settings.top_k),
            (0.1, 0.5, TOP_K)
        );
        assert_eq!((generation.settings.seed, generation.max_tokens), (5, Some(7)));
        let greedy = GenerationDefaults { do_sample: Some(false), temperature: Some(0.6), ..Default::default() };
        assert_eq!(flags(&[]).unwrap().generation(&greedy, 10).unwrap().settings.temperature, 0.0);
    }

    #[test]
    fn biases_are_an_id_a_sign_and_a_number() {
        let sampling = flags(&["--logit-bias", "3+1.5", "--logit-bias", "4-inf"]).unwrap();
        assert_eq!(sampling.logit_bias, [(3, 1.5), (4, -LARGEST_BIAS)]);
        assert!(sampling.generation(&GenerationDefaults::default(), 4).unwrap_err().to_string().contains("token 4"));
        assert!(sampling.generation(&GenerationDefaults::default(), 5).unwrap().settings.biased);
        for wrong in ["3", "+1", "x+1", "3+nan", "3+", ""] {
            assert!(flags(&["--logit-bias", wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn values_out_of_range_are_usage_errors() {
        for wrong in [
            ["--top-p", "1.5"],
            ["--temperature", "-1"],
            ["--temperature", "nan"],
            ["--repeat-penalty", "0"],
            ["--max-tokens", "0"],
            ["--seed", "-3"],
        ] {
            assert!(flags(&wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(flags(&["--presence-penalty", "-0.5"]).unwrap().presence_penalty, -0.5);
    }
}
