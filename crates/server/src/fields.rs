//! Takes a request's JSON apart, field by field, so that nothing in it is overlooked: a field that nobody asked for, or with a
//! value that cannot be served, is an error that names it.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::problem::Problem;

/// An object of which fields are taken one by one. Null is as good as missing.
#[derive(Debug)]
pub(crate) struct Fields {
    at: String,
    map: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Fields {
    /// The object that stands at `at`; nothing there is the whole body.
    pub(crate) fn of(value: Value, at: impl Into<String>) -> Result<Fields, Problem> {
        let at = at.into();
        match value {
            Value::Object(map) => Ok(Fields { at, map, known: Vec::new() }),
            other => Err(wrong(&at, &other, "an object")),
        }
    }

    /// Where a field stands.
    pub(crate) fn path(&self, name: &str) -> String {
        if self.at.is_empty() { name.to_owned() } else { format!("{}.{name}", self.at) }
    }

    /// An error about a field.
    pub(crate) fn problem(&self, name: &str, message: impl std::fmt::Display) -> Problem {
        let path = self.path(name);
        Problem::invalid(format!("`{path}` {message}")).about(path)
    }

    /// A value of any kind.
    pub(crate) fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        // Not `remove`, which would move the last field to its place.
        self.map.shift_remove(name).filter(|value| !value.is_null())
    }

    /// As [`Fields::take`], of a field that must be there.
    pub(crate) fn need<T>(&self, name: &str, value: Option<T>) -> Result<T, Problem> {
        value.ok_or_else(|| self.problem(name, "is missing"))
    }

    pub(crate) fn text(&mut self, name: &'static str) -> Result<Option<String>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(&self.path(name), &other, "a string")),
        }
    }

    pub(crate) fn flag(&mut self, name: &'static str) -> Result<Option<bool>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong(&self.path(name), &other, "true or false")),
        }
    }

    pub(crate) fn whole(&mut self, name: &'static str, range: RangeInclusive<u64>) -> Result<Option<u64>, Problem> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let found = value.as_u64().filter(|n| range.contains(n));
        let expected = match *range.end() {
            u64::MAX => format!("a whole number of at least {}", range.start()),
            end => format!("a whole number from {} to {end}", range.start()),
        };
        found.map(Some).ok_or_else(|| wrong(&self.path(name), &value, &expected))
    }

    pub(crate) fn number(&mut self, name: &'static str, range: RangeInclusive<f64>) -> Result<Option<f32>, Problem> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let found = value.as_f64().filter(|n| range.contains(n)).map(|n| n as f32);
        let expected = format!("a number from {} to {}", range.start(), range.end());
        found.map(Some).ok_or_else(|| wrong(&self.path(name), &value, &expected))
    }

    pub(crate) fn list(&mut self, name: &'static str) -> Result<Option<Vec<Value>>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(wrong(&self.path(name), &other, "an array")),
        }
    }

    pub(crate) fn object(&mut self, name: &'static str) -> Result<Option<Fields>, Problem> {
        let path = self.path(name);
        self.take(name).map(|value| Fields::of(value, path)).transpose()
    }

    /// One of some words.
    pub(crate) fn word(&mut self, name: &'static str, words: &[&'static str]) -> Result<Option<&'static str>, Problem> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let found = value.as_str().and_then(|text| words.iter().find(|word| **word == text));
        found.map(|word| Some(*word)).ok_or_else(|| wrong(&self.path(name), &value, &one_of(words)))
    }

    /// A text, or a list of texts.
    pub(crate) fn texts(&mut self, name: &'static str) -> Result<Vec<String>, Problem> {
        let path = self.path(name);
        let text = |value: Value| match value {
            Value::String(text) => Ok(text),
            other => Err(wrong(&path, &other, "a string or an array of strings")),
        };
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.into_iter().map(text).collect(),
            Some(one) => Ok(vec![text(one)?]),
        }
    }

    /// All fields that are left.
    pub(crate) fn all(mut self) -> std::collections::BTreeMap<String, Value> {
        std::mem::take(&mut self.map).into_iter().collect()
    }

    /// Fields that may be there and mean nothing to this server.
    pub(crate) fn ignore(&mut self, names: &[&'static str]) {
        for name in names {
            self.take(name);
        }
    }

    /// A field of which only these values can be served: they ask for nothing.
    pub(crate) fn only(&mut self, name: &'static str, harmless: &[Value], why: &str) -> Result<(), Problem> {
        match self.take(name) {
            Some(value) if !harmless.contains(&value) => {
                Err(self.problem(name, format_args!("is not supported: {why}")))
            }
            _ => Ok(()),
        }
    }

    /// At the end: refuses what nobody took.
    pub(crate) fn finish(self) -> Result<(), Problem> {
        let Some(name) = self.map.keys().next() else { return Ok(()) };
        let path = self.path(name);
        let mut known = self.known;
        known.sort_unstable();
        known.dedup();
        let known = known.join("`, `");
        Err(Problem::invalid(format!("unknown field `{}`; known here are `{known}`", short(&path))).about(path))
    }
}

