//! How fast a workload may follow what its metrics ask for: pure (`normalizeDesiredReplicas` of `horizontal.go`).
//!
//! What was asked for and what was done are remembered as long as a rule asks for it, and no longer.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::replicas::Tolerance;
use crate::base::json::{at, int, list, text};
use crate::base::quantity::Quantity;

/// How long the highest recent wish holds where nothing is said.
const DOWN_WINDOW_SECONDS: i64 = 300;
/// Without rules there are at most so many times as many pods at once, or so many.
const UP_FACTOR: f64 = 2.0;
const UP_LEAST: f64 = 4.0;
const TOLERANCE: f64 = 0.1;
/// Wishes that are remembered; one comes every 15 seconds, and with each change.
const REMEMBERED_MAX: usize = 2000;

/// What happened to one autoscaler.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct History {
    wishes: Vec<(i32, Timestamp)>,
    ups: Vec<(i32, Timestamp)>,
    downs: Vec<(i32, Timestamp)>,
}

/// What the rules of an autoscaler say.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rules {
    pub min: i32,
    pub max: i32,
    /// Up and down; `None` where there is no behaviour.
    behavior: Option<(Direction, Direction)>,
}

#[derive(Clone, Debug, PartialEq)]
struct Direction {
    window: Duration,
    select: Select,
    policies: Vec<Policy>,
    tolerance: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Select {
    Most,
    Least,
    Disabled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Policy {
    is_percent: bool,
    value: i64,
    period: Duration,
}

/// What becomes of a wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub replicas: i32,
    /// Reason and message of `AbleToScale`.
    pub able: (&'static str, &'static str),
    /// Whether `ScalingLimited`, its reason and message.
    pub limited: (bool, &'static str, &'static str),
}

const READY: (&str, &str) = ("ReadyForNewScale", "recommended size matches current size");
const UP_STABILIZED: (&str, &str) = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const DOWN_STABILIZED: (&str, &str) = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const WITHIN: (&str, &str) = ("DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_FAST_UP: (&str, &str) =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const TOO_FAST_DOWN: (&str, &str) =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");
const TOO_MANY: (&str, &str) = ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: (&str, &str) = ("TooFewReplicas", "the desired replica count is less than the minimum replica count");

// === impl Rules ===

impl Rules {
    pub(super) fn of(hpa: &Value) -> Self {
        let count = |path: &str, least: i32| int(hpa, path).and_then(|n| i32::try_from(n).ok()).unwrap_or(least);
        let behavior = at(hpa, "spec.behavior").filter(|b| b.is_object()).map(|behavior| {
            let direction = |key: &str, window: i64| Direction::of(behavior.get(key).unwrap_or(&Value::Null), window);
            (direction("scaleUp", 0), direction("scaleDown", DOWN_WINDOW_SECONDS))
        });
        Self { min: count("spec.minReplicas", 1), max: count("spec.maxReplicas", 1), behavior }
    }

    pub(super) fn tolerance(&self) -> Tolerance {
        let of = |direction: Option<&Direction>| direction.and_then(|d| d.tolerance).unwrap_or(TOLERANCE);
        let (up, down) = self.behavior.as_ref().map_or((None, None), |(up, down)| (Some(up), Some(down)));
        Tolerance { up: of(up), down: of(down) }
    }
}

// === impl Direction ===

impl Direction {
    fn of(rules: &Value, window: i64) -> Self {
        let seconds = |n: i64| Duration::from_secs(n.max(0).unsigned_abs());
        Self {
            window: seconds(int(rules, "stabilizationWindowSeconds").unwrap_or(window)),
            select: match text(rules, "selectPolicy") {
                "Disabled" => Select::Disabled,
                "Min" => Select::Least,
                _ => Select::Most,
            },
            policies: list(rules, "policies")
                .iter()
                .map(|policy| Policy {
                    is_percent: text(policy, "type") == "Percent",
                    value: int(policy, "value").unwrap_or(0),
                    period: seconds(int(policy, "periodSeconds").unwrap_or(0)),
                })
                .collect(),
            tolerance: text(rules, "tolerance").parse::<Quantity>().ok().map(|quantity| quantity.as_f64()),
        }
    }

