//! How machines become nodes: join tokens, node passwords, and certificates for the keys that agents make themselves.
//!
//! An agent shows a token once and gets a certificate for `system:node:<name>`; from then on the certificate speaks for it.
//! The first machine that joins under a name leaves the hash of a password of its own, so that another machine cannot take
//! the name while the Node exists (as k3s does). Invariant: a certificate is only ever signed for the name that was checked.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use jiff::Timestamp;
use rcgen::{CertificateSigningRequestParams, Issuer, KeyPair};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate, X509CertificationRequest};

use super::join_token::{JoinToken, read_old, same};
use super::pki::{Names, Pki, node_params, serving_params};
use crate::api::write::Change;
use crate::api::{Api, Request};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::{Result, Status};
use crate::apimachinery::user::{NODES, User};
use crate::base::clock::{Clock, between, parse_time};
use crate::base::json::{list, text};
use crate::base::labels::dns_subdomain_error;
use crate::base::metrics::{self, Pairs};
use crate::base::object::Object;
use crate::kinds::KindRef;
use crate::kinds::core::{node, secret};
use crate::net::overlay::Backend;

/// Where join tokens and node passwords are kept.
pub const NAMESPACE: &str = "kube-system";
/// The type of Secrets that are tokens, as kubeadm's.
pub const TOKEN_TYPE: &str = "bootstrap.kubernetes.io/token";
const TOKEN_NAME: &str = "bootstrap-token-";
const USED_UP: &str = "the token was for one machine and is used up: make another one with `amphipod token create`";
const PASSWORD_TYPE: &str = "amphipod.io/node-password";
/// The part of a token's Secret that says that it is used up by the first machine.
pub const ONE_TIME: &str = "usage-one-time";
const AUTHENTICATION: &str = "usage-bootstrap-authentication";

/// The end of the names of Secrets with nodes' passwords.
const PASSWORD_NAME_END: &str = ".node-password";
/// In such a Secret: the digest of the key that the node's certificates are for, and of the one before.
const KEY: &str = "key";
const PREVIOUS_KEY: &str = "previous-key";

/// Who has used a token that is for one machine, and when; made by the server.
pub const USED_BY: &str = "used-by";
const USED_AT: &str = "used-at";
/// How long that machine may join with it again: it may not have heard the answer.
const REPEAT: Duration = Duration::from_secs(600);

/// Addresses of a node that its certificate names at most.
const ADDRESSES: usize = 16;

/// How long a machine that has joined may take until its Node is there; meanwhile its name is taken.
const CLAIM: Duration = Duration::from_secs(60);

/// What an agent asks with.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinRequest {
    pub node_name: String,
    /// Of the machine's own making; the first one under a name counts.
    #[serde(default)]
    pub password: String,
    /// A PKCS#10 request, PEM.
    pub csr: String,
    /// Where the node listens itself; what is somebody else's is left out of its certificate.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// What it gets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinResponse {
    pub certificate: String,
    /// What the node shows to its own clients, for the same key: PEM.
    #[serde(default)]
    pub serving_certificate: String,
    pub cluster: Cluster,
}

/// What all nodes of a cluster agree on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    pub cluster_cidrs: Vec<ipnet::IpNet>,
    pub service_cidrs: Vec<ipnet::IpNet>,
    pub cluster_dns: IpAddr,
    pub cluster_domain: String,
    pub dns: bool,
    pub service_proxy: bool,
    /// How long a node may be silent before it counts as lost.
    pub node_grace_seconds: u64,
    /// How nodes reach each other's pods.
    #[serde(default)]
    pub overlay: Backend,
    /// Nodes on one segment need no tunnel between them.
    #[serde(default)]
    pub overlay_direct_routing: bool,
    /// Pods reach no metadata service of a cloud.
    #[serde(default)]
    pub block_metadata: bool,
    /// Nodes hold network policies.
    #[serde(default)]
    pub network_policy: bool,
}

impl Cluster {
    /// How long a node may be silent before it counts as lost.
    pub fn node_grace(&self) -> std::time::Duration {
        std::time::Duration::from_secs(self.node_grace_seconds)
    }

    /// One for tests, with the defaults of the server's flags.
    #[cfg(test)]
    pub(crate) fn sample() -> Self {
        Self {
            cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
            service_cidrs: vec!["10.43.0.0/16".parse().unwrap()],
            cluster_dns: "10.43.0.10".parse().unwrap(),
            cluster_domain: "cluster.local".into(),
            dns: true,
            service_proxy: true,
            node_grace_seconds: 40,
            overlay: Backend::Vxlan,
            overlay_direct_routing: false,
            block_metadata: false,
            network_policy: true,
        }
    }
}