/// The error that `value` is not what is expected at `path`.
pub(crate) fn wrong(path: &str, value: &Value, expected: &str) -> Problem {
    let what = if path.is_empty() { "the body".to_owned() } else { format!("`{path}`") };
    let found = match value {
        Value::Object(_) => "an object".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        other => short(&other.to_string()),
    };
    Problem::invalid(format!("{what} is {found}; it must be {expected}")).about(path)
}

/// Words as a sentence names them.
pub(crate) fn one_of(words: &[&str]) -> String {
    match words {
        [one] => format!("`{one}`"),
        _ => format!("one of `{}`", words.join("`, `")),
    }
}

/// The beginning of a text that a stranger wrote.
fn short(text: &str) -> String {
    const CHARS: usize = 60;
    if text.chars().count() <= CHARS { text.to_owned() } else { text.chars().take(CHARS).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::of(value, "").unwrap()
    }

    #[test]
    fn every_kind_is_checked_and_named() {
        let mut f = fields(json!({"a": 1, "b": "x", "c": true, "d": 7.5, "e": [1], "f": {}, "g": null, "w": "two"}));
        assert_eq!(f.whole("a", 0..=1).unwrap(), Some(1));
        assert_eq!(f.text("b").unwrap().as_deref(), Some("x"));
        assert_eq!(f.flag("c").unwrap(), Some(true));
        assert_eq!(f.number("d", 0.0..=8.0).unwrap(), Some(7.5));
        assert_eq!(f.list("e").unwrap(), Some(vec![json!(1)]));
        assert!(f.object("f").unwrap().is_some());
        assert_eq!(f.text("g").unwrap(), None);
        assert_eq!(f.word("w", &["one", "two"]).unwrap(), Some("two"));
        assert_eq!(f.text("missing").unwrap(), None);
        f.finish().unwrap();
        type Take = fn(&mut Fields) -> Option<Problem>;
        let wrongs: [(Value, Take, &str); 8] = [
            (json!({"x": 2}), |f| f.whole("x", 0..=1).err(), "`x` is 2; it must be a whole number from 0 to 1"),
            (
                json!({"x": -1}),
                |f| f.whole("x", 0..=u64::MAX).err(),
                "`x` is -1; it must be a whole number of at least 0",
            ),
            (json!({"x": 2}), |f| f.text("x").err(), "`x` is 2; it must be a string"),
            (json!({"x": "y"}), |f| f.flag("x").err(), "`x` is \"y\"; it must be true or false"),
            (json!({"x": 9}), |f| f.number("x", 0.0..=2.0).err(), "`x` is 9; it must be a number from 0 to 2"),
            (json!({"x": {}}), |f| f.list("x").err(), "`x` is an object; it must be an array"),
            (json!({"x": []}), |f| f.object("x").err(), "`x` is an array; it must be an object"),
            (json!({"x": "z"}), |f| f.word("x", &["one", "two"]).err(), "`x` is \"z\"; it must be one of `one`, `two`"),
        ];
        for (value, take, message) in wrongs {
            let problem = take(&mut fields(value)).unwrap();
            assert_eq!((problem.message.as_str(), problem.param.as_deref()), (message, Some("x")));
        }
    }

    #[test]
    fn what_nobody_took_is_refused_by_its_path() {
        let mut outer = fields(json!({"inner": {"known": 1, "odd": 2}}));
        let mut inner = outer.object("inner").unwrap().unwrap();
        inner.whole("known", 0..=9).unwrap();
        let problem = inner.finish().unwrap_err();
        assert_eq!(problem.message, "unknown field `inner.odd`; known here are `known`");
        assert_eq!(problem.param.as_deref(), Some("inner.odd"));
        let mut f = fields(json!({"best_of": 2}));
        let problem = f.only("best_of", &[json!(1)], "ask for `n` replies instead").unwrap_err();
        assert_eq!(problem.message, "`best_of` is not supported: ask for `n` replies instead");
        fields(json!({"best_of": 1})).only("best_of", &[json!(1)], "").unwrap();
    }
}