    fn longest(&self) -> Duration {
        self.policies.iter().map(|policy| policy.period).max().unwrap_or_default()
    }

    /// The most pods that there may be now.
    fn most(&self, current: i32, ups: &[(i32, Timestamp)], downs: &[(i32, Timestamp)], now: Timestamp) -> i32 {
        let proposed = |policy: &Policy| {
            let start = i64::from(current) - changed(ups, policy.period, now) + changed(downs, policy.period, now);
            match policy.is_percent {
                true => (start as f64 * (1.0 + policy.value as f64 / 100.0)).ceil() as i64,
                false => start.saturating_add(policy.value),
            }
        };
        let limit = match self.select {
            Select::Disabled => return current,
            Select::Least => self.policies.iter().map(proposed).min(),
            Select::Most => self.policies.iter().map(proposed).max(),
        };
        narrowed(limit.unwrap_or(0)).max(current)
    }

    /// The fewest pods that there may be now.
    fn fewest(&self, current: i32, ups: &[(i32, Timestamp)], downs: &[(i32, Timestamp)], now: Timestamp) -> i32 {
        let proposed = |policy: &Policy| {
            let start = i64::from(current) - changed(ups, policy.period, now) + changed(downs, policy.period, now);
            match policy.is_percent {
                true => (start as f64 * (1.0 - policy.value as f64 / 100.0)) as i64,
                false => start.saturating_sub(policy.value),
            }
        };
        let limit = match self.select {
            Select::Disabled => return current,
            Select::Least => self.policies.iter().map(proposed).max(),
            Select::Most => self.policies.iter().map(proposed).min(),
        };
        narrowed(limit.unwrap_or(i64::MAX)).min(current)
    }
}

fn narrowed(replicas: i64) -> i32 {
    i32::try_from(replicas.max(i64::from(i32::MIN))).unwrap_or(i32::MAX)
}

/// How many pods came, or went, in a period.
fn changed(events: &[(i32, Timestamp)], period: Duration, now: Timestamp) -> i64 {
    events.iter().filter(|(_, at)| *at + period > now).map(|(change, _)| i64::from(*change)).sum()
}

// === impl History ===

impl History {
    /// The first look: what there is was wished for.
    pub(super) fn begin(&mut self, current: i32, now: Timestamp) {
        if self.wishes.is_empty() {
            self.wishes.push((current, now));
        }
    }

    /// What becomes of a wish.
    pub(super) fn decide(&mut self, rules: &Rules, current: i32, wish: i32, now: Timestamp) -> Decision {
        match &rules.behavior {
            None => self.decide_plainly(rules, current, wish, now),
            Some((up, down)) => self.decide_by(rules, up, down, current, wish, now),
        }
    }

    fn decide_plainly(&mut self, rules: &Rules, current: i32, wish: i32, now: Timestamp) -> Decision {
        let window = Duration::from_secs(DOWN_WINDOW_SECONDS.unsigned_abs());
        self.forget(window, now);
        let highest = self.wishes.iter().map(|(wish, _)| *wish).max().unwrap_or(wish).max(wish);
        self.wishes.push((wish, now));
        let fastest = (UP_FACTOR * f64::from(current)).max(UP_LEAST).min(f64::from(i32::MAX)) as i32;
        let (most, why) = if rules.max > fastest { (fastest, TOO_FAST_UP) } else { (rules.max, TOO_MANY) };
        let (replicas, why) = match highest {
            few if few < rules.min => (rules.min, TOO_FEW),
            many if many > most => (most, why),
            within => (within, WITHIN),
        };
        Decision {
            replicas,
            able: if highest == wish { READY } else { DOWN_STABILIZED },
            limited: (replicas != highest, why.0, why.1),
        }
    }

