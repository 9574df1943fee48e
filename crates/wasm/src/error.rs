//! Errors in the page's form: an `Error` with `details` and a `code` from `web/package/src/errors.ts`.

use bayan_generate::GenerateError;
use bayan_generate::openai::RequestError;
use bayan_generate::text::TextError;
use bayan_gpu::GpuError;
use bayan_models::ModelError;
use bayan_train::engine::EngineError as TrainerError;
use bayan_train::{RunError, TrainError};
use bayan_weights::WeightsError;
use serde_json::{Value, json};
use wasm_bindgen::JsValue;

/// The kind of an error; JavaScript sees its name as `code`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    NoWebGpu,
    UnsupportedDevice,
    DeviceLost,
    OutOfMemory,
    BadCheckpoint,
    BadInput,
    ContextFull,
    Aborted,
    Internal,
}

impl Code {
    fn name(self) -> &'static str {
        match self {
            Code::NoWebGpu => "NoWebGpu",
            Code::UnsupportedDevice => "UnsupportedDevice",
            Code::DeviceLost => "DeviceLost",
            Code::OutOfMemory => "OutOfMemory",
            Code::BadCheckpoint => "BadCheckpoint",
            Code::BadInput => "BadInput",
            Code::ContextFull => "ContextFull",
            Code::Aborted => "Aborted",
            Code::Internal => "Internal",
        }
    }
}

/// An error for JavaScript.
#[derive(Debug, Clone)]
pub(crate) struct EngineError {
    code: Code,
    message: String,
    details: Value,
    /// The value that JavaScript threw, to be thrown again unchanged.
    thrown: Option<JsValue>,
}

impl EngineError {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> EngineError {
        EngineError { code, message: message.into(), details: json!({}), thrown: None }
    }

    pub(crate) fn thrown(value: JsValue) -> EngineError {
        EngineError { thrown: Some(value), ..EngineError::new(Code::Internal, "thrown by JavaScript") }
    }

    pub(crate) fn aborted() -> EngineError {
        EngineError::new(Code::Aborted, "the call was aborted")
    }

    /// The options of a call are not JSON of the expected form.
    pub(crate) fn options(what: &str, error: &serde_json::Error) -> EngineError {
        EngineError::new(
            Code::Internal,
            format!("{what}: expected JSON of the documented fields, got something else: {error}"),
        )
    }

