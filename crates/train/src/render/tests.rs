//! Labels compared with PEFT's fixtures, and difficult templates.

use super::*;
use crate::testing::{lora_expected, text};
use serde_json::json;

fn renderer(model: &str, change: impl FnOnce(&mut RenderOptions)) -> Renderer {
    let (tokenizer, template) = text(model);
    let mut options = RenderOptions {
        max_seq_length: 4096,
        mask_prompt: true,
        turn_end: TurnEnd::Template,
        template_kwargs: Map::new(),
    };
    change(&mut options);
    Renderer::new(tokenizer, Some(template), options)
}

fn chat(messages: Value) -> Example {
    let messages = messages.as_array().cloned().unwrap();
    let trained = messages.iter().map(|message| message["role"] == "assistant").collect();
    Example::Chat { messages, tools: None, trained }
}

fn tokens(renderer: &Renderer, example: &Example) -> Tokens {
    match renderer.render(example).unwrap().rendered.unwrap() {
        Rendered::Sequence(tokens) => tokens,
        Rendered::Pair { .. } => panic!("a sequence"),
    }
}

/// The text of each trained range.
fn trained(renderer: &Renderer, tokens: &Tokens) -> Vec<String> {
    let marked = dry_run(tokens, renderer.tokenizer(), false).unwrap();
    marked.split('⟦').skip(1).map(|part| part.split('⟧').next().unwrap().to_owned()).collect()
}

fn numbers(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect()
}

#[test]
fn labels_are_those_of_the_fixtures() {
    for case in ["llama3_r8_all", "qwen2_r4_rslora"] {
        let expected = lora_expected(case);
        let renderer = renderer(expected["model"].as_str().unwrap(), |_| {});
        let samples = expected["samples"].as_array().unwrap();
        assert_eq!(samples.len(), 6);
        let mut rendered = vec![];
        for sample in samples {
            let tokens = tokens(&renderer, &chat(sample["messages"].clone()));
            assert_eq!(
                tokens.ids.iter().map(|id| i64::from(*id)).collect::<Vec<_>>(),
                numbers(&sample["ids"]),
                "{case} {}",
                sample["messages"]
            );
            assert_eq!(
                tokens.labels().iter().map(|l| i64::from(*l)).collect::<Vec<_>>(),
                numbers(&sample["labels"]),
                "{case} {}",
                sample["messages"]
            );
            rendered.push(tokens);
        }
        // The micro-batches are the samples in twos, padded on the right.
        for (number, batch) in expected["micro_batches"].as_array().unwrap().iter().enumerate() {
            for row in 0..2 {
                let (tokens, labels) = (&rendered[2 * number + row], numbers(&batch["labels"][row]));
                assert!(tokens.labels().iter().map(|l| i64::from(*l)).eq(labels[..tokens.ids.len()].iter().copied()));
                assert!(labels[tokens.ids.len()..].iter().all(|l| *l == -100));
            }
        }
    }
}

#[test]
fn preference_pairs_are_those_of_the_fixture() {
    let expected = lora_expected("dpo_llama3_r8");
    let renderer = renderer("llama3_gqa", |_| {});
    for pair in expected["pairs"].as_array().unwrap() {
        let answer = |name: &str| vec![json!({"role": "assistant", "content": pair[name]})];
        let prompt = pair["prompt"].as_array().cloned().unwrap();
        let example =
            Example::Preference { prompt, chosen: answer("chosen"), rejected: answer("rejected"), tools: None };
        let Ok(Rendered::Pair { chosen, rejected }) = renderer.render(&example).unwrap().rendered else {
            panic!("a pair")
        };
        for (tokens, ids, labels) in
            [(chosen, "chosen_ids", "chosen_labels"), (rejected, "rejected_ids", "rejected_labels")]
        {
            assert_eq!(tokens.ids.iter().map(|id| i64::from(*id)).collect::<Vec<_>>(), numbers(&pair[ids]));
            assert_eq!(tokens.labels().iter().map(|l| i64::from(*l)).collect::<Vec<_>>(), numbers(&pair[labels]));
        }
    }
}

const TURNS: [(&str, &str); 4] =
    [("user", "ما اسمك؟"), ("assistant", "اسمي بيان."), ("user", "شكرا"), ("assistant", "العفو!")];

fn turns() -> Example {
    chat(TURNS.iter().map(|(role, content)| json!({"role": role, "content": content})).collect())
}

