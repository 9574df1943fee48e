//! Lets the worker read its messages between two steps on the CPU.
//!
//! A message to oneself through a `MessageChannel` is a task like the page's messages, so those that came before it are
//! read first. Rejected: `setTimeout`, which browsers delay by 4 ms when it is used again and again, and a promise that
//! is resolved at once, because no message is read before it.

use std::cell::RefCell;

use js_sys::{Function, Promise, Reflect};
use wasm_bindgen::closure::Closure;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;

/// A channel, and what waits for its message.
struct Channel {
    port: JsValue,
    post: Function,
    _arrived: Closure<dyn FnMut()>,
}

thread_local! {
    static CHANNEL: RefCell<Option<Channel>> = const { RefCell::new(None) };
    static WAITING: RefCell<Option<Function>> = const { RefCell::new(None) };
}

fn field(value: &JsValue, name: &str) -> JsValue {
    Reflect::get(value, &name.into()).unwrap_or(JsValue::UNDEFINED)
}

/// Opens the channel; `None` where there are none, and the engine then does not pause.
fn channel() -> Option<Channel> {
    let class = field(&js_sys::global(), "MessageChannel").dyn_into::<Function>().ok()?;
    let made = Reflect::construct(&class, &js_sys::Array::new()).ok()?;
    let arrived = Closure::<dyn FnMut()>::new(|| {
        if let Some(resolve) = WAITING.take() {
            let _ = resolve.call0(&JsValue::UNDEFINED);
        }
    });
    // Setting the handler also starts the port.
    Reflect::set(&field(&made, "port1"), &"onmessage".into(), arrived.as_ref()).ok()?;
    let port = field(&made, "port2");
    let post = field(&port, "postMessage").dyn_into::<Function>().ok()?;
    Some(Channel { port, post, _arrived: arrived })
}

/// Waits until the messages that are there have been read.
pub(crate) async fn pause() {
    let promise = CHANNEL.with_borrow_mut(|open| {
        if open.is_none() {
            *open = channel();
        }
        let Channel { port, post, .. } = open.as_ref()?;
        let promise = Promise::new(&mut |resolve, _| WAITING.set(Some(resolve)));
        post.call1(port, &JsValue::NULL).ok()?;
        Some(promise)
    });
    if let Some(promise) = promise {
        // The promise is never rejected.
        let _ = JsFuture::from(promise).await;
    }
}
