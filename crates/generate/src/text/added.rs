//! Encoding with control over which special tokens may be read from where.
//!
//! `tokenizers` reads every added token it finds, or (`encode_special_tokens`) no special one at all. A chat needs
//! something between: the template's control tokens, but not the same characters typed by a user. So the extraction of
//! added tokens is repeated here with a question asked for each find, and the rest (normalizer, pre-tokenizer, model)
//! is the library's. With nothing guarded the ids are the library's own; the tests hold every fixture to that. Encoding
//! the stretches separately and joining the ids lost: prefix spaces, normalisation and merges at the seams come out
//! differently.

use tokenizers::tokenizer::{Model, NormalizedString, Normalizer, PreTokenizedString, PreTokenizer, Result, Token};
use tokenizers::{AddedToken, OffsetReferential, OffsetType, Tokenizer as Inner};

use tokenizers::normalizer::Range;

/// The added tokens of a vocabulary, ready to be found in text.
pub(crate) struct AddedTokens {
    /// Matched in the text as it is.
    plain: Vec<Entry>,
    /// Matched after normalisation, by their normalised text.
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
        // Longest first: of the tokens that begin at one place, the longest is meant.
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

    /// The ids of `text`; special tokens are read from bytes `from..to` only where `guarded(from, to)` is false.
    pub(crate) fn encode(&self, inner: &Inner, text: &str, guarded: &dyn Fn(usize, usize) -> bool) -> Result<Vec<u32>> {
        let mut pieces = PreTokenizedString::from(text);
        pieces.split(|_, piece| cut(&piece, &self.plain, guarded))?;
        pieces.split(|_, mut piece| {
            if let Some(normalizer) = inner.get_normalizer() {
                normalizer.normalize(&mut piece)?;
            }
            // Positions have moved: a guard anywhere in the piece keeps all its special tokens text, which is the safe
            // side.
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

/// Cuts a piece at the added tokens found in it, as the library does: leftmost first, longest first, then the token's
/// own conditions.
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
