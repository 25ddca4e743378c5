//! NetworkPolicy: who may speak to pods, and whom they may speak to (`controllers::networkpolicy`, `net::policy`).

use std::net::IpAddr;

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::base::json::{at, int, list, list_mut, map_mut, set, set_default, text};
use crate::base::labels::{Op, Requirement, Selector};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Generation, Kind, KindRef, Strategy};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "networking.k8s.io",
    kind: "NetworkPolicy",
    plural: "networkpolicies",
    singular: "networkpolicy",
    short_names: &["netpol"],
    generation: Generation::Spec,
    schema: "io.k8s.api.networking.v1.NetworkPolicy",
    columns: COLUMNS,
    row: |policy, now: Timestamp| {
        vec![table::name(policy), table::selector(at(policy, "spec.podSelector")).into(), table::age(policy, now)]
    },
    strategy: Strategy { default, validate, ..Strategy::BASE },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"podSelector":{}}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[table::NAME, string("Pod-Selector", "The pods that it is about."), table::AGE];
/// The label of EndpointSlices that have the addresses of peers: [`Peers::id`].
pub const PEERS: &str = "amphipod.io/network-policy-peers";
/// Who makes them, as slices tell it.
pub const MANAGER: &str = "networkpolicy.amphipod.io";
const TYPES: [&str; 2] = ["Ingress", "Egress"];
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
/// Rules of each direction, and where they name others.
pub const RULES: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];

/// Pods that a rule names by their labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Peers<'r> {
    selectors: Vec<&'r Value>,
    /// Names of ports with their protocols, which each of these pods may understand otherwise.
    pub named_ports: Vec<(&'r str, &'r str)>,
}

// === impl Peers ===

impl<'r> Peers<'r> {
    /// Those of a rule, of `ingress` or `egress`; `None` where it names none by labels.
    pub fn of(direction: &str, rule: &'r Value) -> Option<Self> {
        let others = RULES.iter().find(|(name, _)| *name == direction)?.1;
        let selectors: Vec<&Value> = list(rule, others).iter().filter(|peer| !peer["ipBlock"].is_object()).collect();
        let ports = list(rule, "ports").iter().filter(|_| direction == "egress");
        let named_ports = ports.filter_map(|p| Some((p["port"].as_str()?, text(p, "protocol")))).collect();
        if selectors.is_empty() { None } else { Some(Self { selectors, named_ports }) }
    }

    /// A name that rules of a namespace have in common that name the same.
    pub fn id(&self, namespace: &str) -> String {
        let what = serde_json::json!([namespace, self.selectors, self.named_ports]);
        hex::encode(&Sha256::digest(what.to_string().as_bytes())[..10])
    }

    /// How many selectors there are.
    pub fn count(&self) -> usize {
        self.selectors.len()
    }

    /// By what namespaces and pods are selected: without the first those of the policy's own namespace, without the second all.
    pub fn selectors(&self) -> impl Iterator<Item = (Option<Selector>, Selector)> {
        // What cannot be read selects nothing.
        let read = |peer: &Value, key: &str| {
            peer.get(key).filter(|s| s.is_object()).map(|s| Selector::from_object(s).unwrap_or_else(|_| nothing()))
        };
        self.selectors
            .iter()
            .map(move |peer| (read(peer, "namespaceSelector"), read(peer, "podSelector").unwrap_or_default()))
    }
}

fn nothing() -> Selector {
    Selector(vec![Requirement { key: String::new(), op: Op::In, values: Vec::new() }])
}

/// Whether a policy is about one direction, `Ingress` or `Egress`.
pub fn is_about(policy: &Value, direction: &str) -> bool {
    list(policy, "spec.policyTypes").iter().any(|one| one == direction)
}

fn default(policy: &mut Value) {
    let spec = map_mut(policy, "spec");
    spec.entry("podSelector").or_insert_with(|| Value::Object(serde_json::Map::new()));
    for (rules, _) in RULES {
        for rule in list_mut(&mut policy["spec"], rules).into_iter().flatten() {
            list_mut(rule, "ports").into_iter().flatten().for_each(|port| set_default(port, "protocol", "TCP"));
        }
    }
    if list(policy, "spec.policyTypes").is_empty() {
        let has_egress = !list(policy, "spec.egress").is_empty();
        let types: &[&str] = if has_egress { &TYPES } else { &TYPES[..1] };
        set(&mut policy["spec"], "policyTypes", types.to_vec());
    }
}

