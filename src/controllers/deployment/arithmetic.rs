//! Rollout arithmetic: how many pods each set should have. Pure numbers, no objects.
//!
//! The formulas are those of `k8s.io/kubernetes/pkg/controller/deployment`, with one difference: what a set counts for is
//! the larger of its wanted and its actual replicas when pods are added, and the smaller of its wanted and its available
//! replicas when pods are taken. Kubernetes counts only the wanted ones and so passes the bounds for moments.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::controllers::amount::resolve;

/// What rollouts look at in a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    /// `spec.replicas`.
    pub(super) wanted: i32,
    /// `status.replicas`.
    pub(super) actual: i32,
    /// `status.availableReplicas`.
    pub(super) available: i32,
}

/// How far a rollout may go beyond and below the wanted number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) replicas: i32,
    pub(super) surge: i32,
    pub(super) unavailable: i32,
}

// === impl Count ===

impl Count {
    fn most(self) -> i32 {
        self.wanted.max(self.actual)
    }

    fn surely_available(self) -> i32 {
        self.available.min(self.wanted)
    }
}

// === impl Bounds ===

impl Bounds {
    /// From the strategy's values: surge rounds up, unavailable down, and not both may be zero.
    pub(super) fn new(replicas: i32, surge: Option<&IntOrString>, unavailable: Option<&IntOrString>) -> Self {
        let quarter = IntOrString::String("25%".into());
        let surge = resolve(surge.unwrap_or(&quarter), replicas, true);
        let mut unavailable = resolve(unavailable.unwrap_or(&quarter), replicas, false);
        if surge == 0 && unavailable == 0 {
            unavailable = 1;
        }
        Self { replicas, surge, unavailable: unavailable.min(replicas) }
    }

    /// As a Recreate has it: no surge, everything may be away.
    pub(super) fn recreate(replicas: i32) -> Self {
        Self { replicas, surge: 0, unavailable: 0 }
    }

    /// The most pods that there may be.
    pub(super) fn total_max(self) -> i32 {
        self.replicas + self.surge
    }

    /// The fewest available pods.
    pub(super) fn available_min(self) -> i32 {
        self.replicas - self.unavailable
    }
}

/// How many replicas a set that begins has in a rolling update.
pub(super) fn new_set_replicas(bounds: Bounds, new: Count, others: &[Count]) -> i32 {
    let current = new.most() + others.iter().map(|c| c.most()).sum::<i32>();
    if new.wanted >= bounds.replicas {
        return bounds.replicas;
    }
    if current >= bounds.total_max() {
        return new.wanted;
    }
    new.wanted + (bounds.total_max() - current).min(bounds.replicas - new.wanted)
}

/// The replicas of the old sets (oldest first) after a step down.
pub(super) fn old_sets_replicas(bounds: Bounds, new: Count, old: &[Count]) -> Vec<i32> {
    let mut out: Vec<i32> = old.iter().map(|c| c.wanted).collect();
    let total = new.wanted + out.iter().sum::<i32>();
    let new_unavailable = (new.wanted - new.surely_available()).max(0);
    let budget = total - bounds.available_min() - new_unavailable;
    if budget <= 0 {
        return out;
    }
    // First the pods that are of no use to anybody.
    let mut taken = 0;
    for (replicas, count) in out.iter_mut().zip(old) {
        let down = (*replicas - count.surely_available()).min(budget - taken);
        if down > 0 {
            *replicas -= down;
            taken += down;
        }
    }
    let available = new.surely_available()
        + out.iter().zip(old).map(|(replicas, c)| c.surely_available().min(*replicas)).sum::<i32>();
    let mut spare = available - bounds.available_min();
    for replicas in &mut out {
        let down = (*replicas).min(spare);
        if down > 0 {
            *replicas -= down;
            spare -= down;
        }
    }
    out
}

