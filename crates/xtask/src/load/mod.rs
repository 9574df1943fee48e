//! `cargo xtask load`: measures a server under load: tokens per second, times to the first and between tokens for
//! several numbers of clients, then what a long prompt does to a running answer, many requests of which some are cut at
//! random, and connections that ask nothing. The same requests can go to llama.cpp's server (`--peer`), and the engine
//! can be measured without a server (`--engine`).
//!
//! Any server with OpenAI's interface can be measured (`--url`), so that the same program compares. Requests are written
//! and read here, over plain sockets: a client's library must not be what is measured.

mod beside;
mod client;
mod compare;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::clients;
use client::{Asked, Target};

/// Options of `load`.
#[derive(clap::Args)]
pub struct LoadArguments {
    /// A server that runs already, such as `http://127.0.0.1:8080`; without it `bayan serve` is started
    #[arg(long, value_name = "URL", conflicts_with_all = ["bayan", "model"])]
    url: Option<String>,
    /// A `bayan` that is built already; without it a release is built
    #[arg(long, value_name = "FILE")]
    bayan: Option<std::path::PathBuf>,
    /// The model of the server that is started
    #[arg(long, value_name = "MODEL", default_value = "embedded")]
    model: String,
    /// Answers that the server computes together
    #[arg(long, value_name = "N", default_value_t = 8)]
    parallel: usize,
    /// Numbers of clients
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [1, 4, 8, 32])]
    clients: Vec<usize>,
    /// Requests of each client
    #[arg(long, value_name = "N", default_value_t = 4)]
    requests: usize,
    /// Tokens of each answer
    #[arg(long, value_name = "N", default_value_t = 64)]
    tokens: usize,
    /// Positions of each answer's context
    #[arg(long, value_name = "N", default_value_t = 512)]
    context: usize,
    /// Tokens of a prompt that the server reads in one step; without it the server's default
    #[arg(long, value_name = "N")]
    prefill_chunk: Option<usize>,
    /// The second part: words of a prompt that is read while one answer runs; 0 leaves it out
    #[arg(long, value_name = "WORDS", default_value_t = 0)]
    long_prompt: usize,
    /// Requests of the third part, of which 30 % are cut at random; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 1000)]
    cuts: usize,
    /// Connections of the fourth part, which ask nothing; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 0)]
    idle: usize,
    /// Also measure the engine itself, with a batch of as many answers as `--parallel`
    #[arg(long, conflicts_with = "url")]
    engine: bool,
    /// llama.cpp's `llama-server`, which gets the same requests; `--model` is a GGUF file then. Debian's packages
    /// llama.cpp-tools and libggml0-backend-vulkan have it with its Vulkan backend
    #[arg(long, value_name = "PROGRAM", conflicts_with = "url")]
    peer: Option<std::path::PathBuf>,
    /// Further arguments of the peer, e.g. `-- --device Vulkan0`
    #[arg(last = true, requires = "peer")]
    peer_arguments: Vec<String>,
}

/// What was measured with a number of clients.
struct Measured {
    clients: usize,
    tokens_per_second: f64,
    /// From a request to its first token.
    first_seconds: Vec<f64>,
    between_seconds: Vec<f64>,
    /// The mean time of a token of each answer, the first left out.
    token_seconds: Vec<f64>,
}

/// Requests after which memory should not grow any more.
const SETTLED: f64 = 0.1;

/// Measures.
pub fn run(arguments: &LoadArguments) -> Result<()> {
    let (mut server, mut bayan) = (None, None);
    let url = match &arguments.url {
        Some(url) => url.clone(),
        None => {
            let program = clients::bayan(arguments.bayan.as_deref())?;
            let [parallel, context] = [arguments.parallel, arguments.context].map(|number| number.to_string());
            let mut flags =
                vec!["--model", &arguments.model, "--parallel", &parallel, "--context", &context, "--queue", "4096"];
            let chunk = arguments.prefill_chunk.map(|chunk| chunk.to_string());
            flags.extend(chunk.iter().flat_map(|chunk| ["--prefill-chunk", chunk]));
            let (started, url) = clients::start(&program, &flags)?;
            server = Some(started);
            bayan = Some(program);
            url
        }
    };
    let target = Target::new(&url)?;
    let measured = measure(&target, arguments)?;
    compare::print_first_tokens(&measured);
    let process = server.as_ref().map(clients::Server::process);
    if arguments.long_prompt > 0 {
        beside::measure(&target, arguments.long_prompt)?;
    }
    if arguments.cuts > 0 {
        cut(&target, arguments, process)?;
    }
    if arguments.idle > 0 {
        idle(&target, arguments.idle, process)?;
    }
    // The server must not compute beside what it is compared with.
    drop(server);
    if let Some(bayan) = bayan.filter(|_| arguments.engine) {
        compare::with_engine(&bayan, arguments, &measured)?;
    }
    match &arguments.peer {
        Some(peer) => compare::with_peer(peer, arguments, &measured),
        None => Ok(()),
    }
}

