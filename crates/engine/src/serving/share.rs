//! How prompts share the rows of a step.

/// Shares `rows` among `wanted` evenly: nobody gets more than it wants, and what one leaves goes to the others. If there are
/// rows for all, each gets one at least; what cannot be halved goes to those that stand first.
pub(super) fn evenly(rows: usize, wanted: &[usize]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    // Who wants least is served first, and leaves the most to the others.
    order.sort_by_key(|i| (wanted[*i], std::cmp::Reverse(*i)));
    let (mut left, mut shares) = (rows, vec![0; wanted.len()]);
    for (served, i) in order.iter().enumerate() {
        let share = left / (wanted.len() - served);
        shares[*i] = share.min(wanted[*i]);
        left -= shares[*i];
    }
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_one_leaves_goes_to_the_others() {
        assert_eq!(evenly(100, &[1000, 10, 1000]), [45, 10, 45]);
        assert_eq!(evenly(101, &[1000, 1000]), [51, 50]);
        assert_eq!(evenly(2, &[9, 9, 9]), [1, 1, 0]);
        assert_eq!(evenly(5, &[]), [0; 0]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nobody_starves(rows in 0usize..200, wanted in prop::collection::vec(1usize..100, 1..9)) {
            let shares = evenly(rows, &wanted);
            let total: usize = wanted.iter().sum();
            prop_assert_eq!(shares.iter().sum::<usize>(), rows.min(total));
            for (share, wanted) in shares.iter().zip(&wanted) {
                prop_assert!(share <= wanted);
                prop_assert!(*share >= (rows / shares.len()).min(*wanted));
            }
        }
    }
}
