//! Speeds with and without drafts on their way out: tables for people, lines of CSV, or one JSON object.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::Duration,
};

use anyhow::Result;
use serde::Serialize;

use super::{passes::Passes, times::Times};
use crate::commands::bench::{args::Output, row::Facts};

/// All of it.
#[derive(Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    pub(super) facts: Facts,
    pub(super) forced: String,
    pub(super) test: &'static str,
    pub(super) prompt: usize,
    pub(super) tokens: usize,
    pub(super) repeats: usize,
    /// The chance with which drafts were made right.
    pub(super) right: Option<f64>,
    pub(super) plain: Plain,
    pub(super) drafted: Vec<Drafted>,
    /// Of tokens and logits, which were the same in all.
    pub(super) hash: String,
}

/// Seconds of a run.
#[derive(Clone, Serialize)]
struct Speed {
    seconds: f64,
    seconds_min: f64,
    seconds_max: f64,
    tokens_per_second: f64,
}

impl Speed {
    fn new(tokens: usize, times: &Times) -> Speed {
        let (seconds, seconds_min, seconds_max) = (times.median(), times.least(), times.greatest());
        Speed { seconds, seconds_min, seconds_max, tokens_per_second: tokens as f64 / seconds }
    }
}

/// Without drafts.
#[derive(Serialize)]
pub(super) struct Plain {
    #[serde(flatten)]
    speed: Speed,
    /// Of one step.
    step_seconds: f64,
    #[serde(skip)]
    stages: BTreeMap<&'static str, f64>,
}

impl Plain {
    /// Of so many tokens; `stages` are those of one step.
    pub(super) fn new(tokens: usize, times: &Times, stages: BTreeMap<&'static str, f64>) -> Plain {
        let speed = Speed::new(tokens, times);
        Plain { step_seconds: speed.seconds / tokens as f64, speed, stages }
    }
}

/// With so many drafts a pass.
#[derive(Serialize)]
pub(super) struct Drafted {
    drafts: usize,
    #[serde(flatten)]
    speed: Speed,
    /// Tokens a second over those without drafts.
    gain: f64,
    /// Whether each token, and the logits it was drawn from, are those without drafts: else there would be an error in place of this.
    identical: bool,
    passes: usize,
    tokens_per_pass: f64,
    /// Of a pass with all drafts: its steps, and the first over a step without drafts.
    verify_seconds: f64,
    verify_over_step: f64,
    draft_seconds: f64,
    /// Forgetting what was computed of wrong drafts.
    state_seconds: f64,
    accepted: Vec<Accepted>,
    stages: Vec<Stage>,
}

/// Drafts at one place.
#[derive(Serialize)]
struct Accepted {
    position: usize,
    tried: usize,
    right: usize,
    rate: f64,
}

/// A stage: seconds in a step without drafts, in a verification, and in the drafts of a pass.
#[derive(Serialize)]
struct Stage {
    stage: &'static str,
    step_seconds: f64,
    verify_seconds: f64,
    draft_seconds: f64,
}

impl Drafted {
    /// Of repeated runs; `stages` are those of one pass, of verification and of drafts.
    pub(super) fn new(
        drafts: usize,
        runs: &[Passes],
        plain: &Plain,
        stages: BTreeMap<&'static str, [f64; 2]>,
    ) -> Drafted {
        let times = |time: &dyn Fn(&Passes) -> Duration| {
            let mut times = Times::default();
            runs.iter().for_each(|passes| times.push(time(passes)));
            times
        };
        let of_pass = |which: usize| times(&|p| p.whole_times[which] / p.whole.max(1) as u32).median();
        let [verify_seconds, draft_seconds, state_seconds] = [0, 1, 2].map(of_pass);
        let first = &runs[0];
        let speed = Speed::new(first.told.len() - 1, &times(&Passes::time));
        let accepted = first.tried.iter().zip(&first.right).enumerate().map(|(at, (tried, right))| Accepted {
            position: at + 1,
            tried: *tried,
            right: *right,
            rate: if *tried == 0 { 0.0 } else { *right as f64 / *tried as f64 },
        });
        let stages = stages.into_iter().map(|(stage, [verify_seconds, draft_seconds])| {
            let step_seconds = plain.stages.get(stage).copied().unwrap_or(0.0);
            Stage { stage, step_seconds, verify_seconds, draft_seconds }
        });
        let mut stages: Vec<Stage> = stages.collect();
        stages.sort_by(|a, b| b.verify_seconds.total_cmp(&a.verify_seconds));
        Drafted {
            drafts,
            gain: speed.tokens_per_second / plain.speed.tokens_per_second,
            speed,
            identical: true,
            passes: first.count,
            tokens_per_pass: first.tokens_per_pass(),
            verify_seconds,
            verify_over_step: verify_seconds / plain.step_seconds,
            draft_seconds,
            state_seconds,
            accepted: accepted.collect(),
            stages,
        }
    }
}

