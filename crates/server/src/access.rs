//! Who may ask: the Host header, keys, and the log of requests. Prompts and answers are never logged.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::{Choice, ConstantTimeEq};

use crate::error::{AnthropicError, ApiError};
use crate::handlers::page::is_page;
use crate::handlers::{App, Owner};
use crate::protocol::new_id;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Routes that need no key, for programs that watch the server.
const OPEN: [&str; 2] = ["/health", "/ready"];

/// Checks a request, passes it on, and logs it.
pub(crate) async fn guard(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let start = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_string();
    let method = request.method().clone();
    let id = new_id("req");
    let allowed = host(&app.options.hosts, request.headers(), request.uri().host()).and_then(|()| {
        let open = OPEN.contains(&route.as_str()) || is_page(&route);
        if open { Ok(0) } else { owner(&app.options.keys, request.headers()) }
    });
    let mut response = match allowed {
        Ok(owner) => {
            request.extensions_mut().insert(Owner(owner));
            next.run(request).await
        }
        Err(error) if route.starts_with("/v1/messages") => AnthropicError::from(error).into_response(),
        Err(error) => error.into_response(),
    };
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let status = response.status().as_u16();
    app.shared.metrics.answered(&route, status);
    let milliseconds = start.elapsed().as_secs_f64() * 1e3;
    tracing::info!(id, method = %method, route, status, milliseconds, "request");
    response
}

/// Refuses hosts that are not listed, so that a web page cannot reach the server under a name of its own.
fn host(hosts: &[String], headers: &HeaderMap, authority: Option<&str>) -> Result<(), ApiError> {
    if hosts.is_empty() {
        return Ok(());
    }
    let named = headers.get(header::HOST).and_then(|value| value.to_str().ok()).map(without_port).or(authority);
    if named.is_some_and(|name| hosts.iter().any(|host| host.eq_ignore_ascii_case(name))) {
        return Ok(());
    }
    let message = "this server does not answer under that host name; allow it with `--allowed-host NAME`";
    Err(ApiError::new(StatusCode::FORBIDDEN, "host_not_allowed", message))
}

/// The host of a Host header; an IPv6 address keeps its brackets.
fn without_port(host: &str) -> &str {
    match host.rfind(']') {
        Some(end) => &host[..=end],
        None => host.split(':').next().unwrap_or(host),
    }
}

/// The number of the key that a request shows, from 1 on; 0 if no key is needed.
fn owner(keys: &[String], headers: &HeaderMap) -> Result<u64, ApiError> {
    if keys.is_empty() {
        return Ok(0);
    }
    let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    // Anthropic's clients have a header of their own.
    let shown = shown.or_else(|| headers.get(X_API_KEY).map(HeaderValue::as_bytes));
    let shown = shown.map(<[u8]>::trim_ascii).unwrap_or_default();
    // Every key is compared, in a time that does not depend on how many bytes are right.
    let mut found = 0u64;
    for (key, number) in keys.iter().zip(1u64..) {
        let equal: Choice = key.as_bytes().ct_eq(shown);
        found |= number * u64::from(equal.unwrap_u8());
    }
    if found == 0 {
        let message = if shown.is_empty() {
            "a key is needed: send `Authorization: Bearer KEY`"
        } else {
            "the key is not known here"
        };
        return Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn keys_are_compared_whole() {
        let keys = ["first".to_string(), "second".to_string()];
        let with = |value: &str| owner(&keys, &headers(header::AUTHORIZATION, value)).ok();
        assert_eq!([with("Bearer first"), with("Bearer second")], [Some(1), Some(2)]);
        for wrong in ["Bearer firs", "Bearer firstx", "Bearer ", "first", "bearer first", ""] {
            assert_eq!(with(wrong), None, "{wrong}");
        }
        assert_eq!(owner(&keys, &headers(X_API_KEY, "second")).ok(), Some(2));
        assert_eq!(owner(&keys, &headers(X_API_KEY, "third")).ok(), None);
        assert_eq!(owner(&[], &headers(header::AUTHORIZATION, "Bearer ")).ok(), Some(0));
    }

    #[test]
    fn hosts_are_compared_without_their_port() {
        let hosts = ["localhost".to_string(), "[::1]".to_string()];
        let allowed = |value: &str| host(&hosts, &headers(header::HOST, value), None).is_ok();
        assert!(allowed("localhost:8080") && allowed("LOCALHOST") && allowed("[::1]:80") && allowed("[::1]"));
        assert!(!allowed("evil.example") && !allowed("localhost.evil.example:8080") && !allowed(""));
        assert!(host(&[], &headers(header::HOST, "any"), None).is_ok());
    }
}
