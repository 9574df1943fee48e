//! Every file type and row shape, and rows that must be refused.

use std::io::Write;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

use super::*;

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn read_all(path: PathBuf, options: DataOptions) -> (Result<Vec<Example>>, DataReport) {
    let mut examples = Examples::new(&[path], options);
    let read = examples.by_ref().map(|next| next.map(|(_, example)| example)).collect();
    (read, examples.report)
}

fn one(row: Value, options: DataOptions) -> Result<Vec<Example>> {
    let files = Files::new();
    read_all(files.write("a.jsonl", row.to_string()), options).0
}

fn dpo() -> DataOptions {
    DataOptions { method: Method::Dpo, ..Default::default() }
}

fn chat(pairs: &[(&str, &str)], train_from: usize) -> Example {
    let messages = pairs.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
    let trained = pairs.iter().enumerate().map(|(at, (role, _))| at >= train_from && *role == "assistant").collect();
    Example::Chat { messages, tools: None, trained }
}

#[test]
fn every_shape_of_conversation_is_understood() {
    let qa = [("user", "q"), ("assistant", "a")];
    let two = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")];
    let with_system = [("system", "s"), ("user", "q"), ("assistant", "a")];
    for (row, want) in [
        (
            json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "tool_calls": null}]}),
            chat(&qa, 0),
        ),
        (json!({"prompt": "q", "completion": "a"}), chat(&qa, 1)),
        (json!({"prompt": "q", "response": "a", "completion": null}), chat(&qa, 1)),
        (
            json!({"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}),
            chat(&qa, 1),
        ),
        (json!({"instruction": "q", "input": "", "output": "a"}), chat(&qa, 0)),
        (
            json!({"instruction": "q", "input": "x", "output": "a", "system": "s"}),
            chat(&[("system", "s"), ("user", "q\nx"), ("assistant", "a")], 0),
        ),
        (json!({"instruction": "r", "output": "b", "history": [["q", "a"]]}), chat(&two, 0)),
        (
            json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"}),
            chat(&with_system, 0),
        ),
        (
            json!({"conversations": [{"from": "user", "value": "q"}, {"from": "Model", "value": "a"}, {"from": "human", "value": "unanswered"}]}),
            chat(&qa, 0),
        ),
        (
            json!({"translated_instruction": "q", "translated_answer": "a", "instruction": "en", "output": null}),
            chat(&qa, 0),
        ),
        (json!({"translated_question": "q", "translated_answer": "a"}), chat(&qa, 0)),
        (json!({"ift_instruction": "q", "ift_answer": "a"}), chat(&qa, 0)),
        (
            json!({"question_turn1": "q", "answer_turn1": "a", "question_turn2": "r", "answer_turn2": "b"}),
            chat(&two, 0),
        ),
        (
            json!({"question": "q", "answer": "a", "question_turn2": "r", "answer_turn2": "b", "question_turn3": null}),
            chat(&two, 0),
        ),
        (json!({"inputs": "q", "targets": "a", "language": "arb"}), chat(&qa, 0)),
        (json!({"text": "running"}), Example::Text("running".into())),
    ] {
        assert_eq!(one(row.clone(), DataOptions::default()).unwrap(), [want], "{row}");
    }
    let tools = one(
        json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": "[{\"name\": \"f\"}]"}),
        DataOptions::default(),
    );
    assert!(matches!(&tools.unwrap()[0], Example::Chat { tools: Some(tools), .. } if tools[0]["name"] == "f"));
    let dropped = DataOptions { drop_system_message: true, ..Default::default() };
    let row = json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]});
    assert_eq!(one(row, dropped).unwrap(), [chat(&qa, 0)]);
}

