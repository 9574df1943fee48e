//! Helpers of the CPU: workers with an instance of this module each, and the memory through which they are asked.
//!
//! They are started where a page may have memory that its workers share (`crossOriginIsolated`). The memory is a
//! `SharedArrayBuffer`, not that of the module: its first word says whose turn it is.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use bayan_tensor::{CHANNEL_BYTES, Channel, Helper};
use js_sys::{Atomics, Int32Array, Reflect, SharedArrayBuffer, Uint8Array};
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen::{JsCast, JsValue};

/// The most threads, whatever the processor has: more have not been measured, and each has its own instance of the
/// module, of some MB.
const MOST_THREADS: usize = 4;

/// Bytes before the contents (`helper.js` has this number, too).
const HEAD_BYTES: usize = 64;

/// The engine's turn.
const ENGINE: i32 = 0;
/// The helper's turn.
const HELPER: i32 = 1;

/// How long a helper may take to answer, in milliseconds; a piece of a prompt takes less than a second. The engine
/// waits for it twice: when a computer wakes up, the time of its sleep may have counted.
const ANSWER_MS: f64 = 10_000.0;

/// Reads of the turn before a thread sleeps until it is woken, which takes some microseconds.
const SPINS: usize = 200;

#[wasm_bindgen]
extern "C" {
    /// In `helper.js`.
    #[wasm_bindgen(js_name = startHelper, catch)]
    async fn start_helper(module: JsValue, memory: &SharedArrayBuffer) -> Result<JsValue, JsValue>;
}

/// One side's view of a helper's memory.
struct View {
    words: Int32Array,
    bytes: Uint8Array,
    /// The turn of this side, and of the other.
    own: i32,
    other: i32,
}

impl View {
    fn new(memory: &SharedArrayBuffer, own: i32, other: i32) -> View {
        let words = Int32Array::new_with_byte_offset_and_length(memory, 0, 2);
        View { words, bytes: Uint8Array::new_with_byte_offset(memory, HEAD_BYTES as u32), own, other }
    }

    fn part(&self, at: usize, length: usize) -> Uint8Array {
        self.bytes.subarray(at as u32, (at + length) as u32)
    }

    /// Whose turn it is. The call fails only for other kinds of arrays.
    fn turn(&self) -> i32 {
        Atomics::load(&self.words, 0).unwrap_or(self.other)
    }

    fn pass(&self) {
        let _ = Atomics::store(&self.words, 0, self.other);
        let _ = Atomics::notify(&self.words, 0);
    }

    /// Waits while it is the other's turn; a helper waits as long as it takes.
    fn wait(&self) -> Result<(), String> {
        for _ in 0..SPINS {
            if self.turn() != self.other {
                break;
            }
        }
        let mut late = 0;
        while self.turn() == self.other {
            if self.own == HELPER {
                let _ = Atomics::wait(&self.words, 0, self.other);
                continue;
            }
            let woken = Atomics::wait_with_timeout(&self.words, 0, self.other, ANSWER_MS);
            late += usize::from(woken.is_ok_and(|woken| woken == "timed-out"));
            if late == 2 {
                return Err(format!("it did not answer within {} seconds", 2.0 * ANSWER_MS / 1000.0));
            }
        }
        if self.turn() == self.own {
            return Ok(());
        }
        let length = usize::try_from(self.words.get_index(1)).unwrap_or(0);
        Err(String::from_utf8_lossy(&self.part(0, length).to_vec()).into_owned())
    }
}

thread_local! {
    /// The memory of each helper that runs.
    static VIEWS: RefCell<BTreeMap<u32, View>> = const { RefCell::new(BTreeMap::new()) };
    /// The number of the next helper; none has that of an earlier one, which matrices may still name.
    static NEXT: Cell<u32> = const { Cell::new(0) };
    static WORKERS: RefCell<Vec<JsValue>> = const { RefCell::new(Vec::new()) };
}

/// The channel to a helper, or in a helper to the engine, by its number in `VIEWS`: values of JavaScript cannot be in
/// what threads could share.
#[derive(Debug)]
struct Shared(u32);

impl Shared {
    fn new(view: View) -> Shared {
        let number = NEXT.replace(NEXT.get().wrapping_add(1));
        VIEWS.with_borrow_mut(|views| views.insert(number, view));
        Shared(number)
    }

    fn with<T>(&self, work: impl FnOnce(&View) -> T) -> Option<T> {
        VIEWS.with_borrow(|views| views.get(&self.0).map(work))
    }
}

impl Channel for Shared {
    fn write(&self, at: usize, bytes: &[u8]) {
        self.with(|view| view.part(at, bytes.len()).copy_from(bytes));
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        self.with(|view| view.part(at, bytes.len()).copy_to(bytes));
    }

    fn pass(&self) {
        self.with(View::pass);
    }

    fn wait(&self) -> Result<(), String> {
        self.with(View::wait).unwrap_or_else(|| Err("the engine was disposed".to_string()))
    }
}

/// What a helper's worker does, until the engine ends it; returns why it cannot go on.
#[wasm_bindgen]
pub fn help(memory: SharedArrayBuffer) -> String {
    Helper::serve(&Shared::new(View::new(&memory, HELPER, ENGINE)))
}

/// The number of threads that a page may have here, or why it has one.
fn allowed(wanted: Option<usize>) -> Result<usize, String> {
    let global = js_sys::global();
    let field = |of: &JsValue, name: &str| Reflect::get(of, &name.into()).unwrap_or(JsValue::UNDEFINED);
    if wanted == Some(1) {
        return Err("the options ask for one".to_string());
    }
    if !field(&global, "crossOriginIsolated").is_truthy() {
        return Err("the page has no shared memory; serve it with the headers COOP and COEP".to_string());
    }
    let cores = field(&field(&global, "navigator"), "hardwareConcurrency").as_f64().unwrap_or(1.0) as usize;
    match cores.min(wanted.unwrap_or(MOST_THREADS)).min(MOST_THREADS) {
        0 | 1 => Err("the browser reports one core".to_string()),
        count => Ok(count),
    }
}

/// Starts helpers for as many threads as the page may have, at most `wanted`. The text says why there are none.
pub(crate) async fn start(wanted: Option<usize>) -> Result<Vec<Box<dyn Channel>>, String> {
    let helpers = allowed(wanted)? - 1;
    let mut memories = Vec::new();
    for _ in 0..helpers {
        let memory = SharedArrayBuffer::new((HEAD_BYTES + CHANNEL_BYTES) as u32);
        match start_helper(wasm_bindgen::module(), &memory).await {
            Ok(worker) => WORKERS.with_borrow_mut(|workers| workers.push(worker)),
            Err(error) => {
                stop();
                let reason = error.dyn_ref::<js_sys::Error>().map(|error| String::from(error.message()));
                return Err(format!("a helper did not start: {}", reason.unwrap_or_else(|| format!("{error:?}"))));
            }
        }
        memories.push(memory);
    }
    let channel = |memory| Box::new(Shared::new(View::new(memory, ENGINE, HELPER))) as Box<dyn Channel>;
    Ok(memories.iter().map(channel).collect())
}

/// Ends the helpers.
pub(crate) fn stop() {
    VIEWS.take();
    for worker in WORKERS.take() {
        let terminate = Reflect::get(&worker, &"terminate".into()).unwrap_or(JsValue::UNDEFINED);
        if let Some(terminate) = terminate.dyn_ref::<js_sys::Function>() {
            let _ = terminate.call0(&worker);
        }
    }
}
