//! Encoding with control over where special tokens are recognized.
//!
//! `tokenizers` recognizes every added token in a text, or (`encode_special_tokens`) no special one. A chat needs a
//! third way: the control tokens of the template are recognized, but not the same characters typed by a user. So this
//! module repeats the extraction of added tokens and asks a predicate for each match; normalizer, pre-tokenizer and
//! model are the library's. Without guards the ids equal the library's; the tests check that on every fixture.
//! Rejected: encoding the ranges separately and joining the ids, because prefix spaces, normalization and merges differ
//! at the boundaries.

use tokenizers::tokenizer::{Model, NormalizedString, Normalizer, PreTokenizedString, PreTokenizer, Result, Token};
use tokenizers::{AddedToken, OffsetReferential, OffsetType, Tokenizer as Inner};

use tokenizers::normalizer::Range;

/// The added tokens of a vocabulary, prepared for searching.
pub(crate) struct AddedTokens {
    /// Tokens matched in the original text.
    plain: Vec<Entry>,
    /// Tokens matched in the normalized text, by their normalized form.
    normalized: Vec<Entry>,
}

struct Entry {
    id: u32,
    pattern: String,
    token: AddedToken,
}

impl AddedTokens {
    pub(crate) fn of(inner: &Inner) -> Self {
        let (mut plain, mut normalized) = (Vec::new(), Vec::new());
        for (id, token) in inner.get_added_tokens_decoder() {
            if token.content.is_empty() {
                continue;
            }
            let mut pattern = NormalizedString::from(token.content.as_str());
            let failed = token.normalized && inner.get_normalizer().is_some_and(|n| n.normalize(&mut pattern).is_err());
            let pattern = if token.normalized && !failed { pattern.get().to_owned() } else { token.content.clone() };
            if pattern.is_empty() {
                continue;
            }
            let list = if token.normalized { &mut normalized } else { &mut plain };
            list.push(Entry { id, pattern, token });
        }
        // Longest first: where several tokens match at one position, the longest is taken.
        for list in [&mut plain, &mut normalized] {
            list.sort_by(|a, b| b.pattern.len().cmp(&a.pattern.len()).then(a.id.cmp(&b.id)));
        }
        Self { plain, normalized }
    }

    pub(crate) fn special(&self) -> impl Iterator<Item = (&str, u32)> {
        self.plain.iter().chain(&self.normalized).filter(|e| e.token.special).map(|e| (e.token.content.as_str(), e.id))
    }

    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special().any(|(_, special)| special == id)
    }

    /// The ids of `text`; a special token in the bytes `from..to` is recognized only where `guarded(from, to)` is
    /// false.
    pub(crate) fn encode(&self, inner: &Inner, text: &str, guarded: &dyn Fn(usize, usize) -> bool) -> Result<Vec<u32>> {
        let mut pieces = PreTokenizedString::from(text);
        pieces.split(|_, piece| cut(&piece, &self.plain, guarded))?;
        pieces.split(|_, mut piece| {
            if let Some(normalizer) = inner.get_normalizer() {
                normalizer.normalize(&mut piece)?;
            }
            // Positions have changed: a guard anywhere in the piece keeps all its special tokens as text, which is
            // safe.
            let (from, to) = piece.offsets_original();
            cut(&piece, &self.normalized, &|_, _| guarded(from, to))
        })?;
        if let Some(pre_tokenizer) = inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        pieces.tokenize(|piece| inner.get_model().tokenize(piece.get()))?;
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::None);
        Ok(splits.into_iter().flat_map(|(_, _, tokens)| tokens.iter().flatten().map(|t| t.id)).collect())
    }
}

type Cut = (NormalizedString, Option<Vec<Token>>);

/// Splits a piece at the added tokens in it, as the library does: leftmost first, longest first, then the token's own
/// conditions.
fn cut(piece: &NormalizedString, entries: &[Entry], guarded: &dyn Fn(usize, usize) -> bool) -> Result<Vec<Cut>> {
    let text = piece.get();
    let (mut cuts, mut done, mut at) = (Vec::new(), 0, 0);
    while at < text.len() && !entries.is_empty() {
        let Some(entry) = entries.iter().find(|e| text.as_bytes()[at..].starts_with(e.pattern.as_bytes())) else {
            at += 1;
            continue;
        };
        let (mut start, mut stop) = (at, at + entry.pattern.len());
        if entry.token.special && guarded(start, stop) {
            at += 1;
            continue;
        }
        at = stop;
        if entry.token.single_word && (ends_with_word(&text[..start]) || starts_with_word(&text[stop..])) {
            continue;
        }
        if entry.token.lstrip {
            start = text[..start].trim_end().len().max(done);
        }
        if entry.token.rstrip {
            stop = text.len() - text[stop..].trim_start().len();
            at = stop;
        }
        if done < start {
            cuts.push((slice(piece, done, start)?, None));
        }
        let value = text[start..stop].to_owned();
        let length = value.len();
        cuts.push((slice(piece, start, stop)?, Some(vec![Token::new(entry.id, value, (0, length))])));
        done = stop;
    }
    if done < text.len() {
        cuts.push((slice(piece, done, text.len())?, None));
    }
    Ok(cuts)
}

fn slice(piece: &NormalizedString, from: usize, to: usize) -> Result<NormalizedString> {
    piece.slice(Range::Normalized(from..to)).ok_or_else(|| "an added token cuts a character in two".into())
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn ends_with_word(text: &str) -> bool {
    text.chars().next_back().is_some_and(is_word)
}

fn starts_with_word(text: &str) -> bool {
    text.chars().next().is_some_and(is_word)
}
