//! The server: opens the model, listens, and ends in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::from_fn_with_state;
use tokio::net::TcpListener;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::access::guard;
use crate::error::ApiError;
use crate::handlers::{App, routes};
use crate::limits::ServerOptions;
use crate::protocol::now;
use crate::worker::{self, Message, Opened, Shared, Started};

/// An error that ends the server.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The model cannot be opened.
    #[error("{0}")]
    Open(String),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {error}; choose another one with `--host` and `--port`")]
    Listen {
        /// The address.
        address: String,
        /// The system's message.
        error: std::io::Error,
    },
    /// An origin is not one.
    #[error("`{0}` is no origin of a web page: expected a scheme and a host, such as https://example.org")]
    Origin(String),
    /// Something else of the system failed.
    #[error("the server failed: {0}")]
    Io(#[from] std::io::Error),
}

/// A server that listens.
pub struct Server {
    app: Arc<App>,
    router: Router,
    engine: JoinHandle<()>,
    listener: TcpListener,
}

/// Time between two looks at the answers that a server waits for before it ends.
const LOOK: Duration = Duration::from_millis(20);

/// Time that connections have to close after their last answer.
const CLOSING: Duration = Duration::from_secs(2);

impl Server {
    /// Listens on an address, and opens the model on a thread of its own; `open` is called again after the device
    /// failed.
    ///
    /// # Errors
    /// The model cannot be opened, or the address cannot be listened on.
    pub async fn bind(
        address: &str,
        options: ServerOptions,
        open: impl Fn() -> Result<Opened, String> + Send + 'static,
    ) -> Result<Server, ServeError> {
        let cors = cors(&options.origins)?;
        // First the address: it is known at once whether it is free.
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|error| ServeError::Listen { address: address.to_string(), error })?;
        let shared = Arc::new(Shared::new(&options.model, options.limits.clone()));
        let starting = shared.clone();
        let adapters = options.adapters.clone();
        let started = tokio::task::spawn_blocking(move || worker::start(Box::new(open), starting, &adapters)).await;
        let Started { about, submit, thread } = started.map_err(std::io::Error::other)?.map_err(ServeError::Open)?;
        let ui = options.ui;
        let app = Arc::new(App { shared, about, submit, options, created: now() });
        let router = routes(ui)
            .fallback(async || {
                ApiError::new(StatusCode::NOT_FOUND, "no_such_route", "there is nothing at this address")
            })
            .method_not_allowed_fallback(async || {
                let message = "this address does not take that method";
                ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
            })
            .layer(from_fn_with_state(app.clone(), guard))
            .layer(cors)
            .with_state(app.clone());
        Ok(Server { app, router, engine: thread, listener })
    }

    /// The address that the server listens on.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> Result<SocketAddr, ServeError> {
        Ok(self.listener.local_addr()?)
    }

    /// Answers requests until `stop` is there. Then new answers are refused, running and queued ones have the time of
    /// [`crate::Limits::drain_time`] to finish, and the server ends.
    ///
    /// # Errors
    /// The system fails.
    pub async fn run(self, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), ServeError> {
        let Server { app, router, engine, listener } = self;
        let (closed, close) = tokio::sync::oneshot::channel::<()>();
        let shared = app.shared.clone();
        let serving = axum::serve(listener, router).with_graceful_shutdown(async move {
            stop.await;
            shared.draining.store(true, Ordering::Release);
            let until = Instant::now() + shared.limits.drain_time;
            while shared.unfinished() > 0 && Instant::now() < until {
                tokio::time::sleep(LOOK).await;
            }
            tracing::info!(unfinished = shared.unfinished(), "ending");
            drop(closed);
        });
        let serving = serving.into_future();
        tokio::pin!(serving);
        // Connections on which nobody asks any more must not keep the server.
        let served = tokio::select! {
            served = &mut serving => served,
            () = async { let _ = close.await; tokio::time::sleep(CLOSING).await } => Ok(()),
        };
        // The device must not be in use when the program ends.
        let _ = app.submit.send(Message::End);
        let until = Instant::now() + CLOSING;
        while !engine.is_finished() && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
        Ok(served?)
    }

    /// Runs a server until Ctrl-C or SIGTERM, on a runtime of its own. `on_ready` is called once with the address.
    ///
    /// # Errors
    /// As [`Server::bind`] and [`Server::run`].
    pub fn run_until_signal(
        address: &str,
        options: ServerOptions,
        open: impl Fn() -> Result<Opened, String> + Send + 'static,
        on_ready: impl FnOnce(SocketAddr),
    ) -> Result<(), ServeError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let served = runtime.block_on(async {
            // Before the model is opened, so that a signal in between ends the program in order too.
            let stop = signal()?;
            let server = Server::bind(address, options, open).await?;
            on_ready(server.address()?);
            server.run(stop).await
        });
        runtime.shutdown_background();
        served
    }
}

/// Ctrl-C or SIGTERM.
#[cfg(unix)]
fn signal() -> Result<impl Future<Output = ()> + Send + 'static, ServeError> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Ctrl-C.
#[cfg(not(unix))]
fn signal() -> Result<impl Future<Output = ()> + Send + 'static, ServeError> {
    Ok(async {
        let _ = tokio::signal::ctrl_c().await;
    })
}

/// Which web pages may read answers: the listed origins, exactly.
fn cors(origins: &[String]) -> Result<CorsLayer, ServeError> {
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::CONTENT_TYPE, header::AUTHORIZATION])
        .expose_headers([HeaderName::from_static("x-request-id"), HeaderName::from_static("x-bayan-ignored-fields")]);
    if origins.iter().any(|origin| origin == "*") {
        return Ok(layer.allow_origin(AllowOrigin::any()));
    }
    let parse = |origin: &String| {
        let valid = origin.starts_with("http://") || origin.starts_with("https://");
        let value = HeaderValue::from_str(origin.trim_end_matches('/')).ok().filter(|_| valid);
        value.ok_or_else(|| ServeError::Origin(origin.clone()))
    };
    Ok(layer.allow_origin(AllowOrigin::list(origins.iter().map(parse).collect::<Result<Vec<_>, _>>()?)))
}
