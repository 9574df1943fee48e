//! A fine-tuning recipe: the first byte selects TOML or YAML. An accepted recipe must survive being written as TOML and
//! read again.
#![no_main]

use bayan_train::recipe::Recipe;
use libfuzzer_sys::fuzz_target;
use serde_json::Map;

fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, text)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let name = if kind % 2 == 0 { "a.toml" } else { "a.yaml" };
    let Ok(recipe) = Recipe::from_file(name, text, Map::new()) else { return };
    let again = Recipe::from_file("a.toml", &recipe.to_toml(), Map::new());
    assert_eq!(again.map_err(|e| e.to_string()), Ok(recipe));
});
