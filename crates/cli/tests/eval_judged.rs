//! Sets that another model judges, as a user runs them: answers, files of other programs, a stand-in judge, verdicts
//! from elsewhere, and a judge that stops answering.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use common::{bayan, fail, finish, succeed, text};
use serde_json::{Value, json};

const MT_BENCH: &str = r#"{"question_id": 81, "category": "writing", "turns": ["ما عاصمة مصر؟", "ما عاصمة الأردن؟"]}
{"question_id": 82, "category": "math", "turns": ["كم يساوي ٣ + ٤؟", "كم يساوي ٢ + ٢؟"], "reference": ["٧", "٤"]}
"#;
const VICUNA: &str = r#"{"question_id": 1, "text": "ما اسمك؟", "category": "generic"}
{"question_id": 2, "text": "السلام عليكم", "category": "knowledge"}
"#;

/// What the stand-in decides for a request; `None`: it refuses.
type Decide = dyn Fn(&Value) -> Option<Value> + Send + Sync;

struct StandIn {
    url: String,
    seen: Arc<Mutex<Vec<Value>>>,
}

/// A server with OpenAI's interface that answers each request by a rule.
fn stand_in(decide: impl Fn(&Value) -> Option<Value> + Send + Sync + 'static) -> StandIn {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
    let seen: Arc<Mutex<Vec<Value>>> = Arc::default();
    let (log, decide): (_, Arc<Decide>) = (seen.clone(), Arc::new(decide));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (log, decide) = (log.clone(), decide.clone());
            std::thread::spawn(move || reply(stream, &log, &*decide));
        }
    });
    StandIn { url, seen }
}

fn reply(mut stream: TcpStream, log: &Mutex<Vec<Value>>, decide: &Decide) {
    let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
    let (mut length, mut key) = (0, String::new());
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|count| count > 2) {
        let lower = line.to_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        if lower.starts_with("authorization:") {
            key = line.trim().to_owned();
        }
        line.clear();
    }
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes).expect("a body");
    let mut body: Value = serde_json::from_slice(&bytes).expect("JSON");
    let decided = decide(&body);
    body["key"] = key.into();
    log.lock().unwrap().push(body);
    let (status, answer) = match decided {
        Some(choice) => (200, json!({"choices": [choice]}).to_string()),
        None => (500, "out of order".to_owned()),
    };
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", answer.len());
    let _ = stream.write_all((head + &answer).as_bytes());
}

