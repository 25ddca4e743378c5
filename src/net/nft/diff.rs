//! What must be written to turn one ruleset into another: a pure function.
//!
//! Order matters to the kernel even inside one atomic batch: a chain must exist before an element or rule leads to it
//! and must be unused before it goes. Invariant: applying the changes to `old` gives exactly `new`
//! (tests apply them to a model).

use std::collections::BTreeMap;

use super::ruleset::{Chain, Family, Hook, Rule, Ruleset, Set, Table, Value};

/// Elements of a set: key and chain.
pub type Elements = BTreeMap<Vec<Value>, String>;

/// One change to one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    AddTable,
    DeleteTable,
    /// The set is added without elements.
    AddSet(String, Set),
    DeleteSet(String),
    AddElements(String, Set, Elements),
    DeleteElements(String, Set, Elements),
    AddChain(String, Option<Hook>),
    DeleteChain(String),
    Flush(String),
    AddRule(String, Rule),
}

/// The changes from `old` to `new`, in the order to write them.
pub fn diff(old: &Ruleset, new: &Ruleset) -> Vec<(Family, Change)> {
    let mut changes = Vec::new();
    let empty = Table::default();
    for (family, table) in &new.tables {
        if !old.tables.contains_key(family) {
            changes.push((*family, Change::AddTable));
        }
        let steps = diff_table(old.tables.get(family).unwrap_or(&empty), table);
        changes.extend(steps.into_iter().map(|change| (*family, change)));
    }
    for family in old.tables.keys().filter(|family| !new.tables.contains_key(family)) {
        changes.push((*family, Change::DeleteTable));
    }
    changes
}

fn same_shape(a: &Set, b: &Set) -> bool {
    a.kind == b.kind && a.key == b.key
}

fn diff_table(old: &Table, new: &Table) -> Vec<Change> {
    let mut changes = Vec::new();
    // A set or base chain whose shape changed is rare (an affinity timeout): the users of the set are written anew.
    let reshaped =
        |name: &String| matches!((old.sets.get(name), new.sets.get(name)), (Some(a), Some(b)) if !same_shape(a, b));
    let rewritten = |name: &String, chain: &Chain| match old.chains.get(name) {
        Some(before) => before != chain || chain.rules.iter().flatten().any(|s| s.set().is_some_and(reshaped)),
        None => true,
    };
    for (name, set) in &old.sets {
        if let Some(after) = new.sets.get(name) {
            let gone: Elements =
                set.elements.iter().filter(|(k, v)| after.elements.get(*k) != Some(v)).map(own).collect();
            if !gone.is_empty() && !reshaped(name) {
                changes.push(Change::DeleteElements(name.clone(), bare(set), gone));
            }
        }
    }
    for (name, chain) in &old.chains {
        let keep = new.chains.get(name);
        if keep.is_none_or(|after| rewritten(name, after)) && !chain.rules.is_empty() {
            changes.push(Change::Flush(name.clone()));
        }
    }
    for name in old.sets.keys().filter(|name| !new.sets.contains_key(*name) || reshaped(name)) {
        changes.push(Change::DeleteSet(name.clone()));
    }
    for name in old.chains.keys() {
        let keep = new.chains.get(name).is_some_and(|after| after.hook == old.chains[name].hook);
        if !keep {
            changes.push(Change::DeleteChain(name.clone()));
        }
    }
    for (name, set) in &new.sets {
        if !old.sets.contains_key(name) || reshaped(name) {
            changes.push(Change::AddSet(name.clone(), bare(set)));
        }
    }
    for (name, chain) in &new.chains {
        if old.chains.get(name).is_none_or(|before| before.hook != chain.hook) {
            changes.push(Change::AddChain(name.clone(), chain.hook));
        }
    }
    for (name, set) in &new.sets {
        let before = old.sets.get(name).filter(|_| !reshaped(name));
        let is_new = |(k, v): &(&Vec<Value>, &String)| before.is_none_or(|b| b.elements.get(*k) != Some(v));
        let fresh: Elements = set.elements.iter().filter(is_new).map(own).collect();
        if !fresh.is_empty() {
            changes.push(Change::AddElements(name.clone(), bare(set), fresh));
        }
    }
    for (name, chain) in new.chains.iter().filter(|(name, chain)| rewritten(name, chain)) {
        changes.extend(chain.rules.iter().map(|rule| Change::AddRule(name.clone(), rule.clone())));
    }
    changes
}

fn own((key, target): (&Vec<Value>, &String)) -> (Vec<Value>, String) {
    (key.clone(), target.clone())
}

fn bare(set: &Set) -> Set {
    Set { elements: BTreeMap::new(), ..set.clone() }
}
