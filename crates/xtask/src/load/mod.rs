//! `cargo xtask load`: measures a server under load: tokens per second, times to the first and between tokens for
//! several numbers of clients, then many requests of which some are cut at random, and connections that ask nothing.
//!
//! Any server with OpenAI's interface can be measured (`--url`), so that the same program compares. Requests are written
//! and read here, over plain sockets: a client's library must not be what is measured.

mod client;

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
    /// Requests of the second part, of which 30 % are cut at random; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 1000)]
    cuts: usize,
    /// Connections of the third part, which ask nothing; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 0)]
    idle: usize,
}

/// Requests after which memory should not grow any more.
const SETTLED: f64 = 0.1;

/// Measures.
pub fn run(arguments: &LoadArguments) -> Result<()> {
    let mut server = None;
    let url = match &arguments.url {
        Some(url) => url.clone(),
        None => {
            let bayan = clients::bayan(arguments.bayan.as_deref())?;
            let parallel = arguments.parallel.to_string();
            let flags = ["--model", &arguments.model, "--parallel", &parallel, "--context", "512", "--queue", "4096"];
            let (started, url) = clients::start(&bayan, &flags)?;
            server = Some(started);
            url
        }
    };
    let target = Target::new(&url)?;
    // Kernels and caches are warm before anything is measured.
    target.ask(0, arguments.tokens, None)?;
    println!("clients  tokens/s  first token p50   p95  between tokens p50   p95 (ms)");
    for &clients in &arguments.clients {
        let (seconds, asked) = together(&target, clients, arguments.requests, arguments.tokens)?;
        let tokens: usize = asked.iter().map(|asked| asked.tokens).sum();
        let first: Vec<f64> = asked.iter().map(|asked| asked.first_seconds).collect();
        let between: Vec<f64> = asked.iter().flat_map(|asked| asked.between_seconds.clone()).collect();
        let ms = |values: &[f64], part: f64| quantile(values, part) * 1e3;
        println!(
            "{clients:>7}  {:>8.1}  {:>15.1} {:>5.1}  {:>18.2} {:>5.2}",
            tokens as f64 / seconds,
            ms(&first, 0.5),
            ms(&first, 0.95),
            ms(&between, 0.5),
            ms(&between, 0.95)
        );
    }
    if arguments.cuts > 0 {
        cut(&target, arguments, server.as_ref().map(clients::Server::process))?;
    }
    if arguments.idle > 0 {
        idle(&target, arguments.idle, server.as_ref().map(clients::Server::process))?;
    }
    Ok(())
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
        println!("memory after {settled} requests {before} KiB, at the end {after} KiB");
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
    println!("beside {count} idle connections the first token came after {:.1} ms", asked.first_seconds * 1e3);
    if let (Some(before), Some(after)) = (before, after) {
        println!("memory without them {before} KiB, with them {after} KiB");
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
