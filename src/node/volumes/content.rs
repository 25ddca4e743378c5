//! Volumes whose files come from API objects: configMap, secret, downwardAPI, projected.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, ServiceAccountTokenProjection, Volume, VolumeProjection,
};
use serde_json::json;

use super::Node;
use super::files::Files;
use super::write;
use crate::base::json::text;
use crate::node::env::{self, DownwardValues};
use crate::node::error::{Error, Result};

/// What a volume shows.
#[derive(Debug, Default)]
pub struct Content {
    pub files: Files,
    /// A token is the one before, because the server is away: it may soon be good for nothing.
    pub stale: bool,
}

const MODE: i32 = 0o644;

/// Whether the volume is one of these.
pub fn is_content(v: &Volume) -> bool {
    v.config_map.is_some() || v.secret.is_some() || v.downward_api.is_some() || v.projected.is_some()
}

/// Whether the volume shows this ConfigMap or Secret.
pub fn mentions(v: &Volume, is_secret: bool, name: &str) -> bool {
    let projected = v.projected.iter().flat_map(|p| p.sources.iter().flatten());
    if is_secret {
        let own = v.secret.as_ref().and_then(|s| s.secret_name.as_deref()) == Some(name);
        own || projected.filter_map(|s| s.secret.as_ref()).any(|s| s.name == name)
    } else {
        let own = v.config_map.as_ref().is_some_and(|m| m.name == name);
        own || projected.filter_map(|s| s.config_map.as_ref()).any(|m| m.name == name)
    }
}

/// Whether the volume shows labels or annotations of its pod.
pub fn shows_metadata(v: &Volume) -> bool {
    let projected = v.projected.iter().flat_map(|p| p.sources.iter().flatten());
    let own = v.downward_api.iter().flat_map(|d| d.items.iter().flatten());
    let items = own.chain(projected.filter_map(|s| s.downward_api.as_ref()).flat_map(|d| d.items.iter().flatten()));
    let fields = items.filter_map(|i| i.field_ref.as_ref());
    fields.into_iter().any(|f| f.field_path.starts_with("metadata."))
}

/// The files of a volume, which is or will be at `path`, as they must be now.
pub async fn of(node: &Node, pod: &Pod, v: &Volume, facts: &DownwardValues, path: &Path) -> Result<Content> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let client = &*node.client;
    if let Some(m) = &v.config_map {
        let map = env::config_map(client, namespace, &m.name, m.optional)?;
        return keys(map_bytes(map), m.items.as_deref(), m.default_mode.unwrap_or(MODE), m.optional, &m.name)
            .map(fresh);
    }
    if let Some(s) = &v.secret {
        let name = s.secret_name.as_deref().unwrap_or("");
        let secret = env::secret_of(client, namespace, name, s.optional)?;
        return keys(secret_bytes(secret), s.items.as_deref(), s.default_mode.unwrap_or(MODE), s.optional, name)
            .map(fresh);
    }
    if let Some(d) = &v.downward_api {
        return downward(pod, facts, d.items.as_deref(), d.default_mode.unwrap_or(MODE)).map(fresh);
    }
    let mut content = Content::default();
    if let Some(p) = &v.projected {
        for source in p.sources.iter().flatten() {
            let mode = p.default_mode.unwrap_or(MODE);
            let part = match &source.service_account_token {
                Some(t) => token(node, pod, namespace, t, mode, path).await?,
                None => fresh(projection(node, pod, namespace, source, mode, facts)?),
            };
            content.files.extend(part.files);
            content.stale |= part.stale;
        }
    }
    Ok(content)
}

fn fresh(files: Files) -> Content {
    Content { files, stale: false }
}

