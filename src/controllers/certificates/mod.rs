//! Certificates that are asked for as objects: signed once they are approved, and forgotten after a while.
//!
//! The signers are Kubernetes' four, all of the cluster's one authority. What a certificate is for is what its signer allows
//! (`pkg/apis/certificates` of Kubernetes); whoever approves a request answers for its subject. Nodes get theirs when they
//! join, not this way: nobody approves for them.

mod authority;
mod policy;

pub use authority::Authority;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Context, absent_is_fine};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::Result;
use crate::base::clock::parse_time;
use crate::base::json::{int, list, set, text};
use crate::base::object::Object;
use crate::kinds::Subresource;
use crate::kinds::certificates::certificatesigningrequest::{self as csr, APPROVED, DENIED, FAILED};
use crate::reconcile::{Controller, Key, Outcome, Patch, Reconciler};

/// How long a certificate is good for that asks for nothing, and at most.
const LIFE: Duration = Duration::from_secs(365 * 86_400);
/// How long a request stays that was decided on, or could not be signed.
const KEPT_DECIDED: Duration = Duration::from_secs(3600);
/// How long a request waits for a decision.
const KEPT_PENDING: Duration = Duration::from_secs(24 * 3600);

struct Certificates {
    cx: Arc<Context>,
}

/// The controller.
pub fn controller(cx: &Arc<Context>) -> Controller {
    Controller::new("certificates", Arc::new(Certificates { cx: cx.clone() }), cx.clock.clone())
        .for_kind(&*cx.client, &csr::KIND)
        .workers(1)
}

#[async_trait]
impl Reconciler for Certificates {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(object) = self.cx.client.informer(&csr::KIND).get("", &key.name) else { return Ok(Outcome::Done) };
        let request = object.value();
        let end = end(&object, &request);
        if end <= self.cx.clock.now() {
            let options = DeleteOptions { uid: Some(object.meta.uid.to_string()), ..DeleteOptions::default() };
            absent_is_fine(self.cx.client.delete(&csr::KIND, "", &key.name, options).await)?;
            return Ok(Outcome::Done);
        }
        let is_due = csr::has(&request, APPROVED) && !csr::has(&request, DENIED) && !csr::has(&request, FAILED);
        if is_due && text(&request, "status.certificate").is_empty() {
            self.sign(&object, request).await?;
        }
        Ok(Outcome::At(end))
    }
}

// === impl Certificates ===

impl Certificates {
    /// Signs a request that is for one of our signers, or says why it cannot be.
    async fn sign(&self, object: &Object, mut request: Value) -> Result<()> {
        let Some(authority) = &self.cx.options.authority else { return Ok(()) };
        let Some(checked) = policy::check(&request) else { return Ok(()) };
        let asked = int(&request, "spec.expirationSeconds").and_then(|seconds| u64::try_from(seconds).ok());
        let life = asked.map_or(LIFE, Duration::from_secs).min(LIFE);
        let signed = checked.and_then(|asked| authority.sign(&asked, life, &self.cx.clock));
        match signed {
            Ok(certificate) => set(&mut request, "status.certificate", STANDARD.encode(certificate)),
            Err(why) => {
                let mut conditions = list(&request, "status.conditions").to_vec();
                conditions.push(json!({
                    "type": FAILED, "status": "True", "reason": "SignerValidationFailure", "message": why,
                    "lastUpdateTime": self.cx.clock.now_text(),
                }));
                set(&mut request, "status.conditions", conditions);
            }
        }
        // Of this request as it was approved, and no other.
        let metadata = json!({"uid": &*object.meta.uid, "resourceVersion": object.revision.to_string()});
        let patch = Patch::Merge(json!({"metadata": metadata, "status": request["status"]}));
        absent_is_fine(self.cx.client.patch(&csr::KIND, "", &object.meta.name, Some(Subresource::Status), patch).await)
    }
}

