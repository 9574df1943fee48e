//! A static file server for the page, on localhost only.
//!
//! HTTP/1.1 with GET and HEAD, one range, and a few headers; the page needs nothing else. Rejected: a server crate,
//! because it would be the largest dependency of this program.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Sent with every file. COOP and COEP allow the page threads on the CPU.
const HEADERS: &str = concat!(
    "Accept-Ranges: bytes\r\nCache-Control: no-cache\r\nX-Content-Type-Options: nosniff\r\n",
    "Cross-Origin-Opener-Policy: same-origin\r\n",
    "Cross-Origin-Embedder-Policy: require-corp\r\n",
);

/// Most bytes of a request head.
const HEAD_BYTES: u64 = 16 * 1024;

/// Serves `directory` on localhost until the program is stopped.
pub fn serve(directory: &Path, port: u16) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port))
        .with_context(|| format!("port {port} is not free on this machine; remedy: --port N"))?;
    println!(
        "Serving {} on http://localhost:{}  (Ctrl-C stops)",
        directory.display(),
        listener.local_addr().map_or(port, |address| address.port())
    );
    accept(&listener, directory);
    Ok(())
}

/// Starts one thread per connection; browsers keep six connections open.
fn accept(listener: &TcpListener, directory: &Path) {
    for stream in listener.incoming().flatten() {
        let directory = directory.to_path_buf();
        std::thread::spawn(move || {
            // A browser that closes the connection early is not an error of the server.
            let _ = answer_all(&stream, &directory);
        });
    }
}

/// The request line and the relevant headers of a request.
#[derive(Debug, Default, PartialEq, Eq)]
struct Request {
    method: String,
    path: String,
    range: Option<String>,
    close: bool,
}

fn answer_all(stream: &TcpStream, directory: &Path) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader)? {
        let close = request.close;
        answer(stream, directory, &request)?;
        if close {
            break;
        }
    }
    Ok(())
}

fn read_request(reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut head = reader.take(HEAD_BYTES);
    let mut line = String::new();
    if head.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let mut request = Request {
        method: words.next().unwrap_or("").to_owned(),
        path: words.next().unwrap_or("/").to_owned(),
        ..Request::default()
    };
    loop {
        line.clear();
        if head.read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok(Some(request));
        }
        let Some((name, value)) = line.split_once(':') else { continue };
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.trim().to_owned()),
            "connection" => request.close = value.trim().eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
}

fn answer(mut stream: &TcpStream, directory: &Path, request: &Request) -> std::io::Result<()> {
    if request.method != "GET" && request.method != "HEAD" {
        return stream.write_all(b"HTTP/1.1 405 Method Not Allowed\r\nAllow: GET, HEAD\r\nContent-Length: 0\r\n\r\n");
    }
    let file = resolve(directory, &request.path).and_then(|path| Some((File::open(&path).ok()?, path)));
    let Some((mut file, path)) = file else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    };
    let size = file.metadata()?.len();
    let (status, start, length) = match request.range.as_deref().map(|range| parse_range(range, size)) {
        None | Some(Range::Whole) => ("200 OK".to_owned(), 0, size),
        Some(Range::Part(start, end)) => {
            (format!("206 Partial Content\r\nContent-Range: bytes {start}-{}/{size}", end - 1), start, end - start)
        }
        Some(Range::Outside) => {
            let head = format!(
                "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{size}\r\nContent-Length: 0\r\n\r\n"
            );
            return stream.write_all(head.as_bytes());
        }
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {}\r\nContent-Length: {length}\r\n{HEADERS}\r\n",
        content_type(&path)
    );
    stream.write_all(head.as_bytes())?;
    if request.method == "GET" {
        file.seek(SeekFrom::Start(start))?;
        std::io::copy(&mut file.take(length), &mut stream)?;
    }
    stream.flush()
}

/// The file of a request's path; `None` outside `directory`.
fn resolve(directory: &Path, target: &str) -> Option<PathBuf> {
    let path = target.split(['?', '#']).next()?;
    let decoded = percent_decode(path)?;
    let mut file = directory.to_path_buf();
    for part in decoded.split('/').filter(|part| !part.is_empty()) {
        if part == "." || part == ".." || part.contains(['\\', ':', '\0']) {
            return None;
        }
        file.push(part);
    }
    if file.is_dir() {
        file.push("index.html");
    }
    let inside = file.canonicalize().ok()?.starts_with(directory.canonicalize().ok()?);
    (inside && file.is_file()).then_some(file)
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    /// No range, or one that is not understood: the whole file, as HTTP allows.
    Whole,
    /// From the first byte up to, but not including, the second.
    Part(u64, u64),
    Outside,
}

fn parse_range(text: &str, size: u64) -> Range {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Range::Whole;
    };
    let (start, end) = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last.saturating_add(1).min(size)),
        (Ok(first), Err(_)) if last.trim().is_empty() => (first, size),
        (Err(_), Ok(count)) if first.trim().is_empty() => (size.saturating_sub(count), size),
        _ => return Range::Whole,
    };
    if start < end { Range::Part(start, end) } else { Range::Outside }
}

fn content_type(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()).unwrap_or("") {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" => "application/json",
        "webmanifest" => "application/manifest+json",
        "wasm" => "application/wasm",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "woff2" => "font/woff2",
        "txt" | "jinja" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(parse_range("bytes=0-3", 10), Range::Part(0, 4));
        assert_eq!(parse_range("bytes=4-", 10), Range::Part(4, 10));
        assert_eq!(parse_range("bytes=-3", 10), Range::Part(7, 10));
        assert_eq!(parse_range("bytes=8-99", 10), Range::Part(8, 10));
        assert_eq!(parse_range("bytes=10-", 10), Range::Outside);
        assert_eq!(parse_range("bytes=0-1,4-5", 10), Range::Whole);
        assert_eq!(parse_range("lines=0-1", 10), Range::Whole);
    }

    #[test]
    fn a_running_server_answers() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let site = directory.path().join("site");
        std::fs::create_dir(&site).expect("a directory in it");
        std::fs::write(site.join("index.html"), "<p>بيان</p>").expect("a file");
        std::fs::write(site.join("a b.bin"), "0123456789").expect("a file");
        std::fs::write(directory.path().join("secret"), "x").expect("a file");
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("its address");
        std::thread::spawn(move || accept(&listener, &site));
        let ask = |head: &str| {
            let mut stream = TcpStream::connect(address).expect("a connection");
            stream.write_all(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes()).expect("a request sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer");
            answer
        };
        let page = ask("GET /?x=1 HTTP/1.1");
        assert!(
            page.starts_with("HTTP/1.1 200") && page.contains("text/html") && page.ends_with("<p>بيان</p>"),
            "{page}"
        );
        let part = ask("GET /a%20b.bin HTTP/1.1\r\nRange: bytes=2-4");
        assert!(
            part.starts_with("HTTP/1.1 206")
                && part.contains("Content-Range: bytes 2-4/10")
                && part.ends_with("\r\n\r\n234"),
            "{part}"
        );
        let head = ask("HEAD /a%20b.bin HTTP/1.1");
        assert!(head.contains("Content-Length: 10") && head.ends_with("\r\n\r\n"), "{head}");
        assert!(ask("GET /../secret HTTP/1.1").starts_with("HTTP/1.1 404"));
        assert!(ask("GET /%2e%2e/secret HTTP/1.1").starts_with("HTTP/1.1 404"));
        assert!(ask("GET /none HTTP/1.1").starts_with("HTTP/1.1 404"));
        assert!(ask("POST / HTTP/1.1").starts_with("HTTP/1.1 405"));
    }
}
