//! `/set`: sampling settings that change within a conversation.

use bayan_generate::Generation;

use crate::support::sampling;

/// The settings as text.
pub fn shown(generation: &Generation) -> String {
    let s = &generation.settings;
    let limit = generation.max_tokens.map_or("as many as fit".to_string(), |tokens| tokens.to_string());
    format!(
        "temperature {}, top_k {}, top_p {}, min_p {}, repeat_penalty {}, seed {}, max_tokens {limit}",
        s.temperature, s.top_k, s.top_p, s.min_p, s.repeat_penalty, s.seed
    )
}

/// Changes one setting.
///
/// # Errors
/// There is no setting of this name, or the value is outside its range.
pub fn set(generation: &mut Generation, name: &str, value: &str) -> Result<(), String> {
    let settings = &mut generation.settings;
    let wrong = |problem: String| format!("/set {name} {value}: {problem}");
    let whole = |value: &str| value.parse().map_err(|_| "expected a whole number, 0 or more".to_string());
    match name.trim_start_matches('-').replace('-', "_").as_str() {
        "temperature" | "temp" => settings.temperature = sampling::not_negative(value).map_err(wrong)?,
        "top_k" => settings.top_k = whole(value).map_err(wrong)?,
        "top_p" => settings.top_p = sampling::fraction(value).map_err(wrong)?,
        "min_p" => settings.min_p = sampling::fraction(value).map_err(wrong)?,
        "repeat_penalty" => settings.repeat_penalty = sampling::positive(value).map_err(wrong)?,
        "seed" => settings.seed = sampling::seed(value).map_err(wrong)?.0.unwrap_or_else(sampling::new_seed),
        "max_tokens" => generation.max_tokens = sampling::max_tokens(value).map_err(wrong)?.0.map(|n| n as usize),
        _ => {
            return Err(format!(
                "/set {name}: expected temperature, top_k, top_p, min_p, repeat_penalty, seed or max_tokens"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_change_within_their_ranges() {
        let mut generation = Generation::default();
        for (name, value) in
            [("temperature", "0.3"), ("top_k", "7"), ("top-p", "0.5"), ("seed", "9"), ("max_tokens", "-1")]
        {
            set(&mut generation, name, value).unwrap();
        }
        let text = shown(&generation);
        assert!(
            text.contains("temperature 0.3, top_k 7, top_p 0.5") && text.ends_with("seed 9, max_tokens as many as fit")
        );
        for (name, value) in [("temperature", "-1"), ("top_p", "2"), ("top_k", "x"), ("heat", "1"), ("max_tokens", "0")]
        {
            assert!(set(&mut generation, name, value).is_err(), "{name} {value}");
        }
    }
}
