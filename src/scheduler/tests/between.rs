//! Pods near others, and far from them.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::base::labels::Labels;
use crate::reconcile::{Key, Patch};
use crate::scheduler::decide::Feasibility;
use crate::scheduler::plugins::interpod::InterPodAffinity;
use crate::scheduler::snapshot::NodeView;

const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";
const NEAR: &str = "podAffinity";
const FAR: &str = "podAntiAffinity";
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

fn view(namespace: &str, name: &str, labels: Value, affinity: Value) -> Arc<PodView> {
    let spec = json!({"containers": [{"name": "c"}], "affinity": affinity});
    let metadata = json!({"name": name, "namespace": namespace, "uid": name, "labels": labels});
    let object = Object::new(
        format!("{namespace}/{name}").into(),
        1,
        &json!({"metadata": metadata, "spec": spec}),
        Box::default(),
    );
    Arc::new(PodView::new(&Arc::new(object)).unwrap())
}

/// A pod of an application with terms of one kind: `near` or `far`.
fn of(app: &str, name: &str, kind: &str, terms: &[Value]) -> Arc<PodView> {
    view("n", name, json!({"app": app}), json!({kind: {REQUIRED: terms}}))
}

fn term(app: &str, topology: &str) -> Value {
    json!({"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": topology})
}

fn zones() -> Snapshot {
    let mut s = Snapshot::default();
    for (name, zone) in [("a", "z1"), ("b", "z1"), ("c", "z2"), ("d", "")] {
        sized(&mut s, name, zone, "4");
    }
    s
}

/// The nodes that would do.
fn fitting(pod: &PodView, s: &Snapshot) -> String {
    let feasibility = Feasibility::new(pod, s);
    s.nodes.iter().filter(|(_, node)| feasibility.refusal(node).is_none()).map(|(name, _)| &**name).collect()
}

#[test]
fn required_terms_hold_in_both_directions() {
    let mut s = zones();
    s.place(of("web", "w", NEAR, &[]), "a", false);
    assert_eq!(fitting(&of("x", "p", NEAR, &[term("web", ZONE)]), &s), "ab");
    assert_eq!(fitting(&of("x", "p", NEAR, &[term("web", HOST)]), &s), "a");
    assert_eq!(fitting(&of("x", "p", FAR, &[term("web", ZONE)]), &s), "cd", "no zone is none");
    assert_eq!(fitting(&of("x", "p", FAR, &[term("web", HOST)]), &s), "bcd");
    // All terms must be met, by the same pods.
    s.place(of("db", "d", NEAR, &[]), "b", false);
    assert_eq!(fitting(&of("x", "p", NEAR, &[term("web", ZONE), term("db", ZONE)]), &s), "");
    assert_eq!(fitting(&of("x", "p", FAR, &[term("web", HOST), term("db", HOST)]), &s), "cd");
    // Those that are there have their say, too.
    s.place(of("shy", "s", FAR, &[term("web", ZONE)]), "c", false);
    assert_eq!(fitting(&of("web", "p", NEAR, &[]), &s), "abd");
    assert_eq!(fitting(&of("db", "p", NEAR, &[]), &s), "abcd");
    // The first of a group may be anywhere that has the topology, others are where it is.
    let group = |name: &str| of("group", name, NEAR, &[term("group", ZONE)]);
    assert_eq!(fitting(&group("p"), &s), "abc");
    s.place(group("first"), "c", false);
    assert_eq!(fitting(&group("p"), &s), "c");
    assert_eq!(fitting(&of("other", "p", NEAR, &[term("nobody", ZONE)]), &s), "", "it is not of that group");
}

