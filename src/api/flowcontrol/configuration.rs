//! What FlowSchemas and PriorityLevelConfigurations say, made ready for requests: immutable, and replaced whole.
//!
//! Invariant: whatever the objects say, the seats that levels keep for themselves are together no more than there are, what
//! waits is bounded, and the two mandatory levels and schemas are there.

mod matching;

use std::sync::Arc;

use http::HeaderValue;
use serde_json::Value;

use crate::apimachinery::user::{MASTERS, NODES, User};
use crate::base::json::{int, text};
use crate::kinds::flowcontrol::prioritylevelconfiguration::FLOW_WAITING_MAX;
use crate::kinds::flowcontrol::{CATCH_ALL, MANDATORY, flowschema, prioritylevelconfiguration};
pub use matching::Target;
use matching::{Distinguisher, Rule};

/// Requests that run at once: Kubernetes' 400 reading and 200 changing ones.
pub(super) const SEATS: usize = 600;
/// Requests that wait, of all levels.
pub(super) const WAITING_MAX: usize = 6_000;
/// Requests that wait, of a level.
const LEVEL_WAITING_MAX: usize = 1_000;

/// A priority level, in numbers of requests.
#[derive(Clone, Debug)]
pub(super) struct LevelSpec {
    pub(super) name: Arc<str>,
    uid: HeaderValue,
    pub(super) is_exempt: bool,
    /// Its part of all seats.
    pub(super) nominal: usize,
    /// The seats that it does not lend.
    pub(super) guaranteed: usize,
    /// The seats that it has with those that it borrows.
    pub(super) seats_max: usize,
    /// How many wait, and how many of them of one flow; none where they are refused.
    pub(super) waiting_max: usize,
    pub(super) flow_waiting_max: usize,
    /// Where the level stands when seats are free: by what comes first among its schemas.
    pub(super) rank: i64,
    /// Where the level's requests are counted.
    pub(super) slot: usize,
}

