//! All cases of the reference fixtures.

use super::*;
use crate::text::{ChatInput, GuardedText, TextError, TokenStream};

fn pieces(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> Vec<Option<String>> {
    let mut stream = TokenStream::new(tokenizer, skip);
    let mut pieces: Vec<_> = ids.iter().map(|id| stream.push(*id).expect("a stream")).collect();
    pieces.push(stream.flush());
    pieces
}

fn joined(pieces: &[Option<String>]) -> String {
    pieces.iter().flatten().map(String::as_str).collect()
}

#[test]
fn ids_text_and_streams_are_those_of_tokenizers() {
    for name in models().iter().map(String::as_str) {
        let (tokenizer, cases) = (tokenizer(name), expected(name, "tokenizer_cases.json"));
        assert_eq!(tokenizer.vocab_size() as u64, cases["vocab_size"].as_u64().unwrap(), "{name}");
        let (encode, decode) = (cases["cases"].as_array().unwrap(), cases["decode_cases"].as_array().unwrap());
        assert!(encode.len() > 100 && !decode.is_empty(), "{name}: too few cases");
        for case in encode {
            let text = case["text"].as_str().unwrap();
            let want = ids(&case["ids"]);
            assert_eq!(tokenizer.encode(text, false).unwrap(), want, "{name}: {text:?}");
            assert_eq!(
                tokenizer.encode(text, true).unwrap(),
                ids(&case["ids_special"]),
                "{name}: {text:?} with special tokens"
            );
            let unguarded = GuardedText { text: text.to_owned(), guards: vec![] };
            assert_eq!(tokenizer.encode_guarded(&unguarded).unwrap(), want, "{name}: {text:?} guarded nowhere");
            assert_eq!(tokenizer.decode(&want, false).unwrap(), case["decoded"], "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&want, true).unwrap(), case["decoded_skip"], "{name}: {text:?}");
            let streamed = pieces(&tokenizer, &want, false);
            assert_eq!(joined(&streamed), case["decoded"], "{name}: {text:?} streamed");
            // The reference returns nothing while the text ends inside a character; we return what is complete already,
            // never later and never different text.
            let (mut ours, mut reference) = (String::new(), String::new());
            for (piece, shown) in streamed.iter().zip(case["stream"].as_array().unwrap()) {
                ours.push_str(piece.as_deref().unwrap_or_default());
                reference.push_str(shown.as_str().unwrap_or_default());
                assert!(ours.starts_with(&reference), "{name}: {text:?}: {reference:?} is due, {ours:?} is shown");
            }
        }
        for case in decode {
            let want = ids(&case["ids"]);
            for (skip, key) in [(false, "decoded"), (true, "decoded_skip")] {
                let whole = case[key].as_str().unwrap();
                assert_eq!(tokenizer.decode(&want, skip).unwrap(), whole, "{name}: {want:?}");
                if !whole.contains('\u{FFFD}') {
                    assert_eq!(joined(&pieces(&tokenizer, &want, skip)), whole, "{name}: {want:?} streamed");
                }
            }
        }
    }
}

#[test]
fn a_stream_cut_anywhere_shows_the_decoding_of_its_prefix() {
    for name in models().iter().map(String::as_str) {
        let tokenizer = tokenizer(name);
        for case in expected(name, "tokenizer_cases.json")["cases"].as_array().unwrap() {
            let all = ids(&case["ids"]);
            for cut in 0..=all.len() {
                let shown = joined(&pieces(&tokenizer, &all[..cut], false));
                let whole = tokenizer.decode(&all[..cut], false).unwrap();
                // Inside a character both end in U+FFFD; only `decode` replaces a whole invalid run of byte tokens.
                if whole.contains('\u{FFFD}') {
                    let clean = |s: &str| s.trim_end_matches('\u{FFFD}').to_owned();
                    assert!(clean(&shown).starts_with(&clean(&whole)), "{name}: {shown:?} {whole:?}");
                } else {
                    assert_eq!(shown, whole, "{name}: {:?} cut at {cut}", case["text"]);
                }
            }
        }
    }
}

#[test]
fn chats_are_those_of_transformers() {
    for name in models().iter().map(String::as_str) {
        let tokenizer = tokenizer(name);
        let template = template(name, &tokenizer);
        let cases = expected(name, "chat_cases.json");
        let cases = cases["cases"].as_array().unwrap();
        assert!(cases.len() >= 30, "{name}: too few cases");
        for case in cases {
            let input = ChatInput {
                messages: case["messages"].as_array().unwrap().clone(),
                tools: case.get("tools").and_then(Value::as_array).cloned(),
                add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
                kwargs: case["kwargs"].as_object().unwrap().clone(),
                ..Default::default()
            };
            let rendered = template.render(&input);
            let Some(want) = case["rendered"].as_str() else {
                let Err(error) = rendered else {
                    panic!("{name} {}: rendered what transformers refuses", case["name"])
                };
                if let TextError::TemplateRaised(message) = &error {
                    assert!(
                        case["error"].as_str().unwrap().contains(message.as_str()),
                        "{name}: {message} {}",
                        case["error"]
                    );
                }
                continue;
            };
            let rendered = rendered.unwrap_or_else(|e| panic!("{name} {}: {e}", case["name"]));
            assert_eq!(rendered, want, "{name} {}", case["name"]);
            assert_eq!(tokenizer.encode_chat(&rendered).unwrap(), ids(&case["ids"]), "{name} {}", case["name"]);
            let unguarded = GuardedText { text: rendered, guards: vec![] };
            assert_eq!(
                tokenizer.encode_guarded(&unguarded).unwrap(),
                ids(&case["ids"]),
                "{name} {} guarded nowhere",
                case["name"]
            );
        }
    }
}