/// The server's side of joining.
pub struct Joiner {
    /// Holds `token` and `token.old`.
    directory: PathBuf,
    ca: Vec<u8>,
    ca_key: Vec<u8>,
    /// The server's own.
    names: Names,
    cluster: Cluster,
    clock: Clock,
    /// The node beside the server, which needs no token.
    own: Option<String>,
}

// === impl Joiner ===

impl Joiner {
    /// Where machines apply; `directory` is the server's own.
    pub fn new(directory: &Path, pki: &Pki, cluster: Cluster, clock: Clock) -> Self {
        let (ca, ca_key) = (pki.ca.clone(), pki.ca_key.clone());
        let names = pki.names.clone();
        Self { directory: directory.to_owned(), ca, ca_key, names, cluster, clock, own: None }
    }

    /// No machine may join under the name of the server's own node.
    pub fn reserving(mut self, name: &str) -> Self {
        self.own = Some(name.to_owned());
        self
    }

    /// The CA's certificate, PEM: what agents pin.
    pub fn ca(&self) -> &[u8] {
        &self.ca
    }

    /// Lets a machine with a token become a node.
    pub async fn join(&self, api: &Api, token: &str, application: &JoinRequest) -> Result<JoinResponse> {
        let name = &application.node_name;
        if let Some(why) = dns_subdomain_error(name) {
            return Err(Status::bad_request(format!("the node name {name:?} cannot be used: {why}")));
        }
        self.sweep(api).await;
        let for_one = self.check_token(api, token, application)?;
        if self.own.as_deref() == Some(name) {
            let why =
                format!("{name:?} is the node of the server itself: give this machine another name with --node-name");
            return Err(Status::new(409, "AlreadyExists", why));
        }
        let welcome = self.sign(api, application)?;
        self.check_password(api, application).await?;
        // Last: what is refused for another reason does not use the token up.
        if let Some(token) = for_one {
            self.use_up(api, &token, application).await?;
        }
        Ok(welcome)
    }

    /// Gives a node that shows its certificate, which is for the key `shown`, a new one.
    pub async fn renew(&self, api: &Api, node: &str, shown: &str, application: &JoinRequest) -> Result<JoinResponse> {
        if application.node_name != node {
            let asked = &application.node_name;
            let why = format!("node {node:?} cannot ask for a certificate of node {asked:?}");
            return Err(Status::new(403, "Forbidden", why));
        }
        let welcome = self.sign(api, application)?;
        self.record_key(api, application, Some(shown)).await?;
        Ok(welcome)
    }

    /// From now on the node's certificates are for the key of the application, or for the one before: the answer may be
    /// lost, or the old certificate still be shown.
    async fn record_key(&self, api: &Api, application: &JoinRequest, before: Option<&str>) -> Result<()> {
        let key = key_of(application).ok_or_else(|| Status::bad_request("the certificate request has no key"))?;
        let mut change = |live: &Value| {
            let known = Kept(live.clone()).get(KEY);
            let before = before.unwrap_or(&known);
            let mut new = live.clone();
            if before != key {
                new["data"][PREVIOUS_KEY] = encoded(before);
            }
            new["data"][KEY] = encoded(&key);
            Ok(new)
        };
        let name = password_name(&application.node_name);
        let request = Request::internal("join", &secret::KIND, NAMESPACE, &name);
        match api.update(&request, Change::Patch(&mut change)).await {
            Err(status) if status.code == 404 => Ok(()),
            changed => changed.map(|_| ()),
        }
    }

    /// Refuses a token that nobody has made, before more of an application is looked at.
    pub fn check_known(&self, api: &Api, given: &str) -> Result<()> {
        self.known_token(api, given).map(drop)
    }

    /// The Secret of a token; `None` for the server's own.
    fn known_token(&self, api: &Api, given: &str) -> Result<Option<(Arc<Object>, Kept)>> {
        let Ok(token) = JoinToken::parse(given) else { return refuse("no token was shown") };
        if self.is_server_token(&token.secret) {
            return Ok(None);
        }
        let wrong = "the token is wrong: take the one in <data-dir>/server/token of the server, or make one there with \
                     `amphipod token create`";
        let Some((id, part)) = token.parts() else { return refuse(wrong) };
        let kind = &secret::KIND;
        let name = format!("{TOKEN_NAME}{id}");
        let Some(found) = api.cache.kind(kind).get(&kind.key(NAMESPACE, &name)) else { return refuse(wrong) };
        let kept = Kept(found.value());
        if text(&kept.0, "type") != TOKEN_TYPE || !same(&kept.get("token-secret"), part) {
            return refuse(wrong);
        }
        Ok(Some((found, kept)))
    }

