//! A source of a checkpoint's bytes in JavaScript: the `ByteSource` of `web/package/src/engine.ts`.

use std::cell::RefCell;
use std::rc::Rc;

use bayan_weights::{LocalFuture, Source, WeightsError};
use js_sys::{Array, Promise, Uint8Array};
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;

use crate::error::EngineError;
use crate::session::is_aborted;

#[wasm_bindgen]
extern "C" {
    /// An object with `files`, `size` and `read`.
    pub type ByteSource;

    #[wasm_bindgen(method, catch)]
    fn files(this: &ByteSource) -> Result<Array, JsValue>;

    #[wasm_bindgen(method, catch)]
    fn size(this: &ByteSource, file: &str) -> Result<JsValue, JsValue>;

    #[wasm_bindgen(method, catch)]
    fn read(this: &ByteSource, file: &str, offset: f64, length: f64) -> Result<JsValue, JsValue>;
}

/// Largest read; a greater length comes from a damaged header.
const MAX_READ_BYTES: usize = 512 << 20;

/// Details of an error that a [`WeightsError`] cannot hold.
#[derive(Debug, Clone)]
enum Cause {
    Aborted,
    Thrown(JsValue),
}

/// The source, and the reason of its last failure as thrown by JavaScript.
pub(crate) struct JsSource {
    source: ByteSource,
    cause: RefCell<Option<Cause>>,
}

impl JsSource {
    pub(crate) fn new(source: ByteSource) -> Rc<JsSource> {
        Rc::new(JsSource { source, cause: RefCell::new(None) })
    }

    /// The error to report for `error`: if a read failed, the value that JavaScript threw.
    pub(crate) fn explain(&self, error: impl Into<EngineError>) -> EngineError {
        match self.cause.take() {
            Some(Cause::Aborted) => EngineError::aborted(),
            Some(Cause::Thrown(value)) => EngineError::thrown(value),
            None => error.into(),
        }
    }

    fn fail(&self, file: &str, reason: &str) -> WeightsError {
        WeightsError::Source { file: file.to_owned(), place: self.describe(), reason: reason.to_owned() }
    }

    fn thrown(&self, file: &str, value: JsValue) -> WeightsError {
        self.cause.replace(Some(Cause::Thrown(value)));
        self.fail(file, "the reading function threw")
    }

    /// The value, or the result of the promise.
    async fn settled(&self, file: &str, value: Result<JsValue, JsValue>) -> Result<JsValue, WeightsError> {
        let value = value.map_err(|thrown| self.thrown(file, thrown))?;
        if !value.has_type::<Promise>() {
            return Ok(value);
        }
        JsFuture::from(Promise::resolve(&value)).await.map_err(|thrown| self.thrown(file, thrown))
    }

    async fn read_bytes(&self, file: &str, offset: u64, length: usize) -> Result<Vec<u8>, WeightsError> {
        if is_aborted() {
            self.cause.replace(Some(Cause::Aborted));
            return Err(self.fail(file, "the call was aborted"));
        }
        if length > MAX_READ_BYTES {
            return Err(self.fail(file, &format!("asked for {length} bytes at once, the limit is {MAX_READ_BYTES}")));
        }
        let value = self.settled(file, self.source.read(file, offset as f64, length as f64)).await?;
        let Ok(bytes) = value.dyn_into::<Uint8Array>() else {
            return Err(self.fail(file, "expected a Uint8Array from the reading function"));
        };
        match bytes.length() as usize == length {
            true => Ok(bytes.to_vec()),
            false => {
                Err(self.fail(file, &format!("asked for {length} bytes at offset {offset}, got {}", bytes.length())))
            }
        }
    }
}

impl Source for JsSource {
    fn describe(&self) -> String {
        "the files given".to_owned()
    }

    fn size<'a>(&'a self, file: &'a str) -> LocalFuture<'a, Result<Option<u64>, WeightsError>> {
        Box::pin(async move {
            let size = self.settled(file, self.source.size(file)).await?.as_f64().unwrap_or(-1.0);
            Ok((size >= 0.0).then_some(size as u64))
        })
    }

    fn read<'a>(&'a self, file: &'a str, offset: u64, length: usize) -> LocalFuture<'a, Result<Vec<u8>, WeightsError>> {
        Box::pin(self.read_bytes(file, offset, length))
    }

    fn list(&self) -> Vec<String> {
        self.source.files().map(|files| files.iter().filter_map(|f| f.as_string()).collect()).unwrap_or_default()
    }
}
