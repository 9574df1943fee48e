//! `cargo xtask real`: Bayan and llama.cpp's CPU backend on the same real GGUF files: token ids, greedy text,
//! perplexity and chat rendering.
//!
//! Fixtures have random weights and small vocabularies; this is the check that real files give what llama.cpp gives.
//! llama.cpp rounds activations to 8 bits on a CPU, so that near ties of two tokens may fall the other way: where
//! greedy text differs, the gap of the two logits at the first difference is reported, and a large one is an error.

mod files;
mod quantizers;

use crate::peers::llama_cpp;
use crate::{chat, process, vulkan, workspace};
use anyhow::{Context, Result, bail};
use clap::Args;
use files::{MODELS, Model};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Largest difference of perplexity, as a fraction, from llama.cpp's with the file as stored or with its weights in F32.
/// Products of quantized weights round their inputs to 8 bits, each program in its own way, which moves the perplexity
/// of small models by more than this; products in F32 round nothing.
const PERPLEXITY: f64 = 0.005;
/// Largest gap of two logits at which greedy text may differ.
const GAP: f64 = 0.5;

/// Arguments of `cargo xtask real`.
#[derive(Args)]
pub struct RealArguments {
    /// Only models whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// New tokens of each prompt.
    #[arg(long, default_value_t = 24)]
    tokens: usize,
    /// The program to compare; it is built otherwise.
    #[arg(long)]
    bayan: Option<PathBuf>,
    /// Compare the quantizers instead: both quantize the weights of the same file.
    #[arg(long)]
    quantizers: bool,
    /// Further arguments of `bayan conformance` and `bayan perplexity`, e.g. `-- --device 1`.
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// The committed texts.
#[derive(Deserialize)]
struct Texts {
    strings: Vec<String>,
    arabic: Vec<String>,
    english: Vec<String>,
    page: String,
    chats: Vec<Value>,
}

/// llama.cpp's answer.
#[derive(Deserialize)]
struct Theirs {
    ids: Vec<Vec<u32>>,
    /// The ids of the texts in NFC.
    normalized: Vec<Vec<u32>>,
    greedy: Vec<Vec<u32>>,
    nll: Vec<Option<f64>>,
    /// The same of a copy of the file in F32: its products round no inputs, as those of quantized weights do.
    nll_f32: Vec<f64>,
    chats: Vec<Value>,
    version: String,
}

fn texts() -> Result<Texts> {
    serde_json::from_str(include_str!("texts.json")).context("texts.json")
}

/// Fetches, compares, and prints the table of docs/quality.md.
///
/// # Errors
/// Something cannot be installed or run, or a result differs by more than rounding explains.
pub fn run(arguments: &RealArguments) -> Result<()> {
    let wanted = |model: &&Model| arguments.only.as_deref().is_none_or(|part| model.name.contains(part));
    let models: Vec<&Model> = MODELS.iter().filter(wanted).collect();
    if models.is_empty() {
        bail!("--only: expected a part of {}", MODELS.iter().map(|model| model.name).collect::<Vec<_>>().join(", "));
    }
    let target = workspace::target_dir()?;
    let (cache, texts) = (target.join("real"), texts()?);
    std::fs::create_dir_all(&cache).with_context(|| format!("{} could not be made", cache.display()))?;
    let paths = models.iter().map(|model| files::ensure(model, &cache)).collect::<Result<Vec<_>>>()?;
    let peer = llama_cpp::install(&target.join("peers"))?;
    let bayan = match &arguments.bayan {
        Some(program) => program.clone(),
        None => {
            vulkan::set_up()?;
            chat::build_bayan()?
        }
    };
    if arguments.quantizers {
        let mut pairs = models.iter().zip(&paths);
        return pairs.try_for_each(|(model, path)| {
            quantizers::compare(model, path, &bayan, &peer, &cache, &arguments.arguments)
                .with_context(|| format!("comparing the quantizers on {}", model.name))
        });
    }
    let (mut rows, mut faults, mut version) = (Vec::new(), Vec::new(), String::new());
    for (model, path) in models.iter().zip(&paths) {
        eprintln!("Comparing {}", model.name);
        let ours = Ours { bayan: &bayan, model: path, arguments: &arguments.arguments, cache: &cache };
        let theirs = |request: &Value| -> Result<Theirs> {
            let mut answer = peer.answer(include_str!("llama_cpp.mjs"), request)?;
            let mut more = request.clone();
            more["template"] = json!(model.template);
            more["chats"] = if model.template.is_some() { json!(texts.chats) } else { json!([]) };
            let computed = peer.library(&more)?;
            for field in ["greedy", "nll"] {
                answer[field] = computed[field].clone();
            }
            if model.template.is_some() {
                answer["chats"] = computed["chats"].clone();
            }
            let copy = cache.join("f32.gguf");
            let computed = peer.library(&json!({
                "quantize": [{"from": path, "to": copy, "type": "f32"}], "model": copy, "threads": request["threads"],
                "prompts": [], "tokens": 0, "page": request["page"],
            }));
            std::fs::remove_file(&copy).with_context(|| format!("{} could not be removed", copy.display()))?;
            answer["nll_f32"] = computed?["nll"].clone();
            Ok(serde_json::from_value(answer)?)
        };
        let compared = compare(&texts, &ours, theirs, path, arguments.tokens)
            .with_context(|| format!("comparing {}", model.name))?;
        faults.extend(compared.faults.iter().map(|fault| format!("{}: {fault}", model.name)));
        version = compared.version;
        rows.push(format!("| {} | {} |", model.name, compared.cells.join(" | ")));
        eprintln!("{}", rows[rows.len() - 1]);
    }
    println!("Compared with {version}, CPU backend:\n");
    println!("| file | same ids | greedy, Arabic | greedy, English | perplexity | llama.cpp's | in F32 | same chats |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |\n{}", rows.join("\n"));
    if faults.is_empty() { Ok(()) } else { bail!("differences beyond rounding:\n{}", faults.join("\n")) }
}

/// The program under test.
struct Ours<'a> {
    bayan: &'a Path,
    model: &'a Path,
    arguments: &'a [String],
    cache: &'a Path,
}

