//! A small validator of JSON schemas, for the keywords that the tests use; it knows nothing of grammars, and a keyword
//! that it does not know is a failure of the test. Rejected: the crate jsonschema, which takes longer to compile than
//! everything else that these tests need.

use serde_json::{Map, Value};

/// Keywords that allow everything.
const SILENT: [&str; 6] = ["$schema", "$defs", "definitions", "title", "description", "default"];

/// Why a document is not valid under a schema; `root` resolves references.
pub(crate) fn problem(schema: &Value, root: &Value, value: &Value) -> Option<String> {
    let map = match schema {
        Value::Bool(true) => return None,
        Value::Bool(false) => return Some(format!("nothing is allowed, got {value}")),
        Value::Object(map) => map,
        other => panic!("{other} is no schema"),
    };
    map.iter().find_map(|(keyword, wanted)| keyword_problem(map, keyword, wanted, root, value))
}

fn keyword_problem(
    schema: &Map<String, Value>,
    keyword: &str,
    wanted: &Value,
    root: &Value,
    value: &Value,
) -> Option<String> {
    let all = |list: &Value| list.as_array().expect("a list").iter().find_map(|schema| problem(schema, root, value));
    let fitting = || wanted.as_array().expect("a list").iter().filter(|s| problem(s, root, value).is_none()).count();
    let number = |fits: fn(f64, f64) -> bool| value.as_f64().is_none_or(|n| fits(n, wanted.as_f64().unwrap()));
    let size = |count: Option<usize>, fits: fn(usize, usize) -> bool| {
        count.is_none_or(|count| fits(count, wanted.as_u64().unwrap() as usize))
    };
    let (text, list, object) = (value.as_str(), value.as_array(), value.as_object());
    let characters = text.map(|text| text.chars().count());
    let right = match keyword {
        _ if SILENT.contains(&keyword) => true,
        "type" => match wanted {
            Value::Array(kinds) => kinds.iter().any(|kind| is_a(value, kind.as_str().unwrap())),
            kind => is_a(value, kind.as_str().unwrap()),
        },
        "const" => wanted == value,
        "enum" => wanted.as_array().unwrap().contains(value),
        "minimum" => number(|n, wanted| n >= wanted),
        "maximum" => number(|n, wanted| n <= wanted),
        "exclusiveMinimum" => number(|n, wanted| n > wanted),
        "exclusiveMaximum" => number(|n, wanted| n < wanted),
        "multipleOf" => number(|n, wanted| (n / wanted).fract() == 0.0),
        "minLength" => size(characters, |n, wanted| n >= wanted),
        "maxLength" => size(characters, |n, wanted| n <= wanted),
        "minItems" => size(list.map(Vec::len), |n, wanted| n >= wanted),
        "maxItems" => size(list.map(Vec::len), |n, wanted| n <= wanted),
        "minProperties" => size(object.map(Map::len), |n, wanted| n >= wanted),
        "pattern" => text.is_none_or(|text| matches(wanted.as_str().unwrap(), text)),
        "format" => text.is_none_or(|text| has_format(wanted.as_str().unwrap(), text)),
        "required" => object
            .is_none_or(|map| wanted.as_array().unwrap().iter().all(|name| map.contains_key(name.as_str().unwrap()))),
        "allOf" => return all(wanted),
        "anyOf" => fitting() > 0,
        "oneOf" => fitting() == 1,
        "$ref" => {
            let pointer = wanted.as_str().and_then(|text| text.strip_prefix('#')).expect("a reference within");
            return problem(root.pointer(pointer).expect("what is referred to"), root, value);
        }
        "properties" => {
            let inner = |(name, schema)| problem(schema, root, object?.get::<String>(name)?);
            return wanted.as_object().unwrap().iter().find_map(inner);
        }
        "patternProperties" => {
            let patterns = wanted.as_object().unwrap();
            let mut pairs = object?.iter().flat_map(|(name, value)| patterns.iter().map(move |p| (name, value, p)));
            return pairs.find_map(
                |(name, value, (pattern, schema))| {
                    if matches(pattern, name) { problem(schema, root, value) } else { None }
                },
            );
        }
        "additionalProperties" => {
            let listed = |name: &str| {
                schema.get("properties").is_some_and(|known| known.get(name).is_some())
                    || schema
                        .get("patternProperties")
                        .and_then(Value::as_object)
                        .is_some_and(|patterns| patterns.keys().any(|pattern| matches(pattern, name)))
            };
            return object?
                .iter()
                .filter(|(name, _)| !listed(name))
                .find_map(|(_, value)| problem(wanted, root, value));
        }
        // The first items have schemas of their own, in either draft's form.
        "prefixItems" => return list?.iter().zip(wanted.as_array()?).find_map(|(item, s)| problem(s, root, item)),
        "items" if wanted.is_array() => {
            return list?.iter().zip(wanted.as_array()?).find_map(|(item, s)| problem(s, root, item));
        }
        "items" | "additionalItems" => {
            let first = if keyword == "items" { schema.get("prefixItems") } else { schema.get("items") };
            let first = first.and_then(Value::as_array).map_or(0, Vec::len);
            return list?.iter().skip(first).find_map(|item| problem(wanted, root, item));
        }
        other => panic!("the keyword {other} is not known to this validator"),
    };
    (!right).then(|| format!("{keyword}: {wanted}, got {value}"))
}