/// Which requests are of which level.
#[derive(Debug)]
struct Schema {
    name: Arc<str>,
    uid: HeaderValue,
    precedence: i64,
    /// Of [`Configuration::levels`].
    level: usize,
    distinguisher: Option<Distinguisher>,
    rules: Vec<Rule>,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Configuration {
    /// In the order in which they are tried.
    schemas: Vec<Schema>,
    /// The schema of what no other fits.
    catch_all: usize,
    pub(super) levels: Vec<LevelSpec>,
}

/// Whose a request is, by the configuration at its time.
#[derive(Clone, Debug)]
pub struct Classified {
    configuration: Arc<Configuration>,
    schema: usize,
    /// What it takes turns with others as; none where it needs no seat.
    pub(super) flow: Option<Arc<str>>,
}

pub(super) fn is_privileged(user: &User) -> bool {
    user.is_in(MASTERS) || user.is_in(NODES)
}

/// An object's uid as a header's value; empty where there is no object yet.
fn uid(object: &Value) -> HeaderValue {
    HeaderValue::from_str(text(object, "metadata.uid")).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn name(object: &Value) -> &str {
    text(object, "metadata.name")
}

/// Objects with the mandatory ones that are missing among them.
fn completed(mut objects: Vec<Value>, suggested: fn() -> Vec<Value>) -> Vec<Value> {
    let is_there = |wanted: &str| objects.iter().any(|o| name(o) == wanted);
    if !MANDATORY.iter().all(|wanted| is_there(wanted)) {
        let missing = suggested().into_iter().filter(|o| MANDATORY.contains(&name(o)) && !is_there(name(o)));
        let missing: Vec<Value> = missing.collect();
        objects.extend(missing);
    }
    objects
}

// === impl LevelSpec ===

impl LevelSpec {
    /// How many seats the owner of a flow has: one that is alone leaves half of the level to others, who may come at any time.
    /// Where a schema tells nobody apart, its one flow may have all.
    pub(super) fn owner_seats_max(&self, flow: &str) -> usize {
        match flow.contains('/') {
            true => (self.nominal / 2).max(1),
            false => self.seats_max,
        }
    }
}

// === impl Configuration ===

impl Configuration {
    /// What objects say: FlowSchemas and PriorityLevelConfigurations. A schema of a level that is not there fits nothing.
    pub(super) fn new(schemas: Vec<Value>, levels: Vec<Value>) -> Self {
        let levels = completed(levels, prioritylevelconfiguration::suggested);
        let schemas = completed(schemas, flowschema::suggested);
        let mut levels = level_specs(&levels);
        let mut schemas: Vec<Schema> = schemas.iter().filter_map(|object| Schema::of(object, &levels)).collect();
        schemas.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        for schema in &schemas {
            let rank = &mut levels[schema.level].rank;
            *rank = schema.precedence.min(*rank);
        }
        let catch_all = schemas.iter().position(|s| *s.name == *CATCH_ALL).expect("it is mandatory");
        Self { schemas, catch_all, levels }
    }

    /// What every cluster begins with.
    pub(super) fn suggested() -> Self {
        Self::new(flowschema::suggested(), prioritylevelconfiguration::suggested())
    }

    /// Where requests go whose level has just ended.
    pub(super) fn catch_all(&self) -> &LevelSpec {
        &self.levels[self.schemas[self.catch_all].level]
    }

    /// Of which schema and flow a request is.
    pub(super) fn place(self: &Arc<Self>, user: &User, target: &Target<'_>) -> Classified {
        let fits = self.schemas.iter().position(|s| s.rules.iter().any(|rule| rule.fits(user, target)));
        let schema = fits.unwrap_or(self.catch_all);
        let of = &self.schemas[schema];
        let level = &self.levels[of.level];
        // Who is exempt takes a seat only where some are kept for such requests.
        let flow = (!level.is_exempt || level.nominal > 0).then(|| match of.distinguisher {
            None => of.name.clone(),
            // The owner of a flow is that of its user.
            Some(Distinguisher::ByUser) => format!("{}/{}", user.name, of.name).into(),
            Some(Distinguisher::ByNamespace) => format!("{}/{}", target.namespace, of.name).into(),
        });
        Classified { configuration: self.clone(), schema, flow }
    }
}

/// The levels in numbers: seats by their shares of all.
fn level_specs(objects: &[Value]) -> Vec<LevelSpec> {
    let number = |object: &Value, path: &str| int(object, path).and_then(|n| u64::try_from(n).ok());
    let part = |object: &Value| if text(object, "spec.type") == "Exempt" { "spec.exempt" } else { "spec.limited" };
    let shares = |object: &Value| number(object, &format!("{}.nominalConcurrencyShares", part(object))).unwrap_or(0);
    let all_shares: u64 = objects.iter().map(shares).sum();
    let queue = |object: &&Value| text(object, "spec.limited.limitResponse.type") == "Queue";
    let waiting_max = (WAITING_MAX / objects.iter().filter(queue).count().max(1)).min(LEVEL_WAITING_MAX) as u64;
    let seats = SEATS as u64;
    let percent = |of: u64, percent: u64| of.saturating_mul(percent).saturating_add(50) / 100;
    let mut specs: Vec<LevelSpec> = Vec::new();
    for object in objects {
        let part = part(object);
        let nominal = if all_shares == 0 { 0 } else { (seats * shares(object)).div_ceil(all_shares) };
        let lendable = percent(nominal, number(object, &format!("{part}.lendablePercent")).unwrap_or(0));
        let borrowing = number(object, &format!("{part}.borrowingLimitPercent")).map_or(seats, |p| percent(nominal, p));
        let of_queues = |key: &str| number(object, &format!("{part}.limitResponse.queuing.{key}")).unwrap_or(0);
        let length = if queue(&object) { of_queues("queueLengthLimit") } else { 0 };
        let flow_waiting_max = of_queues("handSize").saturating_mul(length).min(FLOW_WAITING_MAX.unsigned_abs());
        specs.push(LevelSpec {
            name: name(object).into(),
            uid: uid(object),
            is_exempt: part == "spec.exempt",
            nominal: nominal as usize,
            guaranteed: nominal.saturating_sub(lendable) as usize,
            seats_max: nominal.saturating_add(borrowing).min(seats) as usize,
            waiting_max: of_queues("queues").saturating_mul(length).min(waiting_max) as usize,
            flow_waiting_max: flow_waiting_max as usize,
            rank: i64::MAX,
            slot: 0,
        });
    }
    // Each level's seats are rounded up: of very many levels that would be more than there are.
    let guaranteed: usize = specs.iter().map(|spec| spec.guaranteed).sum();
    if guaranteed > SEATS {
        specs.iter_mut().for_each(|spec| spec.guaranteed = spec.guaranteed * SEATS / guaranteed);
    }
    specs
}

// === impl Schema ===

impl Schema {
    /// `None` where there is no such level.
    fn of(object: &Value, levels: &[LevelSpec]) -> Option<Self> {
        let level = text(object, "spec.priorityLevelConfiguration.name");
        Some(Self {
            name: name(object).into(),
            uid: uid(object),
            precedence: int(object, "spec.matchingPrecedence").unwrap_or(i64::MAX),
            level: levels.iter().position(|spec| *spec.name == *level)?,
            distinguisher: Distinguisher::of(text(object, "spec.distinguisherMethod.type")),
            rules: crate::base::json::list(object, "spec.rules").iter().map(Rule::of).collect(),
        })
    }
}

// === impl Classified ===

impl Classified {
    /// The level of the request.
    pub(super) fn level(&self) -> &LevelSpec {
        &self.configuration.levels[self.configuration.schemas[self.schema].level]
    }

    /// The uids of the schema and the level, which a client is told; empty where there is no object yet.
    pub fn uids(&self) -> (&HeaderValue, &HeaderValue) {
        (&self.configuration.schemas[self.schema].uid, &self.level().uid)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn limited(name: &str, shares: i64, more: Value) -> Value {
        let mut limited =
            json!({"nominalConcurrencyShares": shares, "lendablePercent": 0, "limitResponse": {"type": "Reject"}});
        limited.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        json!({"metadata": {"name": name}, "spec": {"type": "Limited", "limited": limited}})
    }

    fn level<'c>(configuration: &'c Configuration, name: &str) -> &'c LevelSpec {
        configuration.levels.iter().find(|l| *l.name == *name).unwrap()
    }

    #[test]
    fn seats_follow_from_shares_and_together_are_no_more_than_there_are() {
        let all = Configuration::suggested();
        let names =
            ["system", "node-high", "leader-election", "workload-high", "workload-low", "global-default", "catch-all"];
        let nominal = names.map(|name| level(&all, name).nominal);
        assert_eq!(nominal, [74, 98, 25, 98, 245, 49, 13]);
        assert_eq!(names.map(|name| level(&all, name).guaranteed), [50, 73, 25, 49, 24, 24, 13]);
        assert_eq!((level(&all, "system").waiting_max, level(&all, "leader-election").waiting_max), (1000, 800));
        assert_eq!((level(&all, "system").flow_waiting_max, level(&all, "catch-all").waiting_max), (300, 0));
        let order = |name: &str| level(&all, name).rank;
        assert!(order("node-high") < order("system") && order("system") < order("workload-low"));

        let many: Vec<Value> = (0..3 * SEATS).map(|n| limited(&format!("l{n}"), 1, json!({}))).collect();
        let all = Configuration::new(Vec::new(), many);
        assert!(all.levels.iter().map(|l| l.guaranteed).sum::<usize>() <= SEATS);
        let queuing = json!({"limitResponse": {"type": "Queue",
            "queuing": {"queues": 10_000_000, "handSize": 1, "queueLengthLimit": i32::MAX}}});
        let many: Vec<Value> =
            (0..100).map(|n| limited(&format!("l{n}"), i64::from(i32::MAX), queuing.clone())).collect();
        let all = Configuration::new(Vec::new(), many);
        assert!(all.levels.iter().map(|l| l.waiting_max).sum::<usize>() <= WAITING_MAX);
        assert!(all.levels.iter().all(|l| l.flow_waiting_max <= 400));
    }

    #[test]
    fn a_level_borrows_as_much_as_it_says() {
        let (shares, none) =
            (json!({"borrowingLimitPercent": 50, "lendablePercent": 10}), json!({"borrowingLimitPercent": 0}));
        let levels = vec![limited("a", 50, shares), limited("b", 45, none), limited("c", 0, json!({}))];
        let all = Configuration::new(Vec::new(), levels);
        let numbers = |name: &str| {
            let l = level(&all, name);
            (l.nominal, l.guaranteed, l.seats_max)
        };
        assert_eq!((numbers("a"), numbers("b"), numbers("c")), ((300, 270, 450), (270, 270, 270), (0, 0, SEATS)));
    }

    #[test]
    fn an_exempt_level_with_shares_keeps_seats_from_others() {
        let mut levels = prioritylevelconfiguration::suggested();
        let exempt = levels.iter_mut().find(|l| name(l) == "exempt").unwrap();
        exempt["spec"]["exempt"] = json!({"nominalConcurrencyShares": 245, "lendablePercent": 100});
        let all = Arc::new(Configuration::new(flowschema::suggested(), levels));
        assert_eq!((level(&all, "exempt").nominal, level(&all, "exempt").guaranteed), (300, 0));
        assert_eq!(level(&all, "workload-low").nominal, 123);
        let admin = User { name: "admin".into(), groups: vec![MASTERS.into()], ..User::default() };
        assert!(all.place(&admin, &Target::default()).flow.is_some(), "its requests are counted");
        let suggested = Arc::new(Configuration::suggested());
        assert!(suggested.place(&admin, &Target::default()).flow.is_none());
    }
}
