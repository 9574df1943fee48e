//! What a long prompt does to an answer that runs: the times between the answer's tokens before and while it is read.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::client::{Asked, Target};
use super::quantile;

/// Tokens of the answer. Those before the long prompt's request show how fast it is alone.
const TOKENS: usize = 400;
/// Tokens after which the long prompt is sent.
const BEFORE: usize = 60;

/// Measures and prints.
pub fn measure(target: &Target, words: usize) -> Result<()> {
    let came = AtomicUsize::new(0);
    let (running, long) = std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            let mut count = || {
                came.fetch_add(1, Ordering::Relaxed);
            };
            target.complete("السؤال: ما عاصمة مصر؟ الجواب:", 1, TOKENS, None, &mut count)
        });
        while came.load(Ordering::Relaxed) < BEFORE && !running.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let long = ["مصر", "بلد", "كبير", "وعاصمتها", "القاهرة"].iter().cycle().take(words).copied();
        let long = target.complete(&long.collect::<Vec<_>>().join(" "), 2, 1, None, &mut || ());
        let running: Result<Asked> = running.join().expect("a client does not panic");
        Ok::<_, anyhow::Error>((running?, long?))
    })?;
    let end =
        *long.times.first().context("the long prompt has no answer; choose fewer words, or a larger --context")?;
    let during = |at: &Instant| *at > long.start && *at < end;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for (pair, between) in running.times.windows(2).zip(running.between_seconds()) {
        if during(&pair[1]) { &mut beside } else { &mut alone }.push(between);
    }
    println!("a prompt of {words} words was read in {:.0} ms, beside one answer:", long.first_seconds() * 1e3);
    for (what, values) in [("alone", &alone), ("beside the prompt", &beside)] {
        println!(
            "{:>4} tokens {what}: {:.1} ms between tokens at p50, {:.1} at p95, {:.1} at most",
            values.len(),
            quantile(values, 0.5) * 1e3,
            quantile(values, 0.95) * 1e3,
            quantile(values, 1.0) * 1e3
        );
    }
    Ok(())
}