impl Report {
    /// Prints it.
    ///
    /// # Errors
    /// If stdout is closed.
    pub(super) fn print(&self, output: &Output) -> Result<()> {
        let mut out = io::BufWriter::new(io::stdout().lock());
        if output.json {
            writeln!(out, "{}", serde_json::to_string(self)?)?;
        } else if output.csv {
            writeln!(out, "drafts,stage,step_seconds,verify_seconds,draft_seconds")?;
            for (drafted, s) in self.drafted.iter().flat_map(|d| d.stages.iter().map(move |s| (d, s))) {
                let Stage { stage, step_seconds, verify_seconds, draft_seconds } = s;
                writeln!(out, "{},{stage},{step_seconds},{verify_seconds},{draft_seconds}", drafted.drafts)?;
            }
        } else {
            self.print_tables(&mut out)?;
        }
        Ok(out.flush()?)
    }

    fn print_tables(&self, out: &mut impl Write) -> io::Result<()> {
        let Report { prompt, tokens, repeats, plain, .. } = self;
        let chance = self.right.map_or_else(String::new, |p| format!(", drafts made right with a chance of {p}"));
        let repeats = if *repeats == 1 { "once".to_owned() } else { format!("median of {repeats}") };
        writeln!(out, "{}; {repeats}", self.facts.heading(&self.forced))?;
        writeln!(
            out,
            "{tokens} greedy tokens after {prompt}{chance}; the same with drafts to the last bit: {}",
            self.hash
        )?;
        let rate = plain.speed.tokens_per_second;
        writeln!(out, "without drafts: {:.3} ms a step, {rate:.1} tokens/s\n", plain.step_seconds * 1e3)?;
        writeln!(
            out,
            "{:>6}{:>10}{:>7}{:>13}{:>11}{:>7}{:>10}{:>10}  right by position",
            "drafts", "tokens/s", "gain", "tokens/pass", "verify ms", "times", "draft ms", "state ms"
        )?;
        for d in &self.drafted {
            let rates: String = d.accepted.iter().map(|a| format!(" {:.0}%", 100.0 * a.rate)).collect();
            let (rate, millis) = (d.speed.tokens_per_second, |s: f64| s * 1e3);
            writeln!(
                out,
                "{:>6}{rate:>10.1}{:>7.2}{:>13.2}{:>11.3}{:>7.2}{:>10.3}{:>10.3} {rates}",
                d.drafts,
                d.gain,
                d.tokens_per_pass,
                millis(d.verify_seconds),
                d.verify_over_step,
                millis(d.draft_seconds),
                millis(d.state_seconds),
            )?;
        }
        self.drafted.iter().try_for_each(|d| d.print_stages(out))
    }
}

impl Drafted {
    fn print_stages(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "\nstages of a pass of {} rows, by themselves (ms)", self.drafts + 1)?;
        writeln!(out, "{:<14}{:>10}{:>10}{:>7}{:>10}", "stage", "step", "verify", "times", "draft")?;
        for Stage { stage, step_seconds, verify_seconds, draft_seconds } in &self.stages {
            let times =
                if *step_seconds > 0.0 { format!("{:.2}", verify_seconds / step_seconds) } else { String::new() };
            let [step, verify, draft] = [step_seconds, verify_seconds, draft_seconds].map(|s| s * 1e3);
            writeln!(out, "{stage:<14}{step:>10.3}{verify:>10.3}{times:>7}{draft:>10.3}")?;
        }
        Ok(())
    }
}
