//! Decoders of tokenizers, applied one token at a time.
//!
//! The decoder in tokenizer.json is a chain over the whole list of tokens. This module converts it to a
//! [`StreamDecoder`] whose state is a few bytes, so that a token costs the same at any length of the stream. Rejected:
//! decoding a window again for every token, as most runtimes do, because it is slower, and wrong when the window begins
//! inside a character. A chain that cannot run token by token (no supported model has one) decodes the whole list
//! again: slow and correct.

use tokenizers::DecoderWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;

/// A transformation of one token's text before it is appended.
#[derive(Debug, Clone)]
pub(crate) enum TokenRule {
    /// A decoder that depends on one token only (Replace, or Strip before Fuse).
    Alone(DecoderWrapper),
    /// Replaces `▁` by a space, or drops it in the first token if the encoder added it there.
    Metaspace { replacement: char, drop_in_first: bool },
}

/// How the text of one token after another is decoded.
#[derive(Debug, Clone)]
pub(crate) enum StreamDecoder {
    /// Byte-level BPE: a token's characters stand for bytes.
    ByteLevel,
    /// Token by token: `rules`, then `<0x..>` tokens to bytes if `byte_fallback`, then at most `strip.1` characters
    /// `strip.0` are removed from the start of the whole text.
    Pieces { rules: Vec<TokenRule>, byte_fallback: bool, strip: Option<(char, usize)> },
    /// No decoder: tokens joined with spaces.
    Spaced,
    /// Any other decoder: the whole list is decoded again.
    Whole,
}

/// Converts a decoder. `Err` names a decoder that could panic on some input.
pub(crate) fn stream_decoder(decoder: Option<&DecoderWrapper>) -> Result<StreamDecoder, String> {
    let Some(decoder) = decoder else { return Ok(StreamDecoder::Spaced) };
    let mut flat = Vec::new();
    flatten(decoder, &mut flat, 0)?;
    if let [DecoderWrapper::ByteLevel(_)] = flat[..] {
        return Ok(StreamDecoder::ByteLevel);
    }
    let (mut rules, mut byte_fallback, mut fused, mut strip) = (Vec::new(), false, false, None);
    for stage in flat {
        match stage {
            DecoderWrapper::Replace(_) if !byte_fallback && !fused => rules.push(TokenRule::Alone(stage.clone())),
            DecoderWrapper::Strip(_) if !byte_fallback && !fused => rules.push(TokenRule::Alone(stage.clone())),
            DecoderWrapper::Metaspace(m) if !byte_fallback && !fused => {
                let drop_in_first = m.get_prepend_scheme() != PrependScheme::Never;
                rules.push(TokenRule::Metaspace { replacement: m.get_replacement(), drop_in_first });
            }
            DecoderWrapper::ByteFallback(_) if !byte_fallback && !fused => byte_fallback = true,
            DecoderWrapper::Fuse(_) => fused = true,
            DecoderWrapper::Strip(s) if fused && strip.is_none() => strip = Some((s.content, s.start)),
            _ => return Ok(StreamDecoder::Whole),
        }
    }
    Ok(StreamDecoder::Pieces { rules, byte_fallback, strip })
}

fn flatten<'a>(decoder: &'a DecoderWrapper, out: &mut Vec<&'a DecoderWrapper>, depth: usize) -> Result<(), String> {
    match decoder {
        _ if depth > 16 => return Err("decoders nested more than 16 deep".into()),
        DecoderWrapper::Sequence(s) => {
            for inner in s.get_decoders() {
                flatten(inner, out, depth + 1)?;
            }
        }
        DecoderWrapper::Strip(s) if s.stop > 0 => {
            return Err(format!("a Strip decoder with stop = {} (expected 0)", s.stop));
        }
        other => out.push(other),
    }
    Ok(())
}

/// The byte that a character of a byte-level vocabulary stands for (GPT-2's printable alphabet).
pub(crate) fn byte_of(c: char) -> Option<u8> {
    match c as u32 {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(code as u8),
        // The 68 unprintable bytes are numbered from U+0100 on.
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// The byte of a `<0x..>` token, parsed exactly as in the ByteFallback decoder.
pub(crate) fn fallback_byte(token: &str) -> Option<u8> {
    let inner = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if inner.len() == 2 { u8::from_str_radix(inner, 16).ok() } else { None }
}
