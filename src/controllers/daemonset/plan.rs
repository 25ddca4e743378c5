//! What one run of a DaemonSet does to its pods.
//!
//! Pods that are missing, too many, failed or out of place come first. Only where there is none of that, old pods are
//! replaced by new ones: first removed then made (`maxUnavailable`), or first made then removed (`maxSurge`). A node whose
//! pod is ending gets no other one without surge, so that two of them never share it.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::pod::Wanted;
use crate::controllers::amount::resolve;
use crate::controllers::{Member, pods};

/// How old pods are replaced.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Strategy {
    OnDelete,
    Rolling { unavailable: Option<IntOrString>, surge: Option<IntOrString> },
}

/// Everything that a plan looks at.
#[derive(Debug)]
pub(super) struct Observed {
    /// Every node.
    pub(super) nodes: BTreeMap<String, Wanted>,
    /// The pods by the node that they are on or made for, the oldest first.
    pub(super) pods: BTreeMap<String, Vec<Member>>,
    pub(super) strategy: Strategy,
    pub(super) min_ready: Duration,
    /// What tells new pods from old ones: the current revision, or the generation of the template.
    pub(super) hash: String,
    pub(super) generation: Option<i64>,
    /// Until when the failed pods of a node stay.
    pub(super) waits: HashMap<String, Timestamp>,
    pub(super) now: Timestamp,
}

/// What is done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The nodes that get a pod.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Member>,
    /// Pods among the deleted ones that had failed, with their nodes.
    pub(super) failed: Vec<(String, Member)>,
    /// Pods among the deleted ones that had come to an end.
    pub(super) succeeded: Vec<(String, Member)>,
    /// When a failed pod is due.
    pub(super) wake: Option<Timestamp>,
}

/// The pods of a node that are not ending, told apart; `None` where one kind is there twice.
type Told<'o> = Option<(Option<&'o Member>, Option<&'o Member>)>;

/// The plan.
pub(super) fn plan(observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    for (node, wanted) in &observed.nodes {
        observed.manage(node, *wanted, &mut plan);
    }
    // A pod that waits for a node that is gone is never bound, and nobody else removes it.
    for (node, members) in &observed.pods {
        if !observed.nodes.contains_key(node) {
            let unbound = |m: &&Member| m.pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).is_none();
            plan.delete.extend(members.iter().filter(|m| !m.is_ending()).filter(unbound).cloned());
        }
    }
    if plan.create.is_empty() && plan.delete.is_empty() {
        observed.roll(&mut plan);
    }
    plan
}

// === impl Observed ===

impl Observed {
    pub(super) fn is_available(&self, member: &Member) -> bool {
        pods::is_available(&member.pod, self.min_ready, self.now)
    }

    /// Whether a pod is of the newest template.
    pub(super) fn is_new(&self, member: &Member) -> bool {
        let generation = self.generation.map(|g| g.to_string());
        member.label(crate::controllers::history::HASH) == self.hash
            || generation.is_some_and(|g| member.label(super::pod::GENERATION) == g)
    }

    /// How many nodes are to have a pod.
    pub(super) fn desired(&self) -> usize {
        self.nodes.values().filter(|w| **w == Wanted::Yes).count()
    }

    fn surges(&self) -> bool {
        matches!(&self.strategy, Strategy::Rolling { surge: Some(surge), .. } if resolve(surge, 100, true) > 0)
    }

    fn manage(&self, node: &str, wanted: Wanted, plan: &mut Plan) {
        let there = self.pods.get(node);
        match (wanted, there) {
            (Wanted::Yes, None) => plan.create.push(node.to_owned()),
            (Wanted::No, Some(members)) => plan.delete.extend(members.iter().filter(|m| !m.is_ending()).cloned()),
            (Wanted::Yes | Wanted::IfThere, Some(members)) => self.keep_one(node, wanted, members, plan),
            (Wanted::No | Wanted::IfThere, None) => {}
        }
    }

    fn keep_one(&self, node: &str, wanted: Wanted, members: &[Member], plan: &mut Plan) {
        let mut running = Vec::new();
        for member in members.iter().filter(|m| !m.is_ending()) {
            match pods::phase(&member.pod) {
                "Failed" => match self.waits.get(node) {
                    Some(until) if *until > self.now => {
                        plan.wake = Some(plan.wake.map_or(*until, |w| w.min(*until)));
                    }
                    _ => {
                        plan.delete.push(member.clone());
                        plan.failed.push((node.to_owned(), member.clone()));
                    }
                },
                "Succeeded" => {
                    plan.delete.push(member.clone());
                    plan.succeeded.push((node.to_owned(), member.clone()));
                }
                _ => running.push(member),
            }
        }
        if !self.surges() {
            plan.delete.extend(running.into_iter().skip(1).cloned());
        } else if running.is_empty() {
            if wanted == Wanted::Yes {
                plan.create.push(node.to_owned());
            }
        } else {
            plan.delete.extend(self.surplus(&running).into_iter().cloned());
        }
    }