    fn decide_by(
        &mut self,
        rules: &Rules,
        up: &Direction,
        down: &Direction,
        current: i32,
        wish: i32,
        now: Timestamp,
    ) -> Decision {
        self.forget(up.window.max(down.window), now);
        let recent = |window: Duration| self.wishes.iter().filter(move |(_, at)| *at + window > now).map(|(w, _)| *w);
        // Up only as far as every recent wish, down only as far as any.
        let least = recent(up.window).min().unwrap_or(wish).min(wish);
        let highest = recent(down.window).max().unwrap_or(wish).max(wish);
        let stable = if current < least {
            least
        } else if current > highest {
            highest
        } else {
            current
        };
        let able = match () {
            () if stable == wish => READY,
            () if wish >= current => UP_STABILIZED,
            () => DOWN_STABILIZED,
        };
        self.wishes.push((wish, now));
        let (replicas, why) = match stable {
            more if more > current => {
                let fastest = up.most(current, &self.ups, &self.downs, now);
                let (most, why) = if rules.max > fastest { (fastest, TOO_FAST_UP) } else { (rules.max, TOO_MANY) };
                if more > most { (most, why) } else { (more, WITHIN) }
            }
            fewer if fewer < current => {
                let slowest = down.fewest(current, &self.ups, &self.downs, now);
                let (least, why) = if rules.min < slowest { (slowest, TOO_FAST_DOWN) } else { (rules.min, TOO_FEW) };
                if fewer < least { (least, why) } else { (fewer, WITHIN) }
            }
            same => (same, WITHIN),
        };
        Decision { replicas, able, limited: (replicas != stable, why.0, why.1) }
    }

    /// Notes what was done.
    pub(super) fn scaled(&mut self, rules: &Rules, from: i32, to: i32, now: Timestamp) {
        let Some((up, down)) = &rules.behavior else { return };
        let (events, longest) =
            if to > from { (&mut self.ups, up.longest()) } else { (&mut self.downs, down.longest()) };
        events.retain(|(_, at)| *at + longest >= now);
        events.push(((to - from).abs(), now));
        bound(events);
    }

    fn forget(&mut self, window: Duration, now: Timestamp) {
        self.wishes.retain(|(_, at)| *at + window >= now);
        bound(&mut self.wishes);
    }
}

fn bound(events: &mut Vec<(i32, Timestamp)>) {
    let excess = events.len().saturating_sub(REMEMBERED_MAX);
    events.drain(..excess);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn at_second(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn rules(min: i32, max: i32, behavior: Value) -> Rules {
        let mut hpa = json!({"spec": {"minReplicas": min, "maxReplicas": max}});
        if !behavior.is_null() {
            hpa["spec"]["behavior"] = behavior;
        }
        Rules::of(&hpa)
    }

    fn policy(of_type: &str, value: i64, seconds: i64) -> Value {
        json!({"type": of_type, "value": value, "periodSeconds": seconds})
    }

    #[test]
    fn without_rules_it_doubles_and_waits_five_minutes_to_shrink() {
        let rules = rules(2, 50, Value::Null);
        let mut history = History::default();
        history.begin(10, at_second(0));
        let up = history.decide(&rules, 10, 40, at_second(15));
        assert_eq!(
            (up.replicas, up.able.0, up.limited),
            (20, "ReadyForNewScale", (true, TOO_FAST_UP.0, TOO_FAST_UP.1))
        );
        let down = history.decide(&rules, 20, 1, at_second(30));
        assert_eq!((down.replicas, down.able.0), (40, "ScaleDownStabilized"));
        let later = history.decide(&rules, 20, 1, at_second(330));
        assert_eq!((later.replicas, later.able.0, later.limited.1), (2, "ReadyForNewScale", "TooFewReplicas"));
        let full = history.decide(&rules, 40, 90, at_second(345));
        assert_eq!((full.replicas, full.limited.1), (50, "TooManyReplicas"));
    }

    #[test]
    fn windows_hold_a_wish_back_in_both_directions() {
        let behavior = json!({
            "scaleUp": {"stabilizationWindowSeconds": 60, "selectPolicy": "Max", "policies": [policy("Percent", 1000, 15)]},
            "scaleDown": {"stabilizationWindowSeconds": 30, "selectPolicy": "Max", "policies": [policy("Percent", 100, 15)]}});
        let rules = rules(1, 100, behavior);
        let mut history = History::default();
        history.begin(5, at_second(0));
        let held = history.decide(&rules, 5, 10, at_second(15));
        assert_eq!((held.replicas, held.able.0), (5, "ScaleUpStabilized"));
        assert_eq!(history.decide(&rules, 5, 9, at_second(61)).replicas, 9, "the lowest of a minute");
        let held = history.decide(&rules, 9, 3, at_second(75));
        assert_eq!((held.replicas, held.able.0), (9, "ScaleDownStabilized"));
        assert_eq!(history.decide(&rules, 9, 3, at_second(95)).replicas, 3);
    }

    #[test]
    fn policies_bound_the_speed_and_disabled_stops_it() {
        let behavior = |select: &str| {
            json!({
            "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": select,
                "policies": [policy("Pods", 4, 60), policy("Percent", 50, 60)]},
            "scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": select,
                "policies": [policy("Pods", 4, 60), policy("Percent", 50, 60)]}})
        };
        let outcome = |select: &str, wish: i32| {
            let (rules, mut history) = (rules(1, 100, behavior(select)), History::default());
            let decision = history.decide(&rules, 10, wish, at_second(0));
            (decision.replicas, decision.limited.1)
        };
        assert_eq!(outcome("Max", 50), (15, "ScaleUpLimit"));
        assert_eq!(outcome("Min", 50), (14, "ScaleUpLimit"));
        assert_eq!(outcome("Disabled", 50), (10, "ScaleUpLimit"));
        assert_eq!(outcome("Max", 1), (5, "ScaleDownLimit"));
        assert_eq!(outcome("Min", 1), (6, "ScaleDownLimit"));
        assert_eq!(outcome("Disabled", 1), (10, "ScaleDownLimit"));
        assert_eq!(outcome("Max", 12), (12, "DesiredWithinRange"));
        let (rules, mut history) = (rules(1, 100, behavior("Max")), History::default());
        history.scaled(&rules, 10, 15, at_second(0));
        assert_eq!(history.decide(&rules, 15, 50, at_second(30)).replicas, 15, "the period's share is used up");
        assert_eq!(history.decide(&rules, 15, 50, at_second(61)).replicas, 23);
    }

