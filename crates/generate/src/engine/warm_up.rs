//! The steps that a server may need are compiled before the first request.

use std::cmp::Reverse;

use super::Engine;
use super::adapters::StepAdapters;
use super::speculate::Speculation;
use super::step::StepKind;
use crate::GenerateError;

impl Engine {
    /// Compiles the steps of all listed sizes, so that no request waits for it. `on_step` is called with the number of
    /// compiled steps and their total before each.
    ///
    /// # Errors
    /// A step cannot be recorded.
    pub async fn warm_up(&mut self, on_step: &mut dyn FnMut(usize, usize)) -> Result<usize, GenerateError> {
        let kinds = self.listed_kinds();
        for (done, &kind) in kinds.iter().enumerate() {
            on_step(done, kinds.len());
            self.prepared_step(kind, &StepAdapters::NONE).await?.submit_empty();
        }
        self.devices.flush().await?;
        let draft = match self.speculation.as_mut().and_then(Speculation::draft_mut) {
            Some(draft) => Box::pin(draft.warm_up(on_step)).await?,
            None => 0,
        };
        Ok(kinds.len() + draft)
    }

    /// The kinds of steps of all listed sizes, those with most tokens first: smaller ones find room in their memory.
    fn listed_kinds(&self) -> Vec<StepKind> {
        let recurrent = self.cache.is_recurrent();
        let rows = self.sizes.rows(self.sequences(), recurrent);
        let pieces = self.sizes.pieces(self.chunks.chunk(), recurrent);
        let mut kinds = self.verifying_kinds();
        kinds.extend(rows.iter().map(|&rows| StepKind::Decode(rows)));
        kinds.extend(pieces.iter().map(|&piece| StepKind::Prefill(piece)));
        if self.sizes.mixes(recurrent) {
            let mixed = |&rows: &usize| pieces.iter().map(move |&piece| StepKind::Mixed { rows, piece, scored: false });
            kinds.extend(rows.iter().flat_map(mixed));
        }
        kinds.sort_by_key(|kind| Reverse(kind.tokens()));
        kinds
    }
}