fn validate(policy: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::root("spec");
    check::label_selector(&mut errors, &path.field("podSelector"), at(policy, "spec.podSelector"));
    for (direction, others) in RULES {
        let path = path.field(direction);
        for (i, rule) in list(&policy["spec"], direction).iter().enumerate() {
            validate_rule(&mut errors, &path.index(i), rule, others);
        }
    }
    let (types, path) = (list(policy, "spec.policyTypes"), path.field("policyTypes"));
    if types.len() > TYPES.len() {
        errors.push(field::invalid(&path, types.to_vec(), "may not specify more than two policyTypes"));
        return errors;
    }
    for (i, one) in types.iter().enumerate() {
        check::one_of(&mut errors, &path.index(i), one.as_str().unwrap_or_default(), &["Egress", "Ingress"]);
    }
    errors
}

fn validate_rule(errors: &mut Errors, path: &Path<'_>, rule: &Value, others: &str) {
    let ports = path.field("ports");
    for (i, port) in list(rule, "ports").iter().enumerate() {
        validate_port(errors, &ports.index(i), port);
    }
    let peers = path.field(others);
    for (i, peer) in list(rule, others).iter().enumerate() {
        validate_peer(errors, &peers.index(i), peer);
    }
}

fn validate_port(errors: &mut Errors, path: &Path<'_>, port: &Value) {
    check::one_of(errors, &path.field("protocol"), text(port, "protocol"), &PROTOCOLS);
    let (first, end_path) = (port.get("port").filter(|p| !p.is_null()), path.field("endPort"));
    if first.is_some() {
        check::port_or_name(errors, &path.field("port"), first);
    }
    let Some(end) = int(port, "endPort") else { return };
    let why = match first {
        None => "may not be specified when `port` is not specified",
        Some(Value::String(_)) => "may not be specified when `port` is non-numeric",
        Some(first) => {
            if end < first.as_i64().unwrap_or(0) {
                errors.push(field::invalid(&end_path, end, "must be greater than or equal to `port`"));
            }
            return check::port(errors, &end_path, end);
        }
    };
    errors.push(field::invalid(&end_path, end, why));
}

fn validate_peer(errors: &mut Errors, path: &Path<'_>, peer: &Value) {
    let given = |key: &str| peer.get(key).filter(|v| v.is_object());
    for key in ["podSelector", "namespaceSelector"] {
        check::label_selector(errors, &path.field(key), given(key));
    }
    let selects = given("podSelector").or(given("namespaceSelector")).is_some();
    match given("ipBlock") {
        None if !selects => errors.push(field::required(path, "must specify a peer")),
        None => {}
        Some(block) => {
            validate_block(errors, &path.field("ipBlock"), block);
            if selects {
                errors.push(field::forbidden(path, "may not specify both ipBlock and another peer"));
            }
        }
    }
}

fn validate_block(errors: &mut Errors, path: &Path<'_>, block: &Value) {
    let (cidr, cidr_path) = (text(block, "cidr"), path.field("cidr"));
    if !check::given(errors, &cidr_path, cidr) {
        return;
    }
    let Some(whole) = check::cidr(errors, &cidr_path, cidr) else { return };
    let path = path.field("except");
    for (i, except) in list(block, "except").iter().enumerate() {
        let (path, except) = (path.index(i), except.as_str().unwrap_or_default());
        let Some(part) = check::cidr(errors, &path, except) else { continue };
        if !is_strict_part(part, whole) {
            errors.push(field::invalid(&path, except, "must be a strict subset of `cidr`"));
        }
    }
}

