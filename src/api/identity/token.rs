//! Service-account tokens: signed ES256 JSON web tokens, bound to objects that must still exist.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};

use crate::api::cache::Cache;
use crate::apimachinery::user::{ACCOUNT_PREFIX, User};
use crate::base::clock::{Clock, between};
use crate::base::json::text;
use crate::base::labels::{dns_label_error, dns_subdomain_error};
use crate::base::object::Object;
use crate::kinds::core;

/// How long a token outlives the time at which what it is bound to was to be gone, as in Kubernetes.
const DELETION_LEEWAY: Duration = Duration::from_secs(60);

/// Signs and checks tokens.
pub struct Tokens {
    key: EcdsaKeyPair,
    key_id: String,
    issuer: String,
    clock: Clock,
}

/// What a token says (`k8s.io/kubernetes/pkg/serviceaccount`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claims {
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    #[serde(default)]
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub private: Private,
    pub nbf: i64,
    pub sub: String,
}

/// What a token is bound to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Private {
    pub namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    pub serviceaccount: Reference,
}

/// An object by name and uid.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reference {
    pub name: String,
    pub uid: String,
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    kid: String,
}

// === impl Tokens ===

impl Tokens {
    /// From a PKCS#8 P-256 key in DER.
    pub fn new(pkcs8: &[u8], issuer: &str, clock: Clock) -> Result<Self, ring::error::KeyRejected> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &SystemRandom::new())?;
        let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key().as_ref());
        Ok(Self { key_id: BASE64.encode(digest), key, issuer: issuer.into(), clock })
    }

    /// The issuer, which is also the default audience.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// A signed token for a service account.
    pub fn sign(&self, audiences: &[String], lifetime: Duration, private: Private) -> String {
        let now = self.clock.now().as_second();
        let claims = Claims {
            aud: if audiences.is_empty() { vec![self.issuer.clone()] } else { audiences.to_vec() },
            exp: now + lifetime.as_secs() as i64,
            iat: now,
            nbf: now,
            iss: self.issuer.clone(),
            jti: self.clock.uuid(),
            sub: format!("{ACCOUNT_PREFIX}{}:{}", private.namespace, private.serviceaccount.name),
            private,
        };
        let header = Header { alg: "ES256".into(), kid: self.key_id.clone() };
        let part = |v: serde_json::Result<Vec<u8>>| BASE64.encode(v.expect("plain structs serialise"));
        let signed = format!("{}.{}", part(serde_json::to_vec(&header)), part(serde_json::to_vec(&claims)));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).expect("signing with a valid key");
        format!("{signed}.{}", BASE64.encode(signature))
    }

    /// The claims of a token, if we signed it, it is in force, and it is meant for one of `audiences` (empty: the API).
    pub fn verify(&self, token: &str, audiences: &[String]) -> Option<Claims> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header: Header = serde_json::from_slice(&BASE64.decode(header).ok()?).ok()?;
        if header.alg != "ES256" {
            return None;
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key())
            .verify(signed.as_bytes(), &BASE64.decode(signature).ok()?)
            .ok()?;
        let claims: Claims = serde_json::from_slice(&BASE64.decode(claims).ok()?).ok()?;
        let now = self.clock.now().as_second();
        let default = [self.issuer.clone()];
        let wanted = if audiences.is_empty() { &default[..] } else { audiences };
        let meant = claims.aud.iter().any(|a| wanted.contains(a));
        // A minute of tolerance for clocks that step.
        (claims.iss == self.issuer && meant && claims.exp > now && claims.nbf <= now + 60).then_some(claims)
    }

    /// The user of a token whose service account and bound objects still exist.
    pub fn user(&self, token: &str, audiences: &[String], cache: &Cache) -> Option<(User, Claims)> {
        let claims = self.verify(token, audiences)?;
        let p = &claims.private;
        let now = self.clock.now();
        let found = |kind: &crate::kinds::KindRef, namespace: &str, r: &Reference| {
            let object = cache.kind(kind).get(&kind.key(namespace, &r.name)).filter(|o| *o.meta.uid == *r.uid);
            // What waits for a finalizer is over all the same.
            let deleted = |o: &Object| o.meta.deleted.is_some_and(|at| between(at, now) > DELETION_LEEWAY);
            object.filter(|o| !deleted(o))
        };
        let alive = |kind, namespace: &str, r: &Reference| found(kind, namespace, r).is_some();
        let runs = |r: &Reference| {
            let pod = found(&core::pod::KIND, &p.namespace, r);
            pod.is_some_and(|pod| !matches!(text(&pod.value(), "status.phase"), "Succeeded" | "Failed"))
        };
        // The node of a pod's token is told for information.
        let node = p.node.as_ref().filter(|_| p.pod.is_none());
        let bound = alive(&core::serviceaccount::KIND, &p.namespace, &p.serviceaccount)
            && p.pod.as_ref().is_none_or(runs)
            && p.secret.as_ref().is_none_or(|r| alive(&core::secret::KIND, &p.namespace, r))
            && node.is_none_or(|r| alive(&core::node::KIND, "", r));
        if !bound {
            return None;
        }
        let fact = |key: &str, value: &str| (format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        let mut extra = vec![fact("credential-id", &format!("JTI={}", claims.jti))];
        if let Some(node) = &p.node {
            extra.extend([fact("node-name", &node.name), fact("node-uid", &node.uid)]);
        }
        if let Some(pod) = &p.pod {
            extra.extend([fact("pod-name", &pod.name), fact("pod-uid", &pod.uid)]);
        }
        let user = User {
            name: claims.sub.clone(),
            uid: p.serviceaccount.uid.clone(),
            extra,
            ..User::service_account(&p.namespace, &p.serviceaccount.name)
        };
        Some((user, claims))
    }

    /// The public key, as `/openid/v1/jwks` publishes it.
    pub fn jwks(&self) -> serde_json::Value {
        let public = self.key.public_key().as_ref();
        serde_json::json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256",
            "x": BASE64.encode(&public[1..33]), "y": BASE64.encode(&public[33..65]),
        }]})
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({})", self.key_id)
    }
}