    /// Refuses a token that does not hold; answers one that is for one machine and that nobody has used.
    fn check_token(&self, api: &Api, given: &str, application: &JoinRequest) -> Result<Option<Arc<Object>>> {
        let Some((found, kept)) = self.known_token(api, given)? else { return Ok(None) };
        if let Some(end) = kept.expiration().filter(|end| *end <= self.clock.now()) {
            return refuse(&format!("the token expired at {end}: make another one with `amphipod token create`"));
        }
        if kept.get(AUTHENTICATION) != "true" {
            return refuse("the token is not for joining: make one with `amphipod token create`");
        }
        if let Some(used) = kept.used() {
            return if self.is_repeated(&used, application) { Ok(None) } else { refuse(USED_UP) };
        }
        Ok((kept.get(ONE_TIME) == "true").then_some(found))
    }

    /// Whether the machine that has used a token asks once more.
    fn is_repeated(&self, used: &Used, application: &JoinRequest) -> bool {
        let soon = between(used.at, self.clock.now()) < REPEAT;
        soon && fingerprint(application).is_some_and(|own| same(&own, &used.by))
    }

    /// The token is this machine's from now on, if no other was faster.
    async fn use_up(&self, api: &Api, token: &Object, application: &JoinRequest) -> Result<()> {
        let own = fingerprint(application).ok_or_else(|| Status::bad_request("the certificate request has no key"))?;
        let mut claim = |live: &Value| {
            match Kept(live.clone()).used() {
                Some(used) if self.is_repeated(&used, application) => return Ok(live.clone()),
                Some(_) => return refuse(USED_UP),
                None => {}
            }
            let mut new = live.clone();
            new["data"][USED_BY] = encoded(&own);
            new["data"][USED_AT] = encoded(&self.clock.now_text());
            Ok(new)
        };
        let request = Request::internal("join", &secret::KIND, NAMESPACE, &token.meta.name);
        match api.update(&request, Change::Patch(&mut claim)).await {
            Err(status) if matches!(status.code, 404 | 409) => return refuse(USED_UP),
            claimed => claimed?,
        };
        Ok(())
    }

    /// Removes tokens that were used and are not waited for any more.
    async fn sweep(&self, api: &Api) {
        let now = self.clock.now();
        let is_over = |o: &Arc<Object>| Kept(o.value()).used().is_some_and(|used| between(used.at, now) >= REPEAT);
        let all = api.cache.kind(&secret::KIND).list(&secret::KIND.key(NAMESPACE, TOKEN_NAME), "");
        for token in all.into_iter().filter(is_over) {
            let options = DeleteOptions { uid: Some(token.meta.uid.to_string()), ..DeleteOptions::default() };
            let request = Request::internal("join", &secret::KIND, NAMESPACE, &token.meta.name);
            let _ = api.delete(&request, &options).await;
        }
    }

    fn is_server_token(&self, shown: &str) -> bool {
        let current = std::fs::read_to_string(self.directory.join("token")).unwrap_or_default();
        let current = JoinToken::parse(&current).is_ok_and(|t| same(&t.secret, shown));
        current || read_old(&self.directory).is_some_and(|old| old.until > self.clock.now() && same(&old.secret, shown))
    }

    /// The first machine under a name sets its password; it counts as long as the Node exists.
    async fn check_password(&self, api: &Api, application: &JoinRequest) -> Result<()> {
        let name = &application.node_name;
        if application.password.len() < 16 {
            return Err(Status::bad_request("the node password is missing or too short"));
        }
        let hash = password_hash(name, &application.password);
        let kind = &secret::KIND;
        let secret_name = password_name(name);
        let kept = api.cache.kind(kind).get(&kind.key(NAMESPACE, &secret_name));
        let kept_hash = kept.as_ref().map(|o| Kept(o.value()).get("hash"));
        let exists = api.cache.kind(&node::KIND).get(&node::KIND.key("", name)).is_some();
        match kept_hash {
            Some(kept) if same(&kept, &hash) => return self.record_key(api, application, None).await,
            Some(_) if !exists && kept.as_ref().is_some_and(|o| self.is_young(o)) => {
                let why = format!(
                    "another machine has just joined as {name:?}: give this one another name with --node-name; if it is the \
                     same machine, installed anew, try again in a minute"
                );
                return Err(Status::new(409, "AlreadyExists", why));
            }
            _ if exists => {
                let why = format!(
                    "there is another machine with the node name {name:?}: give this one another name with --node-name; \
                     if it is the same machine, installed anew, delete the old node first: kubectl delete node {name}"
                );
                tracing::warn!(node = name, "a second machine with a node's name was refused");
                return Err(Status::new(409, "AlreadyExists", why));
            }
            _ => {}
        }
        let key = key_of(application).ok_or_else(|| Status::bad_request("the certificate request has no key"))?;
        let object = json!({"metadata": {"name": secret_name, "namespace": NAMESPACE}, "type": PASSWORD_TYPE,
                            "data": {"hash": encoded(&hash), KEY: encoded(&key)}});
        let request = Request::internal("join", kind, NAMESPACE, "");
        if let Some(old) = kept {
            let options = DeleteOptions { uid: Some(old.meta.uid.to_string()), ..DeleteOptions::default() };
            api.delete(&request.named(&secret_name), &options).await?;
        }
        api.create(&request, object).await.map(|_| ())
    }

