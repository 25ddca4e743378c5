//! Which requests the rules of a FlowSchema fit (`k8s.io/apiserver/pkg/util/flowcontrol`).

use serde_json::Value;

use crate::api::identity::token::service_account;
use crate::apimachinery::user::User;
use crate::base::json::{flag, list, text};

/// What is asked, as far as flows depend on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Target<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    /// Empty for paths that lead to no resource.
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub path: &'a str,
}

/// What tells the flows of a schema apart.
#[derive(Clone, Copy, Debug)]
pub(super) enum Distinguisher {
    ByUser,
    ByNamespace,
}

/// Whose requests for what are of a schema.
#[derive(Debug)]
pub(super) struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

#[derive(Debug)]
enum Subject {
    Anybody,
    User(Box<str>),
    Group(Box<str>),
    /// Namespace, and name where it is not all of them.
    Account(Box<str>, Option<Box<str>>),
}

#[derive(Debug)]
struct ResourceRule {
    verbs: Names,
    groups: Names,
    resources: Names,
    namespaces: Names,
    is_cluster_wide: bool,
}

#[derive(Debug)]
struct PathRule {
    verbs: Names,
    paths: Names,
}

/// Some names, or all.
#[derive(Debug)]
enum Names {
    All,
    These(Vec<Box<str>>),
}

// === impl Distinguisher ===

impl Distinguisher {
    pub(super) fn of(method: &str) -> Option<Self> {
        match method {
            "ByUser" => Some(Self::ByUser),
            "ByNamespace" => Some(Self::ByNamespace),
            _ => None,
        }
    }
}

// === impl Rule ===

impl Rule {
    pub(super) fn of(rule: &Value) -> Self {
        Self {
            subjects: list(rule, "subjects").iter().filter_map(Subject::of).collect(),
            resources: list(rule, "resourceRules").iter().map(ResourceRule::of).collect(),
            paths: list(rule, "nonResourceRules").iter().map(PathRule::of).collect(),
        }
    }

    pub(super) fn fits(&self, user: &User, target: &Target<'_>) -> bool {
        self.subjects.iter().any(|subject| subject.fits(user))
            && match target.resource.is_empty() {
                true => self.paths.iter().any(|rule| rule.fits(target)),
                false => self.resources.iter().any(|rule| rule.fits(target)),
            }
    }
}

// === impl Subject ===

impl Subject {
    fn of(subject: &Value) -> Option<Self> {
        let account = text(subject, "serviceAccount.name");
        Some(match (text(subject, "kind"), text(subject, "user.name"), text(subject, "group.name")) {
            ("User", "*", _) | ("Group", _, "*") => Self::Anybody,
            ("User", name, _) => Self::User(name.into()),
            ("Group", _, name) => Self::Group(name.into()),
            ("ServiceAccount", ..) => {
                let name = (account != "*").then(|| account.into());
                Self::Account(text(subject, "serviceAccount.namespace").into(), name)
            }
            _ => return None,
        })
    }

    fn fits(&self, user: &User) -> bool {
        match self {
            Self::Anybody => true,
            Self::User(name) => **name == *user.name,
            Self::Group(name) => user.is_in(name),
            Self::Account(namespace, name) => service_account(&user.name)
                .is_some_and(|(of, account)| *of == **namespace && name.as_ref().is_none_or(|n| **n == *account)),
        }
    }
}

// === impl ResourceRule ===

impl ResourceRule {
    fn of(rule: &Value) -> Self {
        Self {
            verbs: Names::of(rule, "verbs"),
            groups: Names::of(rule, "apiGroups"),
            resources: Names::of(rule, "resources"),
            namespaces: Names::of(rule, "namespaces"),
            is_cluster_wide: flag(rule, "clusterScope"),
        }
    }

    fn fits(&self, target: &Target<'_>) -> bool {
        let is_resource = |name: &str| match name.split_once('/') {
            None => target.subresource.is_empty() && name == target.resource,
            Some((resource, subresource)) => resource == target.resource && subresource == target.subresource,
        };
        self.verbs.has(target.verb)
            && self.resources.any(is_resource)
            && self.groups.has(target.group)
            && match target.namespace {
                "" => self.is_cluster_wide,
                namespace => self.namespaces.has(namespace),
            }
    }
}

// === impl PathRule ===

impl PathRule {
    fn of(rule: &Value) -> Self {
        Self { verbs: Names::of(rule, "verbs"), paths: Names::of(rule, "nonResourceURLs") }
    }

