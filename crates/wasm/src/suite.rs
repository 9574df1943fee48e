//! The op suite in the page: every kernel, compiled by the browser, compared with its reference.

use bayan_gpu::{Disable, GpuError};
use bayan_tensor::suite::{self, Case, CaseResult};
use js_sys::Function;
use serde::Deserialize;
use serde_json::{Value, json};
use wasm_bindgen::JsValue;

use crate::device::{self, Device};
use crate::error::{Code, EngineError};
use crate::options::CreateOptions;
use crate::session::is_aborted;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct SuiteOptions {
    /// Options as for `create`.
    device: CreateOptions,
    /// Run only cases whose name contains one of these; all when empty.
    names: Vec<String>,
    /// Run the cases that are for repeats ([`Case::in_repeats`]) again without these features: a list for each further
    /// run. Runs share the device, so that only kernels whose text differs are compiled again.
    further: Vec<Vec<String>>,
}

/// The results of all cases on a device with some features.
#[derive(Default)]
struct Results {
    total: usize,
    passed: usize,
    failures: Vec<Value>,
}

/// Runs the suite on its own device; `on_case(name, done, total)` is called before each case.
pub(crate) async fn run(options: &str, on_case: Function) -> Result<JsValue, EngineError> {
    let mut options: SuiteOptions = serde_json::from_str(options).map_err(|e| EngineError::options("suite", &e))?;
    // The helpers belong to the engine's own device.
    options.device.threads = Some(1);
    let mut forms = vec![Disable::default()];
    for features in &options.further {
        let disable = Disable::parse(&features.join(","));
        forms.push(disable.map_err(|reason| EngineError::new(Code::Internal, format!("further: {reason}")))?);
    }
    let (device, info) = device::open(&options.device).await?;
    let devices: Vec<Device> = match &device {
        Device::Gpu(gpu) => forms.into_iter().map(|disable| Device::Gpu(gpu.without(disable))).collect(),
        Device::Cpu(_) if options.further.is_empty() => vec![device.clone()],
        Device::Cpu(_) => {
            return Err(EngineError::new(Code::Internal, "further: expected none on the CPU, which has no features"));
        }
    };
    let end = || {
        if let Device::Gpu(gpu) = &device {
            gpu.destroy();
        }
    };
    let wanted = |name: &str| options.names.is_empty() || options.names.iter().any(|n| name.contains(n.as_str()));
    // The inputs of a case depend on its index in the whole table, as in the native suite.
    let chosen: Vec<_> = suite::cases().into_iter().enumerate().filter(|(_, case)| wanted(&case.name)).collect();
    let mut results: Vec<Results> = devices.iter().map(|_| Results::default()).collect();
    let start = js_sys::Date::now();
    for (done, (index, case)) in chosen.iter().enumerate() {
        if is_aborted() {
            end();
            return Err(EngineError::aborted());
        }
        let _ = on_case.call3(
            &JsValue::UNDEFINED,
            &case.name.as_str().into(),
            &(done as f64).into(),
            &(chosen.len() as f64).into(),
        );
        let forms = if case.in_repeats { devices.len() } else { 1 };
        for (device, results) in devices.iter().zip(&mut results).take(forms) {
            results.add(device, case, *index as u64).await;
        }
    }
    let seconds = (js_sys::Date::now() - start) / 1e3;
    end();
    let runs: Vec<Value> = devices
        .iter()
        .zip(&results)
        .map(|(device, results)| {
            let capabilities = match device {
                Device::Gpu(gpu) => gpu.capabilities(),
                Device::Cpu(cpu) => cpu.capabilities(),
            };
            json!({
                "path": capabilities.path(),
                "paths": device::paths(capabilities),
                "total": results.total,
                "passed": results.passed,
                "failures": results.failures,
            })
        })
        .collect();
    Ok(json!({"device": info, "runs": runs, "seconds": seconds}).to_string().into())
}

/// Runs a case. A browser reports a kernel that does not compile only later, as the second result.
async fn outcome(device: &Device, case: &Case, seed: u64) -> (Result<CaseResult, GpuError>, Result<(), GpuError>) {
    match device {
        Device::Gpu(gpu) => (suite::run(gpu, case, seed).await, gpu.flush().await),
        Device::Cpu(cpu) => (suite::run_on_cpu(std::slice::from_ref(cpu), case, seed), Ok(())),
    }
}

impl Results {
    async fn add(&mut self, device: &Device, case: &Case, seed: u64) {
        let (result, late) = outcome(device, case, seed).await;
        self.total += 1;
        match (result, late) {
            (Ok(outcome), Ok(())) if outcome.passed() => self.passed += 1,
            (Ok(outcome), late) => self.failures.push(json!({
                "name": outcome.name,
                "nmse": outcome.nmse.to_string(),
                "bound": outcome.bound,
                "error": late.err().map(|e| e.to_string()),
            })),
            (Err(error), _) => self.failures.push(json!({"name": case.name, "error": error.to_string()})),
        }
    }
}
