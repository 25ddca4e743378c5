//! Role-based access control over the cached RBAC objects.
//!
//! Rules are compiled from the four kinds once after each change of any of them, so a check is a walk over small structs.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, RwLock};

use serde::Deserialize;
use serde_json::Value;

use super::attributes::{Attributes, Decision};
use crate::api::cache::Cache;
use crate::apimachinery::user::{MASTERS, User};
use crate::base::budget::{Budget, Exceeded};
use crate::base::labels::Selector;
use crate::base::object::Object;
use crate::kinds::{KindRef, rbac};

/// One `PolicyRule`.
#[derive(Clone, Debug, Default, Deserialize, serde::Serialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verbs: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

/// The authorizer.
pub struct Rbac {
    cache: Cache,
    compiled: RwLock<Arc<Compiled>>,
}

#[derive(Default)]
struct Compiled {
    revisions: [u64; 4],
    /// Bindings that hold everywhere, and by namespace.
    cluster: Vec<Binding>,
    namespaced: HashMap<Box<str>, Vec<Binding>>,
}

struct Binding {
    /// `RoleBinding "r/ns" of Role "r"`, for people.
    name: String,
    subjects: Vec<Subject>,
    rules: Arc<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Subject {
    kind: String,
    name: String,
    #[serde(default)]
    namespace: String,
}

/// Permissions that somebody lacks are told of up to this number.
const MISSING_MAX: usize = 100;

static KINDS: [&KindRef; 4] =
    [&rbac::clusterrole::KIND, &rbac::role::KIND, &rbac::clusterrolebinding::KIND, &rbac::rolebinding::KIND];

// === impl Rbac ===

impl Rbac {
    /// Over the objects of a cache.
    pub fn new(cache: Cache) -> Self {
        Self { cache, compiled: RwLock::default() }
    }

    /// Whether the user may do it, and which binding says so; those who need no rule have no reason.
    pub(super) fn decide(&self, user: &User, attributes: &Attributes) -> Decision {
        if user.is_in(MASTERS) {
            return Decision { allowed: true, reason: None };
        }
        let (compiled, who) = (self.current(), Who::of(user));
        let allowing = |b: &&Binding| b.rules.iter().any(|r| r.allows(attributes));
        let found = compiled.bindings(&attributes.namespace).find_map(|b| {
            let subject = b.subjects.iter().find(|s| who.is(s))?;
            Some((b, subject)).filter(|(b, _)| allowing(b))
        });
        let reason = found.map(|(b, s)| format!("RBAC: allowed by {} to {}", b.name, s.words()));
        Decision { allowed: reason.is_some(), reason }
    }

    /// All rules that hold for the user in a namespace (and everywhere).
    pub fn rules(&self, user: &User, namespace: &str) -> Vec<Rule> {
        let (compiled, who) = (self.current(), Who::of(user));
        let mine = compiled.bindings(namespace).filter(|b| b.subjects.iter().any(|s| who.is(s)));
        mine.flat_map(|b| b.rules.iter().cloned()).collect()
    }

    /// Which of `rules` the user does not hold in a namespace, for nobody may grant what they do not have; at most so many
    /// as are worth telling. An error where they cannot be compared in a bounded time.
    pub fn missing(&self, user: &User, namespace: &str, rules: &[Rule]) -> Result<Vec<Rule>, Exceeded> {
        if user.is_in(MASTERS) {
            return Ok(Vec::new());
        }
        let held = self.rules(user, namespace);
        let (mut missing, mut budget) = (Vec::new(), Budget::new());
        for rule in rules {
            budget.step(rule.len().saturating_mul(held.iter().map(Rule::len).sum::<u64>() + 1))?;
            if held.iter().any(|h| h.covers(rule)) {
                continue;
            }
            // Not covered as a whole: permission by permission.
            budget.step(rule.atom_count().saturating_mul(held.iter().map(Rule::len).sum::<u64>() + 1))?;
            missing.extend(rule.atoms().into_iter().filter(|a| !held.iter().any(|h| h.covers(a))));
            missing.truncate(MISSING_MAX);
        }
        Ok(missing)
    }

    /// The rules that a `roleRef` in a namespace leads to.
    pub fn role_rules(&self, namespace: &str, role_ref: &Value) -> Vec<Rule> {
        let kind = if role_ref["kind"] == "Role" { &rbac::role::KIND } else { &rbac::clusterrole::KIND };
        let key = kind.key(namespace, role_ref["name"].as_str().unwrap_or(""));
        self.cache.kind(kind).get(&key).map(|o| rules_of(&o)).unwrap_or_default()
    }

    fn current(&self) -> Arc<Compiled> {
        let revisions = KINDS.map(|k| self.cache.kind(k).last());
        let compiled = self.compiled.read().expect("no panic while held").clone();
        if compiled.revisions == revisions && !compiled.cluster.is_empty() {
            return compiled;
        }
        let fresh = Arc::new(self.compile(revisions));
        *self.compiled.write().expect("no panic while held") = fresh.clone();
        fresh
    }

