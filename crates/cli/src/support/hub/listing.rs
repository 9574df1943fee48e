//! The contents of a repository, and the files of it that are needed: those of a model, or of a data set with rows.

use anyhow::{Context, Result, bail};
use hf_hub::Cache;
use hf_hub::api::sync::ApiBuilder;
use serde::Deserialize;

use super::name::{HubName, Kind, is_hex, is_relative_file, repo};

/// Files that belong to the weights, if they exist.
const SIDE_FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

/// A file to download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its name in the repository.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// The name of its blob in the cache: the SHA-256, or git's SHA-1 for small files.
    pub blob: String,
}

/// The files of a model or a data set that are needed.
#[derive(Debug)]
pub struct DownloadPlan {
    /// The model or the data set.
    pub name: HubName,
    /// The commit of the revision at the time of the listing.
    pub commit: String,
    /// Address of the hub.
    pub endpoint: String,
    /// Access token for private and gated repositories.
    pub token: Option<String>,
    /// Every file that is needed.
    pub files: Vec<RemoteFile>,
    /// Bytes of the files whose blobs are not in the cache.
    missing_bytes: u64,
}

impl DownloadPlan {
    /// Bytes to download.
    pub fn missing_bytes(&self) -> u64 {
        self.missing_bytes
    }
}

/// The address of the hub.
pub fn endpoint() -> String {
    let set = std::env::var("HF_ENDPOINT").ok().filter(|text| !text.is_empty());
    set.map_or_else(|| "https://huggingface.co".to_string(), |text| text.trim_end_matches('/').to_string())
}

/// Explains an HTTP status to a user who wants a model.
pub fn explain(status: u16, name: &HubName) -> String {
    let noun = name.kind.noun();
    match status {
        401 => format!(
            "{name}: the hub requires authentication (401): set HF_TOKEN, and check the name, because the hub gives this answer for unknown names too"
        ),
        403 => format!(
            "{name}: access to the {noun} is not granted (403): accept its conditions on its web page, with the token's account"
        ),
        404 => format!("{name}: the hub has no such {noun}, revision or file (404)"),
        429 => format!("{name}: the hub received too many requests (429): wait a few minutes, or set HF_TOKEN"),
        _ => format!("{name}: the hub answered with status {status}"),
    }
}

/// Asks the hub for the files of a model or a data set.
///
/// # Errors
/// The hub refuses, the listing is invalid, or the repository has no model, or no file with rows.
pub fn plan(cache: &Cache, name: &HubName) -> Result<DownloadPlan> {
    let endpoint = endpoint();
    let token = std::env::var("HF_TOKEN").ok().filter(|token| !token.is_empty()).or_else(|| cache.token());
    let api = ApiBuilder::from_cache(cache.clone())
        .with_endpoint(endpoint.clone())
        .with_token(token.clone())
        .build()
        .context("cannot set up the network client")?;
    let mut response = api.repo(repo(name)).info_request().query("blobs", "true").call().map_err(|error| {
        let text = error.to_string();
        let status = text.strip_prefix("http status: ").and_then(|status| status.parse().ok());
        anyhow::anyhow!(status.map_or_else(
            || format!("{endpoint} did not answer the request for {name}: {text}; check the network, or use --offline"),
            |s| explain(s, name)
        ))
    })?;
    let info: Info = response
        .body_mut()
        .read_json()
        .with_context(|| format!("{endpoint}: expected a description of {name} in JSON"))?;
    if !is_hex(&info.sha, 40) {
        bail!("{endpoint}: expected a commit of 40 hexadecimal digits, got {:?}: do not trust this server", info.sha);
    }
    let mut files = Vec::new();
    for file in select(name, &info.siblings)? {
        files.push(checked(file)?);
    }
    let blobs = cache.path().join(repo(name).folder_name()).join("blobs");
    let here =
        |file: &&RemoteFile| std::fs::metadata(blobs.join(&file.blob)).is_ok_and(|data| data.len() == file.size_bytes);
    let missing_bytes = files.iter().filter(|file| !here(file)).map(|file| file.size_bytes).sum();
    Ok(DownloadPlan { name: name.clone(), commit: info.sha, endpoint, token, files, missing_bytes })
}

