//! The op suite in the page: every kernel, compiled by the browser, compared with its reference.

use bayan_tensor::suite;
use js_sys::Function;
use serde::Deserialize;
use serde_json::json;
use wasm_bindgen::JsValue;

use crate::device;
use crate::error::EngineError;
use crate::options::CreateOptions;
use crate::session::is_aborted;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct SuiteOptions {
    /// Options as for `create`.
    device: CreateOptions,
    /// Run only cases whose name contains one of these; all when empty.
    names: Vec<String>,
}

/// Runs the suite on its own device; `on_case(name, done, total)` is called before each case.
pub(crate) async fn run(options: &str, on_case: Function) -> Result<JsValue, EngineError> {
    let options: SuiteOptions = serde_json::from_str(options).map_err(|e| EngineError::options("suite", &e))?;
    let (gpu, info) = device::open(&options.device).await?;
    let wanted = |name: &str| options.names.is_empty() || options.names.iter().any(|n| name.contains(n.as_str()));
    // The inputs of a case depend on its index in the whole table, as in the native suite.
    let chosen: Vec<_> = suite::cases().into_iter().enumerate().filter(|(_, case)| wanted(&case.name)).collect();
    let (mut passed, mut failures) = (0, Vec::new());
    let start = js_sys::Date::now();
    for (done, (index, case)) in chosen.iter().enumerate() {
        if is_aborted() {
            gpu.destroy();
            return Err(EngineError::aborted());
        }
        let _ = on_case.call3(
            &JsValue::UNDEFINED,
            &case.name.as_str().into(),
            &(done as f64).into(),
            &(chosen.len() as f64).into(),
        );
        let result = suite::run(&gpu, case, *index as u64).await;
        // A browser reports a kernel that does not compile only later.
        let late = gpu.flush().await;
        match (result, late) {
            (Ok(outcome), Ok(())) if outcome.passed() => passed += 1,
            (Ok(outcome), late) => failures.push(json!({
                "name": outcome.name, "nmse": outcome.nmse.to_string(), "bound": outcome.bound, "error": late.err().map(|e| e.to_string()),
            })),
            (Err(error), _) => failures.push(json!({"name": case.name, "error": error.to_string()})),
        }
    }
    let seconds = (js_sys::Date::now() - start) / 1e3;
    gpu.destroy();
    Ok(json!({"device": info, "total": chosen.len(), "passed": passed, "failures": failures, "seconds": seconds})
        .to_string()
        .into())
}