impl Ours<'_> {
    /// Runs `bayan conformance` over requests; the responses are in their order.
    fn answer(&self, requests: &[Value]) -> Result<Vec<Value>> {
        let numbered = requests.iter().enumerate().map(|(id, request)| {
            let mut request = request.clone();
            request["id"] = json!(id.to_string());
            request
        });
        let numbered: Vec<Value> = numbered.collect();
        let file = self.cache.join("request.json");
        let body = json!({"version": 1, "model": self.model, "adapter": null, "requests": numbered});
        std::fs::write(&file, body.to_string()).with_context(|| format!("{} could not be written", file.display()))?;
        let mut command = Command::new(self.bayan);
        command.arg("conformance").arg("--request").arg(&file).args(self.arguments);
        let answer = crate::peers::last_json(&process::capture(&mut command)?).context("bayan printed no result")?;
        let responses = answer["responses"].as_array().context("expected responses")?.clone();
        match responses.iter().find_map(|response| response["error"].as_str().map(|error| (error, &response["id"]))) {
            Some((error, id)) => bail!("request {id}: {error}"),
            None if responses.len() == requests.len() => Ok(responses),
            None => bail!("expected {} responses, got {}", requests.len(), responses.len()),
        }
    }
}

/// The cells of a row, and what differs by more than rounding.
struct Compared {
    cells: Vec<String>,
    faults: Vec<String>,
    version: String,
}

fn ids(value: &Value) -> Result<Vec<u32>> {
    serde_json::from_value(value["ids"].clone()).with_context(|| format!("expected ids, got {value}"))
}