/// When a request is forgotten (`csrcleaner`): some time after it was decided on, or never was.
fn end(object: &Object, request: &Value) -> Timestamp {
    let created = object.meta.created.unwrap_or(Timestamp::UNIX_EPOCH);
    let updated = |kind: &str| {
        let of_kind = list(request, "status.conditions").iter().filter(|c| text(c, "type") == kind);
        of_kind.filter_map(|c| parse_time(text(c, "lastUpdateTime"))).max()
    };
    let is_issued = !text(request, "status.certificate").is_empty();
    let decided = [updated(DENIED), updated(FAILED), updated(APPROVED).filter(|_| is_issued)];
    match decided.into_iter().flatten().min() {
        Some(decided) => decided + KEPT_DECIDED,
        None => created + KEPT_PENDING,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::api::identity::pki::{Names, Pki};
    use crate::api::in_memory;
    use crate::api::local::Local;
    use crate::base::clock::Clock;
    use crate::controllers::{MANAGER, Options};
    use crate::reconcile::Client;

    struct Desk {
        client: Arc<dyn Client>,
        keys: tempfile::TempDir,
        ca: Vec<u8>,
    }

    impl Desk {
        fn open() -> Self {
            let keys = tempfile::tempdir().unwrap();
            let clock = Clock::system();
            let pki =
                Pki::load(keys.path(), &Names { dns: vec!["a".into()], addresses: Vec::new() }, None, &clock).unwrap();
            let authority = Some(Arc::new(Authority::new(&pki.ca, &pki.ca_key).unwrap()));
            let client: Arc<dyn Client> = Arc::new(Local::new(in_memory::api(), MANAGER));
            crate::controllers::start(client.clone(), clock, Options { authority, ..Options::default() });
            Self { client, keys, ca: pki.ca }
        }

        fn openssl(&self, words: &[&str]) -> String {
            #[allow(clippy::disallowed_methods, reason = "a test")]
            let done = Command::new("openssl")
                .args(words)
                .current_dir(self.keys.path())
                .output()
                .expect("openssl is installed");
            assert!(done.status.success(), "openssl {words:?}: {}", String::from_utf8_lossy(&done.stderr));
            String::from_utf8_lossy(&done.stdout).into_owned()
        }

        /// Asks for a certificate, approves it, and answers what becomes of the request.
        async fn ask(&self, name: &str, signer: &str, usages: &[&str], words: &[&str]) -> Value {
            let key = ["req", "-new", "-nodes", "-keyout", "key.pem", "-out", "request.pem"];
            self.openssl(&[&key[..], words].concat());
            let request = std::fs::read(self.keys.path().join("request.pem")).unwrap();
            let spec = json!({"signerName": signer, "usages": usages, "request": STANDARD.encode(request), "username": "somebody", "expirationSeconds": 3600});
            let made =
                self.client.create(&csr::KIND, "", json!({"metadata": {"name": name}, "spec": spec})).await.unwrap();
            assert_eq!(made.value()["spec"]["username"], "system:apiserver", "who asks is not for the client to say");
            let approved = json!({"type": "Approved", "status": "True", "reason": "R", "message": "m"});
            let patch = Patch::Merge(json!({"status": {"conditions": [approved]}}));
            let approval = Some(Subresource::Approval);
            self.client.patch(&csr::KIND, "", name, approval, patch).await.unwrap();
            for _ in 0..500 {
                let now = self.client.informer(&csr::KIND).get("", name).unwrap().value();
                if !text(&now, "status.certificate").is_empty() || csr::has(&now, FAILED) {
                    return now;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("nothing became of {name}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_approved_request_is_signed_as_it_is() {
        let desk = Desk::open();
        for (name, key) in
            [("ec", vec!["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]), ("rsa", vec!["-newkey", "rsa:2048"])]
        {
            let subject =
                ["-subj", "/O=one/O=two/O=three/CN=jane", "-addext", "subjectAltName=DNS:a.example.com,IP:10.1.2.3"];
            let words = [&key[..], &subject].concat();
            let done = desk.ask(name, csr::API_CLIENT, &["client auth", "digital signature"], &words).await;
            assert_eq!(done["status"]["conditions"].as_array().unwrap().len(), 1, "{done}");
            assert!(
                !text(&done, "status.conditions").is_empty()
                    || done["status"]["conditions"][0]["lastUpdateTime"].is_string()
            );
            let certificate = STANDARD.decode(text(&done, "status.certificate")).unwrap();
            std::fs::write(desk.keys.path().join("certificate.pem"), certificate).unwrap();
            std::fs::write(desk.keys.path().join("ca.pem"), &desk.ca).unwrap();
            desk.openssl(&["verify", "-purpose", "sslclient", "-CAfile", "ca.pem", "certificate.pem"]);
            let shown = desk.openssl(&[
                "x509",
                "-in",
                "certificate.pem",
                "-noout",
                "-subject",
                "-ext",
                "subjectAltName,basicConstraints,keyUsage,extendedKeyUsage",
                "-checkend",
                "3500",
            ]);
            for part in [
                "O = one, O = two, O = three, CN = jane",
                "DNS:a.example.com, IP Address:10.1.2.3",
                "CA:FALSE",
                "Digital Signature",
                "TLS Web Client Authentication",
                "Certificate will not expire",
            ] {
                assert!(shown.contains(part), "{part} is not in {shown}");
            }
            let public = desk.openssl(&["x509", "-in", "certificate.pem", "-noout", "-pubkey"]);
            assert_eq!(public, desk.openssl(&["req", "-in", "request.pem", "-noout", "-pubkey"]));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_signer_does_not_sign_fails_with_its_reason() {
        let desk = Desk::open();
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
        let node = "/O=system:nodes/CN=system:node:n";
        let serving = ["digital signature", "key encipherment", "server auth"];
        for (name, signer, usages, subject, why) in [
            ("a", csr::API_CLIENT, &["server auth"][..], "/CN=a", "invalid usage for client certificate: server auth"),
            (
                "b",
                csr::API_CLIENT,
                &["digital signature"],
                "/CN=a",
                "missing required usage for client certificate: client auth",
            ),
            ("c", csr::NODE_SERVING, &serving, node, "DNS or IP subjectAltName is required"),
            (
                "d",
                csr::NODE_SERVING,
                &serving,
                "/O=others/CN=system:node:n",
                "subject organization is not system:nodes",
            ),
            (
                "e",
                csr::NODE_CLIENT,
                &serving,
                node,
                "usages did not match [client auth digital signature key encipherment]",
            ),
            (
                "f",
                csr::NODE_CLIENT,
                &serving,
                "/O=system:nodes/CN=n",
                "subject common name does not begin with system:node:",
            ),
        ] {
            let done = desk.ask(name, signer, usages, &[&key[..], &["-subj", subject]].concat()).await;
            let failed = &done["status"]["conditions"][1];
            assert_eq!(
                (&failed["type"], &failed["reason"], &failed["message"]),
                (&json!("Failed"), &json!("SignerValidationFailure"), &json!(why))
            );
            assert_eq!(done["status"].get("certificate"), None);
        }
    }

    #[test]
    fn requests_are_forgotten_an_hour_after_the_decision_and_a_day_without_one() {
        let object = |status: Value| {
            let value =
                json!({"metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"}, "status": status});
            let draft = crate::base::object::Draft::new(
                "/certificates.k8s.io/certificatesigningrequests/a".into(),
                &value,
                Box::default(),
            );
            end(&draft.at(1), &value).to_string()
        };
        let at = |kind: &str, time: &str| json!({"type": kind, "status": "True", "lastUpdateTime": time});
        let approved = at("Approved", "2026-01-01T01:00:00Z");
        assert_eq!(object(json!({})), "2026-01-02T00:00:00Z");
        assert_eq!(object(json!({"conditions": [approved]})), "2026-01-02T00:00:00Z", "nobody has signed it yet");
        assert_eq!(object(json!({"conditions": [approved], "certificate": "x"})), "2026-01-01T02:00:00Z");
        assert_eq!(object(json!({"conditions": [at("Denied", "2026-01-01T03:00:00Z")]})), "2026-01-01T04:00:00Z");
    }
}