#[test]
fn every_shape_of_preference_is_understood() {
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    let want = Example::Preference {
        prompt: vec![message("user", "q")],
        chosen: vec![message("assistant", "good")],
        rejected: vec![message("assistant", "bad")],
        tools: None,
    };
    let whole = |answer: &str| json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]);
    for row in [
        json!({"prompt": "q", "chosen": "good", "rejected": "bad"}),
        json!({"prompt": [message("user", "q")], "chosen": [message("assistant", "good")], "rejected": [message("assistant", "bad")]}),
        json!({"chosen": whole("good"), "rejected": whole("bad")}),
        json!({"prompt": "q", "chosen": whole("good"), "rejected": whole("bad")}),
        json!({"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}),
        json!({"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "good"}, "rejected": {"from": "gpt", "value": "bad"}}),
        json!({"prompt": "q", "response_0": "bad", "response_1": "good", "better_response_id": 1, "safer_response_id": 0}),
        json!({"prompt": "q", "response_0": "good", "response_1": "bad", "safer_response_id": "0"}),
    ] {
        assert_eq!(one(row.clone(), dpo()).unwrap(), std::slice::from_ref(&want), "{row}");
        assert!(one(row, DataOptions::default()).unwrap_err().to_string().contains("method dpo"));
    }
    assert!(one(json!({"text": "x"}), dpo()).unwrap_err().to_string().contains("method sft"));
}

fn containers() -> Vec<(&'static str, Vec<u8>)> {
    let rows = [json!({"prompt": "س\n\"١\", [}", "completion": "a"}), json!({"prompt": "r", "completion": "b"})];
    let lines = format!("\u{FEFF}{}\n\n{}\n", rows[0], rows[1]);
    let gzipped = |text: &str| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let csv = "prompt,completion\n\"س\n\"\"١\"\", [}\",a\nr,b\n";
    vec![
        ("a.jsonl", lines.clone().into_bytes()),
        ("a.jsonl.gz", gzipped(&lines)),
        ("a.json", format!("\u{FEFF} [ {} ,\n{}\n]\n", rows[0], rows[1]).into_bytes()),
        ("b.json", serde_json::to_vec_pretty(&rows).unwrap()),
        ("c.json", lines.clone().into_bytes()),
        ("a.json.gz", gzipped(&json!(rows).to_string())),
        ("a.csv", csv.into()),
        ("a.tsv", csv.replace(",a", "\ta").replace(",b", "\tb").replace("prompt,", "prompt\t").into_bytes()),
        ("a.csv.gz", gzipped(csv)),
        ("a.parquet", parquet_file()),
    ]
}

fn parquet_file() -> Vec<u8> {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    let schema = "message rows { required binary prompt (STRING); required binary completion (STRING); }";
    let schema = Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().set_compression(parquet::basic::Compression::SNAPPY).build();
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for column in [["س\n\"١\", [}", "r"], ["a", "b"]] {
        let mut out = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = column.iter().map(|text| ByteArray::from(*text)).collect();
        out.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
        out.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn every_container_gives_the_same_rows() {
    let files = Files::new();
    let want =
        [chat(&[("user", "س\n\"١\", [}"), ("assistant", "a")], 1), chat(&[("user", "r"), ("assistant", "b")], 1)];
    for (name, bytes) in containers() {
        let (examples, report) = read_all(files.write(name, bytes), DataOptions::default());
        assert_eq!(examples.unwrap_or_else(|e| panic!("{name}: {e}")), want, "{name}");
        assert_eq!((report.read, report.bad, report.dropped_total()), (2, 0, 0));
    }
}

#[test]
fn damaged_containers_end_in_errors() {
    let files = Files::new();
    for (name, bytes) in containers() {
        for cut in [0, 1, 7, bytes.len() / 3, bytes.len() / 2, bytes.len() - 2] {
            let (examples, _) = read_all(files.write(name, &bytes[..cut]), DataOptions::default());
            if let Err(error) = examples {
                assert!(error.to_string().contains(name), "{error}");
            } else {
                // Truncation at a line end leaves a shorter, valid file.
                assert!(name.contains("jsonl") || name.contains("sv") || name == "c.json", "{name} cut at {cut}");
            }
        }
    }
    let mut parquet = parquet_file();
    for at in (0..parquet.len()).step_by(3) {
        let sound = parquet[at];
        parquet[at] ^= 0x55;
        let _ = read_all(files.write("flipped.parquet", &parquet), DataOptions::default());
        parquet[at] = sound;
    }
    for (name, text, part) in [
        ("a.json", "5", "array"),
        ("a.json", "[{\"text\":\"x\"}{\"text\":\"y\"}]", "comma"),
        ("a.json", "[{\"text\":\"x\"}] x", "nothing after"),
        ("a.json", "[{\"text\":\"x\"},]", "after the comma"),
        ("a.json", "[{\"text\": \"x", "end of the file"),
        ("a.csv", "a,a\n1,2\n", "distinct"),
        ("a.txt", "x", ".jsonl"),
        ("a.jsonl", "{\"other\": 1}", "--columns"),
    ] {
        let error = read_all(files.write(name, text), DataOptions::default()).0.unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
    assert!(
        read_all(files.0.path().join("missing.jsonl"), DataOptions::default())
            .0
            .unwrap_err()
            .to_string()
            .contains("missing.jsonl")
    );
}

const GOOD: &str = r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#;

#[test]
fn bad_rows_name_line_and_field_or_are_counted() {
    let files = Files::new();
    for (row, field) in [
        ("{", "JSON object"),
        ("[1]", "JSON object"),
        (r#"{"prompt": "q"}"#, "`messages`"),
        (r#"{"messages": "x"}"#, "`messages`"),
        (r#"{"messages": []}"#, "at least one"),
        (r#"{"messages": [3]}"#, "`messages[0]`"),
        (r#"{"messages": [{"content": "q"}]}"#, "role"),
        (r#"{"messages": [{"role": "wizard", "content": "q"}]}"#, "wizard"),
        (r#"{"messages": [{"role": "user"}]}"#, "content"),
        (r#"{"messages": [{"role": "user", "content": 5}]}"#, "a number"),
        (r#"{"messages": [{"role": "user", "content": "q"}], "tools": 5}"#, "`tools`"),
    ] {
        let path = files.write("a.jsonl", format!("{GOOD}\n{row}\n{GOOD}\n"));
        let error = read_all(path.clone(), DataOptions::default()).0.unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains(field) && error.contains("--skip-bad"), "{row}: {error}");
        let (examples, report) = read_all(path, DataOptions { skip_bad: true, ..Default::default() });
        assert_eq!((examples.unwrap().len(), report.read, report.bad), (2, 3, 1), "{row}");
        assert_eq!(report.bad_rows[0].place.number, 2);
    }
    let csv = files.write("a.csv", "prompt,completion\nq,a\nonly\nr,b\n");
    let (examples, report) = read_all(csv, DataOptions { skip_bad: true, ..Default::default() });
    assert_eq!((examples.unwrap().len(), report.bad_rows[0].place.number), (2, 3));
    for (row, field) in [
        (json!({"prompt": "q", "chosen": "a"}), "chosen"),
        (json!({"chosen": "a", "rejected": "b"}), "`prompt`"),
        (json!({"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 2}), "0 or 1"),
        (json!({"prompt": "q", "completion": "a", "label": true}), "chosen"),
    ] {
        let error = one(row.clone(), dpo()).unwrap_err().to_string();
        assert!(error.contains(field), "{row}: {error}");
    }
    assert!(
        one(json!({"prompt": "q", "completion": "a", "label": true}), DataOptions::default())
            .unwrap_err()
            .to_string()
            .contains("`label`")
    );
}

#[test]
fn rows_that_teach_nothing_are_dropped_with_their_reason() {
    let files = Files::new();
    let rows = [
        json!({"prompt": "q", "completion": " "}),
        json!({"prompt": "", "completion": "a"}),
        json!({"prompt": "q", "completion": [{"role": "user", "content": "x"}]}),
        json!({"prompt": "q", "completion": "a"}),
    ];
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    let (examples, report) = read_all(files.write("a.jsonl", lines.join("\n")), DataOptions::default());
    assert_eq!(examples.unwrap().len(), 1);
    assert_eq!(
        report.dropped.into_iter().collect::<Vec<_>>(),
        [(DropReason::EmptyAnswer, 1), (DropReason::EmptyPrompt, 1), (DropReason::NoAnswer, 1)]
    );
    let (same, report) =
        read_all(files.write("b.jsonl", json!({"prompt": "q", "chosen": "a", "rejected": "a"}).to_string()), dpo());
    assert_eq!((same.unwrap().len(), report.dropped[&DropReason::SameAnswers]), (0, 1));
}

#[test]
fn a_column_map_makes_any_table_readable() {
    let files = Files::new();
    let path = files.write("a.csv", "text,سؤال,جواب\nignored,q,a\n");
    let columns = DataOptions::parse_columns("prompt=سؤال, response=جواب").unwrap();
    let mapped = DataOptions { columns, ..Default::default() };
    assert_eq!(read_all(path.clone(), mapped).0.unwrap(), [chat(&[("user", "q"), ("assistant", "a")], 1)]);
    let missing = DataOptions { columns: DataOptions::parse_columns("text=nowhere").unwrap(), ..Default::default() };
    assert!(read_all(path, missing).0.unwrap_err().to_string().contains("سؤال"));
    assert!(DataOptions::parse_columns("promt=x").unwrap_err().to_string().contains("`prompt`"));
    assert!(DataOptions::parse_columns("prompt").is_err());
    let swapped = DataOptions {
        columns: DataOptions::parse_columns("prompt=completion,completion=prompt").unwrap(),
        ..Default::default()
    };
    assert_eq!(
        one(json!({"prompt": "a", "completion": "q"}), swapped).unwrap(),
        [chat(&[("user", "q"), ("assistant", "a")], 1)]
    );
    let preferred = DataOptions {
        columns: DataOptions::parse_columns("prompt=prompt,response=chosen").unwrap(),
        ..Default::default()
    };
    assert_eq!(one(json!({"prompt": "q", "chosen": "a", "rejected": "b"}), preferred).unwrap().len(), 1);
}

#[test]
fn directories_and_limits() {
    let files = Files::new();
    for name in ["train-0.jsonl", "train-1.jsonl", "valid.jsonl", "README.md", "test.jsonl"] {
        files.write(name, format!("{GOOD}\n"));
    }
    let found = DataFiles::find(files.0.path()).unwrap();
    assert_eq!((found.train.len(), found.valid.len()), (2, 1));
    let mut limited = Examples::new(&found.train, DataOptions { limit: Some(1), ..Default::default() });
    assert_eq!(limited.by_ref().count(), 1);
    assert_eq!(Examples::new(&found.train, DataOptions::default()).count(), 2);
    assert!(DataFiles::find(&Files::new().0.path().join("nowhere")).is_err());
    let empty = Files::new();
    assert!(DataFiles::find(empty.0.path()).unwrap_err().to_string().contains("train.jsonl"));
    assert!(limited.report.to_string().contains("rows read"));
}

fn rows() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::vec(("\\PC{0,20}|[\\[\\]{}\",\\\\\n ]{0,9}", "[a-zء-ي]{1,9}"), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn json_rows_come_back_whatever_they_hold(rows in rows(), pretty: bool) {
        let values: Vec<Value> = rows.iter().map(|(p, c)| json!({"prompt": p, "completion": c})).collect();
        let bytes = if pretty { serde_json::to_vec_pretty(&values) } else { serde_json::to_vec(&values) }.unwrap();
        let read: Vec<Value> = json::JsonRows::new(&bytes[..], "x".into()).map(|row| Value::Object(row.unwrap().fields)).collect();
        prop_assert_eq!(read, values);
    }

    #[test]
    fn csv_rows_come_back_whatever_they_hold(rows in rows()) {
        let mut writer = csv::Writer::from_writer(vec![]);
        writer.write_record(["prompt", "completion"]).unwrap();
        rows.iter().for_each(|(p, c)| writer.write_record([p, c]).unwrap());
        let bytes = writer.into_inner().unwrap();
        let read = table::CsvRows::new(&bytes[..], "x".into(), b',', None).unwrap().map(|row| row.unwrap().fields);
        let want = rows.iter().map(|(p, c)| json!({"prompt": p, "completion": c}).as_object().cloned().unwrap());
        prop_assert!(read.eq(want));
    }

    #[test]
    fn no_bytes_make_a_reader_panic_or_run_on(bytes in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(b"[]{},:\"\\\n ".to_vec())], 0..200)) {
        let limit = bytes.len() + 2;
        prop_assert!(json::JsonRows::new(&bytes[..], "x".into()).take(limit + 1).count() <= limit);
        prop_assert!(json::JsonLines::new(&bytes[..], "x".into()).take(limit + 1).count() <= limit);
        if let Ok(rows) = table::CsvRows::new(&bytes[..], "x".into(), b',', None) {
            prop_assert!(rows.take(limit + 1).count() <= limit);
        }
    }
}

#[test]
fn content_parts_of_text_are_joined_and_others_refused() {
    let parts = json!([{"type": "text", "text": "ما عاصمة "}, {"type": "text", "text": "مصر؟"}]);
    let row = |content: Value| json!({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "القاهرة"}]});
    let read = one(row(parts), DataOptions::default()).unwrap();
    assert_eq!(read, [chat(&[("user", "ما عاصمة مصر؟"), ("assistant", "القاهرة")], 0)]);
    let image = json!([{"type": "image_url", "image_url": {"url": "x"}}]);
    let error = one(row(image), DataOptions::default()).unwrap_err().to_string();
    assert!(error.contains("messages[0].content[0]") && error.contains("image_url"), "{error}");
    let empty = one(row(json!([])), DataOptions::default()).unwrap();
    assert_eq!(empty, [], "an empty list is an empty question");
}

#[test]
fn answers_of_weight_0_or_train_false_are_not_trained() {
    let row = |first: Value| {
        let mut first = first;
        first["role"] = "assistant".into();
        first["content"] = "b".into();
        json!({"messages": [{"role": "user", "content": "a", "weight": 0}, first,
            {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 1}]})
    };
    let pairs = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")];
    for mark in [json!({"weight": 0}), json!({"weight": 0.0}), json!({"train": false}), json!({"training": false})] {
        assert_eq!(one(row(mark.clone()), DataOptions::default()).unwrap(), [chat(&pairs, 2)], "{mark}");
    }
    for mark in [json!({}), json!({"weight": 1}), json!({"train": true}), json!({"weight": null})] {
        assert_eq!(one(row(mark.clone()), DataOptions::default()).unwrap(), [chat(&pairs, 0)], "{mark}");
    }
    for mark in [json!({"weight": 0.5}), json!({"weight": -1}), json!({"train": "no"})] {
        let error = one(row(mark.clone()), DataOptions::default()).unwrap_err().to_string();
        assert!(error.contains("messages[1]") && error.contains("0 or false"), "{error}");
    }
    let files = Files::new();
    let none = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","weight":0}]}"#;
    let (read, report) = read_all(files.write("a.jsonl", none), DataOptions::default());
    assert_eq!((read.unwrap(), report.dropped[&DropReason::AnswersUntrained]), (vec![], 1));
    let preference =
        json!({"prompt": "a", "chosen": [{"role": "assistant", "content": "b", "train": false}], "rejected": "c"});
    assert_eq!(one(preference, dpo()).unwrap(), []);
}

#[test]
fn published_forms_of_pairs_are_read() {
    let qa = |q: &str| vec![chat(&[("user", q), ("assistant", "b")], 0)];
    let files = Files::new();
    let read = |name: &str, text: &str| read_all(files.write(name, text), DataOptions::default()).0.unwrap();
    let dolly = r#"{"instruction":"a","context":"ctx","response":"b","category":"c"}"#;
    assert_eq!(read("dolly.jsonl", dolly), qa("a\nctx"));
    assert_eq!(read("io.jsonl", r#"{"input":"a","output":"b"}"#), qa("a"));
    assert_eq!(read("swift.jsonl", r#"{"query":"a","response":"b","history":[]}"#), qa("a"));
    let pair = vec![chat(&[("user", "a"), ("assistant", "b")], 1)];
    assert_eq!(read("array.jsonl", r#" [{"prompt":"a","completion":"b"}]"#), pair);
    assert_eq!(read("marked.jsonl", "\u{FEFF}[{\"prompt\":\"a\",\"completion\":\"b\"}]"), pair);
    assert_eq!(
        read(
            "wrapped.json",
            "{\n \"data\" : [ {\"prompt\":\"a\",\"completion\":\"b\"}, {\"prompt\":\"a\",\"completion\":\"b\"}]}\n"
        )
        .len(),
        2
    );
    assert_eq!(read("empty.json", "{\"data\": []}"), []);
    assert_eq!(read("semicolons.csv", "prompt;completion\na;b\n"), pair);
    let more = files.write("more.json", r#"{"data": [{"prompt":"a","completion":"b"}], "version": 2}"#);
    let error = read_all(more, DataOptions::default()).0.unwrap_err().to_string();
    assert!(error.contains("only the list of rows"), "{error}");
}

#[test]
fn a_map_of_one_column_keeps_the_others() {
    let columns = DataOptions::parse_columns("instruction=سؤال").unwrap();
    let options = DataOptions { columns, ..Default::default() };
    let row = json!({"سؤال": "q", "output": "a", "system": "s"});
    let want = chat(&[("system", "s"), ("user", "q"), ("assistant", "a")], 0);
    assert_eq!(one(row, options).unwrap(), [want]);
    // The mapped columns decide the shape where they can.
    let columns = DataOptions::parse_columns("prompt=q,response=a").unwrap();
    let options = DataOptions { columns, ..Default::default() };
    let row = json!({"q": "q", "a": "a", "messages": []});
    assert_eq!(one(row, options).unwrap(), [chat(&[("user", "q"), ("assistant", "a")], 1)]);
}
