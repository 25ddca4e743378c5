//! Which image a container gets: pull policy, credentials, and the reasons that users see.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use serde_json::Value;

use super::Node;
use super::env::secret_of;
use super::volumes;
use crate::base::json::text;
use crate::base::object::Object;
use crate::containers::Image;
use crate::containers::image::{Credentials, ImageError, SecretName};
use crate::kinds::core::pod;
use crate::reconcile::EventType;

/// The longest name of a volume's image in a status.
const ID_BYTES: usize = 256;

/// Why there is no image: the reason and message of the waiting container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    pub reason: &'static str,
    pub message: String,
}

/// What the images of a container are known by: its own, and those of its volumes by the names of these. Where each can be had by
/// digest, or else the digest of its configuration.
#[derive(Debug)]
pub struct Ids {
    pub own: String,
    pub volumes: BTreeMap<String, String>,
}

/// The images of a container, pulled where the policy says so: first those that it mounts as volumes.
pub async fn ensure(node: &Node, object: &Object, pod: &Pod, container: &Container) -> Result<Ids, Failed> {
    let part = super::spec::field_of(pod, &container.name);
    let mut volumes = BTreeMap::new();
    for (name, reference, policy) in volumes::images(pod, container) {
        let image = one(node, object, pod, &part, reference, policy).await?;
        let digest = image.digests.into_iter().next().filter(|digest| digest.len() <= ID_BYTES);
        volumes.insert(name.to_owned(), digest.unwrap_or(image.id));
    }
    let policy = container.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
    let own = one(node, object, pod, &part, container.image.as_deref().unwrap_or(""), policy).await?;
    Ok(Ids { own: own.digests.into_iter().next().unwrap_or(own.id), volumes })
}

async fn one(
    node: &Node,
    object: &Object,
    pod: &Pod,
    part: &str,
    reference: &str,
    policy: &str,
) -> Result<Image, Failed> {
    let say = |event_type, reason: &str, message: &str| {
        node.recorder.event_at(&pod::KIND, object, part, event_type, reason, message);
    };
    let credentials = credentials(node, pod, reference);
    let present = node.images.status(reference).await.filter(|_| policy != "Always");
    let is_present = present.is_some();
    if let Some(image) = present
        && node.images.allows(&image, reference, &credentials).await
    {
        let message =
            format!("Container image {reference:?} already present on machine and can be accessed by the pod");
        say(EventType::Normal, "Pulled", &message);
        return Ok(image);
    }
    if policy == "Never" {
        let lacks = match is_present {
            true => "is present with pull policy of Never but does not have the proper credentials to access the image",
            false => "is not present with pull policy of Never",
        };
        let message = format!("Container image {reference:?} {lacks}");
        say(EventType::Warning, "ErrImageNeverPull", &message);
        return Err(Failed { reason: "ErrImageNeverPull", message });
    }
    say(EventType::Normal, "Pulling", &format!("Pulling image {reference:?}"));
    let begun = node.clock.now();
    let pulled = match policy {
        // The registry itself has to say that the pod may have it.
        _ if is_present => node.images.pull(reference, &credentials).await,
        "Always" => node.images.pull(reference, &credentials).await,
        _ => node.images.obtain(reference, &credentials).await,
    };
    match pulled {
        Ok(image) => {
            let took = took(crate::base::clock::between(begun, node.clock.now()));
            let size = image.size_bytes;
            say(
                EventType::Normal,
                "Pulled",
                // Nothing waits before it is pulled.
                &format!(
                    "Successfully pulled image {reference:?} in {took} ({took} including waiting). Image size: {size} bytes."
                ),
            );
            Ok(image)
        }
        Err(error) => {
            let reason = match error {
                ImageError::InvalidName { .. } => "InvalidImageName",
                _ => "ErrImagePull",
            };
            say(EventType::Warning, "Failed", &format!("Failed to pull image {reference:?}: {error}"));
            say(EventType::Warning, "Failed", &format!("Error: {reason}"));
            Err(Failed { reason, message: error.to_string() })
        }
    }
}

