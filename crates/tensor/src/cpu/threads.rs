//! Loops over several threads.

use std::ops::Range;

/// A pointer to results of which every thread writes its own part.
pub(crate) struct Shared<T>(*mut T, usize);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Shared<T> {
        *self
    }
}

impl<T> Copy for Shared<T> {}

// SAFETY: `part` is unsafe, and its callers take disjoint parts.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(values: &mut [T]) -> Shared<T> {
        Shared(values.as_mut_ptr(), values.len())
    }

    /// Some of the values.
    ///
    /// # Safety
    /// The slice behind it must be alive, and nothing else may use these values at the same time.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.1, "part {range:?} of {}", self.1);
        // SAFETY: the range lies inside of the slice, and the caller promises the rest.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

/// Ranges per thread in a loop, so that a thread that another program interrupts does not hold up the others.
const RANGES: usize = 4;

/// The ranges into which a loop is divided.
fn ranges(count: usize, least: usize, threads: usize) -> (usize, usize) {
    let length = count.div_ceil(threads * RANGES).max(least).max(1);
    (length, count.div_ceil(length))
}

/// Threads of rayon.
#[cfg(not(target_arch = "wasm32"))]
#[derive(Debug)]
pub(super) struct Threads(rayon::ThreadPool);

#[cfg(not(target_arch = "wasm32"))]
impl Threads {
    pub(super) fn start(count: Option<usize>) -> Result<Threads, String> {
        let count = count.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(count).thread_name(|n| format!("bayan {n}"));
        pool.build().map(Threads).map_err(|error| error.to_string())
    }

    pub(super) fn count(&self) -> usize {
        self.0.current_num_threads()
    }

    pub(super) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.0.install(work)
    }

    pub(super) fn split(&self, count: usize, least: usize, work: impl Fn(Range<usize>) + Sync) {
        use rayon::prelude::*;
        let (length, ranges) = ranges(count, least, self.count());
        let range = |number: usize| number * length..((number + 1) * length).min(count);
        if self.count() == 1 || ranges < 2 {
            (0..ranges).for_each(|number| work(range(number)));
        } else {
            (0..ranges).into_par_iter().with_max_len(1).for_each(|number| work(range(number)));
        }
    }
}

/// WebAssembly has one thread.
#[cfg(target_arch = "wasm32")]
#[derive(Debug)]
pub(super) struct Threads;

#[cfg(target_arch = "wasm32")]
impl Threads {
    pub(super) fn start(_: Option<usize>) -> Result<Threads, String> {
        Ok(Threads)
    }

    pub(super) fn count(&self) -> usize {
        1
    }

    pub(super) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        work()
    }

    pub(super) fn split(&self, count: usize, least: usize, work: impl Fn(Range<usize>) + Sync) {
        let (length, ranges) = ranges(count, least, 1);
        (0..ranges).for_each(|number| work(number * length..((number + 1) * length).min(count)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn every_number_is_in_one_range() {
        for (count, least, threads) in [(0, 1, 2), (1, 8, 2), (17, 1, 3), (100, 7, 2), (5, 0, 4)] {
            let pool = Threads::start(Some(threads)).unwrap();
            let seen = Mutex::new(Vec::new());
            pool.run(|| pool.split(count, least, |range| seen.lock().unwrap().extend(range)));
            let mut seen = seen.into_inner().unwrap();
            seen.sort();
            assert_eq!(seen, (0..count).collect::<Vec<_>>());
        }
    }
}