#[test]
fn terms_mean_pods_of_the_namespaces_they_name() {
    let mut s = zones();
    s.terms.put_namespace("red", Some(&Labels::from([("team".into(), "red".into())])));
    s.place(view("n", "one", json!({"app": "web"}), json!({})), "a", false);
    s.place(view("red", "two", json!({"app": "web"}), json!({})), "c", false);
    let far = |more: Value| {
        let mut term = term("web", ZONE);
        term.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        of("x", "p", FAR, &[term])
    };
    assert_eq!(fitting(&far(json!({})), &s), "cd", "its own alone");
    assert_eq!(fitting(&far(json!({"namespaces": ["red"]})), &s), "abd");
    assert_eq!(fitting(&far(json!({"namespaces": ["red", "n"]})), &s), "d");
    assert_eq!(fitting(&far(json!({"namespaceSelector": {}})), &s), "d");
    let red = json!({"namespaceSelector": {"matchLabels": {"team": "red"}}});
    assert_eq!(fitting(&far(red.clone()), &s), "abd");
    s.learn(&far(red.clone()));
    s.terms.put_namespace("red", Some(&Labels::new()));
    assert_eq!(fitting(&far(red.clone()), &s), "abcd", "who is meant follows the labels of namespaces");
    s.terms.put_namespace("n", Some(&Labels::from([("team".into(), "red".into())])));
    assert_eq!(fitting(&far(red), &s), "cd");
    assert_eq!(fitting(&of("x", "p", FAR, &[json!({"topologyKey": ZONE})]), &s), "abcd", "no selector means no pod");
    assert_eq!(fitting(&of("x", "p", FAR, &[json!({"topologyKey": ZONE, "labelSelector": {}})]), &s), "cd");
}

#[test]
fn refusals_for_the_sake_of_others_read_as_in_kubernetes() {
    let mut s = zones();
    s.remove_node("d");
    let message = why(&of("x", "p", NEAR, &[term("web", ZONE)]), &s);
    assert!(message.starts_with("0/3 nodes are available: 3 node(s) didn't match pod affinity rules. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."), "{message}");
    for (node, name) in [("a", "1"), ("b", "2"), ("c", "3")] {
        s.place(of("web", name, FAR, &[term("x", HOST)]), node, false);
    }
    let message = why(&of("y", "p", FAR, &[term("web", HOST)]), &s);
    assert!(message.starts_with("0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules. preemption: 0/3 nodes are available: 3 No preemption victims"), "{message}");
    let message = why(&of("x", "p", NEAR, &[]), &s);
    assert!(
        message.starts_with("0/3 nodes are available: 3 node(s) didn't satisfy existing pods anti-affinity rules."),
        "{message}"
    );
}

#[test]
fn very_many_terms_of_one_pod_are_no_more_work_than_they_are_many() {
    let many = |kind: &str| -> Arc<PodView> {
        let terms: Vec<Value> = (0..1_000).map(|n| term("web", &format!("t{n}"))).collect();
        of("web", kind, kind, &terms)
    };
    let mut s = zones();
    for n in 0..20 {
        s.place(of("web", &n.to_string(), NEAR, &[]), "a", false);
    }
    // In pairs this would be 20,000,000 comparisons of each step.
    for kind in [NEAR, FAR] {
        let pod = many(kind);
        s.learn(&pod);
        assert_eq!(fitting(&pod, &s), if kind == NEAR { "" } else { "abcd" });
        s.place(pod.clone(), "b", false);
        s.remove_pod(&pod.key);
    }
}