fn compare(
    texts: &Texts,
    ours: &Ours<'_>,
    theirs: impl FnOnce(&Value) -> Result<Theirs>,
    path: &Path,
    tokens: usize,
) -> Result<Compared> {
    let encode = |text: &str, special: bool| json!({"op": "encode", "text": text, "add_special_tokens": special});
    let prompts = || texts.arabic.iter().chain(&texts.english);
    let mut requests: Vec<Value> = texts.strings.iter().map(|text| encode(text, false)).collect();
    requests.extend(prompts().map(|text| encode(text, true)));
    requests.push(encode(&texts.page, true));
    let encoded = ours.answer(&requests)?.iter().map(ids).collect::<Result<Vec<_>>>()?;
    let (strings, rest) = encoded.split_at(texts.strings.len());
    let (prompt_ids, page) = rest.split_at(rest.len() - 1);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let theirs = theirs(&json!({
        "model": path, "threads": threads, "strings": texts.strings, "prompts": prompt_ids, "tokens": tokens,
        "page": page[0], "chats": texts.chats,
    }))?;
    let mut requests: Vec<Value> = prompt_ids
        .iter()
        .map(|ids| json!({"op": "generate", "ids": ids, "max_new_tokens": tokens, "greedy": true, "ignore_eos": true}))
        .collect();
    requests.push(json!({"op": "nll", "ids": page[0]}));
    let answers = ours.answer(&requests)?;
    let greedy = answers[..prompt_ids.len()].iter().map(ids).collect::<Result<Vec<_>>>()?;
    let mut faults = Vec::new();
    let mut cells = vec![same_ids(texts, strings, &theirs, &mut faults)];
    let pairs: Vec<Pair<'_>> = prompt_ids
        .iter()
        .zip(&greedy)
        .zip(&theirs.greedy)
        .map(|((prompt, ours), theirs)| Pair { prompt, ours, theirs })
        .collect();
    for half in [&pairs[..texts.arabic.len()], &pairs[texts.arabic.len()..]] {
        cells.push(same_text(half, ours, &mut faults)?);
    }
    let nll: Vec<f64> = serde_json::from_value(answers[prompt_ids.len()]["nll"].clone()).context("expected nll")?;
    let their_nll: Option<Vec<f64>> = theirs.nll.iter().copied().collect();
    let their_nll = their_nll.context("llama.cpp gave no probability for a token of the page")?;
    if nll.len() != their_nll.len() {
        bail!("{} values of nll, llama.cpp has {}", nll.len(), their_nll.len());
    }
    let perplexity = |nll: &[f64]| (nll.iter().sum::<f64>() / nll.len().max(1) as f64).exp();
    let (mine, peer, exact) = (perplexity(&nll), perplexity(&their_nll), perplexity(&theirs.nll_f32));
    let from = |other: f64| format!("{other:.3} ({:+.2} %)", 100.0 * (mine / other - 1.0));
    cells.extend([format!("{mine:.3}"), from(peer), from(exact)]);
    let near = |other: f64| (mine / other - 1.0).abs() <= PERPLEXITY;
    if !near(peer) && !near(exact) {
        faults.push(format!("perplexity {mine:.4}, llama.cpp's is {peer:.4}, and {exact:.4} in F32"));
    }
    cells.push(same_chats(texts, ours, &theirs, &mut faults)?);
    Ok(Compared { cells, faults, version: theirs.version })
}

fn same_ids(texts: &Texts, strings: &[Vec<u32>], theirs: &Theirs, faults: &mut Vec<String>) -> String {
    let (mut same, mut composed) = (0, 0);
    for (i, (text, ours)) in texts.strings.iter().zip(strings).enumerate() {
        let plain = theirs.ids.get(i);
        if Some(ours) == plain {
            same += 1;
        } else if Some(ours) == theirs.normalized.get(i) {
            // The published tokenizer normalizes to NFC, and llama.cpp does not.
            composed += 1;
        } else {
            faults.push(format!("ids of {text:?}: {ours:?}, llama.cpp has {plain:?}"));
        }
    }
    let same = format!("{same} of {}", texts.strings.len());
    if composed == 0 { same } else { format!("{same}; {composed} more in NFC") }
}

/// The continuations of one prompt.
struct Pair<'a> {
    prompt: &'a [u32],
    ours: &'a [u32],
    theirs: &'a [u32],
}

