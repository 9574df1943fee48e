//! TensorBoard's event files: records framed by length and CRC-32C, each a small protobuf message.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Result, TrainError};

/// An open event file.
#[derive(Debug)]
pub(super) struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// A new file in `directory`; TensorBoard joins the files of one directory.
    pub(super) fn create(directory: &Path, now: f64) -> Result<Self> {
        fs::create_dir_all(directory).map_err(|source| TrainError::io("create", directory, source))?;
        let stem = format!("events.out.tfevents.{:010}.bayan.{}", now as u64, std::process::id());
        // Two runs in one second get two files.
        let path = (0..1000)
            .map(|n| directory.join(format!("{stem}.{n}")))
            .find(|p| !p.exists())
            .unwrap_or_else(|| directory.join(&stem));
        let file = File::create(&path).map_err(|source| TrainError::io("create", &path, source))?;
        let mut events = Self { file, path };
        let mut version = double_field(1, now);
        version.extend(bytes_field(3, b"brain.Event:2"));
        events.record(&version)?;
        Ok(events)
    }

    /// Appends the values of one step.
    pub(super) fn add(&mut self, now: f64, step: u64, scalars: &[(&str, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (name, value) in scalars {
            let mut one = bytes_field(1, name.as_bytes());
            one.extend(key(2, 5));
            one.extend((*value as f32).to_le_bytes());
            summary.extend(bytes_field(1, &one));
        }
        let mut event = double_field(1, now);
        event.extend(key(2, 0));
        event.extend(varint(step));
        event.extend(bytes_field(5, &summary));
        self.record(&event)
    }

    fn record(&mut self, event: &[u8]) -> Result<()> {
        let framed = frame(event);
        self.file.write_all(&framed).map_err(|source| TrainError::io("write", &self.path, source))
    }
}

/// Length, its checksum, the bytes, their checksum.
fn frame(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked(crc32c(&length)).to_le_bytes());
    out.extend_from_slice(bytes);
    out.extend(masked(crc32c(bytes)).to_le_bytes());
    out
}

fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// CRC-32C (Castagnoli), bit by bit: records have about a hundred bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
    !bytes.iter().fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn key(field: u64, wire: u64) -> Vec<u8> {
    varint(field << 3 | wire)
}

fn double_field(field: u64, value: f64) -> Vec<u8> {
    let mut out = key(field, 1);
    out.extend(value.to_le_bytes());
    out
}

fn bytes_field(field: u64, bytes: &[u8]) -> Vec<u8> {
    let mut out = key(field, 2);
    out.extend(varint(bytes.len() as u64));
    out.extend_from_slice(bytes);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_and_frames_are_the_published_ones() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        let framed = frame(b"ab");
        assert_eq!(framed.len(), 8 + 4 + 2 + 4);
        assert_eq!(framed[..8], 2u64.to_le_bytes());
        assert_eq!(varint(300), [0xAC, 0x02]);
    }

    #[test]
    fn every_record_can_be_walked() {
        let place = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(place.path(), 1.5).unwrap();
        events.add(2.0, 7, &[("train/loss", 0.5), ("eval/loss", 0.25)]).unwrap();
        let bytes = fs::read(&events.path).unwrap();
        let (mut at, mut records) = (0, vec![]);
        while at < bytes.len() {
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            let record = &bytes[at + 12..at + 12 + length];
            assert_eq!(frame(record), &bytes[at..at + 16 + length]);
            records.push(record.to_vec());
            at += 16 + length;
        }
        assert_eq!(records.len(), 2);
        assert!(records[0].ends_with(b"brain.Event:2"));
        let name = records[1].windows(10).position(|w| w == b"train/loss").unwrap();
        assert_eq!(records[1][name + 11..name + 15], 0.5f32.to_le_bytes());
    }
}
