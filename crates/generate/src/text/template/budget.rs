//! The bytes that a template may allocate while it renders. Fuel counts instructions, but one instruction can double a
//! string, so that thirty of them exhaust the memory of any machine. Every operation that makes text grow charges this
//! budget first.
//!
//! It is in a thread local during a rendering, because minijinja's filters and formatter have no cheaper access to our
//! state.

use minijinja::{Error, ErrorKind};
use std::cell::Cell;

thread_local! {
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The cause of the error when the budget is used up.
#[derive(Debug, thiserror::Error)]
#[error("the template made too many bytes")]
pub(crate) struct Exceeded;

/// The budget of one rendering.
pub(crate) struct Budget(usize);

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(bytes)
    }

    /// Runs a rendering with this budget.
    pub(crate) fn during<T>(&self, render: impl FnOnce() -> T) -> T {
        struct Restore(usize);
        impl Drop for Restore {
            fn drop(&mut self) {
                LEFT.with(|left| left.set(self.0));
            }
        }
        let _restore = Restore(LEFT.with(|left| left.replace(self.0)));
        render()
    }
}

/// Charges `bytes` to the budget of the rendering that runs on this thread.
pub(crate) fn charge(bytes: usize) -> Result<(), Error> {
    LEFT.with(|left| match left.get().checked_sub(bytes) {
        Some(rest) => {
            left.set(rest);
            Ok(())
        }
        None => Err(Error::new(ErrorKind::InvalidOperation, "out of working memory").with_source(Exceeded)),
    })
}