/// The share of a set in a change of the whole Deployment by `change`, of which `added` has been given away.
/// `max_before` is how many replicas there could be when the set was scaled last.
pub(super) fn proportion(bounds: Bounds, wanted: i32, max_before: i32, change: i32, added: i32) -> i32 {
    if wanted == 0 || change == 0 || change == added {
        return 0;
    }
    let allowed = change - added;
    let fraction = if bounds.replicas == 0 {
        -wanted
    } else {
        let size = f64::from(wanted) * f64::from(bounds.total_max()) / f64::from(max_before.max(1));
        #[allow(clippy::cast_possible_truncation)] // Of the size of replica counts.
        let rounded = size.round() as i32;
        rounded - wanted
    };
    if change > 0 { fraction.min(allowed) } else { fraction.max(allowed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn percent(text: &str) -> IntOrString {
        IntOrString::String(text.into())
    }

    #[test]
    fn percentages_round_as_in_kubernetes() {
        for (replicas, surge, unavailable, expect) in [
            (10, "25%", "25%", (3, 2)),
            (1, "25%", "25%", (1, 0)),
            (3, "0%", "10%", (0, 1)),
            (2, "0%", "100%", (0, 2)),
            (0, "25%", "25%", (0, 0)),
        ] {
            let b = Bounds::new(replicas, Some(&percent(surge)), Some(&percent(unavailable)));
            assert_eq!((b.surge, b.unavailable), expect, "{replicas} {surge} {unavailable}");
        }
        assert_eq!(Bounds::new(4, Some(&IntOrString::Int(0)), Some(&IntOrString::Int(0))).unavailable, 1);
        assert_eq!(Bounds::new(4, Some(&IntOrString::Int(9)), Some(&IntOrString::Int(9))).unavailable, 4);
    }

    #[test]
    fn proportional_scaling_follows_the_documented_example() {
        // 10 replicas, surge 3; 13 pods in two sets (8 old, 5 new) grow to 15 wanted.
        let b = Bounds { replicas: 15, surge: 3, unavailable: 2 };
        let first = proportion(b, 8, 13, 5, 0);
        let second = proportion(b, 5, 13, 5, first);
        assert_eq!((first, second), (3, 2));
    }

    proptest! {
        /// A rollout that is driven to its end keeps both bounds at every step, whatever order things happen in.
        #[test]
        fn rollouts_keep_their_bounds(
            replicas in 1..20i32, surge in 0..10i32, unavailable in 0..10i32, olds in 1..4usize,
            choices in proptest::collection::vec(0..4u8, 1..400),
        ) {
            let b = Bounds::new(replicas, Some(&IntOrString::Int(surge)), Some(&IntOrString::Int(unavailable)));
            let mut new = Count::default();
            let mut old = vec![Count::default(); olds];
            old[olds - 1] = Count { wanted: replicas, actual: replicas, available: replicas };
            let mut quiet = 0;
            for c in choices.iter().copied().chain(std::iter::repeat_n([0, 1, 2, 3], 200).flatten()) {
                let before = (new, old.clone());
                match c {
                    0 => new.wanted = new_set_replicas(b, new, &old),
                    1 => {
                        let wanted = old_sets_replicas(b, new, &old);
                        old.iter_mut().zip(wanted).for_each(|(o, w)| o.wanted = w);
                    }
                    // The ReplicaSet controller: adds pods, or takes unavailable ones first.
                    2 => for s in old.iter_mut().chain([&mut new]) {
                        s.actual = s.wanted;
                        s.available = s.available.min(s.actual);
                    },
                    _ => new.available = (new.available + 1).min(new.actual),
                }
                let total: i32 = new.actual + old.iter().map(|o| o.actual).sum::<i32>();
                let available: i32 = new.available + old.iter().map(|o| o.available).sum::<i32>();
                prop_assert!(total <= b.total_max(), "{total} pods of at most {}", b.total_max());
                prop_assert!(available >= b.available_min(), "{available} available of at least {}", b.available_min());
                quiet = if (new, old.clone()) == before { quiet + 1 } else { 0 };
            }
            prop_assert_eq!(new.available, replicas);
            prop_assert!(old.iter().all(|o| o.actual == 0));
            prop_assert!(quiet >= 4);
        }
    }
}
