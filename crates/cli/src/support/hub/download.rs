//! Downloads into the cache: resumed after an interruption, checked in size and checksum, and visible only when
//! complete.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hf_hub::Cache;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::config::RedirectAuthHeaders;

use super::Kind;
use super::listing::{DownloadPlan, RemoteFile, explain};
use crate::support::output::Progress;

const ATTEMPTS: u32 = 5;
const BUFFER_BYTES: usize = 256 << 10;

/// The outcome of one attempt that did not fail for good.
enum Attempt {
    Done,
    /// Worth retrying, after this time.
    Again(String, Duration),
}

/// Downloads the missing files; returns the path for `--model` or `--data`.
///
/// # Errors
/// A transfer fails for good, or the bytes differ from the listing.
pub fn run(cache: &Cache, plan: &DownloadPlan) -> Result<PathBuf> {
    let handle = cache.repo(super::name::repo(&plan.name));
    let (snapshot, blobs) = (handle.pointer_path(&plan.commit), handle.blob_path("x"));
    let blobs = blobs.parent().context("the cache's directory")?.to_path_buf();
    fs::create_dir_all(&blobs).with_context(|| format!("cannot create {}", blobs.display()))?;
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .timeout_connect(Some(Duration::from_secs(30)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .build();
    let agent = ureq::Agent::from(config);
    let mut progress = Progress::new("downloading", true);
    let (mut done, total) = (0, plan.files.iter().map(|file| file.size_bytes).sum());
    for file in &plan.files {
        progress.message(&file.name);
        let blob = blobs.join(&file.blob);
        if !fs::metadata(&blob).is_ok_and(|data| data.len() == file.size_bytes) {
            fetch(&agent, plan, file, &blob, &mut |bytes| progress.set(done + bytes, total))?;
        }
        done += file.size_bytes;
        progress.set(done, total);
        link(&blob, &snapshot.join(&file.name))?;
    }
    handle.create_ref(&plan.commit).context("cannot write the revision into the cache")?;
    Ok(plan.name.file.as_ref().map_or(snapshot.clone(), |file| snapshot.join(file)))
}

fn fetch(
    agent: &ureq::Agent,
    plan: &DownloadPlan,
    file: &RemoteFile,
    blob: &Path,
    on_bytes: &mut dyn FnMut(u64),
) -> Result<()> {
    let partial = blob.with_extension("incomplete");
    let mut last = String::new();
    for attempt in 0..ATTEMPTS {
        match try_once(agent, plan, file, &partial, on_bytes)? {
            Attempt::Done => {
                if let Err(error) = verify(file, &partial) {
                    let _ = fs::remove_file(&partial);
                    return Err(error);
                }
                return fs::rename(&partial, blob).with_context(|| format!("cannot rename {}", partial.display()));
            }
            Attempt::Again(why, wait) => {
                last = why;
                if attempt + 1 < ATTEMPTS {
                    std::thread::sleep(wait.max(Duration::from_millis(200 << attempt)));
                }
            }
        }
    }
    bail!(
        "{}: the download failed after {ATTEMPTS} attempts: {last}; the received part is kept, and the same command resumes from there",
        file.name
    )
}

fn try_once(
    agent: &ureq::Agent,
    plan: &DownloadPlan,
    file: &RemoteFile,
    partial: &Path,
    on_bytes: &mut dyn FnMut(u64),
) -> Result<Attempt> {
    let mut start = fs::metadata(partial).map_or(0, |data| data.len());
    if start > file.size_bytes {
        fs::remove_file(partial).with_context(|| format!("cannot remove {}", partial.display()))?;
        start = 0;
    }
    if start == file.size_bytes && start > 0 {
        return Ok(Attempt::Done);
    }
    let folder = if plan.name.kind == Kind::Dataset { "datasets/" } else { "" };
    let (repo, commit) = (&plan.name.repo, &plan.commit);
    let url = format!("{}/{folder}{repo}/resolve/{commit}/{}", plan.endpoint, escaped(&file.name));
    let mut request = agent.get(&url).header("User-Agent", concat!("bayan/", env!("CARGO_PKG_VERSION")));
    if let Some(token) = &plan.token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    if start > 0 {
        request = request.header("Range", format!("bytes={start}-"));
    }
    let response = match request.call() {
        Ok(response) => response,
        Err(error) => return Ok(Attempt::Again(error.to_string(), Duration::ZERO)),
    };
    let status = response.status().as_u16();
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    match status {
        200 => start = 0,
        206 if header("content-range").is_some_and(|range| range.starts_with(&format!("bytes {start}-"))) => {}
        206 => bail!("{}: the server sent another range than bytes={start}-", file.name),
        429 | 500..=599 => {
            let wait =
                header("retry-after").and_then(|seconds| seconds.trim().parse::<u64>().ok()).unwrap_or(1).min(30);
            return Ok(Attempt::Again(explain(status, &plan.name), Duration::from_secs(wait)));
        }
        _ => bail!(explain(status, &plan.name)),
    }
    let mut out = File::options()
        .create(true)
        .append(start > 0)
        .write(true)
        .truncate(start == 0)
        .open(partial)
        .with_context(|| format!("cannot write {}", partial.display()))?;
    // One byte more than announced is enough to detect a wrong size.
    let mut body = response.into_body().into_reader().take(file.size_bytes - start + 1);
    let (mut buffer, mut written) = (vec![0; BUFFER_BYTES], start);
    loop {
        let count = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) => {
                return Ok(Attempt::Again(
                    format!("the connection broke after {written} bytes: {error}"),
                    Duration::ZERO,
                ));
            }
        };
        out.write_all(&buffer[..count]).with_context(|| format!("cannot write {}", partial.display()))?;
        written += count as u64;
        on_bytes(written);
    }
    out.sync_all().with_context(|| format!("cannot write {}", partial.display()))?;
    match written {
        n if n < file.size_bytes => {
            Ok(Attempt::Again(format!("the connection ended after {n} of {} bytes", file.size_bytes), Duration::ZERO))
        }
        _ => Ok(Attempt::Done),
    }
}

