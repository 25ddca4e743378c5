//! Golden text of a ruleset, and the law of `diff` on a model of the kernel.

use super::diff::{Change, diff};
use super::guard::{self, NodeSets};
use super::plan::plan_with_skipped;
use super::ruleset::{Chain, Family, Ruleset, Statement, Table, Value};
use super::table::{Endpoint, HostPort, Protocol, ServicePort, ServiceTable};
use super::{encode, plan, suite};
use crate::net::Config;
use std::net::IpAddr;

fn config() -> Config {
    Config {
        cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
        service_cidrs: vec!["10.43.0.0/16".parse().unwrap()],
        ..Config::new("/run/test", vec!["10.42.0.0/24".parse().unwrap()])
    }
}

fn check_golden(name: &str, got: &str) {
    let path = format!("{}/src/net/nft/golden/{name}.nft", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(std::path::Path::new(&path).parent().unwrap()).unwrap();
        std::fs::write(&path, got).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(got, want, "set UPDATE_GOLDEN=1 to accept");
}

#[test]
fn the_loopback_address_gets_the_endpoints_that_it_can_reach() {
    let (near, peer, machine) = ("10.42.0.2", "10.42.7.7", "192.0.2.9");
    let endpoint = |address: &str| Endpoint { address: address.parse().unwrap(), port: 80, local: false };
    let chains = |config: &Config, endpoints: &[&str]| {
        let endpoints = endpoints.iter().map(|address| endpoint(address)).collect();
        let service =
            ServicePort { name: "s".into(), port: 1, node_port: Some(30000), endpoints, ..ServicePort::default() };
        let table = ServiceTable { services: vec![service], ..ServiceTable::default() };
        let text = plan(config, &table).to_string();
        let chain = text.split("chain loopback//s/tcp/1 {").nth(1).map(|rest| rest.split('}').next().unwrap().trim());
        chain.map(str::to_owned)
    };
    let tunnelled = config();
    let plain = Config { routed_peers: true, addresses: vec![machine.parse().unwrap()], ..config() };
    assert_eq!(chains(&tunnelled, &[near, peer]), None, "all of them");
    assert_eq!(chains(&tunnelled, &[peer, machine]).as_deref(), Some("dnat to 10.42.7.7 . 80"));
    assert_eq!(chains(&tunnelled, &[machine]).as_deref(), Some("return"), "refused by whoever is not there");
    assert_eq!(chains(&plain, &[near, peer]).as_deref(), Some("dnat to 10.42.0.2 . 80"));
    assert_eq!(chains(&plain, &[machine]), None, "this machine itself");
}

#[test]
fn the_rulesets_are_as_recorded() {
    let names = ["plain", "sticky", "slower", "local", "nowhere", "empty-service", "many", "nothing"];
    for (name, table) in names.iter().zip(suite::tables()) {
        check_golden(name, &plan(&config(), &table).to_string());
    }
}

#[test]
fn the_guards_are_as_recorded() {
    let own = Config { addresses: vec!["192.0.2.1".parse().unwrap()], ..config() };
    let tunnel = Config { tunnel: true, dns_port: Some(1053), ..own.clone() };
    let mut two = tunnel.clone();
    two.pod_cidrs.push("fd42::/64".parse().unwrap());
    two.cluster_cidrs.push("fd42::/56".parse().unwrap());
    two.service_cidrs.push("fd43::/112".parse().unwrap());
    let nodes = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect();
    let segment = NodeSets { nodes: nodes(&["192.0.2.1", "192.0.2.2", "2001:db8::2"]), senders: nodes(&["192.0.2.2"]) };
    check_golden("guard-tunnel", &guard::plan(&tunnel, &segment).to_string());
    check_golden("guard-two-families", &guard::plan(&two, &segment).to_string());
    check_golden(
        "guard-routed",
        &guard::plan(&Config { routed_peers: true, block_metadata: true, ..own }, &segment).to_string(),
    );
}

#[test]
fn a_new_node_changes_elements_of_the_guard_and_no_rule() {
    let tunnel = Config { tunnel: true, ..config() };
    let one = |last: u8| [IpAddr::from([192, 0, 2, last])].into();
    let before = guard::plan(&tunnel, &NodeSets { nodes: one(1), senders: one(1) });
    let after = guard::plan(&tunnel, &NodeSets { nodes: one(1), senders: one(2) });
    let changes: Vec<Change> = diff(&before, &after).into_iter().map(|(_, change)| change).collect();
    assert!(
        matches!(&changes[..], [Change::DeleteElements(a, ..), Change::AddElements(b, ..)] if a == b && a == "senders"),
        "{changes:?}"
    );
}

/// A Service that claims addresses from outside, with one endpoint.
fn claiming(name: &str, port: u16, addresses: &[&str]) -> ServicePort {
    let ip = |a: &&str| a.parse().unwrap();
    ServicePort {
        namespace: "default".into(),
        name: name.into(),
        port,
        external_ips: addresses.iter().map(ip).collect(),
        endpoints: vec![Endpoint { address: "10.42.0.66".parse().unwrap(), port: 66, local: true }],
        ..ServicePort::default()
    }
}

/// Who has an address and port, from outside of the node.
fn holder(ruleset: &Ruleset, set: &str, address: &str, port: u16) -> Option<String> {
    let key = vec![Value::Address(address.parse().unwrap()), Value::Protocol(Protocol::Tcp), Value::Port(port)];
    ruleset.tables[&Family::Ip].sets[set].elements.get(&key).cloned()
}

#[test]
fn no_service_from_outside_takes_an_address_of_the_cluster_or_of_the_api() {
    let config = Config { api: vec!["192.0.2.50:6443".parse().unwrap()], ..config() };
    let special = ["127.0.0.1", "169.254.169.254", "0.0.0.0", "255.255.255.255", "224.0.0.1"];
    let cluster = ["10.43.0.1", "10.43.0.10", "10.43.0.80", "10.42.0.2", "10.42.9.9", "10.42.0.1"];
    let endpoint = Endpoint { address: "192.0.2.1".parse().unwrap(), port: 6443, local: false };
    let api = ServicePort {
        namespace: "default".into(),
        name: "kubernetes".into(),
        port: 443,
        cluster_ips: vec!["10.43.0.1".parse().unwrap()],
        endpoints: vec![endpoint],
        ..ServicePort::default()
    };
    // A cluster address that no range has any more keeps its holder, whoever comes first by name.
    let old = ServicePort { cluster_ips: vec!["10.99.0.7".parse().unwrap()], ..claiming("z", 443, &[]) };
    for balancer in [false, true] {
        for served in [true, false] {
            let claims = [&special[..], &cluster, &["192.0.2.1", "192.0.2.50", "10.99.0.7"]].concat();
            let mut services = vec![api.clone(), old.clone()];
            for port in [443, 6443] {
                let mut service = claiming(&format!("a{port}"), port, &claims);
                if balancer {
                    service.load_balancer_ips = std::mem::take(&mut service.external_ips);
                }
                if !served {
                    service.endpoints.clear();
                }
                services.push(service);
            }
            let (ruleset, skipped) = plan_with_skipped(&config, &ServiceTable { services, ..ServiceTable::default() });
            for (set, port) in [("services", 443), ("services", 6443), ("no-endpoints", 443), ("no-endpoints", 6443)] {
                for address in special.iter().chain(&cluster) {
                    let held = holder(&ruleset, set, address, port).unwrap_or_default();
                    assert!(!held.contains("/a") && held != "reject", "{address}:{port} {held}");
                }
                for address in ["192.0.2.1", "192.0.2.50"] {
                    let other = if served { "services" } else { "no-endpoints" };
                    let given = port != 6443 && set == other;
                    assert_eq!(holder(&ruleset, set, address, port).is_some(), given, "{set} {address}:{port}");
                }
            }
            assert_eq!(holder(&ruleset, "services", "10.99.0.7", 443).unwrap(), "service/default/z/tcp/443");
            assert_eq!(holder(&ruleset, "services", "10.43.0.1", 443).unwrap(), "service/default/kubernetes/tcp/443");
            let said = "default/a6443: 192.0.2.50 6443/tcp";
            assert!(skipped.services.iter().any(|l| l.contains(said)), "{skipped:?}");
        }
    }
}

#[test]
fn further_ranges_of_service_addresses_are_kept_inside_and_nobody_elses() {
    let ranges =
        vec!["10.43.7.0/24".parse().unwrap(), "10.196.0.0/24".parse().unwrap(), "fd00:196::/112".parse().unwrap()];
    let services = vec![claiming("a", 443, &["10.196.0.7", "203.0.113.7"])];
    let table = ServiceTable { services, ranges, ..ServiceTable::default() };
    let (ruleset, skipped) = plan_with_skipped(&config(), &table);
    let chains = &ruleset.tables[&Family::Ip].chains;
    let text = |chain: &str| format!("{:?}", chains[chain].rules);
    assert!(text("refuse-forward").contains("10.196.0.0/24") && text("refuse-output").contains("10.196.0.0/24"));
    assert!(text("arriving").contains("10.196.0.0/24") && chains["arriving"].rules.len() == 1, "{}", text("arriving"));
    assert!(holder(&ruleset, "services", "10.196.0.7", 443).is_none());
    assert!(holder(&ruleset, "services", "203.0.113.7", 443).is_some());
    assert!(skipped.services.iter().any(|l| l.contains("10.196.0.7")));
    let without = plan_with_skipped(&config(), &ServiceTable { ranges: Vec::new(), ..table }).0;
    assert!(!without.tables[&Family::Ip].chains.contains_key("arriving"));
}

#[test]
fn a_host_port_takes_local_addresses_alone_and_no_port_of_the_nodes_own() {
    let config = Config { api_port: Some(6443), kubelet_port: Some(10250), ..config() };
    let port = |host_ip: &str, host_port, protocol| HostPort {
        host_ip: host_ip.parse().unwrap(),
        host_port,
        protocol,
        pod_address: "10.42.0.66".parse().unwrap(),
        pod_port: 66,
    };
    let table = ServiceTable {
        host_ports: vec![
            port("198.51.100.9", 80, Protocol::Tcp),
            port("0.0.0.0", 6443, Protocol::Tcp),
            port("192.0.2.1", 6443, Protocol::Tcp),
            port("0.0.0.0", 8472, Protocol::Udp),
            port("0.0.0.0", 10250, Protocol::Tcp),
            port("0.0.0.0", 10250, Protocol::Udp),
        ],
        ..ServiceTable::default()
    };
    let (ruleset, skipped) = plan_with_skipped(&config, &table);
    let skipped: Vec<_> = skipped.host_ports.iter().map(|u| (u.port.host_port, u.why.as_str())).collect();
    let own = "it is this node's own";
    assert_eq!(skipped, [(6443, own), (6443, own), (8472, own), (10250, own)], "by port and protocol");
    let text = ruleset.to_string();
    assert_eq!(text.matches("hostport/").count(), 4, "two chains and two elements: {text}");
    assert!(holder(&ruleset, "host-ports", "198.51.100.9", 80).is_some());
    assert!(holder(&ruleset, "services", "198.51.100.9", 80).is_none(), "only where the address is local");
    // Nor by a node port, or by an external address that is one of this machine's.
    let chain = &ruleset.tables[&Family::Ip].chains["translate"].rules[0];
    assert_eq!(chain, &[Statement::PortIn("own-ports".into()), Statement::DestinationIsLocal, Statement::Return]);
    assert!(
        text.contains(
            "set own-ports {\n    type inet_proto . inet_service\n    tcp . 6443\n    tcp . 10250\n    udp . 8472"
        ),
        "{text}"
    );
}

#[test]
fn a_host_port_that_a_node_port_or_another_pod_has_is_told_and_leads_nowhere_else() {
    let port = |pod: &str, host_ip: &str, host_port| HostPort {
        host_ip: host_ip.parse().unwrap(),
        host_port,
        protocol: Protocol::Tcp,
        pod_address: pod.parse().unwrap(),
        pod_port: 66,
    };
    let service = |name: &str, node_port, endpoints| ServicePort {
        namespace: "default".into(),
        name: name.into(),
        port: 80,
        cluster_ips: vec!["10.43.0.5".parse().unwrap()],
        node_port: Some(node_port),
        endpoints,
        ..ServicePort::default()
    };
    let ready = Endpoint { address: "10.42.0.9".parse().unwrap(), port: 80, local: true };
    let table = ServiceTable {
        services: vec![service("web", 30080, vec![ready]), service("idle", 30081, vec![])],
        host_ports: vec![
            port("10.42.0.66", "0.0.0.0", 30080),
            port("10.42.0.66", "0.0.0.0", 30081),
            port("10.42.0.66", "192.0.2.1", 30080),
            port("10.42.0.66", "0.0.0.0", 8080),
            port("10.42.0.67", "0.0.0.0", 8080),
        ],
        ..ServiceTable::default()
    };
    let (ruleset, skipped) = plan_with_skipped(&config(), &table);
    let told: Vec<_> = skipped
        .host_ports
        .iter()
        .map(|u| format!("{} of {}: {}", u.port.host_port, u.port.pod_address, u.why))
        .collect();
    assert_eq!(
        told,
        [
            "8080 of 10.42.0.67: another pod of this node has it",
            "30080 of 10.42.0.66: it is the node port of the Service default/web",
            "30081 of 10.42.0.66: it is the node port of the Service default/idle",
        ]
    );
    let text = ruleset.to_string();
    assert!(!text.contains("hostport/tcp/30080/any") && !text.contains("hostport/tcp/30081"), "{text}");
    assert!(holder(&ruleset, "host-ports", "192.0.2.1", 30080).is_some(), "asked of one address it comes first");
}

#[test]
fn order_of_input_does_not_matter() {
    let table = suite::tables().remove(6);
    let mut turned = table.clone();
    turned.services.reverse();
    turned.host_ports.reverse();
    turned.services.iter_mut().for_each(|s| s.endpoints.reverse());
    assert_eq!(plan(&config(), &table), plan(&config(), &turned));
    assert_eq!(encode::fingerprint(&plan(&config(), &table)), encode::fingerprint(&plan(&config(), &turned)));
}

/// Applies changes as the kernel would, and refuses what it refuses.
fn apply(ruleset: &mut Ruleset, changes: &[(Family, Change)]) {
    for (family, change) in changes {
        if *change == Change::AddTable {
            ruleset.tables.insert(*family, Table::default());
            continue;
        }
        if *change == Change::DeleteTable {
            ruleset.tables.remove(family).unwrap();
            continue;
        }
        step(ruleset.tables.get_mut(family).unwrap(), change);
    }
}

fn step(table: &mut Table, change: &Change) {
    match change {
        Change::AddTable | Change::DeleteTable => unreachable!("done by the caller"),
        Change::AddSet(name, set) => assert!(table.sets.insert(name.clone(), set.clone()).is_none()),
        Change::DeleteSet(name) => {
            let used = |chain: &Chain| chain.rules.iter().flatten().any(|s| s.set() == Some(name));
            assert!(!table.chains.values().any(used), "{name} is in use");
            table.sets.remove(name).unwrap();
        }
        Change::AddElements(name, _, elements) => {
            for (key, target) in elements {
                assert!(target.is_empty() || table.chains.contains_key(target), "{target} is missing");
                let before = table.sets.get_mut(name).unwrap().elements.insert(key.clone(), target.clone());
                assert!(before.is_none());
            }
        }
        Change::DeleteElements(name, _, elements) => {
            elements.keys().for_each(|key| drop(table.sets.get_mut(name).unwrap().elements.remove(key).unwrap()));
        }
        Change::AddChain(name, hook) => {
            let chain = Chain { hook: *hook, rules: Vec::new() };
            assert!(table.chains.insert(name.clone(), chain).is_none());
        }
        Change::DeleteChain(name) => {
            let leads = |set: &super::ruleset::Set| set.elements.values().any(|target| target == name);
            assert!(!table.sets.values().any(leads), "{name} is still led to");
            assert!(table.chains.remove(name).unwrap().rules.is_empty());
        }
        Change::Flush(name) => table.chains.get_mut(name).unwrap().rules.clear(),
        Change::AddRule(name, rule) => table.chains.get_mut(name).unwrap().rules.push(rule.clone()),
    }
}

#[test]
fn a_diff_applied_gives_the_new_ruleset() {
    let mut rulesets: Vec<Ruleset> = suite::tables().iter().map(|table| plan(&config(), table)).collect();
    rulesets.push(Ruleset { name: config().table(), ..Ruleset::default() });
    let two = Config { pod_cidrs: vec!["10.42.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()], ..config() };
    rulesets.push(plan(&two, &suite::tables()[1]));
    for old in &rulesets {
        for new in &rulesets {
            let changes = diff(old, new);
            assert_eq!(changes.is_empty(), old == new);
            let mut kernel = old.clone();
            apply(&mut kernel, &changes);
            assert_eq!(&kernel, new);
        }
    }
}

#[test]
fn one_changed_service_touches_only_its_own() {
    let mut table = suite::tables().remove(6);
    let old = plan(&config(), &table);
    table.services[0].endpoints.pop();
    let changes = diff(&old, &plan(&config(), &table));
    let chain = "service/default/web/tcp/80".to_owned();
    assert_eq!(changes.len(), 2, "{changes:?}");
    assert_eq!(changes[0].1, Change::Flush(chain.clone()));
    assert!(matches!(&changes[1].1, Change::AddRule(name, _) if *name == chain));
}
