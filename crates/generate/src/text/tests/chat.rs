//! Templates: the built-in ones byte by byte, the features of transformers' environment, and the list form.

use super::*;
use crate::text::{BUILTIN_TEMPLATES, ChatInput, LocalTime, TextError};
use serde_json::json;

fn render(source: &str, input: &ChatInput) -> String {
    ChatTemplate::new(source, None)
        .unwrap()
        .with_variable("bos_token", "<s>")
        .with_variable("eos_token", "</s>")
        .render(input)
        .unwrap()
}

fn builtin(name: &str, bos: &str, pairs: &[(&str, &str)]) -> String {
    let template =
        ChatTemplate::builtin(name, None).unwrap().with_variable("bos_token", bos).with_variable("eos_token", "</s>");
    template.render(&ChatInput::from_pairs(pairs.iter().copied())).unwrap()
}

const TURNS: [(&str, &str); 4] = [("system", "كن موجزًا"), ("user", " س١ "), ("assistant", "ج١"), ("user", "س٢")];

#[test]
fn built_in_templates_byte_by_byte() {
    let llama2 = "<s>[INST] <<SYS>>\nكن موجزًا\n<</SYS>>\n\nس١ [/INST] ج١ </s><s>[INST] س٢ [/INST]";
    assert_eq!(builtin("llama2", "<s>", &TURNS), llama2);
    assert_eq!(builtin("llama2", "<s>", &TURNS[1..2]), "<s>[INST] س١ [/INST]");
    let acegpt = "<s>[INST] <<SYS>>\nكن موجزًا\n<</SYS>>\n\n س١  [/INST]ج١</s>[INST] س٢ [/INST]";
    assert_eq!(builtin("acegpt", "<s>", &TURNS), acegpt);
    let system = "أنت مساعد مفيد ومحترم وصادق. أجب دائما بأكبر قدر ممكن من المساعدة بينما تكون آمنا.  يجب ألا";
    let default = builtin("acegpt", "<s>", &[("user", "مرحبا")]);
    assert!(default.starts_with(&format!("<s>[INST] <<SYS>>\n{system}")), "two spaces after آمنا. : {default}");
    assert!(default.ends_with("معلومات خاطئة.\n<</SYS>>\n\nمرحبا [/INST]"), "{default}");
    let llama3 = "<B><|start_header_id|>system<|end_header_id|>\n\nكن موجزًا<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nس١<|eot_id|>\
        <|start_header_id|>assistant<|end_header_id|>\n\nج١<|eot_id|>\
        <|start_header_id|>user<|end_header_id|>\n\nس٢<|eot_id|>\
        <|start_header_id|>assistant<|end_header_id|>\n\n";
    assert_eq!(builtin("llama3", "<B>", &TURNS), llama3);
    let chatml = "<|im_start|>system\nكن موجزًا<|im_end|>\n<|im_start|>user\n س١ <|im_end|>\n<|im_start|>assistant\nج١<|im_end|>\n\
        <|im_start|>user\nس٢<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(builtin("chatml", "<|startoftext|>", &TURNS), format!("<|startoftext|>{chatml}"));
    assert_eq!(builtin("chatml", "<|endoftext|>", &TURNS), chatml);
    let gemma = "<bos><start_of_turn>user\nكن موجزًا\n\nس١<end_of_turn>\n<start_of_turn>model\nج١<end_of_turn>\n<start_of_turn>user\nس٢<end_of_turn>\n\
        <start_of_turn>model\n";
    assert_eq!(builtin("gemma", "<bos>", &TURNS), gemma);
}

#[test]
fn jais_speaks_the_language_of_the_question() {
    let english = builtin("jais", "", &[("user", "Who are you?")]);
    assert!(english.starts_with("### Instruction: Your name is Jais, and you are named after Jebel Jais"), "{english}");
    let end = "respond with caution.\n\nComplete the conversation below between [|Human|] and [|AI|]:\n### Input: [|Human|] Who are you?\n### Response: [|AI|]";
    assert!(english.ends_with(end), "{english}");
    let arabic = builtin("jais", "", &[("user", "من أنت؟")]);
    assert!(arabic.starts_with("### Instruction: اسمك جيس وسميت على اسم جبل جيس"), "{arabic}");
    assert!(
        arabic.ends_with(
            "أكمل المحادثة أدناه بين [|Human|] و [|AI|]:\n### Input: [|Human|] من أنت؟\n### Response: [|AI|]"
        ),
        "{arabic}"
    );
    let family = builtin("jais-family", "", &[("user", "Who are you?")]);
    let want = "### Instruction:Your name is 'JAIS', and you are named after Jebel Jais, the highest mountain in UAE. You were made by 'Inception' in the UAE. \
        You are a helpful, respectful, and honest assistant. Always answer as helpfully as possible, while being safe. \
        Complete the conversation between [|Human|] and [|AI|]:\n### Input: [|Human|] Who are you?\n[|AI|]\n### Response :";
    assert_eq!(family, want);
    let family = builtin("jais-family", "", &[("user", "من أنت؟")]);
    let end = "مع الحفاظ على البقاء أمناً. أكمل المحادثة بين [|Human|] و[|AI|] :\n### Input:[|Human|] من أنت؟\n[|AI|]\n### Response :";
    assert!(family.starts_with("### Instruction:اسمك \"جيس\" وسميت") && family.ends_with(end), "{family}");
    let turns = [("user", "أ"), ("assistant", "ب"), ("user", "ج")];
    assert!(
        builtin("jais", "", &turns).ends_with("### Input: [|Human|] أ\n[|AI|] ب\n[|Human|] ج\n### Response: [|AI|]")
    );
}

