//! Features of the browser's WebGPU that wgpu does not request.
//!
//! wgpu 30 does not know the feature `subgroups` in a browser, so a device that it opens lacks it. This module replaces
//! `GPUAdapter.prototype.requestDevice` by a function that adds the feature if the `GPUAdapter` has it. Rejected: a
//! fork of wgpu, because these few lines can be removed with its next release.

use std::cell::{Cell, RefCell};

use js_sys::{Array, Function, Object, Promise, Proxy, Reflect};
use wasm_bindgen::closure::Closure;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;

use crate::error::{Code, EngineError};

const SUBGROUPS: &str = "subgroups";
/// The language feature with which WGSL has `@builtin(subgroup_id)` and `@builtin(num_subgroups)`. Chrome has had
/// `subgroups` since version 134, and this since 144. What the kernels need cannot be had without it: the order of
/// invocations by `local_invocation_index` does not say which subgroup they are in.
const SUBGROUP_ID: &str = "subgroup_id";

type Apply = Closure<dyn FnMut(Function, JsValue, Array) -> Result<JsValue, JsValue>>;

thread_local! {
    /// Whether devices opened from now on request `subgroups`.
    static WANTED: Cell<bool> = const { Cell::new(false) };
    static SHIM: RefCell<Option<Apply>> = const { RefCell::new(None) };
}

/// Information about a `GPUAdapter`.
pub(crate) struct Adapter {
    pub(crate) vendor: String,
    pub(crate) architecture: String,
    pub(crate) description: String,
    pub(crate) features: Vec<String>,
    /// The features of the browser's WGSL, which belong to no `GPUAdapter`.
    pub(crate) language: Vec<String>,
}

impl Adapter {
    /// Why the kernels cannot use subgroups here, if they cannot.
    pub(crate) fn lacks_subgroups(&self) -> Option<&'static str> {
        if !self.features.iter().any(|f| f == SUBGROUPS) {
            Some("subgroups: sums go through workgroup memory")
        } else if !self.language.iter().any(|f| f == SUBGROUP_ID) {
            Some(
                "subgroups: this browser's WGSL lacks subgroup_id (Chrome has it from 144 on); sums go through workgroup memory",
            )
        } else {
            None
        }
    }

    /// The most descriptive name.
    pub(crate) fn name(&self) -> String {
        if !self.description.is_empty() {
            return self.description.clone();
        }
        let name = format!("{} {}", self.vendor, self.architecture);
        if name.trim().is_empty() { "GPU".to_string() } else { name.trim().to_string() }
    }
}

/// A field of a JavaScript value; undefined if it has none.
fn field(value: &JsValue, name: &str) -> JsValue {
    if value.is_object() || value.is_function() {
        Reflect::get(value, &name.into()).unwrap_or(JsValue::UNDEFINED)
    } else {
        JsValue::UNDEFINED
    }
}

fn text(value: &JsValue, name: &str) -> String {
    field(value, name).as_string().unwrap_or_default()
}

/// The strings of a set.
fn names(set: &JsValue) -> Vec<String> {
    if !set.is_object() {
        return Vec::new();
    }
    Array::from(set).iter().filter_map(|name| name.as_string()).collect()
}

/// Requests a `GPUAdapter` from the browser, only to read its properties.
pub(crate) async fn adapter(low_power: bool) -> Result<Adapter, EngineError> {
    let gpu = field(&field(&js_sys::global(), "navigator"), "gpu");
    let Ok(request) = field(&gpu, "requestAdapter").dyn_into::<Function>() else {
        return Err(EngineError::new(
            Code::NoWebGpu,
            "navigator.gpu is missing: this browser has no WebGPU, or the page is not served over https or from localhost",
        ));
    };
    let options = Object::new();
    let preference = if low_power { "low-power" } else { "high-performance" };
    let _ = Reflect::set(&options, &"powerPreference".into(), &preference.into());
    let promise = request.call1(&gpu, &options).map_err(EngineError::thrown)?;
    let adapter = JsFuture::from(Promise::resolve(&promise)).await.unwrap_or(JsValue::NULL);
    if !adapter.is_object() {
        return Err(EngineError::new(
            Code::NoWebGpu,
            "the browser has WebGPU but offers no GPU; turn hardware acceleration on, or update the driver",
        ));
    }
    let info = field(&adapter, "info");
    Ok(Adapter {
        vendor: text(&info, "vendor"),
        architecture: text(&info, "architecture"),
        description: text(&info, "description"),
        features: names(&field(&adapter, "features")),
        language: names(&field(&gpu, "wgslLanguageFeatures")),
    })
}

/// Sets whether the next device requests `subgroups`, if its `GPUAdapter` has them.
pub(crate) fn want_subgroups(wanted: bool) {
    WANTED.set(wanted);
    if wanted && SHIM.with_borrow(Option::is_none) {
        install();
    }
}

fn install() {
    let prototype = field(&field(&js_sys::global(), "GPUAdapter"), "prototype");
    let Ok(original) = field(&prototype, "requestDevice").dyn_into::<Function>() else { return };
    let apply: Apply = Closure::new(|original: Function, adapter: JsValue, arguments: Array| {
        let arguments = if WANTED.get() { with_subgroups(&adapter, &arguments) } else { arguments };
        original.apply(&adapter, &arguments)
    });
    let handler = Object::new();
    let _ = Reflect::set(&handler, &"apply".into(), apply.as_ref());
    let _ = Reflect::set(&prototype, &"requestDevice".into(), &Proxy::new(&original, &handler));
    SHIM.set(Some(apply));
}

/// The arguments of `requestDevice` with `subgroups` among the required features.
fn with_subgroups(adapter: &JsValue, arguments: &Array) -> Array {
    let features = field(adapter, "features");
    let has = field(&features, "has")
        .dyn_into::<Function>()
        .ok()
        .and_then(|has| has.call1(&features, &SUBGROUPS.into()).ok());
    if has.is_none_or(|has| !has.is_truthy()) {
        return arguments.clone();
    }
    let descriptor = Object::assign(&Object::new(), &Object::from(arguments.get(0)));
    let required = field(&descriptor, "requiredFeatures");
    let required = if required.is_object() { Array::from(&required) } else { Array::new() };
    if !required.includes(&SUBGROUPS.into(), 0) {
        required.push(&SUBGROUPS.into());
    }
    let _ = Reflect::set(&descriptor, &"requiredFeatures".into(), &required);
    Array::of1(&descriptor)
}
