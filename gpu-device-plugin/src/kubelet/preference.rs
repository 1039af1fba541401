//! Which of the free GPUs a container gets: a pure rule.

use std::collections::BTreeSet;

/// Chooses `size` devices out of `available`, the required ones among them.
///
/// `order` says which device comes first (the lower value; equals by name), so that the same
/// question has the same answer. The answer holds every required device, even where that is
/// more than `size` or where one is not available, and no device twice. It holds fewer than
/// `size` only where there are not so many.
pub fn choose<K: Ord>(
    available: &[String],
    required: &[String],
    size: usize,
    order: impl Fn(&str) -> K,
) -> Vec<String> {
    let mut taken = BTreeSet::new();
    let mut chosen: Vec<String> = required
        .iter()
        .filter(|id| taken.insert(id.as_str()))
        .cloned()
        .collect();
    let mut free: Vec<&str> = available
        .iter()
        .map(String::as_str)
        .filter(|id| taken.insert(id))
        .collect();
    free.sort_by_cached_key(|id| (order(id), (*id).to_owned()));
    let missing = size.saturating_sub(chosen.len());
    chosen.extend(free.into_iter().take(missing).map(str::to_owned));
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn index(id: &str) -> usize {
        id.trim_start_matches('g').parse().unwrap_or(usize::MAX)
    }

    #[test]
    fn free_devices_are_taken_in_order_after_the_required_ones() {
        let all: Vec<String> = ["g10", "g2", "g1", "g3"].map(str::to_owned).to_vec();
        let required = ["g3".to_owned()];
        assert_eq!(choose(&all, &required, 3, index), ["g3", "g1", "g2"]);
        assert_eq!(choose(&all, &[], 0, index), Vec::<String>::new());
    }

    fn ids() -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec((0..40_u32).prop_map(|id| format!("g{id}")), 0..40)
    }

    proptest! {
        #[test]
        fn the_answer_holds_what_is_required_is_large_enough_and_names_nothing_twice(
            available in ids(), required in ids(), size in 0..60_usize,
        ) {
            let chosen = choose(&available, &required, size, index);
            let distinct: BTreeSet<_> = chosen.iter().collect();
            prop_assert_eq!(distinct.len(), chosen.len());
            for id in &required {
                prop_assert!(distinct.contains(id));
            }
            for id in &chosen {
                prop_assert!(available.contains(id) || required.contains(id));
            }
            let all: BTreeSet<_> = available.iter().chain(&required).collect();
            let must: BTreeSet<_> = required.iter().collect();
            prop_assert_eq!(chosen.len(), size.min(all.len()).max(must.len()));
        }

        #[test]
        fn the_answer_does_not_depend_on_the_order_of_the_question(
            mut available in ids(), size in 0..60_usize, required in ids(),
        ) {
            let first = choose(&available, &required, size, index);
            available.reverse();
            prop_assert_eq!(choose(&available, &required, size, index), first);
        }
    }
}
