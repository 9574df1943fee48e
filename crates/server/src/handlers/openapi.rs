//! `/openapi.json`: the routes and the fields of their requests. The router is built from the same table, so that the
//! description has every route and no other.

use axum::Json;
use serde_json::{Map, Value, json};

/// A field: its name, with a star if a request needs it, and its JSON type (any of several are divided by `|`).
type Field = (&'static str, &'static str);

/// A route.
#[derive(Debug, Clone, Copy)]
pub(super) struct Route {
    /// As axum writes it.
    pub(super) path: &'static str,
    method: &'static str,
    summary: &'static str,
    fields: &'static [&'static [Field]],
}

impl Route {
    pub(super) const fn get(path: &'static str, summary: &'static str) -> Route {
        Route { path, method: "get", summary, fields: &[] }
    }

    pub(super) const fn post(path: &'static str, summary: &'static str, fields: &'static [&'static [Field]]) -> Route {
        Route { path, method: "post", summary, fields }
    }

    fn json(&self) -> Value {
        let answer = |text: &str| json!({"description": text, "content": {"application/json": {"schema": {}}}});
        let mut route = json!({
            "summary": self.summary,
            "responses": {"200": answer("The answer"), "default": answer("An error")},
        });
        if self.method == "post" {
            let (mut properties, mut required) = (Map::new(), Vec::new());
            for &(name, kind) in self.fields.iter().copied().flatten() {
                if let Some(name) = name.strip_suffix('*') {
                    required.push(name);
                }
                let kinds: Vec<&str> = kind.split('|').collect();
                let kind = if let [one] = kinds.as_slice() { json!(one) } else { json!(kinds) };
                properties.insert(name.trim_end_matches('*').to_string(), json!({"type": kind}));
            }
            let schema = json!({"type": "object", "properties": properties, "required": required});
            route["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": schema}}});
        }
        if self.path.contains("{*id}") {
            route["parameters"] = json!([{"name": "id", "in": "path", "required": true, "schema": {"type": "string"}}]);
        }
        route
    }
}

const SAMPLING: &[Field] = &[
    ("model", "string"),
    ("stream", "boolean"),
    ("temperature", "number"),
    ("top_p", "number"),
    ("top_k", "integer"),
    ("min_p", "number"),
    ("repetition_penalty", "number"),
    ("presence_penalty", "number"),
    ("frequency_penalty", "number"),
    ("logit_bias", "object"),
    ("seed", "integer"),
    ("ignore_eos", "boolean"),
];

const CONSTRAINTS: &[Field] =
    &[("response_format", "object"), ("regex", "string"), ("grammar", "string"), ("structured_outputs", "object")];

const CONVERSATION: &[Field] = &[
    ("messages*", "array"),
    ("tools", "array"),
    ("tool_choice", "string|object"),
    ("parallel_tool_calls", "boolean"),
    ("chat_template_kwargs", "object"),
];

const OPENAI: &[Field] = &[("stop", "string|array"), ("n", "integer"), ("stream_options", "object")];

pub(super) const CHAT: &[&[Field]] = &[
    CONVERSATION,
    SAMPLING,
    OPENAI,
    CONSTRAINTS,
    &[
        ("max_tokens", "integer"),
        ("max_completion_tokens", "integer"),
        ("logprobs", "boolean"),
        ("top_logprobs", "integer"),
    ],
];

pub(super) const COMPLETIONS: &[&[Field]] = &[
    &[
        ("prompt*", "string|array"),
        ("max_tokens", "integer"),
        ("echo", "boolean"),
        ("logprobs", "integer"),
        ("return_tokens_as_token_ids", "boolean"),
    ],
    SAMPLING,
    OPENAI,
    CONSTRAINTS,
];

pub(super) const RESPONSES: &[&[Field]] = &[
    &[
        ("input*", "string|array"),
        ("instructions", "string"),
        ("max_output_tokens", "integer"),
        ("text", "object"),
        ("tools", "array"),
        ("tool_choice", "string|object"),
        ("parallel_tool_calls", "boolean"),
    ],
    SAMPLING,
];

const ANTHROPIC: &[Field] =
    &[("messages*", "array"), ("system", "string|array"), ("tools", "array"), ("tool_choice", "object")];

pub(super) const MESSAGES: &[&[Field]] =
    &[ANTHROPIC, &[("max_tokens", "integer"), ("stop_sequences", "array")], SAMPLING];

pub(super) const COUNT: &[&[Field]] = &[ANTHROPIC, &[("model", "string")]];

pub(super) const TEMPLATE: &[&[Field]] = &[CONVERSATION, &[("model", "string")]];

pub(super) const LOAD: &[&[Field]] = &[&[("lora_name*", "string"), ("lora_path*", "string")]];

pub(super) const UNLOAD: &[&[Field]] = &[&[("lora_name*", "string")]];

pub(super) const TOKENIZE: &[&[Field]] = &[&[
    ("model", "string"),
    ("prompt", "string"),
    ("content", "string"),
    ("add_special_tokens", "boolean"),
    ("return_token_strs", "boolean"),
]];

pub(super) const DETOKENIZE: &[&[Field]] = &[&[("model", "string"), ("tokens*", "array")]];

/// The description.
pub(super) async fn describe() -> Json<Value> {
    let mut paths: Map<String, Value> = Map::new();
    for route in super::described() {
        let path = paths.entry(route.path.replace("{*", "{")).or_insert_with(|| json!({}));
        path[route.method] = route.json();
    }
    Json(json!({
        "openapi": "3.1.0",
        "info": {
            "title": "bayan serve",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Language models with the interfaces of OpenAI and Anthropic.",
        },
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
        "paths": paths,
    }))
}