#[test]
fn preferences_are_rated_in_both_directions() {
    let mut s = zones();
    let prefers = |app: &str, name: &str, kind: &str, to: &str, weight: i32| {
        let weighted = json!([{"weight": weight, "podAffinityTerm": term(to, ZONE)}]);
        view("n", name, json!({"app": app}), json!({kind: {PREFERRED: weighted}}))
    };
    s.place(of("web", "w", NEAR, &[]), "a", false);
    let rates = |pod: &Arc<PodView>, s: &Snapshot| -> Option<Vec<i64>> {
        let cycle = Cycle { pod, snapshot: s, alike: Selector::default() };
        let nodes: Vec<&NodeView> = s.nodes.values().collect();
        let rating = InterPodAffinity.pre_score(&cycle, &nodes)?;
        let mut scores: Vec<i64> = nodes.iter().map(|node| rating.score(node)).collect();
        rating.normalize(&nodes, &mut scores);
        Some(scores)
    };
    assert_eq!(rates(&of("x", "p", NEAR, &[]), &s), None, "nothing is said of it");
    assert_eq!(rates(&prefers("x", "p", NEAR, "web", 5), &s), Some(vec![100, 100, 0, 0]));
    assert_eq!(rates(&prefers("x", "p", FAR, "web", 5), &s), Some(vec![0, 0, 100, 100]));
    // Of those that are there: one likes it (3), two in the other zone require it (1 each), one dislikes it (-1).
    s.place(prefers("y", "likes", NEAR, "x", 3), "a", false);
    s.place(of("z", "needs", NEAR, &[term("x", ZONE)]), "c", false);
    s.place(of("z", "needs2", NEAR, &[term("x", ZONE)]), "c", false);
    assert_eq!(rates(&of("x", "p", NEAR, &[]), &s), Some(vec![100, 100, 66, 0]));
    s.place(prefers("y", "dislikes", FAR, "x", 1), "c", false);
    assert_eq!(rates(&of("x", "p", NEAR, &[]), &s), Some(vec![100, 100, 33, 0]));
    let chosen = decide(&prefers("x", "p", FAR, "web", 100), &s).unwrap();
    assert!(["c", "d"].contains(&&*chosen), "{chosen}");
}

#[test]
fn counts_follow_pods_and_labels() {
    let mut s = zones();
    let far = of("web", "p", FAR, &[term("web", ZONE)]);
    s.learn(&far);
    let like = |name: &str| of("web", name, FAR, &[term("web", ZONE)]);
    s.place(like("one"), "a", false);
    assert_eq!(fitting(&far, &s), "cd");
    s.place(view("n", "one", json!({"app": "other"}), json!({})), "a", false);
    assert_eq!(fitting(&far, &s), "abcd", "its labels and its terms are others");
    s.place(like("two"), "d", false);
    assert_eq!(fitting(&far, &s), "abcd", "where there is no zone, nobody is near");
    sized(&mut s, "d", "z2", "4");
    assert_eq!(fitting(&far, &s), "ab");
    s.remove_node("d");
    assert_eq!(fitting(&far, &s), "abc");
    sized(&mut s, "d", "z1", "4");
    assert_eq!(fitting(&far, &s), "c", "the pod was there all the time");
    s.remove_pod(&Key::new("n", "two"));
    assert_eq!(fitting(&far, &s), "abcd");
}

/// A random cluster: nodes with their labels, and pods with where they are.
#[derive(Clone, Debug)]
struct Plain {
    app: &'static str,
    namespace: &'static str,
    required: Vec<Value>,
    repelled: Vec<Value>,
    preferred: Vec<(i64, Value)>,
}

impl Plain {
    fn view(&self, name: &str) -> Arc<PodView> {
        let weighted = |sign: i64| -> Vec<Value> {
            let of = self.preferred.iter().filter(|(weight, _)| weight * sign > 0);
            of.map(|(weight, term)| json!({"weight": weight.abs(), "podAffinityTerm": term})).collect()
        };
        let near = json!({REQUIRED: self.required, PREFERRED: weighted(1)});
        let far = json!({REQUIRED: self.repelled, PREFERRED: weighted(-1)});
        view(self.namespace, name, json!({"app": self.app}), json!({NEAR: near, FAR: far}))
    }
}

fn random_term() -> impl Strategy<Value = Value> {
    let selectors = vec![
        Some(json!({"matchLabels": {"app": "a"}})),
        Some(json!({"matchLabels": {"app": "b"}})),
        Some(json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "c"]}]})),
        Some(json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["a"]}]})),
        Some(json!({"matchExpressions": [{"key": "app", "operator": "Exists"}]})),
        Some(json!({})),
        None,
    ];
    let namespaces = vec![
        json!({}),
        json!({"namespaces": ["m"]}),
        json!({"namespaces": ["m", "n"]}),
        json!({"namespaceSelector": {}}),
        json!({"namespaceSelector": {"matchLabels": {"team": "red"}}}),
        json!({"namespaceSelector": {"matchLabels": {"team": "red"}}, "namespaces": ["n"]}),
    ];
    (select(selectors), select(namespaces), select(vec![HOST, ZONE, "rack"])).prop_map(|(selector, more, topology)| {
        let mut term = more;
        term["topologyKey"] = topology.into();
        if let Some(selector) = selector {
            term["labelSelector"] = selector;
        }
        term
    })
}

