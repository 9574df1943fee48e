//! `/tokenize`, `/detokenize`, `/tokenizer_info`.

use serde_json::json;

use crate::server;

#[test]
fn texts_become_ids_and_texts_again() {
    let server = server();
    let text = "السلام عليكم، كَيْفَ الحال؟ ١٢٣";
    let tokens = server.post("/tokenize", &json!({"prompt": text, "add_special_tokens": false})).good();
    assert_eq!(tokens["count"].as_u64().unwrap() as usize, tokens["tokens"].as_array().unwrap().len());
    assert_eq!(server.post("/detokenize", &json!({"tokens": tokens["tokens"]})).good()["prompt"], text);
    let other = server.post("/tokenize", &json!({"content": text})).good();
    assert_eq!(other["tokens"], tokens["tokens"], "llama.cpp's name");
    let info = server.get("/tokenizer_info").good();
    let eos = info["eos_token"].as_str().expect("an eos token");
    assert!(info["chat_template"].is_string());
    let one = server.post("/tokenize", &json!({"prompt": eos, "add_special_tokens": false})).good();
    assert_eq!(one["count"], 1, "a special token is one id");
    for wrong in [json!({}), json!({"prompt": "a", "content": "b"}), json!({"prompt": 1})] {
        server.post("/tokenize", &wrong).error(400);
    }
    for wrong in [json!({}), json!({"tokens": "x"}), json!({"tokens": [1.5]}), json!({"tokens": [99_999_999]})] {
        assert_eq!(server.post("/detokenize", &wrong).error(400)["param"], "tokens");
    }
}