    fn is_young(&self, claim: &Object) -> bool {
        claim.meta.created.is_some_and(|made| between(made, self.clock.now()) < CLAIM)
    }

    /// A certificate for the node's key. The request may ask for this name or be refused.
    /// Certificates for the name of the application, which the caller has checked.
    fn sign(&self, api: &Api, application: &JoinRequest) -> Result<JoinResponse> {
        let (node, csr) = (application.node_name.as_str(), application.csr.as_str());
        let wrong = |why: String| Status::bad_request(format!("the certificate request cannot be used: {why}"));
        let (_, pem) =
            x509_parser::pem::parse_x509_pem(csr.as_bytes()).map_err(|e| wrong(format!("it is no PEM: {e}")))?;
        let (_, parsed) = X509CertificationRequest::from_der(&pem.contents).map_err(|e| wrong(e.to_string()))?;
        parsed.verify_signature().map_err(|_| wrong("its signature does not fit its key".into()))?;
        let subject = &parsed.certification_request_info.subject;
        let texts = |values: Vec<&str>| values.join(",");
        let name = texts(subject.iter_common_name().filter_map(|n| n.as_str().ok()).collect());
        let groups = texts(subject.iter_organization().filter_map(|n| n.as_str().ok()).collect());
        let wanted = format!("system:node:{node}");
        if name != wanted || groups != NODES {
            tracing::warn!(node, asked = name, groups, "a certificate request for somebody else was refused");
            let why = format!(
                "the certificate request is for {name:?} of {groups:?}, but node {node:?} gets one for {wanted:?} of {NODES:?} only"
            );
            return Err(Status::new(403, "Forbidden", why));
        }
        let internal = |e: &dyn std::fmt::Display| Status::internal(format!("the certificate cannot be made: {e}"));
        let key = KeyPair::from_pem(&String::from_utf8_lossy(&self.ca_key)).map_err(|e| internal(&e))?;
        let issuer = Issuer::from_ca_cert_pem(&String::from_utf8_lossy(&self.ca), key).map_err(|e| internal(&e))?;
        let mut request = CertificateSigningRequestParams::from_pem(csr).map_err(|e| wrong(e.to_string()))?;
        request.params = node_params(&wanted, NODES, &self.clock).map_err(|e| internal(&e))?;
        let certificate = request.signed_by(&issuer).map_err(|e| internal(&e))?;
        request.params =
            serving_params(&wanted, NODES, &self.names_of(api, application), &self.clock).map_err(|e| internal(&e))?;
        let serving = request.signed_by(&issuer).map_err(|e| internal(&e))?;
        let (certificate, serving_certificate) = (certificate.pem(), serving.pem());
        Ok(JoinResponse { certificate, serving_certificate, cluster: self.cluster.clone() })
    }

    /// The names under which a node may be believed to answer: its own, and of the addresses that it says those that are not
    /// the server's, another node's, or of the cluster's inside.
    fn names_of(&self, api: &Api, application: &JoinRequest) -> Names {
        let node = &application.node_name;
        let others: HashSet<IpAddr> = api
            .cache
            .kind(&node::KIND)
            .list(&node::KIND.prefix(), "")
            .iter()
            .filter(|other| *other.meta.name != **node)
            .flat_map(|other| {
                let other = other.value();
                list(&other, "status.addresses")
                    .iter()
                    .filter_map(|a| text(a, "address").parse().ok())
                    .collect::<Vec<_>>()
            })
            .collect();
        let inside = |a: &IpAddr| {
            let ranges = [&self.cluster.cluster_cidrs[..], &self.cluster.service_cidrs[..]];
            ranges.iter().any(|ranges| ranges.iter().any(|range| range.contains(a)))
        };
        let is_its_own = |a: &&IpAddr| {
            let link_local = match a {
                IpAddr::V4(a) => a.is_link_local(),
                IpAddr::V6(a) => a.is_unicast_link_local(),
            };
            let special = a.is_loopback() || a.is_unspecified() || a.is_multicast() || link_local;
            !(special || self.names.addresses.contains(a) || others.contains(a) || inside(a))
        };
        let told = application.addresses.iter().map(IpAddr::to_canonical).take(ADDRESSES).collect::<Vec<_>>();
        let addresses: Vec<IpAddr> = told.iter().filter(is_its_own).copied().collect();
        if addresses.len() < application.addresses.len() {
            let told = &application.addresses;
            tracing::warn!(
                node,
                ?told,
                ?addresses,
                "a node listens at addresses that are not its own alone; its certificate leaves them out"
            );
        }
        let domain = format!(".{}", self.cluster.cluster_domain);
        let is_a_service = node.ends_with(".svc") || node.ends_with(&domain);
        let is_the_servers = self.names.dns.iter().any(|name| covers(name, node)) || node.parse::<IpAddr>().is_ok();
        let dns = Some(node.clone()).filter(|_| !is_a_service && !is_the_servers);
        let dns = dns.into_iter().collect();
        Names { dns, addresses }
    }
}

