//! How to log in to registries.

use serde::{Deserialize, Serialize};

/// How to log in to a registry, e.g. from one entry of an `imagePullSecrets` secret. An empty value is anonymous.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Credentials {
    pub username: String,
    pub password: String,
    /// A refresh token; used in place of the password.
    pub identity_token: String,
    /// A ready bearer token; used as it is.
    pub registry_token: String,
    /// Whose they are; the node's own are nobody's.
    pub secret: Option<SecretName>,
}

/// A pod's secret that holds credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SecretName {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}