fn projection(
    node: &Node,
    pod: &Pod,
    namespace: &str,
    source: &VolumeProjection,
    mode: i32,
    facts: &DownwardValues,
) -> Result<Files> {
    let client = &*node.client;
    if let Some(m) = &source.config_map {
        let map = env::config_map(client, namespace, &m.name, m.optional)?;
        return keys(map_bytes(map), m.items.as_deref(), mode, m.optional, &m.name);
    }
    if let Some(s) = &source.secret {
        let secret = env::secret_of(client, namespace, &s.name, s.optional)?;
        return keys(secret_bytes(secret), s.items.as_deref(), mode, s.optional, &s.name);
    }
    if let Some(d) = &source.downward_api {
        return downward(pod, facts, d.items.as_deref(), mode);
    }
    Err(Error::Projection)
}

async fn token(
    node: &Node,
    pod: &Pod,
    namespace: &str,
    t: &ServiceAccountTokenProjection,
    mode: i32,
    path: &Path,
) -> Result<Content> {
    let spec = pod.spec.as_ref();
    let account = spec.and_then(|s| s.service_account_name.as_deref()).unwrap_or("default");
    let mut request = json!({
        "expirationSeconds": t.expiration_seconds.unwrap_or(3600),
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid},
    });
    if let Some(audience) = t.audience.as_deref().filter(|a| !a.is_empty()) {
        request["audiences"] = json!([audience]);
    }
    let (token, stale) = match node.client.token(namespace, account, request).await {
        Ok(answer) => (text(&answer, "status.token").as_bytes().to_vec(), false),
        // While the server is away, the one before is better than a pod that cannot be.
        Err(error) if error.code == 503 => (write::read(path, &t.path).map_err(|_| Error::RequestToken(error))?, true),
        Err(error) => return Err(Error::RequestToken(error)),
    };
    // A token that only its user may read, unless a group shares the volume.
    let shared = spec.and_then(|s| s.security_context.as_ref()).is_some_and(|s| s.fs_group.is_some());
    let mode = if shared { 0o600 | (mode & 0o040) } else { mode };
    Ok(Content { files: [(t.path.clone(), (token, mode as u32))].into(), stale })
}

fn map_bytes(map: Option<ConfigMap>) -> Option<BTreeMap<String, Vec<u8>>> {
    let map = map?;
    let mut all: BTreeMap<String, Vec<u8>> = map.data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes())).collect();
    all.extend(map.binary_data.into_iter().flatten().map(|(k, v)| (k, v.0)));
    Some(all)
}

fn secret_bytes(secret: Option<Secret>) -> Option<BTreeMap<String, Vec<u8>>> {
    Some(secret?.data.into_iter().flatten().map(|(k, v)| (k, v.0)).collect())
}

fn keys(
    all: Option<BTreeMap<String, Vec<u8>>>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: Option<bool>,
    name: &str,
) -> Result<Files> {
    let mut all = all.unwrap_or_default();
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        return Ok(all.into_iter().map(|(k, v)| (k, (v, mode as u32))).collect());
    };
    let mut files = Files::new();
    for item in items {
        match all.remove(&item.key) {
            Some(bytes) => drop(files.insert(item.path.clone(), (bytes, item.mode.unwrap_or(mode) as u32))),
            None if optional == Some(true) => {}
            None => return Err(Error::ProjectKey { key: item.key.clone(), name: name.to_owned() }),
        }
    }
    Ok(files)
}

fn downward(pod: &Pod, facts: &DownwardValues, items: Option<&[DownwardAPIVolumeFile]>, mode: i32) -> Result<Files> {
    let mut files = Files::new();
    for item in items.into_iter().flatten() {
        let value = if let Some(f) = &item.field_ref {
            env::field(pod, facts, &f.field_path)?
        } else if let Some(r) = &item.resource_field_ref {
            let name = r.container_name.as_deref().unwrap_or("");
            let of =
                crate::node::spec::container(pod, name).ok_or_else(|| Error::FindContainer(format!("{name:?}")))?;
            env::resource(&of, facts, &r.resource, r.divisor.as_ref().map(|d| d.0.as_str()))?
        } else {
            continue;
        };
        files.insert(item.path.clone(), (value.into_bytes(), item.mode.unwrap_or(mode) as u32));
    }
    Ok(files)
}