fn is_a(value: &Value, kind: &str) -> bool {
    match kind {
        "integer" => value.as_f64().is_some_and(|n| n.fract() == 0.0),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("there is no type {other}"),
    }
}

/// Whether a text matches one of the patterns of the tests' schemas: lists of `[…]{…}` parts, or of alternatives.
fn matches(pattern: &str, text: &str) -> bool {
    let all = |text: &str, count: std::ops::RangeInclusive<usize>, fits: fn(u8) -> bool| {
        count.contains(&text.len()) && text.bytes().all(fits)
    };
    match pattern {
        "^[a-z]{3}$" => all(text, 3..=3, |b| b.is_ascii_lowercase()),
        "^(قط|كلب)$" => ["قط", "كلب"].contains(&text),
        "^[A-Z]{2}-[0-9]{4}$" => text.split_once('-').is_some_and(|(letters, digits)| {
            all(letters, 2..=2, |b| b.is_ascii_uppercase()) && all(digits, 4..=4, |b| b.is_ascii_digit())
        }),
        "^n_[a-z]{1,3}$" => text.strip_prefix("n_").is_some_and(|rest| all(rest, 1..=3, |b| b.is_ascii_lowercase())),
        other => panic!("the pattern {other} is not known to this validator"),
    }
}

/// Whether a text has a format of RFC 3339, 4122, 4291, 5321 and so on, as far as its shape says.
fn has_format(format: &str, text: &str) -> bool {
    let digits = |part: &str, low: u32, high: u32| {
        part.len() == 2
            && part.bytes().all(|b| b.is_ascii_digit())
            && part.parse::<u32>().is_ok_and(|n| (low..=high).contains(&n))
    };
    let date = |text: &str| match text.split('-').collect::<Vec<_>>()[..] {
        [year, month, day] => {
            year.len() == 4 && year.bytes().all(|b| b.is_ascii_digit()) && digits(month, 1, 12) && digits(day, 1, 31)
        }
        _ => false,
    };
    let clock = |text: &str, most: u32| match text.split(':').collect::<Vec<_>>()[..] {
        [hour, minute] => digits(hour, 0, 23) && digits(minute, 0, 59),
        [hour, minute, second] => digits(hour, 0, 23) && digits(minute, 0, 59) && digits(second, 0, most),
        _ => false,
    };
    let time = |text: &str| {
        let zone = text.strip_suffix(['Z', 'z']).map(|rest| (rest, "00:00"));
        let zone = zone.or_else(|| text.rfind(['+', '-']).map(|at| (&text[..at], &text[at + 1..])));
        zone.is_some_and(|(whole, zone)| {
            let (seconds, fraction) = whole.split_once('.').unwrap_or((whole, "0"));
            let fraction = !fraction.is_empty() && fraction.bytes().all(|b| b.is_ascii_digit());
            clock(seconds, 60) && seconds.len() == 8 && fraction && clock(zone, 0)
        })
    };
    let host = |text: &str| {
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        text.len() <= 253 && text.split('.').all(label)
    };
    match format {
        "date" => date(text),
        "time" => time(text),
        "date-time" => text.split_once(['T', 't', ' ']).is_some_and(|(day, rest)| date(day) && time(rest)),
        "uuid" => {
            let parts: Vec<&str> = text.split('-').collect();
            parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12])
                && parts.iter().all(|part| part.bytes().all(|b| b.is_ascii_hexdigit()))
        }
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "hostname" => host(text),
        "email" => text.rsplit_once('@').is_some_and(|(name, at)| {
            !name.is_empty() && (host(at) || at.starts_with('[')) && !name.contains(char::is_whitespace)
        }),
        "uri" => text.split_once(':').is_some_and(|(scheme, _)| {
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && text.bytes().all(|b| b.is_ascii_graphic() && !b"<>\"{}|\\^`".contains(&b))
        }),
        "duration" => text.strip_prefix('P').is_some_and(|rest| {
            !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit() || b"YMWDTHS".contains(&b))
        }),
        other => panic!("the format {other} is not known to this validator"),
    }
}