/// Checks size and checksum.
fn verify(file: &RemoteFile, path: &Path) -> Result<()> {
    let mut input = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let size = input.metadata()?.len();
    if size != file.size_bytes {
        bail!(
            "{}: expected {} bytes, got more: the file changed or the server is wrong; try again",
            file.name,
            file.size_bytes
        );
    }
    let (mut sha256, mut sha1) = (Sha256::new(), Sha1::new_with_prefix(format!("blob {size}\0")));
    let (mut buffer, large) = (vec![0; BUFFER_BYTES], file.blob.len() == 64);
    loop {
        let count = input.read(&mut buffer)?;
        match (count, large) {
            (0, _) => break,
            (_, true) => sha256.update(&buffer[..count]),
            (_, false) => sha1.update(&buffer[..count]),
        }
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let found = if large { hex(&sha256.finalize()) } else { hex(&sha1.finalize()) };
    if found != file.blob {
        bail!(
            "{}: expected the checksum {}, got {found}: the bytes were damaged or are not what was listed; nothing of them was kept",
            file.name,
            file.blob
        );
    }
    Ok(())
}

/// Puts the file into the snapshot, as a link to its blob, or as a copy where links are not allowed.
fn link(blob: &Path, at: &Path) -> Result<()> {
    let directory = at.parent().context("a directory")?;
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    if at.exists() {
        return Ok(());
    }
    let _ = fs::remove_file(at);
    #[cfg(unix)]
    {
        let depth = at
            .strip_prefix(blob.parent().and_then(Path::parent).unwrap_or(blob))
            .map_or(3, |inside| inside.components().count());
        let mut target = PathBuf::new();
        (1..depth).for_each(|_| target.push(".."));
        target.push("blobs");
        target.push(blob.file_name().context("a blob's name")?);
        if std::os::unix::fs::symlink(&target, at).is_ok() {
            return Ok(());
        }
    }
    fs::hard_link(blob, at)
        .or_else(|_| fs::copy(blob, at).map(drop))
        .with_context(|| format!("cannot write {}", at.display()))
}

/// A file name escaped for a URL.
fn escaped(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