/// Whether a name of a certificate, which may begin with a wildcard, is good for a host's name; case means nothing.
fn covers(certified: &str, host: &str) -> bool {
    match certified.strip_prefix("*.") {
        Some(parent) => host.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent)),
        None => certified.eq_ignore_ascii_case(host),
    }
}

/// Refuses a machine whose Node was deleted, which ends what its certificate is good for; a token makes it a node again. A machine
/// that has just joined has no Node yet, but a password.
pub fn check_member(api: &Api, name: &str) -> Result<()> {
    let is_there = |kind: &KindRef, namespace, name| api.cache.kind(kind).get(&kind.key(namespace, name)).is_some();
    if is_there(&node::KIND, "", name) || is_there(&secret::KIND, NAMESPACE, &password_name(name)) {
        return Ok(());
    }
    let why = format!(
        "the node {name:?} was deleted: start its agent with a token (--token) to make this machine a node again; \
         `amphipod token create` on the server makes one"
    );
    Err(Status::new(403, Status::NODE_DELETED, why))
}

/// The user of a client certificate, with the digest of its key. A node's certificate is good only for the machine that
/// joined last under the node's name: `None` for any other.
pub fn user_of(api: &Api, certificate: &[u8]) -> Option<(User, String)> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let user = User::named_by(&parsed)?;
    let left = parsed.validity().not_after.timestamp() - api.clock.now().as_second();
    metrics::CLIENT_CERTIFICATES.observe(Pairs([]), Duration::from_secs(u64::try_from(left).unwrap_or(0)));
    let key = key_digest(parsed.public_key().raw);
    let Some(node) = user.node_name() else { return Some((user, key)) };
    let kind = &secret::KIND;
    let kept = api.cache.kind(kind).get(&kind.key(NAMESPACE, &password_name(node))).map(|o| Kept(o.value()));
    let keys = kept.map(|kept| [kept.get(KEY), kept.get(PREVIOUS_KEY)]);
    // A record of before keys were kept has none.
    if keys.is_some_and(|keys| !keys[0].is_empty() && !keys.contains(&key)) {
        tracing::warn!(node, "a certificate was shown that is not of the machine that has joined as this node");
        return None;
    }
    Some((user, key))
}

/// The node whose password a Secret's name says it is.
pub fn node_of_password(namespace: &str, name: &str) -> Option<String> {
    (namespace == NAMESPACE).then(|| name.strip_suffix(PASSWORD_NAME_END).map(str::to_owned)).flatten()
}

/// The Secret with a node's password.
pub fn password_name(node: &str) -> String {
    format!("{node}{PASSWORD_NAME_END}")
}

fn encoded(text: &str) -> Value {
    base64::engine::general_purpose::STANDARD.encode(text).into()
}

fn key_digest(public_key: &[u8]) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, public_key))
}

/// The digest of the key that an application wants a certificate for.
fn key_of(application: &JoinRequest) -> Option<String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(application.csr.as_bytes()).ok()?;
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).ok()?;
    Some(key_digest(request.certification_request_info.subject_pki.raw))
}

fn password_hash(node: &str, password: &str) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, format!("{node}\n{password}").as_bytes()))
}

/// What is the same of a machine that asks again: name, password and key, not to be told from each other.
fn fingerprint(application: &JoinRequest) -> Option<String> {
    let key = key_of(application)?;
    Some(password_hash(&application.node_name, &format!("{}\n{key}", application.password)))
}

fn refuse<T>(why: &str) -> Result<T> {
    Err(Status::new(401, "Unauthorized", why))
}

/// Who has used a token.
struct Used {
    by: String,
    at: Timestamp,
}

/// A Secret's data.
struct Kept(Value);

impl Kept {
    fn get(&self, key: &str) -> String {
        let encoded = self.0["data"].get(key).and_then(Value::as_str).unwrap_or("");
        let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_default()
    }