fn random_pod() -> impl Strategy<Value = Plain> {
    let terms = |most: usize| proptest::collection::vec(random_term(), 0..=most);
    let weights = prop_oneof![-3..0i64, 1..4i64];
    (
        select(vec!["a", "b", "c"]),
        select(vec!["n", "m"]),
        terms(2),
        terms(1),
        proptest::collection::vec((weights, random_term()), 0..3),
    )
        .prop_map(|(app, namespace, required, repelled, preferred)| Plain {
            app,
            namespace,
            required,
            repelled,
            preferred,
        })
}

/// What happens to a cluster.
#[derive(Clone, Debug)]
enum Step {
    Place(usize, usize, Plain),
    Remove(usize),
    Relabel(usize, &'static str, bool),
    Lose(usize),
    Team(&'static str, bool),
    Learn(Plain),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..8usize, 0..4usize, random_pod()).prop_map(|(pod, node, plain)| Step::Place(pod, node, plain)),
        1 => (0..8usize).prop_map(Step::Remove),
        1 => (0..4usize, select(vec!["z1", "z2", ""]), any::<bool>()).prop_map(|(n, zone, rack)| Step::Relabel(n, zone, rack)),
        1 => (0..4usize).prop_map(Step::Lose),
        1 => (select(vec!["n", "m"]), any::<bool>()).prop_map(|(name, red)| Step::Team(name, red)),
        1 => random_pod().prop_map(Step::Learn),
    ]
}

/// The cluster as the reference knows it.
#[derive(Clone, Debug, Default)]
struct World {
    nodes: BTreeMap<usize, HashMap<&'static str, String>>,
    pods: BTreeMap<usize, (usize, Plain)>,
    red: BTreeMap<&'static str, bool>,
}

impl World {
    /// Whether a term that a pod of a namespace has means another pod, by the text of the API.
    fn means(&self, of: &str, term: &Value, other: &Plain) -> bool {
        let Some(selector) = term.get("labelSelector") else { return false };
        let by_label = selector["matchLabels"].get("app").is_none_or(|app| app == other.app);
        let by_expression = selector["matchExpressions"].as_array().into_iter().flatten().all(|e| {
            let is_listed = e["values"].as_array().into_iter().flatten().any(|value| value == other.app);
            match e["operator"].as_str().unwrap() {
                "In" => is_listed,
                "NotIn" => !is_listed,
                _ => true,
            }
        });
        let listed = term["namespaces"].as_array();
        let is_listed = match (listed, term.get("namespaceSelector")) {
            (None, None) => of == other.namespace,
            (listed, _) => listed.into_iter().flatten().any(|name| name == other.namespace),
        };
        let is_red = self.red.get(other.namespace).copied().unwrap_or(false);
        let is_selected =
            term.get("namespaceSelector").is_some_and(|s| s["matchLabels"].get("team").is_none() || is_red);
        by_label && by_expression && (is_listed || is_selected)
    }

    /// Pods that are on nodes, with the labels of these.
    fn placed(&self) -> impl Iterator<Item = (&Plain, &HashMap<&'static str, String>)> {
        self.pods.values().filter_map(|(node, pod)| Some((pod, self.nodes.get(node)?)))
    }

    fn same(term: &Value, one: &HashMap<&str, String>, two: &HashMap<&str, String>) -> bool {
        let key = term["topologyKey"].as_str().unwrap();
        one.get(key).is_some_and(|value| two.get(key) == Some(value))
    }

