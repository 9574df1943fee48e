//! One client: a request over a socket of its own, and the times of its tokens.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::event;

/// The server.
pub struct Target {
    address: String,
}

/// A request without an answer for this long counts as hung.
const HUNG: Duration = Duration::from_secs(300);

/// The times of an answer.
pub struct Asked {
    /// Tokens that came.
    pub tokens: usize,
    /// When the request was sent.
    pub start: Instant,
    /// When each piece of text came.
    pub times: Vec<Instant>,
}

impl Asked {
    /// From the request to the first token.
    pub fn first_seconds(&self) -> f64 {
        self.times.first().map_or(f64::NAN, |first| (*first - self.start).as_secs_f64())
    }

    /// The mean time of a token after the first. Where a client is slower than the server, several pieces of text come
    /// together, and their mean is still right.
    pub fn token_seconds(&self) -> f64 {
        let whole = self.times.first().zip(self.times.last()).map(|(first, last)| (*last - *first).as_secs_f64());
        whole.unwrap_or(f64::NAN) / self.tokens.saturating_sub(1) as f64
    }

    /// From each token to the next.
    pub fn between_seconds(&self) -> impl Iterator<Item = f64> {
        self.times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64())
    }
}

impl Target {
    /// A server at `http://HOST:PORT`.
    ///
    /// # Errors
    /// The address has another form.
    pub fn new(url: &str) -> Result<Target> {
        let address = url.trim_end_matches('/').strip_prefix("http://").filter(|address| !address.contains('/'));
        let address = address.with_context(|| format!("{url}: expected http://HOST:PORT"))?;
        Ok(Target { address: address.to_string() })
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// The server does not take it.
    pub fn connect(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect(&self.address).with_context(|| self.address.to_string())?;
        stream.set_read_timeout(Some(HUNG))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Asks for exactly `tokens` tokens, as a stream. With `cut` the connection is closed after so many of them.
    ///
    /// # Errors
    /// The server refuses, or nothing comes for a long time.
    pub fn ask(&self, number: usize, tokens: usize, cut: Option<usize>) -> Result<Asked> {
        let prompt = format!("السؤال رقم {number}: ما عاصمة مصر وما عاصمة سوريا؟ الجواب");
        self.complete(&prompt, number, tokens, cut, &mut || ())
    }

    /// As [`Target::ask`], with this prompt; `on_token` is called with each piece of text.
    ///
    /// # Errors
    /// As [`Target::ask`].
    pub fn complete(
        &self,
        prompt: &str,
        number: usize,
        tokens: usize,
        cut: Option<usize>,
        on_token: &mut dyn FnMut(),
    ) -> Result<Asked> {
        let body = json!({
            "prompt": prompt,
            "max_tokens": tokens,
            "ignore_eos": true,
            "temperature": 0.8,
            "seed": number,
            "stream": true,
        })
        .to_string();
        let start = Instant::now();
        let mut stream = self.connect()?;
        write!(
            stream,
            "POST /v1/completions HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        )?;
        let mut asked = Asked { tokens: 0, start, times: Vec::new() };
        if cut == Some(0) {
            return Ok(asked);
        }
        let mut lines = BufReader::new(stream).lines();
        let status = lines.next().context("the server closed the connection")??;
        if !status.contains(" 200 ") {
            let rest: Vec<String> = lines.map_while(Result::ok).collect();
            bail!("request {number}: {status}: {}", rest.last().cloned().unwrap_or_default());
        }
        for line in lines {
            let Some(event) = event(&line?)? else { continue };
            if !event["error"].is_null() {
                bail!("request {number}: {}", event["error"]);
            }
            // A token that is only a part of a character has no text yet, so that pieces are counted by their time.
            if event["choices"][0]["text"].as_str().is_none_or(str::is_empty) {
                continue;
            }
            asked.times.push(Instant::now());
            on_token();
            asked.tokens += 1;
            if cut == Some(asked.tokens) {
                return Ok(asked);
            }
        }
        // The server counts tokens; pieces of text may be fewer.
        asked.tokens = tokens;
        Ok(asked)
    }

    /// The value of a metric.
    ///
    /// # Errors
    /// The server has none of this name.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let mut stream = self.connect()?;
        write!(stream, "GET /metrics HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.address)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let value = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        Ok(value.with_context(|| format!("{}: no metric {name}", self.address))?.trim().parse()?)
    }
}