/// Whether a range is in another one, and smaller.
fn is_strict_part(part: (IpAddr, u8), whole: (IpAddr, u8)) -> bool {
    let range = |(address, length)| ipnet::IpNet::new(address, length).map(|net| net.trunc());
    let (Ok(part), Ok(whole)) = (range(part), range(whole)) else { return false };
    whole.contains(&part) && whole.prefix_len() < part.prefix_len()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wrong(spec: &Value) -> Vec<String> {
        let mut policy = json!({ "spec": spec });
        default(&mut policy);
        validate(&policy).iter().map(|e| format!("{} {:?}", e.field, e.reason)).collect()
    }

    #[test]
    fn types_follow_from_the_rules() {
        let types = |spec: Value| {
            let mut policy = json!({ "spec": spec });
            default(&mut policy);
            policy["spec"]["policyTypes"].clone()
        };
        assert_eq!(types(json!({})), json!(["Ingress"]));
        assert_eq!(types(json!({"egress": []})), json!(["Ingress"]));
        assert_eq!(types(json!({"egress": [{}]})), json!(["Ingress", "Egress"]));
        assert_eq!(types(json!({"policyTypes": ["Egress"]})), json!(["Egress"]));
    }

    #[test]
    fn rules_that_name_the_same_pods_share_their_name() {
        let a = json!({"from": [{"podSelector": {"matchLabels": {"a": "b"}}}, {"ipBlock": {"cidr": "10.0.0.0/8"}}]});
        let b = json!({"from": [{"podSelector": {"matchLabels": {"a": "b"}}}], "ports": [{"port": "http"}]});
        let of = |rule| Peers::of("ingress", rule).unwrap();
        assert_eq!(of(&a).id("n"), of(&b).id("n"));
        assert_ne!(of(&a).id("n"), of(&a).id("m"));
        assert_eq!(of(&a).selectors().count(), 1);
        assert_eq!(Peers::of("egress", &a), None, "that is where it looks");
        let c = json!({"to": b["from"], "ports": [{"port": "http", "protocol": "TCP"}]});
        assert_eq!(Peers::of("egress", &c).unwrap().named_ports, [("http", "TCP")]);
        assert_eq!(Peers::of("ingress", &json!({})), None);
    }

    #[test]
    fn ports_and_peers_are_checked() {
        let ports = |port: Value| wrong(&json!({"ingress": [{"ports": [port]}]}));
        assert!(ports(json!({})).is_empty());
        assert!(ports(json!({"port": 80, "endPort": 80})).is_empty());
        assert!(ports(json!({"port": "http"})).is_empty());
        for (bad, at) in [
            (json!({"port": 0}), "port"),
            (json!({"port": "A_B"}), "port"),
            (json!({"endPort": 5}), "endPort"),
            (json!({"port": 6, "endPort": 5}), "endPort"),
            (json!({"port": "a", "endPort": 5}), "endPort"),
            (json!({"protocol": "ICMP"}), "protocol"),
        ] {
            let all = ports(bad.clone());
            assert_eq!(all.len(), 1, "{bad}: {all:?}");
            assert!(all[0].starts_with(&format!("spec.ingress[0].ports[0].{at} ")), "{bad}: {all:?}");
        }
        let peers = |peer: Value| wrong(&json!({"egress": [{"to": [peer]}]}));
        let block = |cidr: &str, except: &str| json!({"ipBlock": {"cidr": cidr, "except": [except]}});
        assert!(peers(block("10.0.0.0/8", "10.1.0.0/16")).is_empty());
        assert!(peers(json!({"podSelector": {}, "namespaceSelector": {}})).is_empty());
        for (bad, at) in [
            (json!({}), ""),
            (json!({"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}), ""),
            (
                json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "X"}]}}),
                ".podSelector.matchExpressions[0].operator",
            ),
            (json!({"ipBlock": {"cidr": ""}}), ".ipBlock.cidr"),
            (block("10.0.0.0/8", "10.0.0.0/8"), ".ipBlock.except[0]"),
            (block("10.0.0.0/8", "11.0.0.0/16"), ".ipBlock.except[0]"),
            (block("10.0.0.0/8", "fd00::/64"), ".ipBlock.except[0]"),
            (block("10.0.0.0/8", "x"), ".ipBlock.except[0]"),
        ] {
            let all = peers(bad.clone());
            assert_eq!(all.len(), 1, "{bad}: {all:?}");
            assert!(all[0].starts_with(&format!("spec.egress[0].to[0]{at} ")), "{bad}: {all:?}");
        }
        assert_eq!(wrong(&json!({"policyTypes": ["Ingress", "Egress", "Ingress"]})).len(), 1);
    }
}
