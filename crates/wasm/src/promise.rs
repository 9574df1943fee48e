//! Futures as promises that settle in every case.
//!
//! A panic ends WebAssembly with a trap, and a promise that was waiting then waits forever:
//! `wasm_bindgen_futures::future_to_promise` has no way to hear of it. Here the panic hook rejects what is waiting
//! first, so that a page can say what happened and start a new worker.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use js_sys::{Function, Promise};
use wasm_bindgen::JsValue;
use wasm_bindgen_futures::spawn_local;

use crate::error::{Code, EngineError};

thread_local! {
    static WAITING: RefCell<BTreeMap<u32, Function>> = const { RefCell::new(BTreeMap::new()) };
    static NEXT: Cell<u32> = const { Cell::new(0) };
}

/// A promise of what the future gives.
pub(crate) fn promise(future: impl Future<Output = Result<JsValue, EngineError>> + 'static) -> Promise {
    let mut future = Some(future);
    Promise::new(&mut |resolve: Function, reject: Function| {
        let Some(future) = future.take() else { return };
        let id = NEXT.replace(NEXT.get().wrapping_add(1));
        WAITING.with_borrow_mut(|waiting| waiting.insert(id, reject.clone()));
        spawn_local(async move {
            let result = future.await;
            WAITING.with_borrow_mut(|waiting| waiting.remove(&id));
            // The promise's own functions do not throw.
            let _ = match result {
                Ok(value) => resolve.call1(&JsValue::UNDEFINED, &value),
                Err(error) => reject.call1(&JsValue::UNDEFINED, &error.into()),
            };
        });
    })
}

/// Rejects what is waiting when the program panics, then tells `also`.
pub(crate) fn install_panic_hook(also: fn(&EngineError)) {
    std::panic::set_hook(Box::new(move |info| {
        let error = EngineError::new(
            Code::Internal,
            format!("a defect in the engine: {info}; load the model again, and please report it"),
        );
        let waiting = WAITING
            .try_with(|waiting| waiting.try_borrow_mut().map(|mut all| std::mem::take(&mut *all)).unwrap_or_default());
        for reject in waiting.unwrap_or_default().into_values() {
            let _ = reject.call1(&JsValue::UNDEFINED, &error.clone().into());
        }
        also(&error);
    }));
}
