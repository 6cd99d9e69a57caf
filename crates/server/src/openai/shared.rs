//! What the requests and replies of OpenAI's APIs have in common.

use std::time::Duration;

use serde_json::{Value, json};
use tessera_engine::{Finish, serving::Speculation};

use crate::{
    answer::Totals,
    ask::Ask,
    fields::{Fields, wrong},
    grammar::Shape,
    problem::Problem,
};

/// How tokens are drawn, and what is not OpenAI's: `top_k`, `min_p`, `repetition_penalty`, `stop_token_ids`, `ignore_eos`,
/// `deadline_ms`, `priority`, `speculation`.
pub(super) fn sampling(fields: &mut Fields, ask: &mut Ask) -> Result<(), Problem> {
    let s = &mut ask.sampling;
    let set = |to: &mut f32, value: Option<f32>| *to = value.unwrap_or(*to);
    set(&mut s.temperature, fields.number("temperature", 0.0..=2.0)?);
    set(&mut s.top_p, fields.number("top_p", f64::from(f32::MIN_POSITIVE)..=1.0)?);
    set(&mut s.min_p, fields.number("min_p", 0.0..=1.0)?);
    set(&mut s.frequency_penalty, fields.number("frequency_penalty", -2.0..=2.0)?);
    set(&mut s.presence_penalty, fields.number("presence_penalty", -2.0..=2.0)?);
    set(&mut s.repetition_penalty, fields.number("repetition_penalty", 0.01..=10.0)?);
    if s.frequency_penalty != 0.0 || s.presence_penalty != 0.0 {
        s.penalty_window = usize::MAX; // theirs look at all of the text
    }
    if let Some(top_k) = fields.whole("top_k", 0..=1 << 30)? {
        s.top_k = top_k as usize;
    }
    if let Some(seed) = seed(fields)? {
        s.seed = seed;
    }
    s.logit_bias = logit_bias(fields)?;
    s.stop_tokens = token_list(fields, "stop_token_ids")?.unwrap_or_default();
    ask.stop = fields.texts("stop")?;
    if ask.stop.len() > 64 || ask.stop.iter().any(|stop| stop.is_empty() || stop.len() > 1024) {
        return Err(fields.problem("stop", "holds at most 64 texts of 1 to 1024 bytes"));
    }
    ask.ignore_end = fields.flag("ignore_eos")?.unwrap_or(false);
    ask.deadline = fields.whole("deadline_ms", 1..=u64::from(u32::MAX))?.map(Duration::from_millis);
    ask.priority = match fields.take("priority") {
        None => 0,
        Some(value) => {
            let number = value.as_i64().and_then(|n| i32::try_from(n).ok());
            number.ok_or_else(|| wrong("priority", &value, "a whole number of 32 bits"))?
        }
    };
    ask.speculation = match fields.take("speculation") {
        None => Speculation::Auto,
        Some(Value::String(word)) if word == "auto" => Speculation::Auto,
        Some(Value::String(word)) if word == "off" => Speculation::Off,
        Some(value) => match value.as_u64().filter(|depth| (1..=16).contains(depth)) {
            Some(depth) => Speculation::Depth(depth as usize),
            None => return Err(wrong("speculation", &value, "`auto`, `off`, or drafts a step from 1 to 16")),
        },
    };
    Ok(())
}

/// A seed; negative ones are seeds too.
fn seed(fields: &mut Fields) -> Result<Option<u64>, Problem> {
    let Some(value) = fields.take("seed") else { return Ok(None) };
    let seed = value.as_u64().or_else(|| value.as_i64().map(|n| n as u64));
    seed.map(Some).ok_or_else(|| wrong(&fields.path("seed"), &value, "a whole number of 64 bits"))
}