    fn fits(&self, pod: &Plain, node: &HashMap<&'static str, String>) -> bool {
        let meets_all = |other: &Plain| pod.required.iter().all(|t| self.means(pod.namespace, t, other));
        let has = |term: &Value| node.contains_key(term["topologyKey"].as_str().unwrap());
        let somewhere = |term: &Value| self.placed().any(|(other, at)| meets_all(other) && Self::same(term, at, at));
        let near = |term: &Value| self.placed().any(|(other, at)| meets_all(other) && Self::same(term, at, node));
        let is_first = !pod.required.iter().any(somewhere) && meets_all(pod);
        let is_near = pod.required.iter().all(has) && (pod.required.iter().all(near) || is_first);
        let is_far = !pod.repelled.iter().any(|term| {
            self.placed().any(|(other, at)| self.means(pod.namespace, term, other) && Self::same(term, at, node))
        });
        let is_wanted = !self.placed().any(|(other, at)| {
            other.repelled.iter().any(|term| self.means(other.namespace, term, pod) && Self::same(term, at, node))
        });
        is_near && is_far && is_wanted
    }

    fn score(&self, pod: &Plain, node: &HashMap<&'static str, String>) -> i64 {
        let mut score = 0;
        for (other, at) in self.placed() {
            for (weight, term) in &pod.preferred {
                score += weight * i64::from(self.means(pod.namespace, term, other) && Self::same(term, at, node));
            }
            for (weight, term) in &other.preferred {
                score += weight * i64::from(self.means(other.namespace, term, pod) && Self::same(term, at, node));
            }
            for term in &other.required {
                score += i64::from(self.means(other.namespace, term, pod) && Self::same(term, at, node));
            }
        }
        score
    }

