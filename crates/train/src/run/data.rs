//! The data of a run: reading, rendering, splitting, packing, and making micro-batches.

use std::path::{Path, PathBuf};

use crate::data::{DataFile, DataFiles, DataOptions, DataReport, Shape};
use crate::dataset::{Dataset, MicroBatch};
use crate::error::Result;
use crate::order::{Order, split_validation};
use crate::recipe::Recipe;
use crate::render::{Renderer, Tokens};

/// Training units by number: examples, or packs of several.
#[derive(Debug, Clone)]
pub struct Units {
    dataset: Dataset,
    packs: Option<Vec<Vec<usize>>>,
}

impl Units {
    /// Makes units of a data set: one for each example, or with `pack` one for each pack of at most that many tokens.
    pub fn new(dataset: Dataset, pack: Option<usize>) -> Units {
        let packs = pack.map(|length| dataset.pack(length));
        Units { dataset, packs }
    }

    /// Number of units.
    pub fn len(&self) -> usize {
        self.packs.as_ref().map_or(self.dataset.len(), Vec::len)
    }

    /// Whether there are no units.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The data set.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    fn sequences(&self, units: &[usize]) -> Vec<usize> {
        match &self.packs {
            Some(packs) => units.iter().flat_map(|&unit| packs[unit].iter().copied()).collect(),
            None if self.dataset.is_preference() => units.iter().flat_map(|&unit| [2 * unit, 2 * unit + 1]).collect(),
            None => units.to_vec(),
        }
    }

    /// The micro-batch of these units. A preference example contributes two sequences, the chosen one first.
    pub fn micro_batch(&self, units: &[usize]) -> MicroBatch {
        self.dataset.micro_batch(&self.sequences(units))
    }

    /// The first `count` sequences, for display.
    pub fn first(&self, count: usize) -> Vec<Tokens> {
        let sequence = |at: usize| {
            let (ids, trained) = self.dataset.sequence(at);
            Tokens { ids: ids.to_vec(), trained: trained.to_vec() }
        };
        (0..self.dataset.lengths().len().min(count)).map(sequence).collect()
    }

    /// The units in order, in batches of `size`.
    pub fn batches(&self, size: usize) -> Vec<Vec<usize>> {
        (0..self.len()).collect::<Vec<_>>().chunks(size.max(1)).map(<[usize]>::to_vec).collect()
    }
}

/// The training and evaluation data of a run.
#[derive(Debug, Clone)]
pub struct RunData {
    /// Training data.
    pub train: Units,
    /// Evaluation data.
    pub valid: Option<Units>,
    /// Counts of the training rows (including those set aside for evaluation).
    pub report: DataReport,
    /// Counts of the rows of evaluation files.
    pub valid_report: Option<DataReport>,
    /// The shape of the rows.
    pub shape: Option<Shape>,
}

impl RunData {
    /// Reads the files that the recipe names. `on_row` is called with the counts after each row.
    ///
    /// # Errors
    /// A file or row cannot be read, or no trained token is left.
    pub fn load(recipe: &Recipe, renderer: &Renderer, on_row: &mut dyn FnMut(&DataReport)) -> Result<RunData> {
        let Some(path) = &recipe.data else {
            return Err(crate::TrainError::recipe(
                "data",
                "a file, or a directory with a file train.jsonl",
                "nothing",
                "name it with --data",
            ));
        };
        let files = DataFiles::find(Path::new(path))?;
        let valid: Vec<PathBuf> = match &recipe.valid_data {
            Some(path) => DataFiles::find(Path::new(path))
                .map(|found| if found.valid.is_empty() { found.train } else { found.valid })?,
            None => files.valid,
        };
        let opened = |paths: Vec<PathBuf>| paths.into_iter().map(DataFile::from).collect::<Vec<_>>();
        RunData::read(recipe, &opened(files.train), &opened(valid), renderer, on_row)
    }

    /// Reads these files for training and, if there are any, those for evaluation; otherwise `val_split` takes examples
    /// from the training data. `on_row` is called with the counts after each row.
    ///
    /// # Errors
    /// A file or row cannot be read, or no trained token is left.
    pub fn read(
        recipe: &Recipe,
        train: &[DataFile],
        valid_files: &[DataFile],
        renderer: &Renderer,
        on_row: &mut dyn FnMut(&DataReport),
    ) -> Result<RunData> {
        let loaded = Dataset::load(train, options(recipe), renderer, &mut *on_row)?;
        let pack = recipe.packing.then_some(recipe.max_seq_length);
        let (train, valid, valid_report) = if valid_files.is_empty() {
            let (held, kept) =
                split_validation(loaded.dataset.len(), recipe.validation_count(loaded.dataset.len()), recipe.seed);
            match held.is_empty() {
                true => (loaded.dataset, None, None),
                false => (loaded.dataset.subset(&kept), Some(loaded.dataset.subset(&held)), None),
            }
        } else {
            let valid = Dataset::load(valid_files, options(recipe), renderer, on_row)?;
            (loaded.dataset, Some(valid.dataset), Some(valid.report))
        };
        let units = |dataset| Units::new(dataset, pack);
        Ok(RunData {
            train: units(train),
            valid: valid.map(units),
            report: loaded.report,
            valid_report,
            shape: loaded.shape,
        })
    }

    /// A hash that changes with any token of the data.
    pub fn fingerprint(&self) -> u64 {
        let valid = self.valid.as_ref().map_or(0, |units| units.dataset.fingerprint());
        self.train.dataset.fingerprint() ^ valid.rotate_left(1)
    }

    /// Length of the longest sequence.
    pub fn longest(&self) -> usize {
        let sets = std::iter::once(&self.train).chain(&self.valid);
        sets.flat_map(|units| units.dataset.lengths()).max().unwrap_or(0)
    }

    /// The first micro-batch of the run.
    pub fn first_batch(&self, recipe: &Recipe) -> Option<MicroBatch> {
        let mut order = Order::new(self.train.len(), recipe.batch_size, recipe.seed, recipe.shuffle);
        order.next_batch().map(|batch| self.train.micro_batch(&batch.examples))
    }

    /// The micro-batch with the most tokens in the run's first epochs (at most 8), and the largest count of trained
    /// tokens in any of their micro-batches, which may be another one. Both follow from the seed.
    pub fn largest_batch(&self, recipe: &Recipe, epochs: u64) -> (MicroBatch, usize) {
        let mut order = Order::new(self.train.len(), recipe.batch_size, recipe.seed, recipe.shuffle);
        let (mut most, mut largest, mut trained) = (0, Vec::new(), 0);
        while let Some(batch) = order.next_batch().filter(|batch| batch.epoch < epochs.clamp(1, 8)) {
            let sequences = self.train.sequences(&batch.examples);
            let tokens = sequences.iter().map(|&sequence| self.train.dataset.sequence(sequence).0.len()).sum();
            trained = trained.max(self.train.micro_batch(&batch.examples).target_count());
            if tokens > most {
                (most, largest) = (tokens, batch.examples);
            }
        }
        (self.train.micro_batch(&largest), trained)
    }
}

fn options(recipe: &Recipe) -> DataOptions {
    DataOptions {
        method: recipe.method,
        shape: None,
        columns: recipe.columns.iter().map(|(ours, theirs)| (ours.clone(), theirs.clone())).collect(),
        skip_bad: recipe.skip_bad,
        drop_system_message: recipe.drop_system_message,
        limit: recipe.limit,
    }
}
