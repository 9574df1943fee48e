//! The checkpoints in the directory of a run.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use bayan_weights::DirectorySource;
use serde_json::Value;

use super::arrays::{NamedArray, now};
use super::{Resumed, STATE, TrainState, TrainedWeights, decode, encode};
use crate::error::{Result, TrainError};
use crate::files::{replace_directory, replace_file};

const BEST: &str = "best.json";

/// The checkpoints of one run's directory.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    directory: PathBuf,
    keep_last: usize,
}

impl Checkpoints {
    /// Manages the checkpoints in `directory`; the newest `keep_last` and the best one are kept.
    pub fn new(directory: &Path, keep_last: usize) -> Self {
        Self { directory: directory.to_owned(), keep_last: keep_last.max(1) }
    }

    fn path(&self, step: u64) -> PathBuf {
        self.directory.join(format!("checkpoint-{step}"))
    }

    /// Writes a checkpoint, records it as the best if `state.best` is of this step, and removes the checkpoints that
    /// are neither among the newest nor the best.
    ///
    /// # Errors
    /// A refused file operation, or NaN or infinity in an array (the error names it); earlier checkpoints are then
    /// unchanged.
    pub fn save(&self, state: &TrainState, weights: &TrainedWeights, optimizer: &[NamedArray]) -> Result<PathBuf> {
        let path = self.path(state.step);
        let files = encode(&path, state, weights, optimizer)?;
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
        replace_directory(&path, &files)?;
        if let Some((step, loss)) = state.best.filter(|(step, _)| *step == state.step) {
            replace_file(
                &self.directory.join(BEST),
                serde_json::json!({"step": step, "loss": loss}).to_string().as_bytes(),
            )?;
        }
        self.prune()?;
        Ok(path)
    }

    /// The steps that have a complete checkpoint, ascending.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn steps(&self) -> Result<Vec<u64>> {
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            Err(source) => return Err(TrainError::io("list", &self.directory, source)),
        };
        let mut steps = vec![];
        for entry in entries {
            let entry = entry.map_err(|source| TrainError::io("list", &self.directory, source))?;
            let name = entry.file_name();
            let step: Option<u64> = name.to_str().and_then(|name| name.strip_prefix("checkpoint-")?.parse().ok());
            steps.extend(step.filter(|_| entry.path().join(STATE).is_file()));
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// The step of the best checkpoint, if one was recorded and still exists.
    pub fn best(&self) -> Option<u64> {
        let text = std::fs::read(self.directory.join(BEST)).ok()?;
        let step = serde_json::from_slice::<Value>(&text).ok()?.get("step")?.as_u64()?;
        self.path(step).join(STATE).is_file().then_some(step)
    }

    fn prune(&self) -> Result<()> {
        let (steps, best) = (self.steps()?, self.best());
        let surplus = steps.len().saturating_sub(self.keep_last);
        for step in steps[..surplus].iter().filter(|step| Some(**step) != best) {
            let path = self.path(*step);
            std::fs::remove_dir_all(&path).map_err(|source| TrainError::io("remove", &path, source))?;
        }
        Ok(())
    }

    /// Reads the newest checkpoint; `None` when there is none.
    ///
    /// # Errors
    /// As [`Checkpoints::read`].
    pub fn resume(&self) -> Result<Option<Resumed>> {
        self.steps()?.last().map(|step| self.read(*step)).transpose()
    }

    /// Reads the checkpoint of a step.
    ///
    /// # Errors
    /// A file is missing, damaged, or of another version.
    pub fn read(&self, step: u64) -> Result<Resumed> {
        let path = self.path(step);
        let source = DirectorySource::new(&path).map_err(|error| {
            let remedy = "resume from an earlier checkpoint, or start a new run";
            TrainError::checkpoint(&path, "a directory", error.to_string(), remedy)
        })?;
        let resumed = now(decode(Rc::new(source), &path))?;
        if resumed.state.step != step {
            let got = format!("step {}", resumed.state.step);
            let remedy = "resume from an earlier checkpoint, or start a new run";
            return Err(TrainError::checkpoint(&path, format!("step {step}"), got, remedy));
        }
        Ok(resumed)
    }
}

#[cfg(test)]
mod tests {
    use bayan_models::Adapter;

    use super::*;
    use crate::order::Position;
    use crate::rng::Rng;
    use crate::schedule::Schedule;
    use crate::{Recipe, Scheduler};

