//! Which experts a token goes to, and with what weight: the choice of a mixture of experts, as data and as functions.
//!
//! A row of router logits becomes scores; the best `slots` experts by *choice* (score plus bias) are chosen, from the best
//! groups only where there are groups; their scores, normalised and scaled, are the weights of the sum over experts.
//! Routing is not continuous: a last bit may flip an expert. So the whole order is fixed: equal choices go by the lowest
//! id, slots stand in the order of choice, and NaN comes before every number, so that it is chosen and shows.
//! `numerics` states the formulas.

use std::ops::{Add, Range};

/// The most groups of experts.
pub const EXPERT_GROUPS_MAX: usize = 64;

/// The least sum that weights are divided by, so that scores which are all zero stay zero ([`Score::sum_min`]).
pub const WEIGHT_SUM_MIN: f32 = 1e-20;

/// That of [`Score::SqrtSoftplus`]: 2^-14, as its models were trained.
pub const SQRT_SOFTPLUS_SUM_MIN: f32 = 6.103_515_6e-5;

/// What logits become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Score {
    /// Softmax over all experts (Shazeer et al. 2017; Qwen, Mixtral).
    Softmax,
    /// Each logit's sigmoid (DeepSeek V3, GLM 4.5).
    Sigmoid,
    /// The choice is made by logits, and the weights are the softmax over the chosen ones (gpt-oss).
    SoftmaxOfChosen,
    /// The root of each logit's softplus (DeepSeek V4).
    SqrtSoftplus,
}

impl Score {
    /// All of them.
    pub const ALL: [Score; 4] = [Score::Softmax, Score::Sigmoid, Score::SoftmaxOfChosen, Score::SqrtSoftplus];

    /// The least sum that weights are divided by.
    pub const fn sum_min(self) -> f32 {
        match self {
            Score::SqrtSoftplus => SQRT_SOFTPLUS_SUM_MIN,
            Score::Softmax | Score::Sigmoid | Score::SoftmaxOfChosen => WEIGHT_SUM_MIN,
        }
    }
}

/// Experts in equal groups, of which a token may use a few (DeepSeek-AI 2024).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExpertGroups {
    /// How many groups; group g holds experts `g * experts / count` and up.
    pub count: usize,
    /// How many of them are kept.
    pub kept: usize,
    /// A group is judged by the sum of this many of its best choices (1 in DeepSeek V2, 2 in V3).
    pub judged_by: usize,
}

/// How a token's experts are chosen and weighed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// What logits become.
    pub score: Score,
    /// Experts of a token.
    pub slots: usize,
    /// Limits the choice to some groups.
    pub groups: Option<ExpertGroups>,
    /// Whether a token's weights are divided by their sum.
    pub normalise: bool,
    /// Factor on all weights.
    pub scale: f32,
}

impl Routing {
    /// Holds what must be true of a routing over `experts` experts.
    ///
    /// # Panics
    /// Where there are fewer experts than slots, or groups are not equal or hold too few: a model's loader has to
    /// refuse these.
    pub fn check(&self, experts: usize) {
        assert!((1..=experts).contains(&self.slots), "a token has at least one slot, and an expert for each");
        if let Some(groups) = self.groups {
            assert!((1..=EXPERT_GROUPS_MAX).contains(&groups.count), "there are 1 to 64 groups of experts");
            assert!(experts.is_multiple_of(groups.count), "groups of experts are equal");
            assert!((1..=groups.count).contains(&groups.kept), "some groups are kept");
            let size = experts / groups.count;
            assert!((1..=size).contains(&groups.judged_by), "a group is judged by some of its experts");
            assert!(groups.kept * size >= self.slots, "the groups kept have an expert for each slot");
        }
    }
}

/// Whether `a` is chosen before `b` whatever their ids: the larger first, NaN before all.
#[inline(always)]
#[allow(clippy::eq_op)] // NaN alone differs from itself
fn ahead<T: Copy + PartialOrd>(a: T, b: T) -> bool {
    a > b || (a != a && b == b)
}

/// The order of choice of two values, whatever their ids.
pub(crate) fn order<T: Copy + PartialOrd>(a: T, b: T) -> std::cmp::Ordering {
    ahead(b, a).cmp(&ahead(a, b))
}

/// Puts `id` into the sorted list `best[..found]` if it belongs there; gives how many there are now. Ids come ascending,
/// so an equal value stays behind the earlier id.
#[inline(always)]
fn insert<T: Copy + PartialOrd>(values: &[T], best: &mut [u32], found: usize, id: usize) -> usize {
    let value = values[id];
    if found == best.len() && !ahead(value, values[best[found - 1] as usize]) {
        return found;
    }
    let mut at = found.min(best.len() - 1);
    while at > 0 && ahead(value, values[best[at - 1] as usize]) {
        best[at] = best[at - 1];
        at -= 1;
    }
    best[at] = id as u32;
    (found + 1).min(best.len())
}