    pub(crate) fn code(&self) -> Code {
        self.code
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn with(mut self, details: Value) -> EngineError {
        self.details = details;
        self
    }

    /// `{"code", "message", "details"}`.
    pub(crate) fn json(&self) -> String {
        json!({"code": self.code.name(), "message": self.message, "details": self.details}).to_string()
    }
}

impl From<EngineError> for JsValue {
    fn from(error: EngineError) -> JsValue {
        if let Some(thrown) = error.thrown {
            return thrown;
        }
        let value = js_sys::Error::new(&error.message);
        value.set_name(error.code.name());
        // Setting a property of a new object cannot fail.
        let set = |key: &str, field: &JsValue| js_sys::Reflect::set(&value, &key.into(), field).is_ok();
        set("code", &error.code.name().into());
        set("details", &js_sys::JSON::parse(&error.details.to_string()).unwrap_or(JsValue::UNDEFINED));
        value.into()
    }
}

impl From<GpuError> for EngineError {
    fn from(error: GpuError) -> EngineError {
        let text = error.to_string();
        match error {
            GpuError::NoDevice(_) => EngineError::new(
                Code::NoWebGpu,
                "the browser offers no GPU; turn hardware acceleration on, update the driver, or use another browser",
            ),
            GpuError::OpenFailed { device, reason } => EngineError::new(
                Code::UnsupportedDevice,
                format!("the GPU `{device}` could not be opened: {reason}; close other pages that use the GPU, or restart the browser"),
            ),
            GpuError::OutOfMemory { what, size_bytes, allocated_bytes } => EngineError::new(
                Code::OutOfMemory,
                format!("out of GPU memory while allocating {what}: {size_bytes} bytes more than the {allocated_bytes} held; choose a smaller format, a shorter context or a smaller model"),
            )
            .with(json!({"neededBytes": size_bytes})),
            GpuError::TooLarge { size_bytes, limit_bytes, .. } => {
                EngineError::new(Code::OutOfMemory, text).with(json!({"neededBytes": size_bytes, "availableBytes": limit_bytes}))
            }
            GpuError::DeviceLost(_) => EngineError::new(Code::DeviceLost, text),
            GpuError::Validation(_) => EngineError::new(Code::Internal, text),
            GpuError::Kernel { .. } => EngineError::new(Code::UnsupportedDevice, text),
        }
    }
}

impl From<WeightsError> for EngineError {
    fn from(error: WeightsError) -> EngineError {
        let known = EngineError::new(Code::BadCheckpoint, error.to_string());
        match error {
            // Another copy of the files would be refused as well.
            WeightsError::Unsupported { .. } | WeightsError::Contents { .. } => {
                known.with(json!({"unsupported": true}))
            }
            _ => known,
        }
    }
}

impl From<ModelError> for EngineError {
    fn from(error: ModelError) -> EngineError {
        match error {
            ModelError::Gpu(error) => error.into(),
            ModelError::Weights(error) => error.into(),
            other => EngineError::new(Code::BadCheckpoint, other.to_string()).with(json!({"unsupported": true})),
        }
    }
}

impl From<TextError> for EngineError {
    fn from(error: TextError) -> EngineError {
        let code = match error {
            // The conversation does not fit the template; the files are valid.
            TextError::TemplateRaised(_) | TextError::ContentPart { .. } => Code::BadInput,
            _ => Code::BadCheckpoint,
        };
        EngineError::new(code, error.to_string())
    }
}

impl From<GenerateError> for EngineError {
    fn from(error: GenerateError) -> EngineError {
        let text = error.to_string();
        match error {
            GenerateError::Model(error) => error.into(),
            GenerateError::Gpu(error) => error.into(),
            GenerateError::Weights(error) => error.into(),
            GenerateError::Text(error) => error.into(),
            GenerateError::PromptTooLong { prompt, context } => EngineError::new(
                Code::ContextFull,
                format!("the conversation has {prompt} tokens and the context holds {context}, with one left for the answer; shorten it or load with a larger contextLength"),
            )
            .with(json!({"tokens": prompt, "contextLength": context})),
            GenerateError::EmptyPrompt => EngineError::new(Code::Internal, text),
            GenerateError::State(_) | GenerateError::AllBanned { .. } => EngineError::new(Code::BadInput, text),
            _ => EngineError::new(Code::BadCheckpoint, text),
        }
    }
}

impl From<RequestError> for EngineError {
    fn from(error: RequestError) -> EngineError {
        EngineError::new(Code::BadInput, error.message).with(json!({"field": error.field}))
    }
}

impl From<TrainError> for EngineError {
    fn from(error: TrainError) -> EngineError {
        match error {
            TrainError::Text(error) => error.into(),
            TrainError::Adapter(error) => error.into(),
            // Data, a row, a recipe or a checkpoint of a run: what the page passed.
            other => EngineError::new(Code::BadInput, other.to_string()),
        }
    }
}

impl From<TrainerError> for EngineError {
    fn from(error: TrainerError) -> EngineError {
        match error {
            TrainerError::Model(error) => error.into(),
            TrainerError::Gpu(error) => error.into(),
            TrainerError::Adapter(error) => error.into(),
            other => EngineError::new(Code::BadInput, other.to_string()),
        }
    }
}

impl From<RunError> for EngineError {
    fn from(error: RunError) -> EngineError {
        match error {
            RunError::Train(error) => error.into(),
            RunError::Engine(error) => error.into(),
            other => EngineError::new(Code::BadInput, other.to_string()),
        }
    }
}
