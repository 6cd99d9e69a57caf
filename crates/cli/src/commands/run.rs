//! `tessera run`: one prompt, one reply.

use std::{
    io::{self, Write},
    sync::atomic::AtomicBool,
};

use anyhow::Result;
use serde_json::{Value, json};
use tessera_engine::Message;

use crate::{
    args::Run,
    generation::{Piece, Reply, reply, request},
    input,
    model::Model,
    talk::{Conversation, Show},
    ui::{self, Failure},
};

/// Generates the reply and prints it as it comes.
pub(crate) fn main(args: &Run) -> Result<()> {
    let (name, prompt) = input::model_and_text(args.model.as_deref(), args.prompt.as_deref());
    // Read before the model is fetched and loaded: a missing prompt is known at once.
    let prompt = input::text_or_stdin(prompt, "prompt")?;
    if prompt.is_empty() {
        return Err(Failure::new("the prompt is empty", "give some text").into());
    }
    let mut model = Model::open(&name, &args.engine)?.keeping(&args.keep);
    let (tokens, parser) = match conversation(args, &model)? {
        Some(talk) => {
            let (tokens, parser) = talk.prompt(model.tokenizer(), &messages(args, &prompt))?;
            (tokens, Some(parser))
        }
        None => (model.raw_prompt(&prompt)?, None),
    };
    let request = request(&args.sampling, args.logprobs, tokens);
    let mut printer = Printer {
        show: (!args.json).then(|| Show::new(&args.talk)),
        logprobs: args.logprobs.is_some(),
        tokens: Vec::new(),
    };
    let reply = reply(&mut model, &request, parser, &AtomicBool::new(false), &mut |piece| printer.piece(piece))?;
    printer.end(&name, &reply)?;
    model.save_state()?;
    if args.engine.stats {
        ui::note(&reply.stats());
    }
    Ok(())
}

/// The conversation that the prompt begins; none where it is to be continued as it is.
fn conversation(args: &Run, model: &Model) -> Result<Option<Conversation>> {
    if args.raw {
        return Ok(None);
    }
    let asked_for_chat = args.talk.template.is_some() || args.system.is_some() || args.tools.is_some();
    if !asked_for_chat && !model.has_template()? {
        // Such models were trained to continue a text, not to talk.
        ui::note("note: this model has no chat template; it continues the prompt as it is (--raw says so)");
        return Ok(None);
    }
    model.conversation(&args.talk, args.tools.as_deref()).map(Some)
}

fn messages(args: &Run, prompt: &[u8]) -> Vec<Message> {
    let system = args.system.iter().map(|text| Message::new("system", text));
    system.chain([Message::new("user", String::from_utf8_lossy(prompt))]).collect()
}

/// Prints a reply, at once or as one object at its end.
struct Printer {
    /// None for JSON.
    show: Option<Show>,
    logprobs: bool,
    tokens: Vec<Value>,
}

impl Printer {
    fn piece(&mut self, piece: Piece) -> Result<()> {
        match piece {
            Piece::Chat(event) => {
                if let Some(show) = &mut self.show {
                    show.event(&event)?;
                }
            }
            Piece::Token(token) if self.logprobs && self.show.is_none() => {
                let top = token.top.iter().map(|(id, text, p)| json!({ "id": id, "text": text, "logprob": p }));
                let top: Vec<_> = top.collect();
                self.tokens.push(json!({ "id": token.id, "text": token.text, "logprob": token.logprob, "top": top }));
            }
            Piece::Token(token) if self.logprobs => {
                let top = token.top.iter().map(|(_, text, p)| format!("  {text:?} {p:.3}")).collect::<String>();
                ui::note(&format!("{:?} {:.3}{top}", token.text, token.logprob.unwrap_or(f32::NAN)));
            }
            Piece::Token(_) => {}
        }
        Ok(())
    }

    fn end(self, model: &str, reply: &Reply) -> Result<()> {
        let mut out = io::stdout().lock();
        if self.show.is_some() {
            return Ok(writeln!(out)?);
        }
        let mut object = json!({
            "model": model,
            "text": reply.message.content,
            "finish_reason": reply.finish_reason(),
            "prompt_tokens": reply.outcome.prompt_tokens,
            "cached_tokens": reply.outcome.reused_tokens,
            "reply_tokens": reply.outcome.tokens.len(),
            "seed": reply.seed,
            "prefill_tokens_per_second": reply.prefill_speed(),
            "decode_tokens_per_second": reply.decode_speed(),
        });
        if !reply.message.reasoning.is_empty() {
            object["reasoning"] = reply.message.reasoning.as_str().into();
        }
        if !reply.message.calls.is_empty() {
            object["tool_calls"] = serde_json::to_value(&reply.message.calls)?;
        }
        if self.logprobs {
            object["tokens"] = Value::Array(self.tokens);
        }
        Ok(writeln!(out, "{object}")?)
    }
}
