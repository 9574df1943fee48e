//! Stop strings, stop ids and generation defaults.

use super::*;
use crate::text::{GenerationDefaults, StopMatcher, guess_builtin, stop_ids};
use proptest::prelude::*;

fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<usize>) {
    let mut matcher = StopMatcher::new(stops.iter().copied());
    let mut shown: String = pieces.iter().map(|p| matcher.push(p).text).collect();
    shown.extend(matcher.flush());
    (shown, matcher.stopped())
}

#[test]
fn text_before_a_stop_is_shown_and_nothing_after_it() {
    assert_eq!(run(&["[|Human|]"], &["جواب [|", "Hum", "an|] more", "x"]), ("جواب ".into(), Some(0)));
    assert_eq!(run(&["\n###", "END"], &["a\n", "##b", " EN", "D!"]), ("a\n##b ".into(), Some(1)));
    assert_eq!(run(&["؟!"], &["لماذا؟", " نعم؟"]), ("لماذا؟ نعم؟".into(), None));
    assert_eq!(run(&["", "x"], &["ab"]), ("ab".into(), None));
    assert_eq!(run(&["aab"], &["a", "a", "a", "b"]), ("a".into(), Some(0)));
}

#[test]
fn what_may_begin_a_stop_is_held_back() {
    let mut matcher = StopMatcher::new(["###"]);
    assert_eq!(matcher.push("ab#").text, "ab");
    assert_eq!(matcher.push("#").text, "");
    assert_eq!(matcher.push("c").text, "##c");
}

proptest! {
    #[test]
    fn the_cut_into_pieces_does_not_matter(text in "[ab؟]{0,24}", stops in prop::collection::vec("[ab؟]{0,4}", 0..4), cuts in prop::collection::vec(0usize..24, 0..6)) {
        let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
        let chars: Vec<char> = text.chars().collect();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(chars.len())).chain([0, chars.len()]).collect();
        cuts.sort_unstable();
        let pieces: Vec<String> = cuts.windows(2).map(|w| chars[w[0]..w[1]].iter().collect()).collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let (shown, stopped) = run(&stops, &[&text]);
        prop_assert_eq!(run(&stops, &pieces), (shown.clone(), stopped));
        for stop in stops.iter().filter(|s| !s.is_empty()) {
            prop_assert!(!shown.contains(stop));
        }
        prop_assert!(text.starts_with(&shown) && (stopped.is_some() || shown == text));
    }
}

#[test]
fn stop_sets_are_unions() {
    let of = |name: &str| {
        let tokenizer = tokenizer(name);
        let template = template(name, &tokenizer);
        let file = |f: &str| json(&model_file(name, f).unwrap());
        stop_ids(Some(&file("config.json")), Some(&file("generation_config.json")), &tokenizer, Some(&template))
    };
    assert_eq!(of("llama3_gqa"), [995, 1000, 1001], "end of text, end of message, end of turn");
    assert_eq!(of("llama2_mha"), [2]);
    let gemma = tokenizer("gemma2_softcap");
    assert_eq!(of("gemma2_softcap"), [1, gemma.id("<end_of_turn>").unwrap()]);
    // The template's end of turn is a stop token even where no file lists it.
    let template = template("gemma2_softcap", &gemma);
    let none = stop_ids(
        None,
        None,
        &Tokenizer::from_json(&model_file("gemma2_softcap", "tokenizer.json").unwrap()).unwrap(),
        Some(&template),
    );
    assert_eq!(none, [gemma.id("<end_of_turn>").unwrap()]);
    let text_config = serde_json::json!({"text_config": {"eos_token_id": [7, 9]}, "eos_token_id": null});
    assert_eq!(
        stop_ids(
            Some(&text_config),
            None,
            &Tokenizer::from_json(&model_file("llama2_mha", "tokenizer.json").unwrap()).unwrap(),
            None
        ),
        [7, 9]
    );
}

#[test]
fn defaults_are_read_and_nonsense_is_not() {
    let read = |text: &str| GenerationDefaults::from_json(&serde_json::from_str(text).unwrap());
    let qwen = GenerationDefaults::from_json(&json(&model_file("qwen2_bias", "generation_config.json").unwrap()));
    assert_eq!(
        (qwen.do_sample, qwen.temperature, qwen.top_k, qwen.top_p),
        (Some(true), Some(0.6), Some(20), Some(0.9))
    );
    assert_eq!((qwen.repetition_penalty, qwen.min_p, qwen.max_new_tokens), (Some(1.05), None, None));
    let odd = read(
        r#"{"temperature": 0, "top_p": 7, "top_k": -1, "repetition_penalty": "x", "max_new_tokens": 99999999999, "do_sample": 1}"#,
    );
    assert_eq!(odd, GenerationDefaults::default());
}

#[test]
fn the_built_in_template_is_guessed_only_when_sure() {
    for (name, guess) in [
        ("gemma2_softcap", Some("gemma")),
        ("gemma3_text", Some("gemma")),
        ("jais2", Some("chatml")),
        ("llama2_mha", None),
        ("llama3_gqa", Some("llama3")),
        ("llama3_tied", Some("llama3")),
        ("mistral_swa", None),
        ("qwen2_bias", Some("chatml")),
        ("qwen3_qknorm", Some("chatml")),
    ] {
        assert_eq!(guess_builtin(&tokenizer(name)), guess, "{name}");
    }
}