    fn compile(&self, revisions: [u64; 4]) -> Compiled {
        let mut out = Compiled { revisions, ..Compiled::default() };
        let mut roles: HashMap<Arc<str>, Arc<Vec<Rule>>> = HashMap::new();
        for kind in [KINDS[2], KINDS[3]] {
            for object in self.cache.kind(kind).list(&kind.prefix(), "") {
                let value = object.value();
                let role_kind = if value["roleRef"]["kind"] == "Role" { KINDS[1] } else { KINDS[0] };
                let role_key = role_kind.key(&object.meta.namespace, value["roleRef"]["name"].as_str().unwrap_or(""));
                let rules = roles.entry(role_key.clone()).or_insert_with(|| {
                    Arc::new(self.cache.kind(role_kind).get(&role_key).map(|o| rules_of(&o)).unwrap_or_default())
                });
                let subjects = Vec::<Subject>::deserialize(&value["subjects"]).unwrap_or_default();
                let place = match &*object.meta.namespace {
                    "" => object.meta.name.to_string(),
                    namespace => format!("{}/{namespace}", object.meta.name),
                };
                let name = format!("{} {place:?} of {} {}", kind.kind(), role_kind.kind(), value["roleRef"]["name"]);
                let binding = Binding { name, subjects, rules: rules.clone() };
                match &*object.meta.namespace {
                    "" => out.cluster.push(binding),
                    namespace => out.namespaced.entry(namespace.into()).or_default().push(binding),
                }
            }
        }
        out
    }
}

// === impl Compiled ===

impl Compiled {
    /// The bindings that hold in a namespace.
    fn bindings(&self, namespace: &str) -> impl Iterator<Item = &Binding> {
        let local = self.namespaced.get(namespace).map(Vec::as_slice).unwrap_or_default();
        self.cluster.iter().chain(local)
    }
}

impl std::fmt::Debug for Rbac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rbac")
    }
}

/// Whether a `roleRef` in a namespace leads anywhere.
pub fn role_exists(cache: &Cache, namespace: &str, role_ref: &Value) -> bool {
    let kind = if role_ref["kind"] == "Role" { KINDS[1] } else { KINDS[0] };
    cache.kind(kind).get(&kind.key(namespace, role_ref["name"].as_str().unwrap_or(""))).is_some()
}

/// The `rules` of a Role or ClusterRole.
pub fn rules_of(role: &Object) -> Vec<Rule> {
    Vec::<Rule>::deserialize(&role.value()["rules"]).unwrap_or_default()
}

/// The rules that an aggregating ClusterRole gathers from others, in name order and without repetition.
pub fn aggregate(cache: &Cache, selectors: &Value) -> Vec<Rule> {
    let selectors: Vec<Selector> =
        selectors.as_array().into_iter().flatten().filter_map(|s| Selector::from_object(s).ok()).collect();
    let kind = KINDS[0];
    let (mut rules, mut seen) = (Vec::new(), HashSet::new());
    for role in cache.kind(kind).list(&kind.prefix(), "") {
        if selectors.iter().any(|s| s.matches(&role.meta.labels)) {
            for rule in rules_of(&role) {
                if seen.insert(rule.clone()) {
                    rules.push(rule);
                }
            }
        }
    }
    rules
}

// === impl Rule ===

impl Rule {
    /// Whether the rule allows it.
    pub fn allows(&self, a: &Attributes) -> bool {
        let has = |list: &[String], what: &str| list.iter().any(|x| x == "*" || x == what);
        if !has(&self.verbs, &a.verb) {
            return false;
        }
        if a.is_path() {
            return self.non_resource_urls.iter().any(|u| match u.strip_suffix('*') {
                Some(prefix) => a.path.starts_with(prefix),
                None => *u == a.path,
            });
        }
        let named = |r: &str| match a.subresource.as_str() {
            "" => r == a.resource,
            sub => match r.strip_suffix(sub).and_then(|r| r.strip_suffix('/')) {
                Some(plural) => plural == "*" || plural == a.resource,
                None => false,
            },
        };
        let resource = self.resources.iter().any(|r| r == "*" || named(r));
        resource
            && has(&self.api_groups, &a.group)
            && (self.resource_names.is_empty() || self.resource_names.contains(&a.name))
    }

    /// How many words it has.
    fn len(&self) -> u64 {
        let lists = [&self.verbs, &self.api_groups, &self.resources, &self.resource_names, &self.non_resource_urls];
        lists.iter().map(|l| l.len() as u64).sum()
    }

    /// How many single permissions it is.
    fn atom_count(&self) -> u64 {
        let lists = [&self.verbs, &self.api_groups, &self.resources];
        let objects =
            lists.iter().fold(self.resource_names.len().max(1) as u64, |n, l| n.saturating_mul(l.len() as u64));
        objects.saturating_add((self.verbs.len() as u64).saturating_mul(self.non_resource_urls.len() as u64))
    }