    /// With surge a node may have two pods: a new one that is not available yet, and an old one that is ready.
    fn surplus<'m>(&self, running: &[&'m Member]) -> Vec<&'m Member> {
        let (mut new, mut old, mut out) = (None, None, Vec::new());
        for member in running {
            let slot = if self.is_new(member) { &mut new } else { &mut old };
            match slot {
                None => *slot = Some(*member),
                Some(_) => out.push(*member),
            }
        }
        if let (Some(new), Some(old)) = (new, old)
            && (!pods::is_ready(&old.pod) || self.is_available(new))
        {
            out.push(old);
        }
        out
    }

    fn roll(&self, plan: &mut Plan) {
        let Strategy::Rolling { unavailable, surge } = &self.strategy else { return };
        let desired = i32::try_from(self.desired()).unwrap_or(i32::MAX);
        let (one, none) = (IntOrString::Int(1), IntOrString::Int(0));
        let mut most = resolve(unavailable.as_ref().unwrap_or(&one), desired, true);
        let surge = resolve(surge.as_ref().unwrap_or(&none), desired, true);
        if desired > 0 && most == 0 && surge == 0 {
            most = 1;
        }
        if surge == 0 {
            self.replace_after(usize::try_from(most).unwrap_or(0), plan);
        } else {
            self.replace_before(usize::try_from(surge).unwrap_or(0), plan);
        }
    }

    fn told<'o>(&self, members: &'o [Member]) -> Told<'o> {
        let (mut new, mut old) = (None, None);
        for member in members.iter().filter(|m| !m.is_ending()) {
            let slot = if self.is_new(member) { &mut new } else { &mut old };
            if slot.replace(member).is_some() {
                return None;
            }
        }
        Some((new, old))
    }

    /// The pods of every node that has some or is to have one.
    fn by_node(&self) -> BTreeMap<&str, &[Member]> {
        let wanted = self.nodes.iter().filter(|(_, w)| **w == Wanted::Yes).map(|(node, _)| (node.as_str(), &[][..]));
        wanted.chain(self.pods.iter().map(|(node, members)| (node.as_str(), members.as_slice()))).collect()
    }

    /// Removes old pods, so that no more than `most` nodes are without an available one.
    fn replace_after(&self, most: usize, plan: &mut Plan) {
        let (mut unavailable, mut candidates) = (0, Vec::new());
        for members in self.by_node().into_values() {
            match self.told(members) {
                Some((Some(new), None)) => unavailable += usize::from(!self.is_available(new)),
                Some((None, Some(old))) if self.is_available(old) => candidates.push(old.clone()),
                Some((None, Some(old))) => {
                    // Of no use to anybody: it is replaced whatever else is away.
                    plan.delete.push(old.clone());
                    unavailable += 1;
                }
                Some(_) | None => unavailable += 1,
            }
        }
        candidates.truncate(most.saturating_sub(unavailable));
        plan.delete.append(&mut candidates);
    }

    /// Makes new pods beside old ones, no more than `most` at once, and removes old ones whose successor is available.
    fn replace_before(&self, most: usize, plan: &mut Plan) {
        let (mut surging, mut available) = (0, 0);
        let (mut candidates, mut misplaced) = (Vec::new(), Vec::new());
        for (node, members) in self.by_node() {
            let Some((new, old)) = self.told(members) else {
                surging += 1;
                continue;
            };
            available += usize::from(old.or(new).is_some_and(|m| self.is_available(m)));
            let Some(old) = old else { continue };
            match new {
                Some(new) if self.is_available(new) => plan.delete.push(old.clone()),
                Some(_) => surging += 1,
                None if self.nodes.get(node) != Some(&Wanted::Yes) => {
                    misplaced.push(old.clone());
                }
                None if self.is_available(old) => candidates.push(node.to_owned()),
                None => plan.create.push(node.to_owned()),
            }
        }
        // What may stay but is not wanted goes when enough others are available.
        misplaced.truncate(available.saturating_sub(self.desired()));
        plan.delete.append(&mut misplaced);
        candidates.truncate(most.saturating_sub(surging));
        plan.create.append(&mut candidates);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::base::object::Object;
    use crate::controllers::history::HASH;

    const NOW: &str = "2026-01-01T00:01:00Z";

    fn pod(name: &str, hash: &str, state: &str) -> Member {
        let ready = if state == "ready" { "True" } else { "False" };
        let phase = if matches!(state, "Failed" | "Succeeded") { state } else { "Running" };
        let since = "2026-01-01T00:00:55Z";
        let mut value = json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {HASH: hash}},
            "spec": {"containers": [], "nodeName": "a"},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": since}]},
        });
        if state == "ending" {
            value["metadata"]["deletionTimestamp"] = NOW.into();
        }
        if state == "unbound" {
            value["spec"].as_object_mut().unwrap().remove("nodeName");
        }
        let object = Arc::new(Object::new(name.into(), 1, &value, Box::default()));
        Member { pod: object.typed().unwrap(), object }
    }

    fn observed(nodes: &[(&str, Wanted)], pods: Vec<(&str, Vec<Member>)>, strategy: Strategy) -> Observed {
        Observed {
            nodes: nodes.iter().map(|(name, wanted)| ((*name).to_owned(), *wanted)).collect(),
            pods: pods.into_iter().map(|(node, members)| (node.to_owned(), members)).collect(),
            strategy,
            min_ready: Duration::ZERO,
            hash: "new".into(),
            generation: None,
            waits: HashMap::new(),
            now: NOW.parse().unwrap(),
        }
    }

    fn rolling(unavailable: i32, surge: i32) -> Strategy {
        let number = |n| Some(IntOrString::Int(n));
        Strategy::Rolling { unavailable: number(unavailable), surge: number(surge) }
    }

    fn done(plan: &Plan) -> (Vec<&str>, Vec<&str>) {
        let deleted = plan.delete.iter().map(|m| &*m.object.meta.name).collect();
        (plan.create.iter().map(String::as_str).collect(), deleted)
    }

    const ALL: [(&str, Wanted); 3] = [("a", Wanted::Yes), ("b", Wanted::Yes), ("c", Wanted::Yes)];

    #[test]
    fn every_node_that_is_wanted_has_one_pod_and_no_other_node_has() {
        let nodes = [("a", Wanted::Yes), ("b", Wanted::Yes), ("c", Wanted::No), ("d", Wanted::IfThere)];
        let pods = vec![
            ("b", vec![pod("b1", "new", "ready"), pod("b2", "new", "ready")]),
            ("c", vec![pod("c1", "new", "ready")]),
            ("d", vec![pod("d1", "new", "ready")]),
            ("gone", vec![pod("g1", "new", "unbound"), pod("g2", "new", "ready")]),
        ];
        let plan = plan(&observed(&nodes, pods, rolling(1, 0)));
        assert_eq!(done(&plan), (vec!["a"], vec!["b2", "c1", "g1"]));
    }

    #[test]
    fn a_node_whose_pod_is_ending_gets_another_only_with_surge() {
        let pods = || vec![("a", vec![pod("a1", "old", "ending")])];
        let nodes = [("a", Wanted::Yes)];
        assert_eq!(done(&plan(&observed(&nodes, pods(), rolling(1, 0)))), (vec![], vec![]));
        assert_eq!(done(&plan(&observed(&nodes, pods(), rolling(0, 1)))), (vec!["a"], vec![]));
        assert_eq!(done(&plan(&observed(&nodes, pods(), Strategy::OnDelete))), (vec![], vec![]));
    }

    #[test]
    fn failed_pods_are_replaced_when_they_have_waited_and_ended_ones_at_once() {
        let nodes = [("a", Wanted::Yes), ("b", Wanted::Yes)];
        let pods = || vec![("a", vec![pod("a1", "new", "Failed")]), ("b", vec![pod("b1", "new", "Succeeded")])];
        let mut o = observed(&nodes, pods(), rolling(1, 0));
        let p = plan(&o);
        assert_eq!(done(&p), (vec![], vec!["a1", "b1"]));
        assert_eq!((p.failed[0].0.as_str(), p.succeeded[0].0.as_str()), ("a", "b"));
        let later: Timestamp = "2026-01-01T00:01:01Z".parse().unwrap();
        o.waits.insert("a".into(), later);
        let p = plan(&o);
        assert_eq!((done(&p), p.wake), ((vec![], vec!["b1"]), Some(later)));
    }

    #[test]
    fn old_pods_go_as_far_as_unavailability_allows() {
        let old = |name: &str| vec![pod(name, "old", "ready")];
        let of = |pods, most| plan(&observed(&ALL, pods, rolling(most, 0)));
        let all_old = || vec![("a", old("a1")), ("b", old("b1")), ("c", old("c1"))];
        assert_eq!(done(&of(all_old(), 1)), (vec![], vec!["a1"]));
        assert_eq!(done(&of(all_old(), 2)), (vec![], vec!["a1", "b1"]));
        let one_new_unready = || vec![("a", vec![pod("a2", "new", "no")]), ("b", old("b1")), ("c", old("c1"))];
        assert_eq!(done(&of(one_new_unready(), 1)), (vec![], vec![]));
        assert_eq!(done(&of(one_new_unready(), 2)), (vec![], vec!["b1"]));
        let one_ending = vec![("a", vec![pod("a1", "old", "ending")]), ("b", old("b1")), ("c", old("c1"))];
        assert_eq!(done(&of(one_ending, 1)), (vec![], vec![]));
        let old_unready =
            vec![("a", vec![pod("a2", "new", "no")]), ("b", vec![pod("b1", "old", "no")]), ("c", old("c1"))];
        assert_eq!(done(&of(old_unready, 1)), (vec![], vec!["b1"]));
        assert_eq!(done(&plan(&observed(&ALL, all_old(), Strategy::OnDelete))), (vec![], vec![]));
        // Ready for five seconds is not available where ten are asked for.
        let mut o = observed(
            &ALL,
            vec![("a", vec![pod("a2", "new", "ready")]), ("b", old("b1")), ("c", old("c1"))],
            rolling(1, 0),
        );
        o.min_ready = Duration::from_secs(10);
        assert_eq!(done(&plan(&o)), (vec![], vec!["b1", "c1"]), "neither is available, so neither is missed");
        let percent = Strategy::Rolling { unavailable: Some(IntOrString::String("34%".into())), surge: None };
        assert_eq!(done(&plan(&observed(&ALL, all_old(), percent))), (vec![], vec!["a1", "b1"]));
    }

    #[test]
    fn with_surge_old_pods_go_when_their_successors_are_available() {
        let old = |name: &str| pod(name, "old", "ready");
        let of = |pods, surge| plan(&observed(&ALL, pods, rolling(0, surge)));
        let all_old = || vec![("a", vec![old("a1")]), ("b", vec![old("b1")]), ("c", vec![old("c1")])];
        assert_eq!(done(&of(all_old(), 1)), (vec!["a"], vec![]));
        let surged = |state| {
            vec![("a", vec![old("a1"), pod("a2", "new", state)]), ("b", vec![old("b1")]), ("c", vec![old("c1")])]
        };
        assert_eq!(done(&of(surged("no"), 1)), (vec![], vec![]));
        assert_eq!(done(&of(surged("no"), 2)), (vec!["b"], vec![]));
        assert_eq!(done(&of(surged("ready"), 1)), (vec![], vec!["a1"]));
        // An old pod that is not ready is not worth keeping beside its successor, and needs no surge of its own.
        let broken = vec![
            ("a", vec![pod("a1", "old", "no"), pod("a2", "new", "no")]),
            ("b", vec![old("b1")]),
            ("c", vec![old("c1")]),
        ];
        assert_eq!(done(&of(broken, 1)), (vec![], vec!["a1"]));
        let unready = vec![
            ("a", vec![old("a1"), pod("a2", "new", "no")]),
            ("b", vec![pod("b1", "old", "no")]),
            ("c", vec![old("c1")]),
        ];
        assert_eq!(done(&of(unready, 1)), (vec!["b"], vec![]));
    }

    #[test]
    fn a_pod_of_the_templates_generation_is_new_whatever_its_hash() {
        let mut o = observed(&[("a", Wanted::Yes)], vec![("a", vec![pod("a1", "old", "ready")])], rolling(1, 0));
        let mut value: Value = o.pods["a"][0].object.value();
        value["metadata"]["labels"][super::super::pod::GENERATION] = "4".into();
        let object = Arc::new(Object::new("a1".into(), 1, &value, Box::default()));
        o.pods.insert("a".into(), vec![Member { pod: object.typed().unwrap(), object }]);
        assert_eq!(done(&plan(&o)), (vec![], vec!["a1"]));
        o.generation = Some(4);
        assert_eq!(done(&plan(&o)), (vec![], vec![]));
    }
}