/// Measures a server with each number of clients, and prints a table.
fn measure(target: &Target, arguments: &LoadArguments) -> Result<Vec<Measured>> {
    // Kernels and caches are warm before anything is measured.
    target.ask(0, arguments.tokens, None)?;
    println!("clients  tokens/s  first token p50   p95  between tokens p50   p95 (ms)");
    let mut all = Vec::new();
    for &clients in &arguments.clients {
        let (seconds, asked) = together(target, clients, arguments.requests, arguments.tokens)?;
        let tokens: usize = asked.iter().map(|asked| asked.tokens).sum();
        let measured = Measured {
            clients,
            tokens_per_second: tokens as f64 / seconds,
            first_seconds: asked.iter().map(Asked::first_seconds).collect(),
            between_seconds: asked.iter().flat_map(Asked::between_seconds).collect(),
            token_seconds: asked.iter().map(Asked::token_seconds).collect(),
        };
        let ms = |values: &[f64], part: f64| quantile(values, part) * 1e3;
        println!(
            "{clients:>7}  {:>8.1}  {:>15.1} {:>5.1}  {:>18.2} {:>5.2}",
            measured.tokens_per_second,
            ms(&measured.first_seconds, 0.5),
            ms(&measured.first_seconds, 0.95),
            ms(&measured.between_seconds, 0.5),
            ms(&measured.between_seconds, 0.95)
        );
        all.push(measured);
    }
    Ok(all)
}

/// Several clients at once; the seconds until the last one is ready, and every request.
fn together(target: &Target, clients: usize, requests: usize, tokens: usize) -> Result<(f64, Vec<Asked>)> {
    let start = Instant::now();
    let asked = std::thread::scope(|scope| {
        let client = |client: usize| {
            move || (0..requests).map(|turn| target.ask(client * 1000 + turn, tokens, None)).collect::<Result<Vec<_>>>()
        };
        let threads: Vec<_> = (0..clients).map(|number| scope.spawn(client(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a client does not panic")).collect::<Result<Vec<_>>>()
    })?;
    Ok((start.elapsed().as_secs_f64(), asked.into_iter().flatten().collect()))
}

/// Many requests, 30 % of them cut after a random number of tokens. Afterwards nothing may run, and the server's memory
/// may not have grown.
fn cut(target: &Target, arguments: &LoadArguments, process: Option<u32>) -> Result<()> {
    const CLIENTS: usize = 16;
    let settled = (arguments.cuts as f64 * SETTLED) as usize;
    let part = |from: usize, to: usize| -> Result<(usize, usize)> {
        let each = |client: usize| {
            move || {
                let mut counts = (0, 0);
                for number in (from..to).filter(|number| number % CLIENTS == client) {
                    let mixed = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
                    let after = (mixed % 10 < 3).then_some(mixed as usize / 10 % 16);
                    target.ask(number, 16, after)?;
                    *if after.is_some() { &mut counts.1 } else { &mut counts.0 } += 1;
                }
                Ok::<_, anyhow::Error>(counts)
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..CLIENTS).map(|client| scope.spawn(each(client))).collect();
            let counts = threads.into_iter().map(|thread| thread.join().expect("a client does not panic"));
            let counts = counts.collect::<Result<Vec<_>>>()?;
            Ok((counts.iter().map(|count| count.0).sum(), counts.iter().map(|count| count.1).sum()))
        })
    };
    let before = part(0, settled)?;
    let kib_before = process.and_then(resident_kib);
    let after = part(settled, arguments.cuts)?;
    // A slot is free one step after its client went away.
    std::thread::sleep(Duration::from_millis(500));
    let kib_after = process.and_then(resident_kib);
    println!("{} requests were answered and {} cut", before.0 + after.0, before.1 + after.1);
    if let (Some(before), Some(after)) = (kib_before, kib_after) {
        let grown = (after as f64 - before as f64) / 1024.0;
        println!("memory after {settled} requests {before} KiB, at the end {after} KiB: {grown:+.1} MiB (mark: 5)");
    }
    if process.is_some() {
        for name in ["bayan_requests_running", "bayan_requests_queued"] {
            let value = target.metric(name)?;
            if value != 0.0 {
                bail!("{name} is {value} after all clients have gone, expected 0");
            }
        }
        println!("nothing runs and nothing waits afterwards");
    }
    Ok(())
}

/// Connections on which nothing is asked; an answer beside them must come.
fn idle(target: &Target, count: usize, process: Option<u32>) -> Result<()> {
    let before = process.and_then(resident_kib);
    let connections: Vec<_> = (0..count).map(|_| target.connect()).collect::<Result<_>>()?;
    std::thread::sleep(Duration::from_secs(1));
    let after = process.and_then(resident_kib);
    let asked = target.ask(0, 16, None)?;
    println!("beside {count} idle connections the first token came after {:.1} ms", asked.first_seconds() * 1e3);
    if let (Some(before), Some(after)) = (before, after) {
        let grown = (after as f64 - before as f64) / 1024.0;
        println!("memory without them {before} KiB, with them {after} KiB: {grown:+.1} MiB (mark for 1,000: 50)");
    }
    drop(connections);
    Ok(())
}

/// Resident memory of a process.
fn resident_kib(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()
}

/// The value below which this part of all values lies.
fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// JSON of an event of a stream.
fn event(line: &str) -> Result<Option<Value>> {
    match line.strip_prefix("data: ") {
        None | Some("[DONE]") => Ok(None),
        Some(data) => Ok(Some(serde_json::from_str(data).with_context(|| format!("expected JSON, got {data}"))?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_of_the_list() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!([0.5, 0.95, 1.0, 0.01].map(|part| quantile(&values, part)), [2.0, 4.0, 4.0, 1.0]);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn events_are_read_and_others_passed_over() {
        assert_eq!(event("data: [DONE]").unwrap(), None);
        assert_eq!(event(": comment").unwrap(), None);
        assert_eq!(event("data: {\"a\": 1}").unwrap().unwrap()["a"], 1);
        assert!(event("data: {").is_err());
    }
}
