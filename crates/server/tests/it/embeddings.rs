//! Embeddings over HTTP.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tessera_engine::{Pooling, serving::Options};
use tessera_server::Settings;

use crate::support::{Running, Tiny, start, start_with};

fn able() -> Running {
    let options = Options { slots: 4, pooling: Some(Pooling::Mean), ..Options::default() };
    start_with(&["tiny"], Tiny { options, ..Tiny::default() }, Settings::default())
}

fn ask(server: &Running, body: &Value) -> Vec<Vec<f32>> {
    let reply = server.post("/v1/embeddings", body);
    assert_eq!(reply.status, 200, "{}", reply.json());
    let numbers = |one: &Value| one.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
    reply.json()["data"].as_array().unwrap().iter().map(|one| numbers(&one["embedding"])).collect()
}

#[test]
fn texts_have_embeddings_that_do_not_depend_on_their_neighbours() {
    let server = able();
    let texts: Vec<String> = (0..20).map(|n| format!("the river number {n} flows").repeat(n + 1)).collect();
    let all = ask(&server, &json!({ "model": "tiny", "input": texts }));
    assert_eq!(all.len(), texts.len());
    for (text, embedding) in texts.iter().zip(&all) {
        assert_eq!(embedding.len(), 64);
        let length: f32 = embedding.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
        assert_eq!(&ask(&server, &json!({ "input": text }))[0], embedding, "{text}");
    }
    assert!(all.iter().enumerate().all(|(i, one)| !all[..i].contains(one)), "different texts differ");
}

#[test]
fn replies_are_as_openais() {
    let server = able();
    let body = json!({ "model": "tiny", "input": [[5, 6, 7], [8, 9]], "user": "somebody" });
    let reply = server.post("/v1/embeddings", &body).json();
    assert_eq!((&reply["object"], &reply["model"]), (&json!("list"), &json!("tiny")));
    assert_eq!(reply["usage"], json!({ "prompt_tokens": 5, "total_tokens": 5 }));
    assert_eq!((&reply["data"][1]["object"], &reply["data"][1]["index"]), (&json!("embedding"), &json!(1)));
    let plain = ask(&server, &json!({ "input": [5, 6, 7] }));
    let coded = server.post("/v1/embeddings", &json!({ "input": [5, 6, 7], "encoding_format": "base64" })).json();
    let bytes = BASE64_STANDARD.decode(coded["data"][0]["embedding"].as_str().unwrap()).unwrap();
    let decoded: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert_eq!(decoded, plain[0]);
    let short = &ask(&server, &json!({ "input": [5, 6, 7], "dimensions": 16 }))[0];
    let scale = short[0] / plain[0][0];
    assert!(short.len() == 16 && short.iter().zip(&plain[0]).all(|(s, p)| (s - p * scale).abs() < 1e-6));
    assert!((short.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
}

#[test]
fn what_cannot_be_embedded_is_refused() {
    let unable = start().post("/v1/embeddings", &json!({ "model": "tiny", "input": "x" }));
    assert_eq!((unable.status, &unable.json()["error"]["param"]), (400, &json!("model")));
    let server = able();
    let nothing = server.post("/v1/embeddings", &json!({ "input": [] }));
    assert_eq!(
        (nothing.status, nothing.json()["error"]["message"].as_str().unwrap().contains("no tokens")),
        (400, true)
    );
    let many = vec!["x"; 2049];
    for (body, param) in [
        (json!({}), "input"),
        (json!({ "input": many }), "input"),
        (json!({ "input": [true] }), "input"),
        (json!({ "input": "x", "encoding_format": "int8" }), "encoding_format"),
        (json!({ "input": "x", "dimensions": 65 }), "dimensions"),
        (json!({ "input": "x", "stream": true }), "stream"),
    ] {
        let reply = server.post("/v1/embeddings", &body);
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!(param)), "{body}");
    }
}