fn says(text: &str) -> Option<Value> {
    Some(json!({"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}))
}

fn user(body: &Value) -> &str {
    body["messages"][1]["content"].as_str().expect("the user's message")
}

fn data(folder: &Path) -> String {
    for (path, text) in [("mt_bench/question.jsonl", MT_BENCH), ("Arabic-Vicuna-80/vicuna_ar80.jsonl", VICUNA)] {
        let path = folder.join("data").join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    }
    folder.join("data").display().to_string()
}

/// The embedded model's answers to a set.
fn answered(folder: &Path, set: &str, name: &str, more: &[&str]) -> PathBuf {
    let (data, out) = (data(folder), folder.join(name));
    let mut command = bayan();
    command.args(["eval", "run", "--device", "cpu", "--model", "embedded", "--tasks", set, "--data", &data, "--out"]);
    let shown = succeed(&finish(command.arg(&out).args(more)));
    assert!(shown.contains("questions") && shown.contains(set), "{shown}");
    out
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn run(arguments: &[&str]) -> std::process::Output {
    finish(bayan().env("BAYAN_JUDGE_KEY", "secret").args(arguments))
}

#[test]
fn two_turns_are_answered_rated_and_exported() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = answered(folder.path(), "mt-bench", "a", &[]);
    let path = out.join("answers_fastchat_mt-bench.jsonl");
    let answers = lines(&path);
    assert_eq!(
        (answers.len(), answers[0]["temperature"].clone(), answers[1]["temperature"].clone()),
        (2, json!(0.7), json!(0.0))
    );
    assert_eq!(answers[1]["answers"][0], "٣ + ٤ = ٧.", "greedy, because it is mathematics");
    // A run that was killed ends with the same file, and the same folder is not another run.
    let before = std::fs::read(&path).expect("answers");
    std::fs::write(&path, &before[..before.len() / 2]).expect("half of it");
    answered(folder.path(), "mt-bench", "a", &["--resume"]);
    assert_eq!(std::fs::read(&path).expect("answers"), before);
    let run_folder = out.display().to_string();

    let judge = stand_in(|body| match user(body) {
        text if text.contains("Reference") => says("صحيح. Rating: [[9]]"),
        text if text.contains("[Question]") => says("Rating: [[4.5]]"),
        _ => says("I cannot rate this."),
    });
    let judged = ["eval", "judge", &run_folder, "--judge-server", &judge.url, "--judge-model", "gpt-4"];
    let results: Value =
        serde_json::from_str(&succeed(&run(&[&judged[..], &["--json", "--parallel", "2"]].concat()))).expect("JSON");
    let scores = results["scores"].as_array().expect("scores");
    let part =
        |name: &str| scores.iter().find(|part| part["part"] == name).unwrap_or_else(|| panic!("{name}: {results}"));
    assert_eq!((part("all")["n"].as_u64(), part("all")["failures"].as_u64()), (Some(3), Some(1)));
    assert_eq!(part("all")["mean_score"], 7.5);
    assert_eq!((part("turn 1")["mean_score"].as_f64(), part("turn 2")["mean_score"].as_f64()), (Some(6.75), Some(9.0)));
    assert_eq!((part("math")["mean_score"].as_f64(), part("writing")["failures"].as_u64()), (Some(9.0), Some(1)));
    let seen = judge.seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 4);
    assert!(
        seen.iter()
            .all(|body| body["key"] == "Authorization: Bearer secret" || body["key"] == "authorization: Bearer secret"),
        "{seen:?}"
    );
    assert!(seen.iter().all(|body| body["temperature"] == 0 && body["max_tokens"] == 2048 && body["model"] == "gpt-4"));
    let math =
        seen.iter().find(|body| user(body).contains("[The Start of Reference Answer]\n٧\n")).expect("a reference");
    assert!(user(math).contains("[The Start of Assistant's Answer]\n٣ + ٤ = ٧.\n[The End of Assistant's Answer]"));
    let second = seen.iter().find(|body| user(body).contains("### User:\nما عاصمة الأردن؟")).expect("a second turn");
    assert!(second["messages"][0]["content"].as_str().expect("text").contains("the second user question"));

    // Verdicts that are there are not asked for again; those that could not be read are, if the user says so.
    let verdicts = out.join("judgments_fastchat_mt-bench_single_gpt-4.jsonl");
    let before = std::fs::read_to_string(&verdicts).expect("verdicts");
    let found = lines(&verdicts);
    assert_eq!(found.iter().filter(|line| line["score"] == -1.0 && line["failure"].is_string()).count(), 1);
    let shown = run(&judged);
    assert!(succeed(&shown).contains("turn 2") && text(&shown.stderr).contains("1 of 4 verdicts could not be read"));
    assert_eq!(
        (judge.seen.lock().unwrap().len(), std::fs::read_to_string(&verdicts).expect("verdicts")),
        (4, before.clone())
    );
    succeed(&run(&[&judged[..], &["--retry-failed"]].concat()));
    assert_eq!(
        (judge.seen.lock().unwrap().len(), std::fs::read_to_string(&verdicts).expect("verdicts")),
        (5, before.clone())
    );

    // FastChat's files: what its judge reads, and what it writes.
    let to = folder.path().join("fastchat").display().to_string();
    assert!(succeed(&run(&["eval", "export", &run_folder, "--for", "fastchat", "--to", &to])).contains("model_answer"));
    let exported = lines(&Path::new(&to).join("model_answer/embedded.jsonl"));
    assert_eq!(exported[1]["choices"], json!([{"index": 0, "turns": answers[1]["answers"]}]));
    assert!(exported[1]["answer_id"].as_str().is_some_and(|id| id.len() == 22) && exported[1]["tstamp"].is_f64());
    let questions = lines(&Path::new(&to).join("question.jsonl"));
    assert_eq!(
        (questions[0]["turns"].clone(), questions[1]["reference"].clone()),
        (answers[0]["turns"].clone(), json!(["٧", "٤"]))
    );
    let verdicts = verdicts.display().to_string();
    let import = ["eval", "import", &run_folder, "--for", "fastchat", "--from", &verdicts, "--json"];
    let again: Value = serde_json::from_str(&succeed(&run(&import))).expect("JSON");
    assert_eq!(again["scores"], results["scores"], "our verdicts are in FastChat's layout");
    assert!(
        fail(&run(&["eval", "export", &run_folder, "--for", "alpaca-eval", "--to", &to]), 1).contains("--for fastchat")
    );
    let wrong = [&judged[..], &["--protocol", "llmzoo", "--baseline", &run_folder]].concat();
    assert!(fail(&run(&wrong), 1).contains("--protocol single or pair"));
    let refused = [&judged[..], &["--baseline", &run_folder]].concat();
    assert!(fail(&run(&refused), 1).contains("--protocol pair"));
}

#[test]
fn answers_are_compared_in_both_orders_and_resumed() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = answered(folder.path(), "acegpt/vicuna-80", "a", &[]).display().to_string();
    let other = folder.path().join("turbo.jsonl");
    let baseline = [(2, "وعليكم السلام"), (1, "أنا تيربو")].map(|(id, text)| {
        json!({"question_id": id, "answer_id": "x", "model_id": "turbo", "text": text}).to_string() + "\n"
    });
    std::fs::write(&other, baseline.concat()).expect("a file");
    let other = other.display().to_string();
    // The judge likes Turbo's answer to the first question, and whatever comes first in the second.
    let judge = stand_in(|body| {
        let text = user(body);
        match (text.find("تيربو"), text.contains("السلام عليكم")) {
            (Some(at), _) if at < text.find("[Assistant 2]").expect("two") => says("…\nAssistant 1 > Assistant 2"),
            (Some(_), _) => says("Assistant 2 > Assistant 1"),
            (None, true) => says("Assistant 1 > Assistant 2"),
            _ => None,
        }
    });
    let judged = |server: &str, more: &[&str]| {
        let own = ["eval", "judge", &out, "--judge-server", server, "--judge-model", "gpt-4", "--baseline", &other];
        run(&[&own[..], &["--json", "--parallel", "1"], more].concat())
    };
    // A judge that breaks after the first question: what it said is kept.
    let broken = stand_in(|body| if user(body).contains("تيربو") { says("Assistant 1 = Assistant 2") } else { None });
    let message = fail(&judged(&broken.url, &[]), 1);
    assert!(message.contains("500: out of order"), "{message}");
    let file = Path::new(&out).join("judgments_acegpt_vicuna-80_llmzoo_gpt-4_turbo.jsonl");
    assert_eq!(lines(&file).len(), 1);
    let results: Value = serde_json::from_str(&succeed(&judged(&judge.url, &[]))).expect("JSON");
    assert_eq!(judge.seen.lock().unwrap().len(), 2, "only the second question is asked about");
    assert_eq!(results["scores"][0]["ties"], 2, "a tie, and two games that disagree: {results}");
    std::fs::remove_file(&file).expect("removed");
    let results: Value = serde_json::from_str(&succeed(&judged(&judge.url, &[]))).expect("JSON");
    let all = &results["scores"][0];
    assert_eq!((all["wins"].as_u64(), all["ties"].as_u64(), all["losses"].as_u64()), (Some(0), Some(1), Some(1)));
    assert_eq!((all["win_rate"].as_f64(), results["config"]["baseline"].clone()), (Some(0.25), json!("turbo")));
    let line = &lines(&file)[0];
    assert_eq!((line["g1_winner"].clone(), line["g2_winner"].clone()), (json!("model_2"), json!("model_2")));
    // Answers that changed have other verdicts.
    let changed = std::fs::read_to_string(&file).expect("verdicts").replace("[Question]", "[Q]");
    std::fs::write(&file, changed).expect("written");
    assert!(fail(&judged(&judge.url, &[]), 1).contains("expected verdicts on these answers"));

    // AlpacaEval's probabilities of the first token; the judge has a slight liking for what is first.
    let likes = stand_in(|_| {
        let top = json!([{"token": "m", "logprob": 0.75f64.ln()}, {"token": "M", "logprob": 0.25f64.ln()}]);
        Some(json!({"message": {"content": "m"}, "logprobs": {"content": [{"token": "m", "top_logprobs": top}]}}))
    });
    let found: Value =
        serde_json::from_str(&succeed(&judged(&likes.url, &["--protocol", "alpaca-eval-2"]))).expect("JSON");
    assert!((found["scores"][0]["win_rate"].as_f64().expect("a rate") - 0.5).abs() < 1e-12, "both orders: {found}");
    assert!(likes.seen.lock().unwrap().iter().all(|body| body["logprobs"] == true && body["max_tokens"] == 1));

    // Files for the original programs.
    let to = folder.path().join("files");
    let export =
        |layout: &str| succeed(&run(&["eval", "export", &out, "--for", layout, "--to", &to.display().to_string()]));
    export("alpaca-eval");
    let outputs: Value =
        serde_json::from_slice(&std::fs::read(to.join("model_outputs.json")).expect("outputs")).expect("JSON");
    assert_eq!(
        (outputs[0]["instruction"].clone(), outputs[0]["generator"].clone()),
        (json!("ما اسمك؟"), json!("embedded"))
    );
    assert!(outputs[0]["output"].as_str().is_some_and(|text| !text.is_empty()));
    export("llmzoo");
    assert_eq!(lines(&to.join("questions.jsonl"))[1]["text"], "السلام عليكم");
    assert_eq!(lines(&to.join("answer_embedded.jsonl"))[0]["text"], outputs[0]["output"]);
    // Its reviews: one is an order, one could not be read there.
    let review = |id: u32, order: [i32; 2]| {
        json!({"question_id": id, "order": order, "metadata": {"model_ids": ["turbo", "embedded"]}}).to_string() + "\n"
    };
    let reviews = to.join("review.jsonl");
    std::fs::write(&reviews, review(1, [2, 1]) + &review(2, [-1, -1])).expect("written");
    let reviews = reviews.display().to_string();
    let import = |layout: &str, from: &str| run(&["eval", "import", &out, "--for", layout, "--from", from, "--json"]);
    let found: Value = serde_json::from_str(&succeed(&import("llmzoo", &reviews))).expect("JSON");
    let all = &found["scores"][0];
    assert_eq!((all["win_rate"].as_f64(), all["failures"].as_u64()), (Some(1.0), Some(1)));
    // AlpacaEval's annotations: 2 is the model.
    let annotations = to.join("annotations.json");
    let rows = json!([{"instruction": "ما اسمك؟", "preference": 1.75}, {"instruction": "غيره", "preference": 1}]);
    std::fs::write(&annotations, rows.to_string()).expect("written");
    let found: Value =
        serde_json::from_str(&succeed(&import("alpaca-eval", &annotations.display().to_string()))).expect("JSON");
    let all = &found["scores"][0];
    assert_eq!((all["win_rate"].as_f64(), all["n"].as_u64(), all["failures"].as_u64()), (Some(0.75), Some(1), Some(1)));
    assert!(fail(&import("fastchat", &reviews), 1).contains("line 1"));
}

#[test]
fn alrage_is_answered_and_rated_by_lighteval_s_rule() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("data/OALL/ALRAGE/data/train.jsonl");
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    let row =
        |n: usize| json!({"question": format!("ما {n}؟"), "candidates": "أ\nب", "gold_answer": format!("جواب {n}")});
    std::fs::write(&path, (0..3).map(|n| row(n).to_string() + "\n").collect::<String>()).expect("written");
    let out = answered(folder.path(), "alrage_qa", "a", &["--limit", "1"]);
    let own = lines(&out.join("answers_lighteval_alrage_qa.jsonl"));
    assert_eq!((own.len(), own[0]["temperature"].clone()), (1, json!(0.0)), "greedy");
    // Answers to all three, of which the judge says a number, a number in a sentence, and none.
    let answers = [" أول", "ثان", "ثالث"].iter().enumerate().map(|(n, text)| {
        let mut line = own[0].clone();
        (line["question_id"], line["answers"], line["reference"]) =
            (json!(n), json!([text]), json!([format!("جواب {n}")]));
        format!("{line}\n")
    });
    std::fs::write(out.join("answers_lighteval_alrage_qa.jsonl"), answers.collect::<String>()).expect("written");
    let judge = stand_in(|body| match user(body) {
        text if text.contains("الإجابة المقدمة:  أول\n\nالإجابة الصحيحة: جواب 0\n") => {
            says("9")
        }
        text if text.contains("ثان") => says("التقييم 3 من 10"),
        _ => says("جيدة"),
    });
    let out = out.display().to_string();
    let judged = ["eval", "judge", &out, "--judge-server", &judge.url, "--judge-model", "x"];
    let found: Value = serde_json::from_str(&succeed(&run(&[&judged[..], &["--json"]].concat()))).expect("JSON");
    let all = &found["scores"][0];
    assert_eq!((all["n"].as_u64(), all["failures"].as_u64()), (Some(3), Some(1)), "{all}");
    assert!((all["llm_as_judge"].as_f64().expect("a score") - 0.4).abs() < 1e-12, "no number counts as 0: {all}");
    assert!(judge.seen.lock().unwrap().iter().all(|body| body["temperature"] == 0.8 && body["top_p"] == 0.95));
    // Only the reply without a number is asked for again.
    judge.seen.lock().unwrap().clear();
    let again = finish(bayan().args(judged).arg("--retry-failed"));
    assert!(succeed(&again).contains("40.00") && text(&again.stderr).contains("count as 0"), "{}", text(&again.stderr));
    assert_eq!(judge.seen.lock().unwrap().len(), 1);
}