#[test]
fn every_template_trains_both_answers_and_keeps_all_ids() {
    for (model, ending) in [
        ("gemma2_softcap", "<end_of_turn>\n"),
        ("gemma3_text", "<end_of_turn>\n"),
        ("jais2", "<|im_end|>\n"),
        ("llama2_mha", "</s>"),
        ("llama3_gqa", "<|eot_id|>"),
        ("mistral_swa", "</s>"),
        ("qwen2_bias", "<|im_end|>\n"),
        ("qwen3_qknorm", "<|im_end|>\n"),
    ] {
        let renderer = renderer(model, |_| {});
        let tokens = tokens(&renderer, &turns());
        let (tokenizer, template) = text(model);
        let Example::Chat { messages, .. } = turns() else { unreachable!() };
        let whole = template.render(&ChatInput { messages, ..Default::default() }).unwrap();
        assert_eq!(tokens.ids, tokenizer.encode_chat(&whole).unwrap(), "{model}");
        let stretches = trained(&renderer, &tokens);
        assert_eq!(stretches.len(), 2, "{model}: {stretches:?}");
        for (stretch, answer) in stretches.iter().zip(["اسمي بيان.", "العفو!"]) {
            assert!(stretch.contains(answer) && stretch.ends_with(ending), "{model}: {stretch:?}");
            assert!(!stretch.contains("شكرا") && !stretch.contains("user"), "{model}: {stretch:?}");
        }
        let token = Renderer::new(
            tokenizer,
            Some(template),
            RenderOptions { turn_end: TurnEnd::Token, ..renderer.options.clone() },
        );
        let shorter = trained(&token, &self::tokens(&token, &turns()));
        assert!(shorter.iter().all(|s| s.ends_with(ending.trim_end())), "{model}: {shorter:?}");
    }
}

#[test]
fn reasoning_removed_from_earlier_turns_is_handled() {
    let renderer = renderer("qwen3_qknorm", |_| {});
    let with_thought = |thought: &str| format!("<think>\n{thought}\n</think>\n\nاسمي بيان.");
    let example = chat(json!([
        {"role": "user", "content": "ما اسمك؟"},
        {"role": "assistant", "content": with_thought("أفكر")},
        {"role": "user", "content": "شكرا"},
        {"role": "assistant", "content": "العفو!"}
    ]));
    let outcome = renderer.render(&example).unwrap();
    let Ok(Rendered::Sequence(tokens)) = outcome.rendered else { panic!("a sequence") };
    let stretches = trained(&renderer, &tokens);
    assert_eq!(stretches.len() as u64 + outcome.untrained_turns, 2, "{stretches:?}");
    assert!(
        stretches.last().unwrap().contains("العفو!") && stretches.iter().all(|s| !s.contains("شكرا")),
        "{stretches:?}"
    );
}

#[test]
fn cutting_masking_and_running_text() {
    let whole = tokens(&renderer("llama3_gqa", |_| {}), &turns());
    let short = renderer("llama3_gqa", |o| o.max_seq_length = whole.ids.len() - 3);
    let outcome = short.render(&turns()).unwrap();
    assert!(outcome.truncated && outcome.lengths == [whole.ids.len()]);
    let Ok(Rendered::Sequence(cut)) = outcome.rendered else { panic!("a sequence") };
    assert_eq!((cut.ids.len(), &cut.ids[..]), (whole.ids.len() - 3, &whole.ids[..whole.ids.len() - 3]));
    let tiny = renderer("llama3_gqa", |o| o.max_seq_length = 5);
    assert_eq!(tiny.render(&turns()).unwrap().rendered, Err(DropReason::NothingTrained));
    let all = tokens(&renderer("llama3_gqa", |o| o.mask_prompt = false), &turns());
    assert_eq!((all.ids.len(), all.trained_count()), (whole.ids.len(), whole.ids.len() - 1));
    let plain = renderer("llama3_gqa", |_| {});
    let running = tokens(&plain, &Example::Text("بسم الله".into()));
    assert_eq!(running.ids.last(), plain.tokenizer().eos().first());
    assert_eq!(running.trained_count(), running.ids.len() - 1);
    let completion = Example::Chat {
        messages: TURNS.iter().map(|(r, c)| json!({"role": r, "content": c})).collect(),
        tools: None,
        trained: (0..TURNS.len()).map(|at| at >= 2 && TURNS[at].0 == "assistant").collect(),
    };
    assert_eq!(trained(&plain, &tokens(&plain, &completion)), ["العفو!<|eot_id|>"], "given turns are not learned");
}

