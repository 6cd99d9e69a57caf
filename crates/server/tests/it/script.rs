//! A model that says what a test wrote, so that replies break where they should; behind what was written it ends.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tessera_engine::{
    Config, Error, LanguageModel, Special, Tokenizer,
    state::{Identity, Owner},
};
use tessera_ops::Batch;

/// What is said in a request: in its first attempt, and in each that begins further to the front.
#[derive(Clone, Default)]
pub(crate) struct Script(Arc<Shared>);

#[derive(Default)]
struct Shared {
    tokenizers: Mutex<HashMap<String, Arc<Tokenizer>>>,
    play: Mutex<Play>,
}

#[derive(Default)]
struct Play {
    texts: Vec<String>,
    /// The same in the tokens of the model that is asked; none before it is.
    replies: Vec<Vec<u32>>,
    attempts: Vec<Attempt>,
}

/// Positions of rows whose logits were wanted: the first of all, the first of the last step, and the last.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    first: u32,
    step: u32,
    last: u32,
}

impl Script {
    /// What the attempts of the next request say. One at a time; until then, and without this, the model is as it is.
    pub(crate) fn say(&self, replies: &[&str]) {
        let texts = replies.iter().map(|text| (*text).to_owned()).collect();
        *self.0.play.lock().unwrap() = Play { texts, ..Play::default() };
    }

    /// Tokens of a text, its marks as such.
    pub(crate) fn tokens(&self, model: &str, text: &str) -> usize {
        tokens(&self.0.tokenizers.lock().unwrap()[model], text).len()
    }

    /// Tokens up to the one with which the text holds this, that one too.
    pub(crate) fn tokens_with(&self, model: &str, text: &str, part: &str) -> usize {
        let tokenizer = &self.0.tokenizers.lock().unwrap()[model];
        let tokens = tokens(tokenizer, text);
        let holds = |n: &usize| String::from_utf8_lossy(&tokenizer.decode(&tokens[..*n])).contains(part);
        (1..=tokens.len()).find(holds).unwrap()
    }

    /// How many attempts there were.
    pub(crate) fn attempts(&self) -> usize {
        self.0.play.lock().unwrap().attempts.len()
    }

    /// Behind how many tokens of the first attempt's reply the second began.
    pub(crate) fn kept(&self) -> usize {
        let play = self.0.play.lock().unwrap();
        (play.attempts[1].first - play.attempts[0].first) as usize
    }

    /// The model of this name, by this script.
    pub(crate) fn acted(
        &self,
        name: &str,
        model: Box<dyn LanguageModel>,
        tokenizer: &Arc<Tokenizer>,
    ) -> Box<dyn LanguageModel> {
        self.0.tokenizers.lock().unwrap().insert(name.to_owned(), tokenizer.clone());
        let end = tokenizer.ends_of_generation().next().unwrap();
        Box::new(Actor { model, script: self.clone(), tokenizer: tokenizer.clone(), end })
    }
}

fn tokens(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, Special::Parse, false).unwrap()
}

impl Play {
    /// Which attempt a step goes on with, whose rows are these.
    fn attempt(&mut self, (first, last): (u32, u32)) -> usize {
        // A step may verify drafts, and the next one goes over those that were wrong.
        let goes_on = |a: &Attempt| a.step < first && first <= a.last + 1;
        let index = self.attempts.iter().rposition(goes_on).unwrap_or(self.attempts.len());
        if index == self.attempts.len() {
            self.attempts.push(Attempt { first, step: first, last });
        }
        let attempt = &mut self.attempts[index];
        (attempt.step, attempt.last) = (first, last.max(attempt.last));
        index
    }
}

struct Actor {
    model: Box<dyn LanguageModel>,
    script: Script,
    tokenizer: Arc<Tokenizer>,
    end: u32,
}

impl LanguageModel for Actor {
    fn config(&self) -> &Config {
        self.model.config()
    }
    fn cache_tokens(&self) -> usize {
        self.model.cache_tokens()
    }
    fn cache_bytes(&self) -> usize {
        self.model.cache_bytes()
    }
    fn roles_agree(&self) -> bool {
        self.model.roles_agree()
    }
    fn forward(&mut self, batch: &Batch, logits: &mut Vec<f32>) -> Result<(), Error> {
        self.model.forward(batch, logits)?;
        let mut play = self.script.0.play.lock().unwrap();
        if play.texts.is_empty() {
            return Ok(());
        }
        if play.replies.is_empty() {
            play.replies = play.texts.iter().map(|text| tokens(&self.tokenizer, text)).collect();
        }
        let vocabulary = logits.len() / batch.logit_rows.len().max(1);
        let sequence = |row: &u32| batch.sequences[*row as usize];
        let mut at = 0;
        for rows in batch.logit_rows.chunk_by(|a, b| sequence(a) == sequence(b)) {
            let positions: Vec<u32> = rows.iter().map(|row| batch.positions[*row as usize]).collect();
            let attempt = play.attempt((positions[0], positions[positions.len() - 1]));
            let first = play.attempts[attempt].first;
            for position in positions {
                let said = play.replies.get(attempt).and_then(|said| said.get((position - first) as usize));
                logits[at * vocabulary + *said.unwrap_or(&self.end) as usize] = 1e4;
                at += 1;
            }
        }
        Ok(())
    }
    fn forward_hidden(&mut self, batch: &Batch, logits: &mut Vec<f32>, hidden: &mut Vec<f32>) -> Result<(), Error> {
        self.model.forward_hidden(batch, logits, hidden)
    }
    fn owner(&self, identity: &Identity) -> Result<Owner, Error> {
        self.model.owner(identity)
    }
    fn read_page(&self, page: u32, out: &mut Vec<u8>) -> Result<(), Error> {
        self.model.read_page(page, out)
    }
    fn write_page(&mut self, page: u32, bytes: &[u8]) -> Result<(), Error> {
        self.model.write_page(page, bytes)
    }
}
