//! Subjects: projections to experts and back, and the routing of tokens.

use tessera_formats::DType;

use super::{
    Op, Settings,
    compare::Arithmetic,
    inputs::{IDS, Inputs, Table, batch, beside, numbers, read, weights},
    matmul::short_depth,
    subject::{Arrangement, Facts, Job, Subject, all_widths, widest},
};
use crate::{Device, Error, ExpertGroups, LinearStack, MatrixSource, Router, Routing, Score};

/// Rows of an expert: no whole number of any tile's.
const ROWS: usize = 19;

/// Where a subject's tokens go.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Crowd {
    /// Two of five experts each, interleaved; the last expert stays empty.
    Spread,
    /// All to the middle one of three, the others empty: it has as many rows as the step.
    One,
}

impl Crowd {
    fn experts(self) -> u32 {
        if self == Crowd::Spread { 5 } else { 3 }
    }

    fn slots(self) -> u32 {
        if self == Crowd::Spread { 2 } else { 1 }
    }

    /// The expert in a slot of a token.
    fn expert(self, id: u32, slot: u32) -> u32 {
        // Strides that differ from slot to slot, over the experts but the last.
        let occupied = self.experts() - 1;
        if self == Crowd::Spread { (id + slot * (1 + id / occupied % (occupied - 1))) % occupied } else { 1 }
    }

    /// Logits that route so: (ids, experts).
    fn logits(self, ids: u32) -> Vec<f32> {
        let mut logits = vec![-4.0; (ids * self.experts()) as usize];
        for (id, slot) in (0..ids).flat_map(|id| (0..self.slots()).map(move |slot| (id, slot))) {
            logits[(id * self.experts() + self.expert(id, slot)) as usize] = 3.0 - 0.37 * slot as f32;
        }
        logits
    }
}

/// Adds the subjects of one format.
pub(super) fn jobs<D: Device>(settings: &Settings, dtype: DType, jobs: &mut Vec<Job<D>>) {
    for op in [Op::Routed, Op::Combine].into_iter().filter(|op| settings.wants(*op)) {
        for crowd in [Crowd::One, Crowd::Spread] {
            // With several experts and slots, passes are told apart at fewer tokens; at the widest all are in one.
            let most = if crowd == Crowd::One { usize::MAX } else { 4 * super::SWEPT_TOKENS + 1 };
            let arrangements = all_widths(settings, IDS, true, most.min(widest(settings, dtype)));
            let make = move || Experts::new(op, crowd, dtype, arrangements);
            jobs.push(Job::of_format(settings, op, dtype, make));
        }
    }
}

/// Two stacks of experts over one input, or one on the way back.
struct Experts {
    op: Op,
    crowd: Crowd,
    source: MatrixSource,
    second: MatrixSource,
    bias: Vec<f32>,
    x: Inputs,
    logits: Inputs,
    arrangements: Vec<Arrangement>,
}

impl Experts {
    fn new(op: Op, crowd: Crowd, dtype: DType, arrangements: Vec<Arrangement>) -> Experts {
        let (experts, depth) = (crowd.experts() as usize, short_depth(dtype));
        // On the way back every place has a row of its own.
        let rows_each = if op == Op::Combine { crowd.slots() as usize } else { 1 };
        Experts {
            op,
            crowd,
            source: weights("experts", dtype, experts * ROWS, depth),
            second: weights("more experts", dtype, experts * 3, depth),
            bias: numbers("bias", experts * ROWS),
            x: Inputs::new("x", IDS as usize * rows_each, rows_each, depth),
            // The row that is no number is routed like any other.
            logits: Inputs::of("logits", experts, &crowd.logits(IDS + 1)),
            arrangements,
        }
    }
}

/// Stacks, the input and the logits on a device.
pub(super) struct Loaded<D: Device> {
    first: LinearStack<D>,
    second: LinearStack<D>,
    x: Table<D>,
    logits: Table<D>,
}

impl Subject for Experts {
    type Loaded<D: Device> = Loaded<D>;

    fn facts(&self) -> Facts {
        let crowd = match self.crowd {
            Crowd::Spread => "one empty",
            Crowd::One => "all rows in one",
        };
        let dtype = self.source.dtype;
        Facts {
            op: self.op,
            format: dtype.name(),
            shape: format!("{} experts of {ROWS} x {}, {crowd}", self.crowd.experts(), self.source.depth),
            ids: IDS,
            has_bad: true,
            arithmetic: if dtype.is_float() { Arithmetic::Rounded } else { Arithmetic::Quantized },
        }
    }

    fn arrangements(&self) -> Vec<Arrangement> {
        self.arrangements.clone()
    }

    fn load<D: Device>(&self, device: &D) -> Result<Loaded<D>, Error> {
        let count = self.crowd.experts() as usize;
        let bias = Some(device.load_vector(&self.bias)?);
        Ok(Loaded {
            first: LinearStack { matrices: device.load_stack(&self.source, count)?, bias },
            second: LinearStack { matrices: device.load_stack(&self.second, count)?, bias: None },
            x: self.x.load(device)?,
            logits: self.logits.load(device)?,
        })
    }