#[test]
fn the_validator_refuses_what_is_wrong() {
    use serde_json::json;
    let tree = json!({"$defs": {"t": {"type": "object", "properties": {"k": {"type": "array", "items": {"$ref": "#/$defs/t"}}}, "required": ["k"], "additionalProperties": false}}, "$ref": "#/$defs/t"});
    let cases = [
        (json!({"type": "integer"}), json!(2.0), json!(2.5)),
        (json!({"type": ["string", "null"]}), json!(null), json!(1)),
        (json!({"enum": [1, "a"]}), json!("a"), json!("b")),
        (json!({"const": {"a": [1]}}), json!({"a": [1]}), json!({"a": [2]})),
        (json!({"exclusiveMinimum": 1, "maximum": 3}), json!(3), json!(1)),
        (json!({"multipleOf": 5}), json!(10), json!(11)),
        (json!({"minLength": 2, "maxLength": 3}), json!("سين"), json!("س")),
        (json!({"pattern": "^[A-Z]{2}-[0-9]{4}$"}), json!("AB-1234"), json!("AB-123")),
        (json!({"format": "date-time"}), json!("2024-02-03T04:05:06.7+01:00"), json!("2024-13-03T04:05:06Z")),
        (json!({"format": "time"}), json!("23:59:60Z"), json!("23:59Z")),
        (json!({"format": "ipv6"}), json!("::1"), json!("1:2")),
        (json!({"format": "email"}), json!("a@b.c"), json!("a@-b")),
        (json!({"prefixItems": [{"type": "null"}], "items": false}), json!([null]), json!([null, 1])),
        (json!({"items": [{"type": "null"}], "additionalItems": false}), json!([null]), json!([1])),
        (json!({"oneOf": [{"type": "integer"}, {"minimum": 3}]}), json!(1), json!(4)),
        (json!({"allOf": [{"minimum": 1}, {"maximum": 2}]}), json!(2), json!(3)),
        (json!({"additionalProperties": {"type": "null"}}), json!({"a": null}), json!({"a": 1})),
        (
            json!({"patternProperties": {"^n_[a-z]{1,3}$": {"type": "null"}}, "additionalProperties": false}),
            json!({"n_a": null}),
            json!({"a": null}),
        ),
        (tree, json!({"k": [{"k": []}]}), json!({"k": [{"k": [{}]}]})),
    ];
    for (schema, good, bad) in cases {
        assert_eq!(problem(&schema, &schema, &good), None, "{schema}");
        assert!(problem(&schema, &schema, &bad).is_some(), "{schema} allows {bad}");
    }
}