    #[test]
    fn tolerance_is_a_tenth_or_what_is_said() {
        assert_eq!(rules(1, 2, Value::Null).tolerance(), Tolerance { up: 0.1, down: 0.1 });
        let said = json!({"scaleUp": {"tolerance": "0"}, "scaleDown": {"tolerance": "250m"}});
        assert_eq!(rules(1, 2, said).tolerance(), Tolerance { up: 0.0, down: 0.25 });
    }

    proptest! {
        /// Whatever is wished for, the bounds hold, and nothing moves against the wish.
        #[test]
        fn bounds_hold_and_nothing_moves_against_the_wish(
            wishes in prop::collection::vec((0i32..200, 1i64..120), 1..60),
            min in 1i32..20, more in 0i32..50, has_behavior in any::<bool>(),
            up in (0i64..120, 1i64..50, 1i64..120), down in (0i64..120, 1i64..100, 1i64..120),
        ) {
            let behavior = json!({
                "scaleUp": {"stabilizationWindowSeconds": up.0, "selectPolicy": "Max", "policies": [policy("Pods", up.1, up.2)]},
                "scaleDown": {"stabilizationWindowSeconds": down.0, "selectPolicy": "Max", "policies": [policy("Percent", down.1, down.2)]}});
            let rules = rules(min, min + more, if has_behavior { behavior } else { Value::Null });
            let (mut history, mut current, mut second) = (History::default(), min, 0);
            for (wish, passed) in wishes {
                second += passed;
                let now = at_second(second);
                history.begin(current, now);
                let decision = history.decide(&rules, current, wish, now);
                prop_assert!((rules.min..=rules.max).contains(&decision.replicas), "{decision:?}");
                if has_behavior {
                    prop_assert!(wish < current || decision.replicas >= current, "{decision:?} of {wish} at {current}");
                    prop_assert!(wish > current || decision.replicas <= current, "{decision:?} of {wish} at {current}");
                }
                history.scaled(&rules, current, decision.replicas, now);
                current = decision.replicas;
            }
            prop_assert!(history.wishes.len() <= REMEMBERED_MAX + 1);
        }
    }
}
