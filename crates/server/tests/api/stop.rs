//! Stop strings in Arabic, across the borders of tokens.

use serde_json::json;

use crate::{content, events, question, server, with};

#[test]
fn any_part_of_an_answer_ends_it_and_is_not_shown() {
    let server = server();
    let ask = question("كيف أصنع الشاي؟");
    let whole = content(&server.chat(ask.clone()).good());
    let characters: Vec<char> = whole.chars().collect();
    assert!(characters.len() > 40, "{whole}");
    // Parts of one to nine characters, which begin and end inside of tokens.
    for (start, length) in [(0, 1), (3, 2), (7, 5), (12, 1), (15, 9), (20, 4), (26, 7), (33, 3)] {
        let stop: String = characters[start..start + length].iter().collect();
        let expected = &whole[..whole.find(&stop).unwrap()];
        let answer = server.chat(with(ask.clone(), json!({"stop": stop}))).good();
        assert_eq!(content(&answer), expected, "stop {stop:?}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        let chunks = events(&server.chat(with(ask.clone(), json!({"stop": [stop, "zzz"], "stream": true}))).body);
        let text: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(text, expected, "stop {stop:?} in a stream");
    }
    // What only looks like the beginning of a stop string is shown in the end.
    let last: String = characters[characters.len() - 3..].iter().collect();
    let answer = server.chat(with(ask, json!({"stop": format!("{last}ثم")}))).good();
    assert_eq!(content(&answer), whole);
}
