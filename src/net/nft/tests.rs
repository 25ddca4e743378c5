//! Golden text of a ruleset, and the law of `diff` on a model of the kernel.

use super::diff::{Change, diff};
use super::guard::{self, Segment};
use super::ruleset::{Chain, Family, Ruleset, Table};
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
    let segment = Segment { nodes: nodes(&["192.0.2.1", "192.0.2.2", "2001:db8::2"]), senders: nodes(&["192.0.2.2"]) };
    check_golden("guard-tunnel", &guard::plan(&tunnel, &segment).to_string());
    check_golden("guard-two-families", &guard::plan(&two, &segment).to_string());
    check_golden("guard-routed", &guard::plan(&Config { routed_peers: true, ..own }, &segment).to_string());
}

#[test]
fn a_new_node_changes_elements_of_the_guard_and_no_rule() {
    let tunnel = Config { tunnel: true, ..config() };
    let one = |last: u8| [IpAddr::from([192, 0, 2, last])].into();
    let before = guard::plan(&tunnel, &Segment { nodes: one(1), senders: one(1) });
    let after = guard::plan(&tunnel, &Segment { nodes: one(1), senders: one(2) });
    let changes: Vec<Change> = diff(&before, &after).into_iter().map(|(_, change)| change).collect();
    assert!(
        matches!(&changes[..], [Change::DeleteElements(a, ..), Change::AddElements(b, ..)] if a == b && a == "senders"),
        "{changes:?}"
    );
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
