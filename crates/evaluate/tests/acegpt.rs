//! Prompts of AceGPT's benchmarks against those that its own code made of the same rows.

use std::path::PathBuf;

use bayan_evaluate::data::DataFolder;
use bayan_evaluate::run::{self, Settings};
use bayan_evaluate::suites::select;
use serde_json::Value;

#[test]
fn prompts_are_those_of_acegpt_s_harness() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/evaluate");
    let text = std::fs::read_to_string(folder.join("acegpt.json")).expect("a fixture");
    let reference: Value = serde_json::from_str(&text).expect("JSON");
    let mut data = DataFolder::open(&folder.join("data")).expect("the data");
    let mut compared = 0;
    for (key, tasks) in reference.as_object().expect("prompts") {
        let (name, setting) = key.split_once('/').expect("a name and a setting");
        let chat = setting == "chat";
        let suffix = if chat { "_chat" } else { "" };
        let settings = Settings { shots: Some(usize::from(setting == "few")), ..Default::default() };
        for (topic, prompts) in tasks.as_object().expect("tasks") {
            let task = select(&[format!("acegpt/{name}{suffix}:{topic}")]).expect("a task").tasks.remove(0);
            let own = run::prepare(&task, &mut data, &settings).unwrap_or_else(|error| panic!("{key}: {error}"));
            let mut own: Vec<String> = own.items.into_iter().map(|item| item.prompt).collect();
            if chat {
                // The configuration of the chat models puts this around each prompt.
                for prompt in &mut own {
                    let bare = prompt.split_once("\n<</SYS>>\n\n").and_then(|(_, rest)| rest.strip_suffix(" [/INST]"));
                    assert!(prompt.starts_with("[INST] <<SYS>>\nأنت مساعد مفيد"), "{prompt}");
                    *prompt = bare.expect("a chat's frame").to_owned();
                }
            }
            assert_eq!(Value::from(own.clone()), *prompts, "{key}, {topic}");
            compared += own.len();
        }
    }
    assert!(compared > 200, "{compared}");
}