    /// The rule as single permissions.
    fn atoms(&self) -> Vec<Self> {
        let mut out = Vec::new();
        let one = |s: &String| vec![s.clone()];
        for verb in &self.verbs {
            for url in &self.non_resource_urls {
                out.push(Self { verbs: one(verb), non_resource_urls: one(url), ..Self::default() });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    let base =
                        Self { verbs: one(verb), api_groups: one(group), resources: one(resource), ..Self::default() };
                    if self.resource_names.is_empty() {
                        out.push(base);
                    } else {
                        out.extend(self.resource_names.iter().map(|n| Self { resource_names: one(n), ..base.clone() }));
                    }
                }
            }
        }
        out
    }

    /// Whether everything that another rule, or a single permission of it, allows is allowed by this rule.
    fn covers(&self, atom: &Self) -> bool {
        let has = |list: &[String], what: &[String]| what.iter().all(|w| list.iter().any(|x| x == "*" || x == w));
        let resources = atom.resources.iter().all(|w| {
            self.resources
                .iter()
                .any(|r| r == "*" || r == w || w.split_once('/').is_some_and(|(_, s)| *r == format!("*/{s}")))
        });
        let urls = atom.non_resource_urls.iter().all(|w| {
            self.non_resource_urls.iter().any(|u| u == w || u.strip_suffix('*').is_some_and(|p| w.starts_with(p)))
        });
        let names = self.resource_names.is_empty()
            || (!atom.resource_names.is_empty() && atom.resource_names.iter().all(|n| self.resource_names.contains(n)));
        has(&self.verbs, &atom.verbs) && has(&self.api_groups, &atom.api_groups) && resources && urls && names
    }
}

// === impl Subject ===

impl Subject {
    /// For people.
    fn words(&self) -> String {
        match self.kind.as_str() {
            "ServiceAccount" => format!("ServiceAccount \"{}/{}\"", self.name, self.namespace),
            kind => format!("{kind} {:?}", self.name),
        }
    }
}

/// A user, in the form in which many subjects are compared with them.
struct Who<'u> {
    user: &'u User,
    account: Option<(&'u str, &'u str)>,
    groups: HashSet<&'u str>,
}

// === impl Who ===

impl<'u> Who<'u> {
    fn of(user: &'u User) -> Self {
        let groups = user.groups.iter().map(String::as_str).collect();
        Self { user, account: super::token::service_account(&user.name), groups }
    }

    fn is(&self, subject: &Subject) -> bool {
        match subject.kind.as_str() {
            "User" => subject.name == "*" || subject.name == self.user.name,
            "Group" => self.groups.contains(subject.name.as_str()),
            "ServiceAccount" => self.account == Some((&subject.namespace, &subject.name)),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(v: Value) -> Rule {
        serde_json::from_value(v).unwrap()
    }

    fn ask(verb: &str, group: &str, resource: &str, subresource: &str, name: &str) -> Attributes {
        let s = str::to_owned;
        Attributes {
            verb: s(verb),
            group: s(group),
            resource: s(resource),
            subresource: s(subresource),
            name: s(name),
            ..Attributes::default()
        }
    }

    #[test]
    fn rules_allow_what_they_name() {
        let r =
            rule(json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log", "*/scale"]}));
        assert!(r.allows(&ask("get", "", "pods", "", "x")));
        assert!(r.allows(&ask("get", "", "pods", "log", "x")));
        assert!(r.allows(&ask("get", "", "things", "scale", "x")));
        assert!(!r.allows(&ask("get", "", "pods", "exec", "x")));
        assert!(!r.allows(&ask("get", "apps", "pods", "", "x")));
        assert!(!r.allows(&ask("delete", "", "pods", "", "x")));
        let named = rule(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "resourceNames": ["a"]}));
        assert!(named.allows(&ask("get", "x", "y", "z", "a")) && !named.allows(&ask("get", "x", "y", "z", "b")));
        let url = rule(json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/api/*"]}));
        let path = |p: &str| Attributes { verb: "get".into(), path: p.into(), ..Attributes::default() };
        assert!(url.allows(&path("/api/v1")) && url.allows(&path("/healthz")) && !url.allows(&path("/metrics")));
    }

    #[test]
    fn a_rule_names_subresources_as_kubernetes_does() {
        let may = |resource: &str, asked: &str, sub: &str| {
            rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": [resource]}))
                .allows(&ask("get", "", asked, sub, "x"))
        };
        assert!(may("pods/log", "pods", "log") && may("*/log", "pods", "log") && may("*", "pods", "log"));
        assert!(!may("pods/", "pods", "") && !may("*/", "pods", "") && !may("pods/*", "pods", "log"));
        assert!(!may("pods", "pods", "log") && !may("pods/log", "pods", "") && !may("*/log", "pods", "dialog"));
        assert!(may("pods/log", "pods/log", ""), "as a review may spell it");
    }

    #[test]
    fn a_rule_covers_only_what_it_allows() {
        let wide = rule(json!({"verbs": ["*"], "apiGroups": [""], "resources": ["pods", "*/scale"]}));
        let narrow = rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"]}));
        assert!(narrow.atoms().iter().all(|a| wide.covers(a)));
        assert!(!wide.atoms().iter().all(|a| narrow.covers(a)));
        let scale = rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["x/scale"]}));
        assert!(scale.atoms().iter().all(|a| wide.covers(a)));
    }
}
