//! Names of models and data sets on a hub, validated before they are used in paths.

use hf_hub::{Repo, RepoType};
use std::fmt;
use std::path::Path;

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

impl Kind {
    /// Its name for people.
    pub fn noun(self) -> &'static str {
        match self {
            Kind::Model => "model",
            Kind::Dataset => "data set",
        }
    }

    /// The beginning of its folders in the cache.
    pub fn prefix(self) -> &'static str {
        match self {
            Kind::Model => "models--",
            Kind::Dataset => "datasets--",
        }
    }
}

/// `org/name[:revision][/file.gguf]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubName {
    /// What it is the name of.
    pub kind: Kind,
    /// `org/name`
    pub repo: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// One file of the repository.
    pub file: Option<String>,
}

impl HubName {
    /// Parses the name of a data set, `org/name[:revision]`; `None` if it is not valid.
    pub fn parse_dataset(text: &str) -> Option<HubName> {
        let name = HubName::parse(text).filter(|name| name.file.is_none())?;
        Some(HubName { kind: Kind::Dataset, ..name })
    }

    /// Parses a name of a model; `None` if it is not valid.
    pub fn parse(text: &str) -> Option<HubName> {
        let mut parts = text.splitn(3, '/');
        let (owner, second, rest) = (parts.next()?, parts.next()?, parts.next());
        let (name, revision) = second.split_once(':').unwrap_or((second, "main"));
        if ![owner, name, revision].into_iter().all(is_part) {
            return None;
        }
        let file = match rest {
            None => None,
            Some(file) if file.ends_with(".gguf") && is_relative_file(file) => Some(file.to_string()),
            Some(_) => return None,
        };
        Some(HubName { kind: Kind::Model, repo: format!("{owner}/{name}"), revision: revision.to_string(), file })
    }

    /// Parses the argument of `--model`: `None` if such a path exists, or if it can only be a path.
    pub fn from_path(path: &Path) -> Option<HubName> {
        if path.exists() { None } else { Self::parse(path.to_str()?) }
    }

    /// Whether the revision is a commit, which never changes.
    pub fn is_commit(&self) -> bool {
        is_hex(&self.revision, 40)
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if self.revision != "main" {
            write!(f, ":{}", self.revision)?;
        }
        self.file.as_ref().map_or(Ok(()), |file| write!(f, "/{file}"))
    }
}

/// Whether a component has only letters, digits, `-`, `_` and `.`, is not all dots, and has no `--`, which separates
/// owner and name in the cache.
fn is_part(part: &str) -> bool {
    let allowed = part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    allowed
        && !part.is_empty()
        && part.len() <= 96
        && !part.starts_with('.')
        && !part.contains("..")
        && !part.contains("--")
}

/// Whether a joined file name stays inside its directory, on every system.
pub(super) fn is_relative_file(file: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && !part.chars().any(|c| matches!(c, '\\' | ':') || c.is_control())
    };
    file.len() <= 255 && file.split('/').all(plain)
}

/// Whether a text consists of this many lower-case hexadecimal digits.
pub fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

/// The repository of a name at its revision.
pub fn repo(name: &HubName) -> Repo {
    let kind = match name.kind {
        Kind::Model => RepoType::Model,
        Kind::Dataset => RepoType::Dataset,
    };
    Repo::with_revision(name.repo.clone(), kind, name.revision.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_an_owner_a_revision_and_a_file() {
        let parsed = |text: &str| {
            HubName::parse(text)
                .map(|name| (name.repo.clone(), name.revision.clone(), name.file.clone(), name.to_string()))
        };
        assert_eq!(parsed("a/b"), Some(("a/b".into(), "main".into(), None, "a/b".into())));
        assert_eq!(
            parsed("a/b:v1/q/x.gguf"),
            Some(("a/b".into(), "v1".into(), Some("q/x.gguf".into()), "a/b:v1/q/x.gguf".into()))
        );
        for bad in [
            "a",
            "/a/b",
            "a/../b.gguf",
            "../b",
            "a/b/c.bin",
            "a/b/../x.gguf",
            "a/b:../x",
            "a/b/C:x.gguf",
            "a//b",
            "a/b:",
            "a/b/\\x.gguf",
            "a--b/c",
            "./a",
        ] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }
}
