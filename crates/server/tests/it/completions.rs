//! `/v1/completions`.

use serde_json::{Value, json};

use crate::support::{completion, start};

#[test]
fn texts_and_tokens_are_continued() {
    let server = start();
    let ids = server.post("/tokenize", &json!({ "text": "abc de", "special": true })).fine()["tokens"].clone();
    let request = |prompt: Value| {
        let asked = json!({ "model": "tiny", "prompt": prompt, "max_tokens": 8, "seed": 2, "logprobs": 1 });
        server.post("/v1/completions", &asked).fine()
    };
    let one = request(json!("abc de"));
    assert_eq!(one["object"], "text_completion");
    assert_eq!(one["choices"][0]["text"], request(ids.clone())["choices"][0]["text"]);
    let choice = &one["choices"][0];
    let count = choice["logprobs"]["tokens"].as_array().unwrap().len();
    assert_eq!(count as u64, one["usage"]["completion_tokens"].as_u64().unwrap());
    for list in ["token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(choice["logprobs"][list].as_array().unwrap().len(), count, "{list}");
    }
    // Several prompts, each with several replies, in order.
    let both = json!({ "prompt": ["abc de", "other"], "model": "tiny", "max_tokens": 8, "seed": 2, "n": 2 });
    let both = server.post("/v1/completions", &both).fine();
    let choices = both["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|c| c["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(choices[0]["text"], one["choices"][0]["text"]);
    assert_ne!(choices[0]["text"], choices[1]["text"]);
    let other = server.post("/v1/completions", &completion("other", json!({ "max_tokens": 8, "seed": 2 }))).fine();
    assert_eq!(choices[2]["text"], other["choices"][0]["text"]);
    let prompts = one["usage"]["prompt_tokens"].as_u64().unwrap() + other["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(both["usage"]["prompt_tokens"], prompts, "prompts are counted once");
}

#[test]
fn chunks_join_to_the_reply_that_is_not_streamed() {
    let server = start();
    let asked = json!({ "max_tokens": 15, "seed": 9, "logprobs": 2, "stop": ["zz"] });
    let whole = server.post("/v1/completions", &completion("abc", asked.clone())).fine();
    let mut request = completion("abc", asked);
    request["stream"] = json!(true);
    let chunks = server.post("/v1/completions", &request).chunks();
    let text: String = chunks.iter().map(|c| c["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, whole["choices"][0]["text"].as_str().unwrap());
    let offsets: Vec<&Value> =
        chunks.iter().filter_map(|c| c["choices"][0]["logprobs"]["text_offset"].as_array()).flatten().collect();
    let all: Vec<&Value> = whole["choices"][0]["logprobs"]["text_offset"].as_array().unwrap().iter().collect();
    assert_eq!(offsets, all);
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], whole["choices"][0]["finish_reason"]);
    assert!(chunks.iter().all(|c| c.get("usage").is_none()), "nobody asked for it");
}

#[test]
fn no_tokens_at_all_fill_the_cache() {
    let server = start();
    let long = "word ".repeat(80);
    let empty = server.post("/v1/completions", &completion(&long, json!({ "max_tokens": 0 }))).fine();
    assert_eq!((&empty["choices"][0]["text"], &empty["choices"][0]["finish_reason"]), (&json!(""), &json!("length")));
    let after = server.post("/v1/completions", &completion(&long, json!({ "max_tokens": 1 }))).fine();
    assert!(after["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() >= 64);
}

#[test]
fn text_goes_to_tokens_and_back() {
    let server = start();
    let text = "Grüße, <|im_end|> 🙂";
    let cut = server.post("/tokenize", &json!({ "model": "tiny", "text": text, "pieces": true })).fine();
    assert_eq!(cut["count"].as_u64().unwrap() as usize, cut["tokens"].as_array().unwrap().len());
    assert_eq!(cut["pieces"].as_array().unwrap().len(), cut["tokens"].as_array().unwrap().len());
    let back = server.post("/detokenize", &json!({ "model": "tiny", "tokens": cut["tokens"] })).fine();
    assert_eq!(back["text"], text);
    let special = server.post("/tokenize", &json!({ "text": text, "special": true })).fine();
    assert!(special["count"].as_u64() < cut["count"].as_u64(), "a name is one token then");
    let refused = server.post("/detokenize", &json!({ "tokens": [512] }));
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("tokens")));
}
