//! A user, as a certificate, a token or a review names them.

use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value, json};
use x509_parser::prelude::*;

/// An authenticated user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    /// Further facts, as `authentication.kubernetes.io/pod-name`.
    pub extra: Vec<(String, Vec<String>)>,
}

/// The group whose members may do everything, without asking RBAC.
pub const MASTERS: &str = "system:masters";
/// The group of node agents.
pub const NODES: &str = "system:nodes";
/// The group of everybody who has said who they are.
pub const AUTHENTICATED: &str = "system:authenticated";
/// How the users that are node agents begin.
pub const NODE_PREFIX: &str = "system:node:";
/// How the users that are service accounts begin.
pub const ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// The groups of all service accounts of a namespace.
pub fn account_groups(namespace: &str) -> [String; 2] {
    ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]
}

// === impl User ===

impl User {
    /// The server itself.
    pub fn system() -> Arc<Self> {
        static SYSTEM: OnceLock<Arc<User>> = OnceLock::new();
        SYSTEM
            .get_or_init(|| {
                Arc::new(Self {
                    name: "system:apiserver".into(),
                    groups: vec![MASTERS.into(), AUTHENTICATED.into()],
                    ..Self::default()
                })
            })
            .clone()
    }

    /// Nobody in particular.
    pub fn anonymous() -> Self {
        Self { name: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()], ..Self::default() }
    }

    /// From a client certificate that TLS has verified: the common name and the organisations.
    pub fn from_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        Self::named_by(&certificate)
    }

    /// As [`User::from_certificate`], from one that is read already.
    pub fn named_by(certificate: &X509Certificate<'_>) -> Option<Self> {
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let organisations = subject.iter_organization().filter_map(|o| o.as_str().ok());
        let groups = organisations.chain([AUTHENTICATED]).map(str::to_owned).collect();
        Some(Self { name, groups, ..Self::default() })
    }

    /// A service account.
    pub fn service_account(namespace: &str, name: &str) -> Self {
        let groups = account_groups(namespace).into_iter().chain([AUTHENTICATED.to_owned()]).collect();
        Self { name: format!("{ACCOUNT_PREFIX}{namespace}:{name}"), groups, ..Self::default() }
    }

    /// The agent of a node.
    pub fn node(name: &str) -> Self {
        let groups = vec![NODES.into(), AUTHENTICATED.into()];
        Self { name: format!("{NODE_PREFIX}{name}"), groups, ..Self::default() }
    }

    /// The node whose agent it is.
    pub fn node_name(&self) -> Option<&str> {
        self.name.strip_prefix(NODE_PREFIX).filter(|n| !n.is_empty() && self.is_in(NODES))
    }

    /// As reviews show it: `UserInfo` of `authentication.k8s.io`.
    pub fn info(&self) -> Value {
        let mut info = json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            info["uid"] = self.uid.as_str().into();
        }
        if !self.extra.is_empty() {
            info["extra"] =
                self.extra.iter().map(|(key, values)| (key.clone(), json!(values))).collect::<Map<_, _>>().into();
        }
        info
    }

    /// Who answers for what it takes ([`owner`]).
    pub fn owner(&self) -> &str {
        owner(&self.name)
    }

    /// Whether it is a member of a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// Who answers for what a user takes: of a service account its namespace, whose users make as many accounts as they like.
pub fn owner(user: &str) -> &str {
    match user.rsplit_once(':') {
        Some((namespace, _)) if user.starts_with(ACCOUNT_PREFIX) => namespace,
        _ => user,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_of_a_namespace_have_one_owner() {
        let owner = |name: &str| User { name: name.into(), ..User::default() }.owner().to_owned();
        assert_eq!(owner("system:serviceaccount:a:one"), owner("system:serviceaccount:a:two"));
        assert_ne!(owner("system:serviceaccount:a:one"), owner("system:serviceaccount:b:one"));
        assert_eq!((owner("jane"), owner("oidc:jane")), ("jane".into(), "oidc:jane".into()));
    }
}
