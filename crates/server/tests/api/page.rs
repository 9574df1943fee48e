//! The chat page at `/`: its files and their headers. A browser opens it in tests/browser/served.test.mjs.

use bayan_server::ServerOptions;

use crate::{server, server_with};

const FILES: [(&str, &str); 6] = [
    ("/", "text/html; charset=utf-8"),
    ("/page/page.css", "text/css; charset=utf-8"),
    ("/page/page.js", "text/javascript; charset=utf-8"),
    ("/page/text.js", "text/javascript; charset=utf-8"),
    ("/page/direction.js", "text/javascript; charset=utf-8"),
    ("/page/strings.js", "text/javascript; charset=utf-8"),
];

#[test]
fn the_page_needs_no_key_and_loads_nothing_from_elsewhere() {
    let server = server_with(ServerOptions {
        model: "bayan".into(),
        keys: vec!["secret".into()],
        hosts: vec!["127.0.0.1".into()],
        ui: true,
        ..Default::default()
    });
    for (path, kind) in FILES {
        let got = server.ask(path, None, &[]);
        assert_eq!((got.status, got.header("content-type")), (200, Some(kind)), "{path}");
        let policy = got.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(got.header("x-content-type-options"), Some("nosniff"));
        let text = got.text();
        for foreign in ["src=\"http", "href=\"http", "url(http", "innerHTML", "eval(", "style=\""] {
            assert!(!text.contains(foreign), "{path}: {foreign}");
        }
        assert_eq!(server.ask(path, None, &[("host", "evil.example")]).status, 403, "{path}");
    }
    let html = server.ask("/", None, &[]).text();
    assert!(html.contains("<html lang=\"ar\" dir=\"rtl\">"));
    for (path, _) in &FILES[1..3] {
        assert!(html.contains(&format!("\"{}\"", &path[1..])), "{path} is not loaded");
    }
    assert_eq!(server.ask("/v1/models", None, &[]).status, 401, "what the page asks for needs a key");
}

#[test]
fn without_the_page_nothing_is_at_its_addresses() {
    let server = server();
    for (path, _) in FILES {
        server.get(path).error(404);
    }
}