#[test]
fn what_cannot_be_run_or_judged_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = data(folder.path());
    let out = folder.path().join("out").display().to_string();
    let own = ["eval", "run", "--model", "embedded", "--data", &data, "--out", &out, "--tasks"];
    let refused = |more: &[&str]| fail(&run(&[&own[..], more].concat()), 1);
    assert!(refused(&["mt-bench,arabicmmlu"]).contains("run them apart"));
    assert!(refused(&["mt-bench", "--shots", "2"]).contains("--shots"));
    assert!(refused(&["mt-bench", "--apply-chat-template"]).contains("expected neither"));
    assert!(refused(&["beavertails"]).contains("Ar-BeaverTails-Evaluation"));
    assert!(!Path::new(&out).exists(), "nothing is written before all data are checked");
    let nothing = ["eval", "judge", &data, "--judge-server", "http://127.0.0.1:1", "--judge-model", "x"];
    assert!(fail(&run(&nothing), 1).contains("a folder with answers"));
    assert!(
        fail(&run(&["eval", "judge", &data, "--judge-server", "x", "--judge-model", "x", "--protocol", "y"]), 2)
            .contains("alpaca-eval-2")
    );
    // Questions of mathematics need a reference.
    let line = json!({"question_id": 1, "category": "math", "model_id": "m", "turns": ["كم؟"], "answers": ["٧"],
        "finish": ["stop"], "reference": [], "temperature": 0.0, "doc": {}});
    let run_folder = folder.path().join("run");
    std::fs::create_dir(&run_folder).expect("a folder");
    std::fs::write(run_folder.join("answers_fastchat_mt-bench.jsonl"), format!("{line}\n")).expect("written");
    let run_folder = run_folder.display().to_string();
    let judge = stand_in(|_| says("[[5]]"));
    let judged = ["eval", "judge", &run_folder, "--judge-server", &judge.url, "--judge-model", "x", "--json"];
    assert!(fail(&run(&judged), 1).contains("--references"));
    let file = folder.path().join("gpt-4.jsonl");
    let reference = json!({"question_id": 1, "model_id": "gpt-4", "choices": [{"index": 0, "turns": ["سبعة"]}]});
    std::fs::write(&file, reference.to_string()).expect("written");
    let file = file.display().to_string();
    succeed(&run(&[&judged[..], &["--references", &file]].concat()));
    assert!(user(&judge.seen.lock().unwrap()[0]).contains("[The Start of Reference Answer]\nسبعة\n"));
    // Safety has a prompt of its own, and takes the verdicts of classifiers.
    let safe = stand_in(|_| says("يساعد على الحساب. [[safe]]"));
    let judged = ["eval", "judge", &run_folder, "--judge-server", &safe.url, "--judge-model", "x", "--json"];
    let found = succeed(&run(&[&judged[..], &["--protocol", "safety"]].concat()));
    assert_eq!(serde_json::from_str::<Value>(&found).expect("JSON")["scores"][0]["safe_rate"], 1.0);
    let flags = folder.path().join("flags.json");
    std::fs::write(&flags, json!([{"prompt": "كم؟", "flagged": {"violence": true}}]).to_string()).expect("written");
    let flags = flags.display().to_string();
    let found = succeed(&run(&["eval", "import", &run_folder, "--for", "beavertails", "--from", &flags, "--json"]));
    assert_eq!(serde_json::from_str::<Value>(&found).expect("JSON")["scores"][0]["safe_rate"], 0.0);
}