/// `{"42": -1.5}`: -100 bans a token, as OpenAI has it.
fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, Problem> {
    let path = fields.path("logit_bias");
    let Some(value) = fields.take("logit_bias") else { return Ok(Vec::new()) };
    let expected = "an object of token ids with numbers from -100 to 100";
    let Value::Object(map) = &value else { return Err(wrong(&path, &value, expected)) };
    let one = |(id, bias): (&String, &Value)| {
        let bias = bias.as_f64().filter(|b| (-100.0..=100.0).contains(b))? as f32;
        Some((id.parse().ok()?, if bias == -100.0 { f32::NEG_INFINITY } else { bias }))
    };
    let all: Option<Vec<_>> = map.iter().map(one).collect();
    all.ok_or_else(|| Problem::invalid(format!("`{path}` must be {expected}")).about(path))
}

/// Token ids.
pub(crate) fn token_list(fields: &mut Fields, name: &'static str) -> Result<Option<Vec<u32>>, Problem> {
    let Some(list) = fields.list(name)? else { return Ok(None) };
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids: Option<Vec<u32>> = list.iter().map(id).collect();
    ids.map(Some).ok_or_else(|| fields.problem(name, "must be an array of token ids"))
}

/// `{"type": …}` of `response_format`, and of `text.format` of responses, where the schema lies beside the type.
pub(super) fn format(mut fields: Fields) -> Result<Option<(Shape, String)>, Problem> {
    let kinds = ["text", "json_object", "json_schema", "regex", "grammar"];
    let kind = fields.word("type", &kinds)?;
    let shape = match fields.need("type", kind)? {
        "text" => None,
        "json_object" => Some((Shape::JsonObject, fields.path("type"))),
        "json_schema" => match fields.object("json_schema")? {
            Some(inner) => Some(schema(inner)?),
            None => return schema(fields).map(Some),
        },
        "regex" => {
            let pattern = fields.text("pattern")?;
            Some((Shape::Regex(fields.need("pattern", pattern)?), fields.path("pattern")))
        }
        _ => {
            fields.word("syntax", &["lark"])?;
            let grammar = fields.text("grammar")?;
            Some((Shape::Lark(fields.need("grammar", grammar)?), fields.path("grammar")))
        }
    };
    fields.finish()?;
    Ok(shape)
}

fn schema(mut fields: Fields) -> Result<(Shape, String), Problem> {
    fields.ignore(&["name", "description", "strict"]);
    let (schema, path) = (fields.take("schema"), fields.path("schema"));
    let schema = fields.need("schema", schema)?;
    if !schema.is_object() && !schema.is_boolean() {
        return Err(wrong(&path, &schema, "a JSON schema"));
    }
    fields.finish()?;
    Ok((Shape::Schema(schema), path))
}

/// Why a reply ended.
pub(super) fn finish_reason(finish: Finish, calls: bool) -> &'static str {
    match finish {
        Finish::EndToken | Finish::StopString if calls => "tool_calls",
        Finish::EndToken | Finish::StopString => "stop",
        // The reply is not whole. OpenAI has one word for that.
        Finish::Length | Finish::ContextFull | Finish::Deadline | Finish::Cancelled => "length",
    }
}

/// `usage` of completions.
pub(super) fn usage(totals: Totals) -> Value {
    json!({
        "prompt_tokens": totals.prompt_tokens,
        "completion_tokens": totals.reply_tokens,
        "total_tokens": totals.prompt_tokens + totals.reply_tokens,
        "prompt_tokens_details": { "cached_tokens": totals.cached_tokens },
        "completion_tokens_details": { "reasoning_tokens": totals.reasoning_tokens },
    })
}

/// How a reply is to be sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sending {
    pub(super) stream: bool,
    /// A last chunk has the usage.
    pub(super) usage: bool,
}

/// `stream` and `stream_options`.
pub(super) fn sending(fields: &mut Fields) -> Result<Sending, Problem> {
    let stream = fields.flag("stream")?.unwrap_or(false);
    let mut usage = false;
    if let Some(mut options) = fields.object("stream_options")? {
        if !stream {
            return Err(fields.problem("stream_options", "is only for replies that are streamed"));
        }
        usage = options.flag("include_usage")?.unwrap_or(false);
        options.ignore(&["include_obfuscation"]);
        options.finish()?;
    }
    Ok(Sending { stream, usage })
}
