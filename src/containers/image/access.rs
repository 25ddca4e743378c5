//! Who may use an image that is here already: whoever shows what it came for.
//!
//! An image that was pulled for a pod's own credentials is that pod's; another one has to show the same secret, or the same
//! credentials in another, or to get it from the registry itself (Kubernetes' `KubeletEnsureSecretPulledImages` with the policy
//! `NeverVerifyPreloadedImages`, on by default since 1.35). What came for nobody's, what an archive brought and what other nodes
//! give away is everyone's. Counted for each name of a repository, because credentials speak of one.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Credentials, SecretName};

/// Logins that are remembered of one image in one repository.
const LOGINS_MAX: usize = 100;

/// For whom an image came from a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Access {
    Everyone,
    /// Whoever has one of these.
    Logins(Vec<Login>),
}

/// A pod's secret, and what it said of the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Login {
    secret: SecretName,
    hash: String,
}

/// What is known about who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    No,
    Yes,
    /// Yes, and from now on with this login too.
    Also(Login),
}

// === impl Access ===

impl Access {
    /// What follows from credentials having opened a repository; those of the node itself are everyone's.
    pub(super) fn by(credentials: &Credentials) -> Self {
        Login::of(credentials).map_or(Self::Everyone, |login| Self::Logins(vec![login]))
    }

    /// It was opened once more.
    pub(super) fn add(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Everyone, _) => {}
            (_, Self::Everyone) => *self = Self::Everyone,
            (Self::Logins(all), Self::Logins(more)) => {
                for login in more {
                    all.retain(|known| known.secret != login.secret);
                    all.push(login);
                }
                // The oldest has to show itself to the registry again.
                all.drain(..all.len().saturating_sub(LOGINS_MAX));
            }
        }
    }

    /// Whether one of these opens it. A secret whose content has changed is still the same secret.
    pub(super) fn verdict(&self, credentials: &[Credentials]) -> Verdict {
        let Self::Logins(known) = self else { return Verdict::Yes };
        for login in credentials.iter().filter_map(Login::of) {
            if known.contains(&login) {
                return Verdict::Yes;
            }
            if known.iter().any(|known| known.hash == login.hash || known.secret == login.secret) {
                return Verdict::Also(login);
            }
        }
        Verdict::No
    }
}

// === impl Login ===

impl Login {
    fn of(credentials: &Credentials) -> Option<Self> {
        let secret = credentials.secret.clone()?;
        let mut hasher = Sha256::new();
        let Credentials { username, password, identity_token, registry_token, secret: _ } = credentials;
        for part in [username, password, identity_token, registry_token] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        Some(Self { secret, hash: hex::encode(hasher.finalize()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(secret: &str, password: &str) -> Credentials {
        let secret = SecretName { namespace: "n".into(), name: "s".into(), uid: secret.into() };
        Credentials { username: "me".into(), password: password.into(), secret: Some(secret), ..Credentials::default() }
    }

    #[test]
    fn an_image_opens_to_the_secret_or_the_credentials_that_it_came_for() {
        let mut access = Access::by(&login("1", "a"));
        let says = |access: &Access, all: &[Credentials]| match access.verdict(all) {
            Verdict::No => "no",
            Verdict::Yes => "yes",
            Verdict::Also(_) => "also",
        };
        assert_eq!(says(&access, &[]), "no");
        assert_eq!(says(&access, &[login("1", "a")]), "yes");
        assert_eq!(says(&access, &[login("2", "b"), login("2", "a")]), "also", "the same credentials");
        assert_eq!(says(&access, &[login("1", "b")]), "also", "the same secret");
        assert_eq!(says(&access, &[login("2", "b")]), "no");
        // Credentials that are not a pod's open nothing here, even if they are the same.
        assert_eq!(says(&access, &[Credentials { secret: None, ..login("1", "a") }]), "no");
        let Verdict::Also(rotated) = access.verdict(&[login("1", "b")]) else { panic!() };
        access.add(Access::Logins(vec![rotated]));
        assert_eq!(says(&access, &[login("2", "b")]), "also", "what the secret says now");
        assert_eq!(says(&access, &[login("3", "a")]), "no", "and not what it said");
        for n in 0..2 * LOGINS_MAX {
            access.add(Access::by(&login(&format!("many{n}"), "many")));
        }
        let Access::Logins(all) = &access else { panic!() };
        assert_eq!(all.len(), LOGINS_MAX);
        access.add(Access::by(&Credentials::default()));
        access.add(Access::by(&login("1", "a")));
        assert_eq!(access, Access::Everyone);
    }
}
