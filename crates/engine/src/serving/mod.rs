//! Many requests on one model at once.
//!
//! [`Engine`] is the loop without a thread: each [`Engine::step`] admits requests, plans one batch, runs it, samples and
//! emits events. Time comes from a [`Clock`], so that a test can play any history again. [`EngineHandle`] runs it on a
//! thread of its own and can be shared by many.
//!
//! The promise: for the same request and seed the reply is the same, byte for byte, alone and among others, whatever was in the
//! cache, however prompts were cut, whether it was pre-empted, with and without speculation. It holds because a row of a batch
//! depends on its own sequence only, and because a token's random number depends on the seed and the token's index only.
//!
//! The rules of a step:
//!
//! - Requests rank by priority, then by arrival. The first that waits is admitted when a slot is free and the cache has room
//!   for all that it knows; who comes after it waits too, so nobody is overtaken for ever.
//! - Every sequence that decodes is in every step. Prompts share the rest of [`Options::step_tokens`] evenly; beside
//!   decodes they get fewer rows, so that a step takes at most [`Options::stall`] times as long as without them, by
//!   the times measured so far.
//! - So of P prompts that are being computed each gets at least 1/P of what a step has for prompts, and at least one row,
//!   however long the others are ([`Options::prompt_rows`]).
//! - When pages run out, the request that ranks last gives up its own and waits again. What it has said is kept; keys
//!   and values are computed again, each token in the role that it had.

mod active;
mod costs;
mod draw;
mod engine;
mod event;
mod gauges;
mod handle;
mod options;
mod pace;
mod plan;
mod request;
mod share;
pub mod speculation;

pub use engine::{Clock, Engine, MonotonicClock};
pub use event::{Event, Outcome, SpeculationUse, Usage};
pub use gauges::{Counters, Gauges};
pub use handle::{EngineHandle, Replies, Sink, Ticket};
pub use options::Options;
pub use request::{Constraint, Job, Refused, RequestId, Speculation};