/// Whether all images that a container needs are here and the pod may use them. Where the policy of one is to ask for it always,
/// they must have come `just_now`: that they are there says nothing.
pub async fn are_here(node: &Node, pod: &Pod, container: &Container, just_now: bool) -> bool {
    let own = (container.image.as_deref().unwrap_or(""), container.image_pull_policy.as_deref().unwrap_or(""));
    let of_volumes = volumes::images(pod, container).into_iter().map(|(_, reference, policy)| (reference, policy));
    for (reference, policy) in of_volumes.chain([own]) {
        if policy == "Always" && !just_now {
            return false;
        }
        match node.images.status(reference).await {
            Some(image) if node.images.allows(&image, reference, &credentials(node, pod, reference)).await => {}
            _ => return false,
        }
    }
    true
}

/// The entries of the pod's pull secrets that speak of the image's registry.
fn credentials(node: &Node, pod: &Pod, reference: &str) -> Vec<Credentials> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let secrets = pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten());
    let found = secrets.filter_map(|s| secret_of(&*node.client, namespace, &s.name, Some(true)).ok().flatten());
    let host = match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    };
    // Whoever stands in for docker.io gets its own credentials, not those of docker.io.
    let default = node.config.default_registry.as_deref().filter(|_| host == "docker.io");
    let host = default.map_or(host, |default| default.split('/').next().unwrap_or(default));
    found
        .flat_map(|s| entries(namespace, &s))
        .filter(|(registry, _)| speaks_of(registry, host))
        .map(|(_, c)| c)
        .collect()
}

fn speaks_of(entry: &str, host: &str) -> bool {
    let bare = entry.trim_start_matches("https://").trim_start_matches("http://");
    let named = bare.split('/').next().unwrap_or(bare);
    named == host || (host == "docker.io" && matches!(named, "index.docker.io" | "registry-1.docker.io"))
}

fn entries(namespace: &str, secret: &Secret) -> Vec<(String, Credentials)> {
    let text_of = |part: &Option<String>| part.clone().unwrap_or_default();
    let name = SecretName {
        namespace: namespace.to_owned(),
        name: text_of(&secret.metadata.name),
        uid: text_of(&secret.metadata.uid),
    };
    let data = |key: &str| {
        secret.data.as_ref().and_then(|d| d.get(key)).and_then(|b| serde_json::from_slice::<Value>(&b.0).ok())
    };
    let auths = data(".dockerconfigjson").and_then(|v| v.get("auths").cloned()).or_else(|| data(".dockercfg"));
    let Some(Value::Object(auths)) = auths else { return Vec::new() };
    let one = |(registry, v): (String, Value)| {
        let mut c = Credentials {
            username: text(&v, "username").into(),
            password: text(&v, "password").into(),
            identity_token: text(&v, "identitytoken").into(),
            registry_token: text(&v, "registrytoken").into(),
            secret: Some(name.clone()),
        };
        let decoded = base64::engine::general_purpose::STANDARD.decode(text(&v, "auth")).ok();
        if let Some((user, password)) =
            decoded.and_then(|d| String::from_utf8(d).ok()).as_deref().and_then(|d| d.split_once(':'))
        {
            (c.username, c.password) = (user.into(), password.into());
        }
        (registry, c)
    };
    auths.into_iter().map(one).collect()
}

/// A duration as Kubernetes writes it, to the millisecond.
fn took(duration: Duration) -> String {
    let millis = duration.as_millis();
    if (1..1000).contains(&millis) {
        return format!("{millis}ms");
    }
    let (hours, minutes) = (millis / 3_600_000, millis / 60_000 % 60);
    let seconds = format!("{}.{:03}", millis / 1000 % 60, millis % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_matched_by_registry() {
        assert!(speaks_of("https://index.docker.io/v1/", "docker.io"));
        assert!(speaks_of("r.example.com:5000", "r.example.com:5000"));
        assert!(!speaks_of("r.example.com", "docker.io"));
        let secret: Secret = serde_json::from_value(serde_json::json!({"data": {".dockerconfigjson":
            base64::engine::general_purpose::STANDARD.encode(r#"{"auths":{"r.io":{"auth":"dTpwOnE="}}}"#)}}))
        .unwrap();
        let found = entries("n", &secret);
        assert_eq!((found[0].1.username.as_str(), found[0].1.password.as_str()), ("u", "p:q"));
    }

    #[test]
    fn the_time_that_a_pull_took_is_written_as_in_kubernetes() {
        for (millis, text) in
            [(0, "0s"), (313, "313ms"), (1594, "1.594s"), (10_000, "10s"), (62_500, "1m2.5s"), (3_600_000, "1h0m0s")]
        {
            assert_eq!(took(Duration::from_millis(millis)), text);
        }
    }
}