    fn expiration(&self) -> Option<Timestamp> {
        parse_time(&self.get("expiration"))
    }

    fn used(&self) -> Option<Used> {
        let by = self.get(USED_BY);
        (!by.is_empty()).then(|| Used { by, at: parse_time(&self.get(USED_AT)).unwrap_or(Timestamp::UNIX_EPOCH) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::join_token::{ca_hash, rotate};
    use super::*;
    use crate::api::identity::pki::Names;
    use crate::api::in_memory;
    use crate::api::local::Local;
    use crate::reconcile::Client;
    use rcgen::{CertificateParams, DistinguishedName, DnType};

    fn csr(name: &str, group: &str) -> String {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, name);
        subject.push(DnType::OrganizationName, group);
        params.distinguished_name = subject;
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    fn application(node: &str, password: &str) -> JoinRequest {
        let csr = csr(&format!("system:node:{node}"), NODES);
        JoinRequest { node_name: node.into(), password: password.into(), csr, addresses: Vec::new() }
    }

    #[test]
    fn a_certified_name_covers_hosts_whatever_their_case() {
        assert!(covers("API.Example.com", "api.example.com") && covers("*.Apps.example.com", "api.apps.example.com"));
        assert!(!covers("*.apps.example.com", "apps.example.com") && !covers("*.example.com", "api.apps.example.com"));
    }

    async fn desk() -> (tempfile::TempDir, Pki, Joiner, Api) {
        let dir = tempfile::tempdir().unwrap();
        let names = Names { dns: vec!["localhost".into()], addresses: Vec::new() };
        let pki = Pki::load(dir.path(), &names, None, &Clock::system()).unwrap();
        let desk = Joiner::new(dir.path(), &pki, Cluster::sample(), Clock::system());
        let api = in_memory::api();
        let client = Local::new(api.clone(), "test");
        let namespace = &crate::kinds::core::namespace::KIND;
        client.create(namespace, "", json!({"metadata": {"name": NAMESPACE}})).await.unwrap();
        (dir, pki, desk, api)
    }

    const PASSWORD: &str = "0123456789abcdef";

    #[tokio::test]
    async fn a_node_is_not_believed_to_answer_where_others_do() {
        use x509_parser::prelude::*;
        let dir = tempfile::tempdir().unwrap();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let names = Names { dns: vec!["kubernetes".into()], addresses: vec![address("192.0.2.1")] };
        let pki = Pki::load(dir.path(), &names, None, &Clock::system()).unwrap();
        let desk = Joiner::new(dir.path(), &pki, Cluster::sample(), Clock::system());
        let api = crate::api::in_memory::api();
        let client = crate::api::local::Local::new(api.clone(), "test");
        let other = json!({"metadata": {"name": "other"}});
        crate::reconcile::Client::create(&client, &node::KIND, "", other).await.unwrap();
        let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.3"}]}});
        let (patch, status_of) = (crate::reconcile::Patch::Merge(status), Some(crate::kinds::Subresource::Status));
        crate::reconcile::Client::patch(&client, &node::KIND, "", "other", status_of, patch).await.unwrap();

        let told = [
            "192.0.2.2",
            "2001:db8::2",
            "192.0.2.1",
            "::ffff:192.0.2.1",
            "192.0.2.3",
            "127.0.0.1",
            "0.0.0.0",
            "10.43.0.1",
            "10.42.0.1",
        ]
        .map(address)
        .to_vec();
        let serves = |name: &str| {
            let application = JoinRequest { addresses: told.clone(), ..application(name, PASSWORD) };
            let welcome = desk.sign(&api, &application).unwrap();
            let (_, pem) = parse_x509_pem(welcome.serving_certificate.as_bytes()).unwrap();
            let certificate = pem.parse_x509().unwrap();
            let usage = certificate.extended_key_usage().unwrap().unwrap().value.clone();
            assert!(usage.server_auth && !usage.client_auth, "it opens nothing");
            let names = certificate.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
            names.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(serves("one").len(), 3, "{:?}", serves("one"));
        assert!(serves("one")[0].contains("one"));
        assert_eq!(serves("kubernetes").len(), 2);
        assert_eq!(serves("kubernetes.default.svc").len(), 2);
        assert_eq!(serves("a.b.svc.cluster.local").len(), 2);
    }

    #[tokio::test]
    async fn a_token_gives_a_certificate_for_the_own_name_only() {
        let (_dir, pki, desk, api) = desk().await;
        let token = JoinToken::parse(&pki.join_token).unwrap();
        assert_eq!(token.ca_hash.as_deref(), Some(&*ca_hash(&pki.ca)));
        let welcome = desk.join(&api, &token.secret, &application("one", PASSWORD)).await.unwrap();
        let der = crate::wire::tls::certificates(welcome.certificate.as_bytes()).unwrap();
        assert_eq!(User::from_certificate(&der[0]).unwrap().node_name(), Some("one"));
        let wrong = desk.join(&api, "wrong", &application("two", PASSWORD)).await.unwrap_err();
        assert_eq!((wrong.code, wrong.message.contains("token create")), (401, true));
        for csr in [csr("system:node:other", NODES), csr("system:node:two", "system:masters"), csr("admin", NODES)] {
            let tampered = JoinRequest { csr, ..application("two", PASSWORD) };
            assert_eq!(desk.join(&api, &token.secret, &tampered).await.unwrap_err().code, 403);
        }
        assert!(desk.renew(&api, "one", "", &application("one", "")).await.is_ok());
        assert_eq!(desk.renew(&api, "one", "", &application("two", "")).await.unwrap_err().code, 403);
    }

    #[tokio::test]
    async fn a_second_machine_with_a_nodes_name_is_refused_until_the_node_is_deleted() {
        let (_dir, pki, desk, api) = desk().await;
        let token = JoinToken::parse(&pki.join_token).unwrap().secret;
        desk.join(&api, &token, &application("one", PASSWORD)).await.unwrap();
        let client = Local::new(api.clone(), "test");
        client.create(&node::KIND, "", json!({"metadata": {"name": "one"}})).await.unwrap();
        desk.join(&api, &token, &application("one", PASSWORD)).await.unwrap();
        let other = application("one", "another-password-");
        let refused = desk.join(&api, &token, &other).await.unwrap_err();
        assert_eq!((refused.code, refused.message.contains("kubectl delete node one")), (409, true));
        client.delete(&node::KIND, "", "one", DeleteOptions::default()).await.unwrap();
        let waits = desk.join(&api, &token, &other).await.unwrap_err();
        assert!(waits.message.contains("has just joined"), "two that start together: {}", waits.message);
        // The node controller does it.
        assert!(check_member(&api, "one").is_ok());
        client.delete(&secret::KIND, NAMESPACE, &password_name("one"), DeleteOptions::default()).await.unwrap();
        let gone = check_member(&api, "one").unwrap_err();
        assert_eq!((gone.code, gone.message.contains("--token")), (403, true));
        let own = Request { user: Arc::new(User::node("one")), ..Request::internal("kubelet", &node::KIND, "", "") };
        let created = api.create(&own, json!({"metadata": {"name": "one"}})).await.err().unwrap();
        assert_eq!(created.message, gone.message, "its certificate alone does not bring the node back");
        desk.join(&api, &token, &other).await.unwrap();
        api.create(&own, json!({"metadata": {"name": "one"}})).await.unwrap();
    }

    #[tokio::test]
    async fn a_nodes_certificate_is_good_for_the_machine_that_joined_last() {
        let (_dir, pki, desk, api) = desk().await;
        let token = JoinToken::parse(&pki.join_token).unwrap().secret;
        let join = async |application: &JoinRequest| {
            let welcome = desk.join(&api, &token, application).await.unwrap();
            crate::wire::tls::certificates(welcome.certificate.as_bytes()).unwrap().remove(0)
        };
        let first = join(&application("one", PASSWORD)).await;
        let (user, key) = user_of(&api, &first).unwrap();
        assert_eq!(user.node_name(), Some("one"));
        // A renewal whose answer is lost is asked for again with the old certificate.
        for _ in 0..2 {
            desk.renew(&api, "one", &key, &application("one", "")).await.unwrap();
            assert!(user_of(&api, &first).is_some());
        }
        // Installed anew with its password, and again: the first key is history.
        join(&application("one", PASSWORD)).await;
        let third = join(&application("one", PASSWORD)).await;
        assert!(user_of(&api, &first).is_none() && user_of(&api, &third).is_some());
        // Another machine under the same name.
        let client = Local::new(api.clone(), "test");
        client.delete(&secret::KIND, NAMESPACE, &password_name("one"), DeleteOptions::default()).await.unwrap();
        let other = join(&application("one", "another-password-")).await;
        assert!(user_of(&api, &third).is_none() && user_of(&api, &other).is_some());
    }

    #[tokio::test]
    async fn tokens_expire_and_may_be_for_one_machine() {
        let (_dir, _pki, desk, api) = desk().await;
        let client = Local::new(api.clone(), "test");
        for (id, expiration, once) in
            [("aaaaaa", "2020-01-01T00:00:00Z", "false"), ("bbbbbb", "2999-01-01T00:00:00Z", "true")]
        {
            let data = json!({"token-id": id, "token-secret": "0123456789abcdef", "expiration": expiration,
                              AUTHENTICATION: "true", ONE_TIME: once});
            let object =
                json!({"metadata": {"name": format!("bootstrap-token-{id}")}, "type": TOKEN_TYPE, "stringData": data});
            client.create(&secret::KIND, NAMESPACE, object).await.unwrap();
        }
        let expired = desk.join(&api, "aaaaaa.0123456789abcdef", &application("one", PASSWORD)).await.unwrap_err();
        assert!(expired.message.starts_with("the token expired at 2020-01-01"), "{}", expired.message);
        let tampered = JoinRequest { csr: csr("admin", NODES), ..application("one", PASSWORD) };
        let refused = desk.join(&api, "bbbbbb.0123456789abcdef", &tampered).await.unwrap_err();
        assert_eq!(refused.code, 403, "and the token is not used up");
        let (first, token) = (application("one", PASSWORD), "bbbbbb.0123456789abcdef");
        desk.join(&api, token, &first).await.unwrap();
        // The answer may have been lost on the way: the same machine may ask again, and nobody else.
        desk.join(&api, token, &first).await.unwrap();
        let others = [
            application("two", PASSWORD),
            JoinRequest { node_name: "two".into(), ..first.clone() },
            JoinRequest { password: "another-password-".into(), ..first.clone() },
            application("one", PASSWORD),
        ];
        for other in others {
            let refused = desk.join(&api, token, &other).await.unwrap_err();
            assert_eq!((refused.code, refused.message.contains("used up")), (401, true), "{}", refused.message);
        }
        let wrong = desk.join(&api, "bbbbbb.0123456789abcdeX", &first).await.unwrap_err();
        assert!(wrong.message.contains("the token is wrong"), "who does not know the secret learns nothing");
        // After a while it is gone.
        let soon = Used { by: fingerprint(&first).unwrap(), at: desk.clock.now() };
        let late = Used { at: desk.clock.now() - REPEAT, by: soon.by.clone() };
        assert!(desk.is_repeated(&soon, &first) && !desk.is_repeated(&late, &first));
        let old = base64::engine::general_purpose::STANDARD.encode((desk.clock.now() - REPEAT).to_string());
        let patch = crate::reconcile::Patch::Merge(json!({"data": {USED_AT: old}}));
        client.patch(&secret::KIND, NAMESPACE, "bootstrap-token-bbbbbb", None, patch).await.unwrap();
        assert!(desk.join(&api, token, &first).await.unwrap_err().message.contains("the token is wrong"));
        assert!(client.get(&secret::KIND, NAMESPACE, "bootstrap-token-bbbbbb").await.is_err());
        client.get(&secret::KIND, NAMESPACE, "bootstrap-token-aaaaaa").await.expect("this one was never used");
    }

    #[tokio::test]
    async fn nobody_joins_as_the_servers_own_node() {
        let (_dir, pki, desk, api) = desk().await;
        let token = JoinToken::parse(&pki.join_token).unwrap().secret;
        let desk = desk.reserving("server");
        let refused = desk.join(&api, &token, &application("server", PASSWORD)).await.unwrap_err();
        assert_eq!((refused.code, refused.message.contains("--node-name")), (409, true));
    }

    #[tokio::test]
    async fn after_a_rotation_the_old_token_holds_for_its_window() {
        let (dir, pki, desk, api) = desk().await;
        let old = JoinToken::parse(&pki.join_token).unwrap().secret;
        let soon = Clock::system().now() + std::time::Duration::from_secs(60);
        let new = JoinToken::parse(&rotate(dir.path(), "brand-new", soon).unwrap()).unwrap();
        assert_eq!(new.ca_hash, Some(ca_hash(&pki.ca)));
        for secret in [&old, &new.secret] {
            assert!(desk.check_token(&api, secret, &application("one", PASSWORD)).is_ok());
        }
        rotate(dir.path(), "newest", Clock::system().now()).unwrap();
        for secret in [&old, &new.secret] {
            assert!(desk.check_token(&api, secret, &application("one", PASSWORD)).is_err());
        }
    }

    #[test]
    fn tokens_are_read_in_every_form() {
        let hash = "ab".repeat(32);
        for (text, secret, pinned) in [
            (format!("K10{hash}::server:s3cret\n"), "s3cret", true),
            (format!("K10{hash}::abcdef.0123456789abcdef"), "abcdef.0123456789abcdef", true),
            ("s3cret".into(), "s3cret", false),
        ] {
            let token = JoinToken::parse(&text).unwrap();
            assert_eq!((token.secret.as_str(), token.ca_hash.is_some()), (secret, pinned));
        }
        assert!(JoinToken::parse("K10abc::server:x").is_err());
        assert!(JoinToken::parse(&format!("K10{hash}::server:")).is_err());
    }
}