    fn state(step: u64) -> TrainState {
        let schedule = Schedule { scheduler: Scheduler::Linear, learning_rate: 0.1, warmup_steps: 1, total_steps: 9 };
        let mut state = TrainState::new(schedule, &Recipe::default(), 77);
        state.step = step;
        state.rngs.insert("dropout".into(), Rng::new(step, 0));
        state.position = Position { epoch: 1, taken: step };
        state
    }

    fn arrays(value: f32) -> Vec<NamedArray> {
        vec![
            NamedArray {
                name: "exp_avg.b".into(),
                shape: vec![2, 2],
                values: vec![value, f32::MIN_POSITIVE / 2.0, -0.0, 1e-30],
            },
            NamedArray { name: "exp_avg.a".into(), shape: vec![1], values: vec![value] },
        ]
    }

    fn adapter() -> Adapter {
        let source = DirectorySource::new(crate::testing::path(&["lora", "qwen2_r4_rslora", "adapter_final"])).unwrap();
        now(Adapter::open(Rc::new(source))).unwrap()
    }

    #[test]
    fn what_is_saved_is_read_to_the_bit_and_the_last_and_best_stay() {
        let place = tempfile::tempdir().unwrap();
        let run = Checkpoints::new(&place.path().join("run"), 2);
        assert!(run.resume().unwrap().is_none());
        let weights = TrainedWeights::Adapter(Box::new(adapter()));
        for step in 1..=6 {
            let mut state = state(step);
            state.best = Some((2, 0.5)); // step 2 was the best
            run.save(&state, &weights, &arrays(step as f32)).unwrap();
        }
        assert_eq!(run.steps().unwrap(), [2, 5, 6]);
        assert_eq!(run.best(), Some(2));
        let resumed = run.resume().unwrap().unwrap();
        let mut want = state(6);
        want.best = Some((2, 0.5));
        assert_eq!((resumed.state, resumed.weights), (want, weights));
        let mut sorted = arrays(6.0);
        sorted.reverse();
        assert!(
            resumed
                .optimizer
                .iter()
                .zip(&sorted)
                .all(|(a, b)| a.name == b.name
                    && a.values.iter().zip(&b.values).all(|(x, y)| x.to_bits() == y.to_bits()))
        );
    }

    #[test]
    fn a_full_run_keeps_its_weights() {
        let place = tempfile::tempdir().unwrap();
        let run = Checkpoints::new(place.path(), 1);
        let mut weights = arrays(1.5);
        run.save(&state(3), &TrainedWeights::Full(weights.clone()), &[]).unwrap();
        weights.reverse();
        let resumed = run.read(3).unwrap();
        assert_eq!((resumed.weights, resumed.optimizer), (TrainedWeights::Full(weights), vec![]));
    }

    #[test]
    fn an_incomplete_or_nan_checkpoint_never_replaces_a_good_one() {
        let place = tempfile::tempdir().unwrap();
        let run = Checkpoints::new(place.path(), 2);
        let weights = TrainedWeights::Adapter(Box::new(adapter()));
        run.save(&state(1), &weights, &arrays(1.0)).unwrap();
        let error = run.save(&state(2), &weights, &arrays(f32::NAN)).unwrap_err().to_string();
        assert!(error.contains("exp_avg.a"), "{error}");
        // What a kill in the middle of writing leaves: a hidden partial directory, or a checkpoint without its state.
        std::fs::create_dir(place.path().join(".checkpoint-3.partial-1-1")).unwrap();
        std::fs::create_dir(place.path().join("checkpoint-4")).unwrap();
        assert_eq!(run.resume().unwrap().unwrap().state.step, 1);
        std::fs::write(place.path().join("checkpoint-1").join(STATE), "{}").unwrap();
        assert!(run.resume().unwrap_err().to_string().contains("checkpoint-1"));
    }

    #[test]
    fn patience_counts_evaluations_that_are_not_better() {
        let mut state = state(1);
        assert_eq!(state.evaluated(1.0, Some(2)), (true, false));
        assert_eq!(state.evaluated(1.0, Some(2)), (false, false));
        assert_eq!(state.evaluated(0.9, Some(2)), (true, false));
        assert_eq!(state.evaluated(f64::NAN, Some(2)), (false, false));
        assert_eq!(state.evaluated(0.95, Some(2)), (false, true));
        assert_eq!(state.best, Some((1, 0.9)));
    }
}