/// The ids of the best values among `ids`, in order, as many as `best` takes.
///
/// # Panics
/// If there are fewer ids.
fn top<T: Copy + PartialOrd>(values: &[T], ids: impl Iterator<Item = usize>, best: &mut [u32]) {
    let mut found = 0;
    for id in ids {
        found = insert(values, best, found, id);
    }
    assert_eq!(found, best.len(), "there is one for each place");
}

/// Chooses experts by `choice` (experts) into `chosen` (slots), in the order of slots. Allocates nothing.
///
/// # Panics
/// Where [`Routing::check`] does.
pub fn choose<T>(choice: &[T], routing: &Routing, chosen: &mut [u32])
where
    T: Copy + PartialOrd + Default + Add<Output = T>,
{
    routing.check(choice.len());
    assert_eq!(chosen.len(), routing.slots, "a place for each slot");
    let Some(groups) = routing.groups else {
        return top(choice, 0..choice.len(), chosen);
    };
    let size = choice.len() / groups.count;
    let members = |group: usize| -> Range<usize> { group * size..(group + 1) * size };
    let mut judged = [T::default(); EXPERT_GROUPS_MAX];
    for (group, judged) in judged[..groups.count].iter_mut().enumerate() {
        // Best by best, each the first after the one before.
        let mut last: Option<usize> = None;
        for _ in 0..groups.judged_by {
            let after = |id: usize| match last {
                None => true,
                Some(l) => ahead(choice[l], choice[id]) || (!ahead(choice[id], choice[l]) && id > l),
            };
            let mut next = [0u32];
            top(choice, members(group).filter(|id| after(*id)), &mut next);
            last = Some(next[0] as usize);
            *judged = *judged + choice[next[0] as usize];
        }
    }
    let mut kept = [0u32; EXPERT_GROUPS_MAX];
    let kept = &mut kept[..groups.kept];
    top(&judged[..groups.count], 0..groups.count, kept);
    kept.sort_unstable();
    top(choice, kept.iter().flat_map(|g| members(*g as usize)), chosen);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain(slots: usize) -> Routing {
        Routing { score: Score::Softmax, slots, groups: None, normalise: false, scale: 1.0 }
    }

    fn chosen(choice: &[f32], routing: &Routing) -> Vec<u32> {
        let mut chosen = vec![u32::MAX; routing.slots];
        choose(choice, routing, &mut chosen);
        chosen
    }

    #[test]
    fn equal_choices_go_by_the_lowest_id_and_nan_comes_first() {
        assert_eq!(chosen(&[1.0; 5], &plain(3)), [0, 1, 2]);
        assert_eq!(chosen(&[0.0, 2.0, -0.0, 2.0, 1.0], &plain(5)), [1, 3, 4, 0, 2]);
        assert_eq!(chosen(&[1.0, f32::NAN, f32::INFINITY, -f32::NAN], &plain(4)), [1, 3, 2, 0]);
        assert_eq!(chosen(&[f32::NEG_INFINITY; 3], &plain(2)), [0, 1]);
    }

    #[test]
    fn groups_are_judged_by_their_best_and_the_rest_is_out() {
        let choice = [9.0, 0.0, 0.0, 5.0, 5.0, 0.0, 8.0, 1.0, 0.0, 6.0, 4.0, 0.0];
        let with = |kept, judged_by| Routing { groups: Some(ExpertGroups { count: 4, kept, judged_by }), ..plain(2) };
        assert_eq!(chosen(&choice, &with(4, 1)), [0, 6]);
        assert_eq!(chosen(&choice, &with(2, 1)), [0, 6]);
        // Sums of two: 9, 10, 9, 10: the equal ones go by the lowest group.
        assert_eq!(chosen(&choice, &with(1, 2)), [3, 4]);
        assert_eq!(chosen(&choice, &with(2, 2)), [9, 3]);
        assert_eq!(chosen(&choice, &with(3, 2)), [0, 9]);
    }

    #[test]
    fn a_routing_that_cannot_be_is_refused() {
        let with =
            |count, kept, judged_by| Routing { groups: Some(ExpertGroups { count, kept, judged_by }), ..plain(4) };
        for bad in [plain(0), plain(9), with(3, 1, 1), with(2, 0, 1), with(2, 3, 1), with(2, 1, 5), with(4, 1, 1)] {
            assert!(std::panic::catch_unwind(|| bad.check(8)).is_err(), "{bad:?}");
        }
        with(4, 2, 2).check(8);
    }

    proptest! {
        /// A stable sort says the same.
        #[test]
        fn the_choice_is_a_stable_sort(
            choice in prop::collection::vec((-4i8..4).prop_map(f32::from), 1..40),
            slots in 1usize..40,
        ) {
            let slots = slots.min(choice.len());
            let mut ids: Vec<u32> = (0..choice.len() as u32).collect();
            ids.sort_by(|a, b| choice[*b as usize].total_cmp(&choice[*a as usize]));
            prop_assert_eq!(&chosen(&choice, &plain(slots))[..], &ids[..slots]);
        }
    }
}
