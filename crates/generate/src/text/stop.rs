//! Stop strings in streamed text. Text that may be the start of a stop string is held back, so that nothing is shown
//! that would have to be removed. The stop string that is complete first wins (at equal ends the longer one), so that
//! the result does not depend on how the text is divided into pieces; with "earliest start wins" it would.

/// The result of one [`StopMatcher::push`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopStep {
    /// Text that may be shown now; may be empty.
    pub text: String,
    /// The index of the stop string that was found; no text after it is returned.
    pub stopped: Option<usize>,
}

/// Finds stop strings in a stream of text pieces.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    stopped: Option<usize>,
}

impl StopMatcher {
    /// A matcher for these strings; empty strings are ignored (they would always match) but keep their index.
    pub fn new<S: Into<String>>(stops: impl IntoIterator<Item = S>) -> Self {
        Self { stops: stops.into_iter().map(Into::into).collect(), held: String::new(), stopped: None }
    }

    /// Takes the next piece and returns the text that may be shown. After a stop every further call returns nothing.
    pub fn push(&mut self, piece: &str) -> StopStep {
        if self.stopped.is_some() {
            return StopStep { text: String::new(), stopped: self.stopped };
        }
        self.held.push_str(piece);
        if let Some((start, index)) = self.first_match() {
            self.stopped = Some(index);
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return StopStep { text, stopped: self.stopped };
        }
        let keep = self.open_from();
        let rest = self.held.split_off(keep);
        StopStep { text: std::mem::replace(&mut self.held, rest), stopped: None }
    }

    /// Ends the stream and returns the text that was held back, because no stop string can be completed any more.
    pub fn flush(&mut self) -> Option<String> {
        let held = std::mem::take(&mut self.held);
        (self.stopped.is_none() && !held.is_empty()).then_some(held)
    }

    /// The index of the stop string that was found.
    pub fn stopped(&self) -> Option<usize> {
        self.stopped
    }

    /// The stop string that was found.
    pub fn stop_text(&self) -> Option<&str> {
        self.stopped.and_then(|index| self.stops.get(index)).map(String::as_str)
    }

    /// (start, index) of the match that ends first.
    fn first_match(&self) -> Option<(usize, usize)> {
        let found = self.stops.iter().enumerate().filter(|(_, s)| !s.is_empty());
        let found = found.filter_map(|(i, s)| self.held.find(s.as_str()).map(|start| (start + s.len(), start, i)));
        found.min().map(|(_, start, index)| (start, index))
    }

    /// The start of the longest suffix that is a proper prefix of a stop string.
    fn open_from(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = (self.held.len() + 1).saturating_sub(longest);
        let open =
            |at: &usize| self.held.is_char_boundary(*at) && self.stops.iter().any(|s| s.starts_with(&self.held[*at..]));
        (from..self.held.len()).find(open).unwrap_or(self.held.len())
    }
}
