//! The chat page: files that need no build step, so that the server is built without Node. They are no part of the
//! interface that `/openapi.json` describes, and need no key; what they ask for does. Rejected: the page of `web/`,
//! which runs the model in the browser and is built by Node.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderName, header};
use axum::routing::get;

use super::App;

/// The route, type and text of each file.
const FILES: [(&str, &str, &str); 6] = [
    ("/", HTML, include_str!("../page/page.html")),
    ("/page/page.css", "text/css; charset=utf-8", include_str!("../page/page.css")),
    ("/page/page.js", SCRIPT, include_str!("../page/page.js")),
    ("/page/text.js", SCRIPT, include_str!("../page/text.js")),
    // The direction of a text is decided as in the page that runs the model in a browser.
    ("/page/direction.js", SCRIPT, include_str!("../../../../web/src/text/direction.js")),
    ("/page/strings.js", SCRIPT, include_str!("../page/strings.js")),
];

const HTML: &str = "text/html; charset=utf-8";

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Only the page's own files and this server: a text of the model that became HTML by mistake could do nothing.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Whether a route is one of the page's files.
pub(crate) fn is_page(route: &str) -> bool {
    FILES.iter().any(|file| file.0 == route)
}

/// The routes of all files.
pub(crate) fn routes() -> Router<Arc<App>> {
    FILES.into_iter().fold(Router::new(), |router, (route, kind, text)| {
        let headers: [(HeaderName, &str); 5] = [
            (header::CONTENT_TYPE, kind),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            // Another version of the server has other files.
            (header::CACHE_CONTROL, "no-cache"),
        ];
        router.route(route, get(async move || (headers, text)))
    })
}