#[test]
fn built_in_templates_refuse_what_they_cannot_say() {
    for name in ["llama2", "acegpt", "gemma", "jais", "jais-family"] {
        let template =
            ChatTemplate::builtin(name, None).unwrap().with_variable("bos_token", "").with_variable("eos_token", "");
        let error = template.render(&ChatInput::from_pairs([("user", "a"), ("user", "b")])).unwrap_err();
        assert!(matches!(&error, TextError::TemplateRaised(m) if m.contains("must alternate")), "{name}: {error}");
    }
    let error = ChatTemplate::builtin("alpaca", None).unwrap_err().to_string();
    assert!(BUILTIN_TEMPLATES.iter().all(|name| error.contains(name)), "{error}");
}

#[test]
fn values_print_as_in_python() {
    let input = ChatInput {
        kwargs: json!({"x": [1, 2.5, null, true, "it's", {"k": 1e16}], "f": 100.0}).as_object().unwrap().clone(),
        ..Default::default()
    };
    assert_eq!(render("{{ none }} {{ true }} {{ f }} {{ missing }}|", &input), "None True 100.0 |");
    assert_eq!(render("{{ x }}", &input), "[1, 2.5, None, True, \"it's\", {'k': 1e+16}]");
    assert_eq!(render("{{ 'a' ~ 1 ~ 'b' }}{{ ['a', 1]|join('-') }}", &input), "a1ba-1");
}

#[test]
fn tojson_is_pythons() {
    let kwargs = json!({"t": {"name": "جو", "n": [1, 0.5, null, true], "e": {}, "l": [], "q": "a\"b\n<&'>\u{7f}"}});
    let input = ChatInput { kwargs: kwargs.as_object().unwrap().clone(), ..Default::default() };
    let line = "{\"name\": \"جو\", \"n\": [1, 0.5, null, true], \"e\": {}, \"l\": [], \"q\": \"a\\\"b\\n<&'>\u{7f}\"}";
    assert_eq!(render("{{ t|tojson }}", &input), line);
    assert_eq!(render("{{ t.n|tojson(indent=2) }}", &input), "[\n  1,\n  0.5,\n  null,\n  true\n]");
    assert_eq!(render("{{ t.name|tojson(ensure_ascii=true) }}", &input), "\"\\u062c\\u0648\"");
    assert_eq!(
        render("{{ {'b': 1, 'a': []}|tojson(sort_keys=true, separators=(',', ':')) }}", &input),
        "{\"a\":[],\"b\":1}"
    );
}

#[test]
fn python_methods_dates_loops_and_generation_blocks() {
    let input =
        ChatInput { now: Some(LocalTime { unix_seconds: 1_709_217_000 }), ..ChatInput::from_pairs([("user", " س ")]) };
    assert_eq!(
        render(
            "{{ messages[0].content.strip() }}{{ 'a,b'.split(',')[1] }}{{ 'xab'.lstrip('x') }}{{ 'ab'.startswith('a') }}",
            &input
        ),
        "سbabTrue"
    );
    assert_eq!(
        render(
            "{{ messages[0].get('name', 'none') }}{% for k, v in messages[0].items() %}{{ k }};{% endfor %}",
            &input
        ),
        "nonerole;content;"
    );
    assert_eq!(
        render("{{ strftime_now('%d %b %Y %H:%M %A %j %-I%p') }}", &input),
        "29 Feb 2024 14:30 Thursday 060 2PM"
    );
    assert_eq!(LocalTime { unix_seconds: -1 }.format("%Y-%m-%d %H:%M:%S"), "1969-12-31 23:59:59");
    assert_eq!(
        render("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", &input),
        "012"
    );
    let source = "a{% generation %}b{% endgeneration %}\nc {%- generation -%} d {%- endgeneration -%} e";
    assert_eq!(render(source, &input), "abcde", "a newline after a block is trimmed, as after any other");
    assert_eq!(render("{{ '{% generation %}' }}{# {% generation %} #}", &input), "{% generation %}");
    assert_eq!(
        render(
            "{%- if x is defined %}a{% endif %}{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            &input
        ),
        "1"
    );
}

#[test]
fn a_template_is_picked_by_name() {
    let config =
        json!({"chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]});
    let pick = |name: Option<&str>, tools: bool| ChatTemplate::from_checkpoint(None, Some(&config), name, tools, None);
    let source = |name, tools| pick(name, tools).unwrap().unwrap().source().to_owned();
    assert_eq!(
        (source(None, false), source(None, true), source(Some("tool_use"), false)),
        ("D".into(), "T".into(), "T".into())
    );
    assert!(pick(Some("rag"), false).unwrap_err().to_string().contains("default, tool_use"));
    assert!(ChatTemplate::from_checkpoint(None, Some(&json!({})), None, false, None).unwrap().is_none());
    assert_eq!(
        ChatTemplate::from_checkpoint(Some("J"), Some(&config), None, false, None).unwrap().unwrap().source(),
        "J"
    );
}