/// Namespace and name of the service account that a user name stands for; of none where either could not be one's name.
pub fn service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(ACCOUNT_PREFIX)?.split_once(':')?;
    (dns_label_error(namespace).is_none() && dns_subdomain_error(name).is_none()).then_some((namespace, name))
}

/// A reference to a dynamic object.
pub fn reference(object: &serde_json::Value) -> Reference {
    Reference { name: text(object, "metadata.name").into(), uid: text(object, "metadata.uid").into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        Tokens::new(pkcs8.as_ref(), "https://kubernetes.default.svc", Clock::system()).unwrap()
    }

    #[test]
    fn a_user_name_stands_for_a_service_account_that_can_be() {
        for (user, account) in [
            ("system:serviceaccount:web:a.b", Some(("web", "a.b"))),
            ("system:serviceaccount:a:b:c", None),
            ("system:serviceaccount::b", None),
            ("system:serviceaccount:a:", None),
            ("system:serviceaccount:a.b:c", None),
            ("system:serviceaccount:A:b", None),
            ("system:serviceaccount:a", None),
            ("joe", None),
        ] {
            assert_eq!(service_account(user), account, "{user}");
        }
    }

    #[test]
    fn only_our_own_living_tokens_for_the_audience_are_accepted() {
        let (tokens, other) = (tokens(), tokens());
        let private = || Private { namespace: "n".into(), ..Private::default() };
        let good = tokens.sign(&[], Duration::from_secs(600), private());
        assert_eq!(tokens.verify(&good, &[]).unwrap().private.namespace, "n");
        assert!(other.verify(&good, &[]).is_none());
        assert!(tokens.verify(&good, &["vault".into()]).is_none());
        assert!(tokens.verify(&tokens.sign(&[], Duration::ZERO, private()), &[]).is_none());
        let mut forged = good.clone().into_bytes();
        let at = good.find('.').unwrap() + 4;
        forged[at] ^= 1;
        assert!(tokens.verify(std::str::from_utf8(&forged).unwrap(), &[]).is_none());
    }
}