fn checked(file: &Sibling) -> Result<RemoteFile> {
    if !is_relative_file(&file.rfilename) {
        bail!(
            "the listing names the file {:?}, which leaves its directory: do not trust this repository",
            file.rfilename
        );
    }
    let (size, blob) = match &file.lfs {
        Some(lfs) if is_hex(&lfs.sha256, 64) => (Some(lfs.size), Some(lfs.sha256.clone())),
        Some(_) => (None, None),
        None => (file.size, file.blob_id.clone().filter(|id| is_hex(id, 40))),
    };
    match (size, blob) {
        (Some(size_bytes), Some(blob)) => Ok(RemoteFile { name: file.rfilename.clone(), size_bytes, blob }),
        _ => bail!(
            "the hub's listing has no size and checksum for {:?}, so a download could not be verified; use another hub",
            file.rfilename
        ),
    }
}

/// The names of all parts of a split file: `x-00001-of-00003.gguf` and so on.
pub fn parts_of(file: &str) -> Vec<String> {
    let split = file
        .strip_suffix(".gguf")
        .and_then(|stem| stem.rsplit_once("-of-"))
        .and_then(|(rest, count)| Some((rest.rsplit_once('-')?, count)));
    match split {
        Some(((stem, number), count)) if number.len() == 5 && count.len() == 5 => match count.parse::<u32>() {
            Ok(total) if total <= 1000 => (1..=total).map(|i| format!("{stem}-{i:05}-of-{count}.gguf")).collect(),
            _ => vec![file.to_string()],
        },
        _ => vec![file.to_string()],
    }
}

/// The endings of files with rows; all but parquet may be compressed.
const DATA_ENDINGS: [&str; 6] = ["parquet", "jsonl", "ndjson", "json", "csv", "tsv"];

/// Files that describe a data set and have no rows.
const DESCRIPTIONS: [&str; 2] = ["dataset_info.json", "dataset_infos.json"];

fn is_data(file: &str) -> bool {
    let (folder, name) = file.rsplit_once('/').unwrap_or(("", file));
    let plain = name.strip_suffix(".gz").unwrap_or(name);
    let ending = plain.rsplit_once('.').map(|(_, ending)| ending);
    let hidden = folder.split('/').any(|part| part.starts_with('.')) || name.starts_with('.');
    ending.is_some_and(|ending| DATA_ENDINGS.contains(&ending)) && !DESCRIPTIONS.contains(&name) && !hidden
}

/// Selects the files with rows, or the files that the model needs.
fn select<'a>(name: &HubName, files: &'a [Sibling]) -> Result<Vec<&'a Sibling>> {
    if name.kind == Kind::Dataset {
        let chosen: Vec<&Sibling> = files.iter().filter(|file| is_data(&file.rfilename)).collect();
        if chosen.is_empty() {
            let endings = DATA_ENDINGS.join(", ");
            bail!("{name} has no file with rows: expected {endings}; a data set that a program makes is not run");
        }
        return Ok(chosen);
    }
    let find = |wanted: &str| files.iter().find(|file| file.rfilename == wanted);
    if let Some(file) = &name.file {
        return parts_of(file)
            .iter()
            .map(|part| find(part).with_context(|| format!("{name}: there is no file {part}; {}", gguf_names(files))))
            .collect();
    }
    let shards = |prefix: &str, suffix: &str| {
        let part = |file: &&Sibling| file.rfilename.starts_with(prefix) && file.rfilename.ends_with(suffix);
        files.iter().filter(part).collect::<Vec<_>>()
    };
    let mut chosen: Vec<&Sibling> = SIDE_FILES.iter().filter_map(|file| find(file)).collect();
    if find("tokenizer.json").is_none() {
        chosen.extend(find("tokenizer.model"));
    }
    for (single, index, prefix, suffix) in [
        ("model.safetensors", "model.safetensors.index.json", "model-", ".safetensors"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-", ".bin"),
    ] {
        if let Some(file) = find(single) {
            chosen.push(file);
            return Ok(chosen);
        }
        if let Some(file) = find(index) {
            chosen.push(file);
            chosen.extend(shards(prefix, suffix));
            return Ok(chosen);
        }
    }
    let gguf: Vec<&Sibling> = files.iter().filter(|file| file.rfilename.ends_with(".gguf")).collect();
    match gguf.as_slice() {
        [one] => Ok(vec![*one]),
        [] => bail!("{name} has no weights in a supported format: expected safetensors, pytorch_model.bin or GGUF"),
        _ => bail!("{name} has several GGUF files: add the name of one, as in {name}/FILE.gguf; {}", gguf_names(files)),
    }
}

fn gguf_names(files: &[Sibling]) -> String {
    let names: Vec<&str> =
        files.iter().map(|file| file.rfilename.as_str()).filter(|file| file.ends_with(".gguf")).take(40).collect();
    if names.is_empty() { "it has no GGUF file".to_string() } else { format!("there are {}", names.join(", ")) }
}
