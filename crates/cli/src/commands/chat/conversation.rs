//! The messages of a conversation, and the file that stores them.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A larger file is not a conversation.
const LARGEST_FILE_BYTES: u64 = 64 << 20;

/// System message and messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// The system message.
    pub system: Option<String>,
    /// Messages in OpenAI's form, oldest first.
    pub turns: Vec<Value>,
}

impl Conversation {
    /// All messages, the system message first.
    pub fn messages(&self) -> Vec<Value> {
        let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
        system.chain(self.turns.iter().cloned()).collect()
    }

    /// Adds a message.
    pub fn push(&mut self, role: &str, content: &str) {
        self.turns.push(json!({"role": role, "content": content}));
    }

    /// Removes the last message of the user and the answers to it; returns its text.
    pub fn take_last_message(&mut self) -> Option<String> {
        let at = self.turns.iter().rposition(|turn| turn["role"] == "user")?;
        let text = self.turns[at]["content"].as_str()?.to_string();
        self.turns.truncate(at);
        Some(text)
    }

    /// Drops the oldest message of the user with all answers to it, unless it is the last one. Returns whether one was
    /// dropped.
    pub fn drop_oldest(&mut self) -> bool {
        let is_user = |turn: &Value| turn["role"] == "user";
        match self.turns.iter().skip(1).position(is_user) {
            Some(next) => {
                self.turns.drain(..=next);
                true
            }
            None => false,
        }
    }

    /// Writes the conversation as JSON; an existing file is replaced only when the new one is complete.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, file: &Path) -> Result<()> {
        let text = format!("{:#}\n", json!({ "messages": self.messages() }));
        let mut name = file
            .file_name()
            .with_context(|| format!("{}: expected the name of a file", file.display()))?
            .to_os_string();
        name.push(format!(".{}.tmp", std::process::id()));
        let new = file.with_file_name(name);
        let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, file));
        if written.is_err() {
            let _ = std::fs::remove_file(&new);
        }
        written.with_context(|| format!("cannot write {}", file.display()))
    }

    /// Reads a file of [`Conversation::save`], or a plain list of messages.
    ///
    /// # Errors
    /// The file cannot be read or contains something else.
    pub fn load(file: &Path) -> Result<Conversation> {
        let shown = file.display();
        let size = std::fs::metadata(file).with_context(|| format!("cannot read {shown}"))?.len();
        if size > LARGEST_FILE_BYTES {
            bail!("{shown}: expected a conversation, got a file of {size} bytes");
        }
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {shown}"))?;
        let value: Value = bayan_weights::json::parse(&shown.to_string(), text.as_bytes())
            .context("expected JSON with a list of messages")?;
        let list = value.get("messages").unwrap_or(&value);
        let Value::Array(messages) = list else {
            bail!("{shown}: expected a list of messages, or an object with `messages`")
        };
        let mut conversation = Conversation::default();
        for (index, message) in messages.iter().enumerate() {
            let (Some(role), Some(content)) = (message["role"].as_str(), message["content"].as_str()) else {
                bail!("{shown}: message {index}: expected `role` and `content` as text");
            };
            match role {
                "system" if index == 0 => conversation.system = Some(content.to_string()),
                _ => conversation.turns.push(message.clone()),
            }
        }
        Ok(conversation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(turns: &[(&str, &str)]) -> Conversation {
        let mut conversation = Conversation { system: Some("كن موجزًا".into()), ..Default::default() };
        turns.iter().for_each(|(role, content)| conversation.push(role, content));
        conversation
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("محادثة.json");
        let before = conversation(&[("user", "مرحبًا"), ("assistant", "أهلًا \"بك\"\n")]);
        before.save(&file).unwrap();
        assert_eq!(Conversation::load(&file).unwrap(), before);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(before.save(&directory.path().join("none").join("x")).is_err());
    }

    #[test]
    fn other_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x");
        for wrong in ["", "3", "{}", "[{\"role\": \"user\"}]", "{\"messages\": 3}"] {
            std::fs::write(&file, wrong).unwrap();
            assert!(Conversation::load(&file).is_err(), "{wrong}");
        }
        assert!(Conversation::load(directory.path()).is_err());
    }

    #[test]
    fn the_oldest_turn_goes_and_the_newest_stays() {
        let mut c =
            conversation(&[("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"), ("user", "5")]);
        assert!(c.drop_oldest());
        assert_eq!(c.turns[0]["content"], "3");
        assert!(c.drop_oldest());
        assert_eq!(c.turns.len(), 1);
        assert!(!c.drop_oldest());
        assert_eq!(c.messages().len(), 2);
    }
}