    /// A path stands for what is below it too, with a star at its end or without.
    fn fits(&self, target: &Target<'_>) -> bool {
        let is_path = |path: &str| {
            let above = path.trim_end_matches('*').trim_end_matches('/');
            target.path == path || target.path.strip_prefix(above).is_some_and(|below| below.starts_with('/'))
        };
        self.verbs.has(target.verb) && self.paths.any(is_path)
    }
}

// === impl Names ===

impl Names {
    fn of(rule: &Value, key: &str) -> Self {
        match list(rule, key) {
            [all] if all == "*" => Self::All,
            these => Self::These(these.iter().filter_map(Value::as_str).map(Box::from).collect()),
        }
    }

    fn any(&self, is_it: impl Fn(&str) -> bool) -> bool {
        match self {
            Self::All => true,
            Self::These(names) => names.iter().any(|name| is_it(name)),
        }
    }

    fn has(&self, wanted: &str) -> bool {
        self.any(|name| name == wanted)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn user(name: &str, groups: &[&str]) -> User {
        User { name: name.into(), groups: groups.iter().map(|g| (*g).to_owned()).collect(), ..User::default() }
    }

    fn rule(subject: Value, resources: Value, paths: Value) -> Rule {
        Rule::of(&json!({"subjects": [subject], "resourceRules": resources, "nonResourceRules": paths}))
    }

    #[test]
    fn subjects_are_users_groups_and_service_accounts() {
        let everything = json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}]);
        let fits = |subject: Value, user: &User| {
            rule(subject, json!([]), everything.clone()).fits(user, &Target { path: "/", ..Target::default() })
        };
        let (jane, account) = (user("jane", &["dev"]), user("system:serviceaccount:web:a", &[]));
        let named = |name: &str| json!({"kind": "User", "user": {"name": name}});
        assert!(fits(named("jane"), &jane) && fits(named("*"), &jane) && !fits(named("joe"), &jane));
        let group = |name: &str| json!({"kind": "Group", "group": {"name": name}});
        assert!(fits(group("dev"), &jane) && fits(group("*"), &account) && !fits(group("dev"), &account));
        let of = |namespace: &str, name: &str| json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": namespace, "name": name}});
        assert!(fits(of("web", "a"), &account) && fits(of("web", "*"), &account) && !fits(of("web", "*"), &jane));
        assert!(!fits(of("web", "b"), &account) && !fits(of("we", "*"), &account));
    }

    #[test]
    fn resources_are_of_a_group_a_namespace_or_the_cluster_and_subresources_are_named() {
        let of = |more: Value| {
            let mut rule = json!({"verbs": ["get", "list"], "apiGroups": ["apps"], "resources": ["deployments", "deployments/scale"],
                "namespaces": ["web"]});
            rule.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
            self::rule(json!({"kind": "Group", "group": {"name": "*"}}), json!([rule]), json!([]))
        };
        let target =
            Target { verb: "get", group: "apps", resource: "deployments", namespace: "web", ..Target::default() };
        let (jane, plain) = (user("jane", &[]), of(json!({})));
        assert!(plain.fits(&jane, &target) && plain.fits(&jane, &Target { subresource: "scale", ..target }));
        for other in [
            Target { verb: "delete", ..target },
            Target { group: "", ..target },
            Target { resource: "pods", ..target },
            Target { subresource: "status", ..target },
            Target { namespace: "db", ..target },
            Target { namespace: "", ..target },
            Target { resource: "", path: "/", ..target },
        ] {
            assert!(!plain.fits(&jane, &other), "{other:?}");
        }
        let wide = of(json!({"namespaces": null, "clusterScope": true}));
        assert!(wide.fits(&jane, &Target { namespace: "", ..target }) && !wide.fits(&jane, &target));
        let all = of(json!({"resources": ["*"], "namespaces": ["*"]}));
        assert!(all.fits(&jane, &Target { resource: "pods", subresource: "log", namespace: "db", ..target }));
    }

    #[test]
    fn paths_stand_for_what_is_below_them() {
        let of = |path: &str| {
            let rules = json!([{"verbs": ["get"], "nonResourceURLs": [path]}]);
            rule(json!({"kind": "User", "user": {"name": "*"}}), json!([]), rules)
        };
        let fits = |rule: &str, path: &str| {
            of(rule).fits(&user("jane", &[]), &Target { verb: "get", path, ..Target::default() })
        };
        assert!(fits("/healthz", "/healthz") && fits("/healthz", "/healthz/etcd") && !fits("/healthz", "/healthzz"));
        assert!(fits("/apis/*", "/apis/apps") && !fits("/apis/*", "/apis") && fits("*", "/x") && fits("/", "/x"));
    }
}
