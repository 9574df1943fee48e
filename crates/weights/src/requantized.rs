//! What a checkpoint loses when its matrices, quantized already, are quantized again.
//!
//! The request is carried out, because a smaller or faster form may be what the user wants, and the loss is measured on
//! some rows and said. Rejected: to keep the stored format without a word, because the model is then not what was asked
//! for; and to refuse, because for many models only a GGUF file is published.

use crate::checkpoint::{Checkpoint, Stored, TensorEntry};
use crate::error::WeightsError;
use crate::formats::{Format, Planes};
use crate::policy::Policy;
use std::collections::BTreeMap;

/// Rows of a matrix that are measured.
const MEASURED_ROWS: usize = 64;

/// Matrices of one stored form that become one format.
#[derive(Clone, Debug)]
pub struct Requantized {
    /// The form in the file: `"Q4_K"`, `"gptq"`, `"q4_0"`.
    pub stored: &'static str,
    /// The format asked for.
    pub wanted: &'static dyn Format,
    /// How many matrices.
    pub matrices: usize,
    /// Root of (squared error / squared weights) of the second quantization, measured on rows of the first matrix;
    /// `None` where the stored form is kept.
    pub added_error: Option<f64>,
}

impl Requantized {
    /// A sentence for the user.
    pub fn note(&self) -> String {
        let (stored, wanted, count) = (self.stored, self.wanted.name(), self.matrices);
        match self.added_error {
            Some(error) => format!(
                "{count} matrices are stored as {stored}, and are quantized again to {wanted}: this adds an error of \
                 {:.2} % (root of squared error over squared weights, measured on some rows) to what {stored} had \
                 lost; quantize from the original checkpoint to lose less",
                100.0 * error
            ),
            None => format!(
                "{count} matrices are stored as {stored} and stay so, not {wanted}: quantizing them again would add \
                 both errors; quantize from the original checkpoint instead"
            ),
        }
    }
}

impl Checkpoint {
    /// The matrices that `policy` quantizes a second time, or that keep their form although it asks for another.
    ///
    /// # Errors
    /// The rows that are measured cannot be read, or do not fit the format.
    pub async fn requantized(&self, policy: &Policy) -> Result<Vec<Requantized>, WeightsError> {
        let mut groups: BTreeMap<(&str, &str), (Requantized, &TensorEntry)> = BTreeMap::new();
        for entry in self.tensors() {
            let wanted = policy.format_for(&entry.name, &entry.shape);
            let native = match entry.stored {
                Stored::Dense(_) => continue,
                Stored::Planes(format) => format,
                Stored::Foreign(foreign) => foreign.native,
            };
            if wanted.is_dense() || native.is_dense() || native.name() == wanted.name() {
                continue;
            }
            let stored = entry.stored.name();
            let new = || (Requantized { stored, wanted, matrices: 0, added_error: None }, entry);
            groups.entry((stored, wanted.name())).or_insert_with(new).0.matrices += 1;
        }
        let mut found = Vec::with_capacity(groups.len());
        for (mut group, entry) in groups.into_values() {
            if matches!(entry.stored, Stored::Foreign(_)) {
                group.added_error = Some(self.added_error(entry, group.wanted).await?);
            }
            found.push(group);
        }
        Ok(found)
    }

    async fn added_error(&self, entry: &TensorEntry, wanted: &'static dyn Format) -> Result<f64, WeightsError> {
        let rows = 0..entry.rows().min(MEASURED_ROWS.next_multiple_of(wanted.rows_alignment(entry.k())));
        let before = self.read_rows_f32(&entry.name, rows.clone()).await?;
        let after: Planes = self.read_planes(&entry.name, rows, wanted).await?;
        let error: f64 = before.iter().zip(after.dequantize()).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let square: f64 = before.iter().map(|value| f64::from(*value).powi(2)).sum();
        Ok(if square > 0.0 { (error / square).sqrt() } else { 0.0 })
    }
}