    /// Does the same to the snapshot.
    fn go(&mut self, s: &mut Snapshot, step: &Step) {
        let node = |n: usize| format!("node{n}");
        match step {
            Step::Place(pod, on, plain) if self.nodes.contains_key(on) => {
                if let Some((_, old)) = self.pods.remove(pod) {
                    s.remove_pod(&Key::new(old.namespace, &format!("p{pod}")));
                }
                s.place(plain.view(&format!("p{pod}")), &node(*on), false);
                self.pods.insert(*pod, (*on, plain.clone()));
            }
            Step::Place(..) => {}
            Step::Remove(pod) => {
                if let Some((_, old)) = self.pods.remove(pod) {
                    s.remove_pod(&Key::new(old.namespace, &format!("p{pod}")));
                }
            }
            Step::Relabel(n, zone, has_rack) => {
                let mut labels: HashMap<&'static str, String> = [(HOST, node(*n))].into();
                if !zone.is_empty() {
                    labels.insert(ZONE, (*zone).to_owned());
                }
                if *has_rack {
                    labels.insert("rack", "r".to_owned());
                }
                let value = json!({"metadata": {"name": node(*n), "labels": labels},
                    "status": {"allocatable": {"cpu": "4", "memory": "4Gi", "pods": "100"}}});
                s.put_node(&Arc::new(Object::new(node(*n).into(), 1, &value, Box::default())));
                self.nodes.insert(*n, labels);
            }
            Step::Lose(n) => {
                s.remove_node(&node(*n));
                self.nodes.remove(n);
            }
            Step::Team(name, is_red) => {
                let labels = if *is_red { Labels::from([("team".into(), "red".into())]) } else { Labels::new() };
                s.terms.put_namespace(name, Some(&labels));
                self.red.insert(name, *is_red);
            }
            Step::Learn(plain) => s.learn(&plain.view("incoming")),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn counted_affinity_is_that_of_the_reference(
        steps in proptest::collection::vec(step(), 0..40),
        incoming in random_pod(),
        is_learned in any::<bool>(),
        going in proptest::collection::vec(any::<bool>(), 8),
    ) {
        let (mut world, mut s) = (World::default(), Snapshot::default());
        for n in 0..4 {
            world.go(&mut s, &Step::Relabel(n, ["z1", "z1", "z2", ""][n], n % 2 == 0));
        }
        steps.iter().for_each(|step| world.go(&mut s, step));
        let pod = incoming.view("incoming");
        if is_learned {
            s.learn(&pod);
        }
        let mut feasibility = Feasibility::new(&pod, &s);
        let cycle = Cycle { pod: &pod, snapshot: &s, alike: Selector::default() };
        let all: Vec<&NodeView> = s.nodes.values().collect();
        let rating = InterPodAffinity.pre_score(&cycle, &all);
        for (n, labels) in &world.nodes {
            let node = &s.nodes[&*format!("node{n}")];
            prop_assert_eq!(feasibility.refusal(node).is_none(), world.fits(&incoming, labels), "node {}", n);
            let score = rating.as_ref().map_or(0, |rating| rating.score(node));
            prop_assert_eq!(score, world.score(&incoming, labels), "node {}", n);
        }
        // As if some of the pods were not there; and then as before.
        let mut without = world.clone();
        without.pods.retain(|n, _| !going[*n]);
        let gone: Vec<_> = world.pods.iter().filter(|(n, (on, _))| going[**n] && world.nodes.contains_key(on)).collect();
        for (n, (on, plain)) in &gone {
            let mut node = s.nodes[&*format!("node{on}")].clone();
            feasibility.leave(&mut node, &plain.view(&format!("p{n}")));
        }
        for (n, labels) in &world.nodes {
            let node = &s.nodes[&*format!("node{n}")];
            prop_assert_eq!(feasibility.refusal(node).is_none(), without.fits(&incoming, labels), "node {}", n);
        }
        for (n, (on, plain)) in &gone {
            let mut node = s.nodes[&*format!("node{on}")].clone();
            feasibility.enter(&mut node, &plain.view(&format!("p{n}")));
        }
        for (n, labels) in &world.nodes {
            let node = &s.nodes[&*format!("node{n}")];
            prop_assert_eq!(feasibility.refusal(node).is_none(), world.fits(&incoming, labels), "node {}", n);
        }
    }
}

#[test]
fn pods_go_so_that_others_need_not_be_near_them() {
    let mut s = zones();
    for name in ["b", "c", "d"] {
        s.remove_node(name);
    }
    s.place(of("web", "shy", FAR, &[term("x", ZONE)]), "a", false);
    s.place(of("web", "web", NEAR, &[]), "a", false);
    let incoming = |affinity: Value| {
        let mut value = view("n", "p", json!({"app": "x"}), affinity).object.value();
        value["spec"]["priority"] = 1.into();
        Arc::new(PodView::new(&Arc::new(Object::new("p".into(), 1, &value, Box::default()))).unwrap())
    };
    let goes = |pod: &PodView, s: &Snapshot| -> Vec<String> {
        let why = decide(pod, s).unwrap_err();
        match preempt::preempt(pod, s, &why, &[], jiff::Timestamp::UNIX_EPOCH, 0) {
            Verdict::Room(candidate) => candidate.victims.iter().map(|v| v.key.name.to_string()).collect(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(goes(&incoming(json!({})), &s), ["shy"]);
    assert_eq!(goes(&incoming(json!({FAR: {REQUIRED: [term("web", HOST)]}})), &s), ["shy", "web"]);
    // Who is nominated counts, whatever it says of others.
    s.remove_pod(&Key::new("n", "shy"));
    s.nominations.put(of("y", "nominated", FAR, &[term("x", ZONE)]), "a".into());
    let low = view("n", "low", json!({"app": "x"}), json!({}));
    assert!(decide(&low, &s).unwrap_err().message.contains("existing pods anti-affinity"));
    assert!(decide(&incoming(json!({})), &s).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_waits_for_others_goes_on_when_they_come_and_when_they_go() {
    let client: Arc<dyn Client> = in_memory::client();
    for name in ["n", "m"] {
        client.create(&namespace::KIND, "", json!({"metadata": {"name": name}})).await.unwrap();
        client.create(&serviceaccount::KIND, name, json!({"metadata": {"name": "default"}})).await.unwrap();
    }
    let status = json!({"allocatable": {"cpu": "4", "memory": "4Gi", "pods": "9"}});
    let labels = json!({HOST: "a", ZONE: "z"});
    let object = json!({"metadata": {"name": "a", "labels": labels}, "status": status});
    client.create(&node::KIND, "", object).await.unwrap();
    let _tasks = crate::scheduler::start(client.clone(), Clock::system());
    let create = async |namespace: &str, name: &str, app: &str, affinity: Value| {
        let spec = json!({"containers": [{"name": "c", "image": "i"}], "affinity": affinity});
        let object = json!({"metadata": {"name": name, "labels": {"app": app}}, "spec": spec});
        client.create(&pod::KIND, namespace, object).await.unwrap();
        tokio::time::sleep(Duration::from_secs(15)).await;
    };
    let is_placed = |name: &str| {
        let object = client.informer(&pod::KIND).get("n", name).unwrap();
        object.typed::<Pod>().unwrap().spec.as_ref().unwrap().node_name.is_some()
    };
    let settled = async || tokio::time::sleep(Duration::from_secs(15)).await;
    create("n", "near", "x", json!({NEAR: {REQUIRED: [term("web", ZONE)]}})).await;
    create("n", "other", "y", json!({})).await;
    assert!(!is_placed("near"));
    create("n", "web", "web", json!({})).await;
    assert!(is_placed("near"), "whom it waits for has come");
    create("n", "far", "z", json!({FAR: {REQUIRED: [term("web", ZONE)]}})).await;
    assert!(!is_placed("far"));
    let relabel = Patch::Merge(json!({"metadata": {"labels": {"app": "quiet"}}}));
    client.patch(&pod::KIND, "n", "web", None, relabel).await.unwrap();
    settled().await;
    assert!(is_placed("far"), "who kept it away is somebody else now");
    // By the labels of a namespace.
    let mut of_team = term("q", ZONE);
    of_team["namespaceSelector"] = json!({"matchLabels": {"team": "red"}});
    create("m", "q", "q", json!({})).await;
    create("n", "by-team", "t", json!({NEAR: {REQUIRED: [of_team]}})).await;
    assert!(!is_placed("by-team"));
    let label = Patch::Merge(json!({"metadata": {"labels": {"team": "red"}}}));
    client.patch(&namespace::KIND, "", "m", None, label).await.unwrap();
    settled().await;
    assert!(is_placed("by-team"));
}

#[tokio::test]
async fn terms_take_the_values_of_a_pods_own_labels() {
    let client: Arc<dyn Client> = in_memory::client();
    client.create(&namespace::KIND, "", json!({"metadata": {"name": "n"}})).await.unwrap();
    client.create(&serviceaccount::KIND, "n", json!({"metadata": {"name": "default"}})).await.unwrap();
    let written = async |name: &str, keys: Value| {
        let mut term = json!({"labelSelector": {}, "topologyKey": ZONE});
        term.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let weighted = json!([{"weight": 1, "podAffinityTerm": term}]);
        let affinity = json!({FAR: {REQUIRED: [term], PREFERRED: weighted}});
        let spec = json!({"containers": [{"name": "c", "image": "i"}], "affinity": affinity});
        let object = json!({"metadata": {"name": name, "labels": {"app": "web", "version": "2"}}, "spec": spec});
        PodView::new(&client.create(&pod::KIND, "n", object).await.unwrap()).unwrap()
    };
    let place = |pods: &[(&str, &str, &str)]| {
        let mut s = zones();
        for (node, app, version) in pods {
            s.place(view("n", node, json!({"app": app, "version": version}), json!({})), node, false);
        }
        s
    };
    let s = place(&[("a", "web", "1"), ("c", "web", "2")]);
    // The same version is kept away from, others are not; and the other way round.
    let same = written("same", json!({"matchLabelKeys": ["app", "version", "none"]})).await;
    assert_eq!(fitting(&same, &s), "abd");
    let other = written("other", json!({"matchLabelKeys": ["app"], "mismatchLabelKeys": ["version"]})).await;
    assert_eq!(fitting(&other, &s), "cd");
    let cycle = Cycle { pod: &other, snapshot: &s, alike: Selector::default() };
    let all: Vec<&NodeView> = s.nodes.values().collect();
    let rating = InterPodAffinity.pre_score(&cycle, &all).unwrap();
    assert_eq!(all.iter().map(|node| rating.score(node)).collect::<Vec<_>>(), [-1, -1, 0, 0]);
}
