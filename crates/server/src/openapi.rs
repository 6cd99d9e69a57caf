//! The description of the API for machines, kept by hand; a test holds it against the routes.

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::Response,
};

const DOCUMENT: &str = include_str!("openapi.json");

/// `GET /openapi.json`
pub(crate) async fn document() -> Response {
    let mut response = Response::new(Body::from(DOCUMENT));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::DOCUMENT;
    use crate::routes::ALL;

    #[test]
    fn it_describes_every_route_and_no_other() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let described: BTreeSet<(String, String)> = paths
            .iter()
            .flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(|m| (m.to_uppercase(), path.clone())))
            .collect();
        let served = ALL.iter().map(|r| (r.method.to_owned(), r.path.replace("{*", "{")));
        assert_eq!(described, served.collect());
        for (path, methods) in paths {
            for (method, operation) in methods.as_object().unwrap() {
                assert!(operation["summary"].is_string() && operation["responses"].is_object(), "{method} {path}");
                assert_eq!(
                    operation["security"] == serde_json::json!([]),
                    crate::routes::known(path).unwrap().open,
                    "{path}"
                );
            }
        }
    }

    /// Every reference in the document leads somewhere.
    #[test]
    fn references_are_there() {
        fn walk(value: &Value, document: &Value) {
            if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
                assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
            }
            match value {
                Value::Array(all) => all.iter().for_each(|v| walk(v, document)),
                Value::Object(all) => all.values().for_each(|v| walk(v, document)),
                _ => {}
            }
        }
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        walk(&document, &document);
    }
}