/// How many continuations are the same, where the others begin to differ, and the largest gap of logits there.
fn same_text(pairs: &[Pair<'_>], ours: &Ours<'_>, faults: &mut Vec<String>) -> Result<String> {
    let first = |pair: &Pair<'_>| pair.ours.iter().zip(pair.theirs).position(|(a, b)| a != b);
    let differing: Vec<(&Pair<'_>, usize)> = pairs.iter().filter_map(|pair| Some((pair, first(pair)?))).collect();
    let requests: Vec<Value> = differing
        .iter()
        .map(|(pair, at)| {
            let ids = [pair.prompt, &pair.ours[..*at]].concat();
            json!({"op": "logits", "ids": ids, "top_k": 1, "full_last": true})
        })
        .collect();
    let answers = if requests.is_empty() { Vec::new() } else { ours.answer(&requests)? };
    let mut largest = 0f64;
    for ((pair, at), answer) in differing.iter().zip(&answers) {
        let logit = |id: u32| answer["last_logits"][id as usize].as_f64().context("expected logits");
        let gap = (logit(pair.ours[*at])? - logit(pair.theirs[*at])?).abs();
        largest = largest.max(gap);
        if gap > GAP {
            faults.push(format!("greedy text differs at token {at} with a gap of {gap:.3} logits: {:?}", pair.prompt));
        }
    }
    let same = format!("{} of {}", pairs.len() - differing.len(), pairs.len());
    Ok(match differing.iter().map(|(_, at)| at).min() {
        Some(at) => format!("{same}; from token {} on, gap up to {largest:.3}", at + 1),
        None => same,
    })
}

/// Whether a chat is llama.cpp's. Its own templates leave the first token to the tokenizer.
fn equal(ours: &str, theirs: &str) -> bool {
    ours == theirs || ours.strip_prefix("<bos>") == Some(theirs)
}

fn same_chats(texts: &Texts, ours: &Ours<'_>, theirs: &Theirs, faults: &mut Vec<String>) -> Result<String> {
    if theirs.chats.iter().all(Value::is_null) {
        return Ok("no template".to_owned());
    }
    let request = |messages: &Value| json!({"op": "chat", "messages": messages, "add_generation_prompt": true});
    let (mut same, mut both) = (0, 0);
    for (messages, wanted) in texts.chats.iter().zip(&theirs.chats) {
        // A template may refuse a conversation: then both must.
        let found = ours.answer(&[request(messages)]);
        match (found, wanted.as_str()) {
            (Ok(answers), Some(text)) if answers[0]["text"].as_str().is_some_and(|ours| equal(ours, text)) => same += 1,
            (Err(_), None) => both += 1,
            (Ok(answers), _) => faults.push(format!("chat: {}, llama.cpp's is {wanted}", answers[0])),
            (Err(error), Some(_)) => faults.push(format!("chat: {error:#}")),
        }
    }
    Ok(format!("{} of {}", same + both, texts.chats.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_texts_are_as_many_as_is_said() {
        let texts = texts().expect("JSON");
        assert_eq!((texts.strings.len(), texts.arabic.len(), texts.english.len()), (200, 20, 20));
        assert_eq!(texts.strings.iter().collect::<BTreeSet<_>>().len(), 200, "no string twice");
        let arabic = |text: &&String| text.chars().any(|c| ('\u{600}'..'\u{700}').contains(&c));
        assert!(texts.strings.iter().filter(arabic).count() > 100);
        assert!(texts.page.chars().count() > 1200);
    }

    #[test]
    fn differing_ids_are_counted_and_named() {
        let texts = Texts {
            strings: vec!["a".into(), "b".into(), "c".into()],
            arabic: vec![],
            english: vec![],
            page: String::new(),
            chats: vec![],
        };
        let theirs = Theirs {
            ids: vec![vec![1], vec![3], vec![5]],
            normalized: vec![vec![1], vec![3], vec![4]],
            greedy: vec![],
            nll: vec![],
            nll_f32: vec![],
            chats: vec![],
            version: String::new(),
        };
        let mut faults = Vec::new();
        assert_eq!(same_ids(&texts, &[vec![1], vec![2], vec![4]], &theirs, &mut faults), "1 of 3; 1 more in NFC");
        assert!(faults[0].contains("\"b\"") && faults.len() == 1, "{faults:?}");
    }
}