#[test]
fn what_a_template_refuses_is_an_error_with_its_words() {
    let gemma = renderer("gemma2_softcap", |_| {});
    let twice = chat(
        json!([{"role": "user", "content": "x"}, {"role": "user", "content": "y"}, {"role": "assistant", "content": "z"}]),
    );
    assert!(gemma.render(&twice).unwrap_err().to_string().contains("must alternate"));
    let (tokenizer, _) = text("llama3_gqa");
    let without = Renderer::new(tokenizer, None, gemma.options.clone());
    assert!(without.render(&turns()).unwrap_err().to_string().contains("no chat template"));
}

#[test]
fn the_view_shows_marks_and_no_control_characters() {
    let renderer = renderer("llama3_gqa", |_| {});
    let example = chat(json!([{"role": "user", "content": "\u{1b}[31mred"}, {"role": "assistant", "content": "نعم"}]));
    let tokens = tokens(&renderer, &example);
    let shown = dry_run(&tokens, renderer.tokenizer(), false).unwrap();
    assert!(shown.contains("⟦نعم<|eot_id|>⟧") && !shown.contains('\u{1b}'), "{shown}");
    let coloured = dry_run(&tokens, renderer.tokenizer(), true).unwrap();
    assert!(coloured.contains("\u{1b}[32mنعم<|eot_id|>\u{1b}[0m"), "{coloured}");
}

#[test]
fn system_text_goes_before_the_user_where_no_role_is_for_it() {
    let gemma = renderer("gemma2_softcap", |_| {});
    let with = json!([{"role": "system", "content": "كن موجزا"}, {"role": "user", "content": "مرحبا"}, {"role": "assistant", "content": "أهلا"}]);
    let folded = json!([{"role": "user", "content": "كن موجزا\n\nمرحبا"}, {"role": "assistant", "content": "أهلا"}]);
    let outcome = gemma.render(&chat(with.clone())).unwrap();
    assert!(outcome.system_in_user);
    let Ok(Rendered::Sequence(sequence)) = outcome.rendered else { panic!("a sequence") };
    assert_eq!(sequence, tokens(&gemma, &chat(folded)));
    assert_eq!(trained(&gemma, &sequence), ["أهلا<end_of_turn>\n"]);
    assert!(!renderer("llama3_gqa", |_| {}).render(&chat(with)).unwrap().system_in_user);
}

#[test]
fn an_excluded_answer_is_not_trained_in_either_mode() {
    let Example::Chat { messages, tools, .. } = turns() else { panic!("a conversation") };
    let example = Example::Chat { messages, tools, trained: vec![false, false, false, true] };
    let masked = renderer("llama3_gqa", |_| {});
    assert_eq!(trained(&masked, &tokens(&masked, &example)), ["العفو!<|eot_id|>"]);
    let all = renderer("llama3_gqa", |o| o.mask_prompt = false);
    let whole = tokens(&all, &example);
    let first = TURNS[1].1;
    assert!(trained(&all, &whole).iter().all(|range| !range.contains(first)), "{first}");
    assert!(whole.trained_count() > tokens(&masked, &example).trained_count());
}

#[test]
fn tool_calls_that_the_template_leaves_out_are_refused() {
    let calls = |role: &str| {
        json!([{"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]},
            {"role": role, "content": "r"}, {"role": "assistant", "content": "d"}])
    };
    let with = |source: &str| {
        let (tokenizer, _) = text("llama3_gqa");
        let template = ChatTemplate::new(source, Some(&tokenizer)).unwrap();
        Renderer::new(tokenizer, Some(template), renderer("llama3_gqa", |_| {}).options)
    };
    let plain = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";
    let error = with(plain).render(&chat(calls("tool"))).unwrap_err().to_string();
    assert!(error.contains("message 1") && error.contains("tool call"), "{error}");
    let no_results = "{% for m in messages if m.role != 'tool' %}<|{{ m.role }}|>{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";
    let error = with(no_results).render(&chat(calls("tool"))).unwrap_err().to_string();
    assert!(error.contains("message 2") && error.contains("tool's result"), "{error}");
    let calls_too = plain.replace("{{ m.content }}", "{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}");
    let good = with(&calls_too);
    let rendered = tokens(&good, &chat(calls("tool")));
    assert!(trained(&good, &rendered)[0].contains("\"name\": \"f\""));
    let mut tools = chat(json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]));
    if let Example::Chat { tools, .. } = &mut tools {
        *tools = Some(vec![json!({"type": "function", "function": {"name": "f"}})]);
    }
    assert!(good.render(&tools).unwrap().tools_left_out);
}
