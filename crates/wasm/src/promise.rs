//! Futures as promises that always settle.
//!
//! A panic ends WebAssembly with a trap, and pending promises would then never settle:
//! `wasm_bindgen_futures::future_to_promise` is not notified. Here the panic hook first rejects all pending promises,
//! so that a page can show the error and start a new worker.

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

/// A promise for the result of the future.
pub(crate) fn promise(future: impl Future<Output = Result<JsValue, EngineError>> + 'static) -> Promise {
    let mut future = Some(future);
    Promise::new(&mut |resolve: Function, reject: Function| {
        let Some(future) = future.take() else { return };
        let id = NEXT.replace(NEXT.get().wrapping_add(1));
        WAITING.with_borrow_mut(|waiting| waiting.insert(id, reject.clone()));
        spawn_local(async move {
            let result = future.await;
            WAITING.with_borrow_mut(|waiting| waiting.remove(&id));
            // The functions of the promise do not throw.
            let _ = match result {
                Ok(value) => resolve.call1(&JsValue::UNDEFINED, &value),
                Err(error) => reject.call1(&JsValue::UNDEFINED, &error.into()),
            };
        });
    })
}

/// Installs a panic hook that rejects all pending promises and then calls `also`.
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
