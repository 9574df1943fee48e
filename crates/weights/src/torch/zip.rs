//! The zip archive of a PyTorch checkpoint: the place of each stored member's bytes.
//!
//! Supports what torch.save writes: members without compression, with zip64 where sizes need it. Rejected: the `zip`
//! crate, because it requires a blocking reader with a cursor, which a browser does not have.

use crate::checkpoint::read_exact;
use crate::error::WeightsError;
use crate::source::Source;
use std::collections::BTreeMap;

const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
const ENTRY: u32 = 0x0201_4b50;
const LOCAL: u32 = 0x0403_4b50;
const MAX_DIRECTORY_BYTES: u64 = 64 << 20;

/// One member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Offset of its first byte in the file; before [`Archive::resolve`], that of its local header.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// The members of an archive.
pub(super) struct Archive<'a> {
    source: &'a dyn Source,
    file: &'a str,
    file_bytes: u64,
    /// By name.
    pub members: BTreeMap<String, Member>,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?)))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?)))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

impl<'a> Archive<'a> {
    /// Reads the central directory at the end of `file`.
    pub(super) async fn open(source: &'a dyn Source, file: &'a str, file_bytes: u64) -> Result<Self, WeightsError> {
        let mut archive = Self { source, file, file_bytes, members: BTreeMap::new() };
        let (start, size, count) = archive.directory().await?;
        let end = start.checked_add(size).filter(|end| *end <= file_bytes);
        if end.is_none() || size > MAX_DIRECTORY_BYTES || count > size / 46 {
            return Err(archive.bad(format!(
                "its directory of {count} members is said to take {size} bytes from {start} of {file_bytes}"
            )));
        }
        let bytes = read_exact(source, file, start, size).await?;
        let mut rest = bytes.as_slice();
        for number in 0..count {
            rest = archive.entry(rest).ok_or_else(|| {
                archive.bad(format!("the entry of member {number} is truncated or not a stored file"))
            })??;
        }
        Ok(archive)
    }

    fn bad(&self, problem: impl Into<String>) -> WeightsError {
        WeightsError::malformed(self.file, problem)
    }

    /// Start, size and number of members of the central directory.
    async fn directory(&self) -> Result<(u64, u64, u64), WeightsError> {
        let length = self.file_bytes.min(22 + 65_535 + 20);
        let tail_start = self.file_bytes - length;
        let tail = read_exact(self.source, self.file, tail_start, length).await?;
        let at = (0..tail.len().saturating_sub(21)).rev().find(|&at| u32_at(&tail, at) == Some(u64::from(END)));
        let at = at.ok_or_else(|| {
            self.bad("expected the zip archive that torch.save writes, found no directory at its end")
        })?;
        let (count, size, start) = (u16_at(&tail, at + 10), u32_at(&tail, at + 12), u32_at(&tail, at + 16));
        let (Some(count), Some(size), Some(start)) = (count, size, start) else {
            return Err(self.bad("its directory is truncated"));
        };
        let locator = at.checked_sub(20).filter(|&at| u32_at(&tail, at) == Some(u64::from(LOCATOR_64)));
        let Some(locator) = locator else { return Ok((start, size, count)) };
        let place =
            u64_at(&tail, locator + 8).filter(|place| place.checked_add(56).is_some_and(|end| end <= self.file_bytes));
        let place = place.ok_or_else(|| self.bad("its zip64 directory lies beyond its end"))?;
        let record = read_exact(self.source, self.file, place, 56).await?;
        match (u32_at(&record, 0), u64_at(&record, 32), u64_at(&record, 40), u64_at(&record, 48)) {
            (Some(signature), Some(count), Some(size), Some(start)) if signature == u64::from(END_64) => {
                Ok((start, size, count))
            }
            _ => Err(self.bad("its zip64 directory is damaged")),
        }
    }

    /// Removes one entry from the directory's bytes; `None` at the end.
    fn entry<'b>(&mut self, bytes: &'b [u8]) -> Option<Result<&'b [u8], WeightsError>> {
        if u32_at(bytes, 0)? != u64::from(ENTRY) {
            return None;
        }
        let (method, packed, mut size) = (u16_at(bytes, 10)?, u32_at(bytes, 20)?, u32_at(bytes, 24)?);
        let (name, extra, comment) =
            (u16_at(bytes, 28)? as usize, u16_at(bytes, 30)? as usize, u16_at(bytes, 32)? as usize);
        let mut offset = u32_at(bytes, 42)?;
        let text = String::from_utf8_lossy(bytes.get(46..46 + name)?).into_owned();
        let mut fields = bytes.get(46 + name..46 + name + extra)?;
        let mut packed_size = packed;
        while let (Some(id), Some(length)) = (u16_at(fields, 0), u16_at(fields, 2)) {
            let field = fields.get(4..4 + length as usize)?;
            if id == 1 {
                // Only the values that did not fit are here, in this order.
                let mut at = 0;
                for value in [&mut size, &mut packed_size, &mut offset] {
                    if *value == u64::from(u32::MAX) {
                        *value = u64_at(field, at)?;
                        at += 8;
                    }
                }
            }
            fields = fields.get(4 + length as usize..)?;
        }
        if method != 0 || packed_size != size {
            return Some(Err(WeightsError::Unsupported {
                what: format!("{}: the member {text:?} is compressed", self.file),
                remedy: "torch.save stores its members plainly; save the checkpoint again with it".to_owned(),
            }));
        }
        if self.members.insert(text.clone(), Member { offset, size }).is_some() {
            return Some(Err(self.bad(format!("the member {text:?} occurs twice"))));
        }
        Some(Ok(bytes.get(46 + name + extra + comment..)?))
    }

    /// The member with the offset of its bytes resolved.
    pub(super) async fn resolve(&self, name: &str) -> Result<Member, WeightsError> {
        let member = self.members.get(name).ok_or_else(|| self.bad(format!("it has no member {name:?}")))?;
        let outside = || self.bad(format!("the member {name:?} of {} bytes lies beyond the file's end", member.size));
        if member.offset.checked_add(30).is_none_or(|end| end > self.file_bytes) {
            return Err(outside());
        }
        let local = read_exact(self.source, self.file, member.offset, 30).await?;
        let (Some(signature), Some(name_bytes), Some(extra)) =
            (u32_at(&local, 0), u16_at(&local, 26), u16_at(&local, 28))
        else {
            return Err(outside());
        };
        if signature != u64::from(LOCAL) {
            return Err(self.bad(format!("the member {name:?} has no header where the directory says")));
        }
        let offset = member.offset + 30 + name_bytes + extra;
        match offset.checked_add(member.size) {
            Some(end) if end <= self.file_bytes => Ok(Member { offset, size: member.size }),
            _ => Err(outside()),
        }
    }
}