    fn run<D: Device>(&self, device: &D, on: &Loaded<D>, steps: &[Vec<u32>]) -> Result<Vec<f32>, Error> {
        let slots = self.crowd.slots();
        let routing =
            Routing { score: Score::Softmax, slots: slots as usize, groups: None, normalise: true, scale: 1.5 };
        let router = Router { routing, bias: None, factors: None };
        let mut out = vec![];
        for ids in steps {
            let routes = device.route(&on.logits.rows(device, &batch(ids)), &router);
            if self.op == Op::Combine {
                let places: Vec<u32> = ids.iter().flat_map(|id| (0..slots).map(move |s| id * slots + s)).collect();
                let x = on.x.rows(device, &batch(&places));
                out.extend(read(device, &device.combine_routed(&x, &on.first, &routes))?);
            } else {
                let x = on.x.rows(device, &batch(ids));
                let y = device.project_routed(&x, [&on.first, &on.second], &routes);
                out.extend(beside(&[read(device, &y[0])?, read(device, &y[1])?], ids.len()));
            }
        }
        Ok(out)
    }
}

/// Adds the subjects of routing.
pub(super) fn route_jobs<D: Device>(settings: &Settings, jobs: &mut Vec<Job<D>>) {
    if !settings.wants(Op::Route) {
        return;
    }
    let groups = Some(ExpertGroups { count: 6, kept: 2, judged_by: 2 });
    for score in Score::ALL {
        for (experts, slots, groups) in [(60, 1, None), (60, 8, None), (17, 17, None), (60, 4, groups)] {
            for (extra, chosen) in [(false, false), (true, false), (true, true)] {
                let routing = Routing { score, slots, groups, normalise: slots > 1, scale: 0.7 };
                let arrangements = all_widths(settings, IDS, false, 4 * super::SWEPT_TOKENS + 1);
                let logits = Inputs::new("logits", IDS as usize, 0, experts);
                jobs.push(Job::new(Op::Route, "-", move || Route {
                    routing,
                    experts,
                    extra,
                    chosen,
                    logits,
                    arrangements,
                }));
            }
        }
    }
}

/// A router, with or without bias and factors.
struct Route {
    routing: Routing,
    experts: usize,
    extra: bool,
    /// The experts are given.
    chosen: bool,
    logits: Inputs,
    arrangements: Vec<Arrangement>,
}

impl Subject for Route {
    type Loaded<D: Device> = (Router<D>, Table<D>);

    fn facts(&self) -> Facts {
        let Routing { score, slots, groups, .. } = self.routing;
        let groups = groups.map_or(String::new(), |g| format!(", {} of {} groups", g.kept, g.count));
        let extra = if self.extra { ", bias and factors" } else { "" };
        let chosen = if self.chosen { ", given" } else { "" };
        Facts {
            op: Op::Route,
            format: "-",
            shape: format!("{slots} of {} experts, {score:?}{groups}{extra}{chosen}", self.experts),
            ids: IDS,
            has_bad: false,
            arithmetic: Arithmetic::Rounded,
        }
    }

    fn arrangements(&self) -> Vec<Arrangement> {
        self.arrangements.clone()
    }

    fn load<D: Device>(&self, device: &D) -> Result<Self::Loaded<D>, Error> {
        let vector = |name: &str| device.load_vector(&numbers(name, self.experts));
        let (bias, factors) = if self.extra { (Some(vector("bias")?), Some(vector("factors")?)) } else { (None, None) };
        Ok((Router { routing: self.routing, bias, factors }, self.logits.load(device)?))
    }

    fn run<D: Device>(
        &self,
        device: &D,
        (router, logits): &Self::Loaded<D>,
        steps: &[Vec<u32>],
    ) -> Result<Vec<f32>, Error> {
        let (mut experts, mut weights, mut out) = (vec![], vec![], vec![]);
        for ids in steps {
            let rows = logits.rows(device, &batch(ids));
            let routes = if self.chosen {
                // Strides that differ from token to token, so that slots differ.
                let slots = |id: u32| (0..self.routing.slots as u32).map(move |s| id + s * (1 + id % 3));
                let chosen: Vec<u32> = ids.iter().flat_map(|id| slots(*id)).map(|e| e % self.experts as u32).collect();
                device.route_chosen(&rows, router, device.choices(chosen))
            } else {
                device.route(&rows, router)
            };
            device.read_routes(&routes, &mut experts, &mut weights)?;
            // Ids of experts are small, so f32 holds them.
            let experts = experts.iter().map(|e| *e as f32).collect();
            out.extend(beside(&[experts, std::mem::take(&mut weights)], ids.len()));
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_token_s_experts_differ_and_one_stays_empty() {
        for crowd in [Crowd::Spread, Crowd::One] {
            let mut used = BTreeSet::new();
            for id in 0..IDS {
                let own: BTreeSet<u32> = (0..crowd.slots()).map(|slot| crowd.expert(id, slot)).collect();
                assert_eq!(own.len(), crowd.slots() as usize, "token {id}");
                used.extend(own);
            }
            let want = if crowd == Crowd::Spread { vec![0, 1, 2, 3] } else { vec![1] };
            assert_eq!(used.into_iter().collect::<Vec<_>>(), want);
        }
    }
}
