//! `<data-dir>/server/manifests`: what is in its files is applied when the server starts and whenever a file changes.
//!
//! As k3s does: a file that goes leaves its objects, an object that goes from a file is deleted, `<file>.skip` leaves a file
//! alone. What was applied of a file is noted in a ConfigMap, so that a start writes nothing that did not change. Invariant: an
//! object is only ever deleted here if its annotation says that it came from this file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::api::delete::DeleteOptions;
use crate::api::status::{Result, Status};
use crate::api::{Api, Request};
use crate::base::clock::Clock;
use crate::base::directory::DirectoryWatch;
use crate::base::json::text;
use crate::base::object::Object;
use crate::kinds::core::configmap;
use crate::kinds::{self, Kind};
use crate::reconcile::{EventType, Local, Recorder};
use crate::schema::manifest::{self, Manifest};

/// Who writes, as k3s' own deployer is called.
const MANAGER: &str = "deploy";
const NAMESPACE: &str = "kube-system";
/// On every object: the file it came from.
const FILE: &str = "amphipod.io/manifest";
/// What a file's ConfigMap is labelled with.
const LABEL: &str = "amphipod.io/manifests";
/// Changes that come together are taken together.
const GATHER: Duration = Duration::from_millis(200);
/// Waits before what failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// What a manifest made, by which it is found again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Made {
    api_version: String,
    kind: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    namespace: String,
    name: String,
}

/// Applies what is in `directory` until aborted.
pub async fn run(api: Api, clock: Clock, directory: PathBuf) {
    let recorder = Recorder::new(Arc::new(Local::new(api.clone(), MANAGER)), clock, "deploy", "");
    let mut watch = match DirectoryWatch::files(&directory) {
        Ok(watch) => watch,
        Err(error) => {
            return tracing::error!(%error, directory = %directory.display(), "manifests are not followed");
        }
    };
    let deployer = Deployer { api, recorder, directory };
    // What a file said when it was found wrong; it is not read again before it changes.
    let mut wrong: BTreeMap<String, String> = BTreeMap::new();
    let mut retry = RETRY.0;
    loop {
        let failed = deployer.all(&mut wrong).await;
        retry = if failed { (retry * 2).min(RETRY.1) } else { RETRY.0 };
        let again = async {
            match failed {
                true => tokio::time::sleep(retry).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = watch.changed() => match changed {
                Ok(()) => tokio::time::sleep(GATHER).await,
                Err(error) => return tracing::error!(%error, "manifests are no longer followed"),
            },
            () = again => {}
        }
    }
}

struct Deployer {
    api: Api,
    recorder: Recorder,
    directory: PathBuf,
}

// === impl Deployer ===

impl Deployer {
    /// Applies every file that has changed; true if something should be tried again.
    async fn all(&self, wrong: &mut BTreeMap<String, String>) -> bool {
        let mut failed = false;
        for path in files(&self.directory) {
            let Ok(content) = std::fs::read_to_string(&path) else { continue };
            let name = file_name(&path);
            let digest = hex::encode(Sha256::digest(content.as_bytes()));
            if wrong.get(&name) == Some(&digest) {
                continue;
            }
            match self.one(&name, &path, &content, &digest).await {
                Ok(()) => drop(wrong.remove(&name)),
                Err(Failure::Content(why)) => {
                    tracing::error!(file = %path.display(), why, "a manifest is wrong; it is read again when it changes");
                    self.say(&name, EventType::Warning, "ParseManifestFailed", &why);
                    wrong.insert(name, digest);
                }
                Err(Failure::Api(why)) => {
                    tracing::warn!(file = %path.display(), why, "a manifest is not applied whole; it is tried again");
                    self.say(&name, EventType::Warning, "ApplyManifestFailed", &why);
                    failed = true;
                }
            }
        }
        failed
    }

    async fn one(&self, name: &str, path: &Path, content: &str, digest: &str) -> std::result::Result<(), Failure> {
        let record = self.record(name);
        let before = record.as_ref().map(|r| r.value()).unwrap_or_default();
        if text(&before, "data.checksum") == digest {
            return Ok(());
        }
        let manifests = manifest::parse(content).map_err(|e| Failure::Content(e.to_string()))?;
        if record.is_none() {
            self.note(name, path, "", &[]).await?;
        }
        let mut made = Vec::new();
        let mut errors = Vec::new();
        for manifest in manifests {
            match self.apply(name, &manifest).await {
                Ok(object) => made.push(object),
                Err(status) => errors.push(format!("{} {:?}: {}", manifest.kind, manifest.name, status.message)),
            }
        }
        if !errors.is_empty() {
            return Err(Failure::Api(errors.join("; ")));
        }
        let old: Vec<Made> = serde_json::from_str(text(&before, "data.objects")).unwrap_or_default();
        for gone in old.iter().filter(|o| !made.contains(o)) {
            self.prune(name, gone).await?;
        }
        self.note(name, path, digest, &made).await?;
        tracing::info!(file = %path.display(), objects = made.len(), "a manifest was applied");
        self.say(
            name,
            EventType::Normal,
            "AppliedManifest",
            &format!("Applied manifest at {:?}", path.display().to_string()),
        );
        Ok(())
    }

    async fn apply(&self, file: &str, manifest: &Manifest) -> Result<Made> {
        let kind = kind_of(&manifest.api_version, &manifest.kind)?;
        let namespace = match (&manifest.namespace, kind.namespaced) {
            (Some(namespace), true) => namespace.clone(),
            (None, true) => "default".to_owned(),
            (_, false) => String::new(),
        };
        let mut config = manifest.value.clone();
        config["metadata"]["annotations"][FILE] = file.into();
        let request = Request::internal(MANAGER, kind, &namespace, &manifest.name);
        self.api.apply_config(&request, config).await?;
        Ok(Made {
            api_version: manifest.api_version.clone(),
            kind: manifest.kind.clone(),
            namespace,
            name: manifest.name.clone(),
        })
    }

    async fn prune(&self, file: &str, gone: &Made) -> Result<()> {
        let Ok(kind) = kind_of(&gone.api_version, &gone.kind) else { return Ok(()) };
        let request = Request::internal(MANAGER, kind, &gone.namespace, &gone.name);
        let Ok(live) = self.api.get(&request) else { return Ok(()) };
        if live.value()["metadata"]["annotations"][FILE] != file {
            return Ok(());
        }
        match self.api.delete(&request, &DeleteOptions::default()).await {
            Err(status) if status.code != 404 => Err(status),
            _ => Ok(()),
        }
    }

    fn record(&self, name: &str) -> Option<Arc<Object>> {
        let kind = &configmap::KIND;
        self.api.cache.shelf(kind).get(&kind.key(NAMESPACE, &record_name(name)))
    }

    async fn note(&self, name: &str, path: &Path, digest: &str, made: &[Made]) -> Result<()> {
        let record = record_name(name);
        let objects = serde_json::to_string(made).map_err(Status::internal)?;
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": record, "namespace": NAMESPACE, "labels": {LABEL: "true"}},
            "data": {"source": path.display().to_string(), "checksum": digest, "objects": objects},
        });
        self.api
            .apply_config(&Request::internal(MANAGER, &configmap::KIND, NAMESPACE, &record), object)
            .await
            .map(|_| ())
    }

    fn say(&self, name: &str, of: EventType, reason: &str, message: &str) {
        if let Some(record) = self.record(name) {
            self.recorder.event(&configmap::KIND, &record, of, reason, message);
        }
    }
}

enum Failure {
    /// The file is wrong.
    Content(String),
    /// The API refused, or could not do it yet.
    Api(String),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Api(status.message)
    }
}

fn kind_of(api_version: &str, kind: &str) -> Result<&'static Kind> {
    let found = kinds::by_kind(api_version, kind).filter(|k| k.is_stored());
    found.ok_or_else(|| Status::bad_request(format!("no matches for kind {kind:?} in version {api_version:?}")))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The name of a file's ConfigMap: what a name may not have becomes a dash.
fn record_name(file: &str) -> String {
    let safe: String =
        file.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    format!("manifest.{}", safe.trim_matches(|c| c == '-' || c == '.'))
}

/// The manifests in a directory, in order of their names, without those that are to be skipped.
fn files(directory: &Path) -> Vec<PathBuf> {
    let is_manifest = |p: &PathBuf| p.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
    let skipped = |p: &PathBuf| {
        let mut skip = p.clone().into_os_string();
        skip.push(".skip");
        Path::new(&skip).exists()
    };
    let hidden = |p: &PathBuf| file_name(p).starts_with('.');
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(directory).into_iter().flatten().flatten().map(|e| e.path()).collect();
    all.retain(|p| p.is_file() && is_manifest(p) && !hidden(p) && !skipped(p));
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::core::namespace;
    use crate::reconcile::{Client, in_memory};

    fn map(name: &str, value: &str) -> String {
        format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{a: {value}}}\n")
    }

    async fn until(what: &str, holds: impl Fn() -> bool) {
        for _ in 0..400 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never: {what}");
    }

    #[tokio::test]
    async fn files_are_applied_followed_and_tracked() {
        let api = in_memory::api();
        let client = Local::new(api.clone(), "test");
        for name in ["default", "kube-system"] {
            client.create(&namespace::KIND, "", json!({"metadata": {"name": name}})).await.unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
        write("a.yaml", map("one", "x") + &map("two", "x"));
        write("b.yaml", map("skipped", "x"));
        write("b.yaml.skip", String::new());
        let task = crate::base::task::spawn("manifests", run(api.clone(), Clock::system(), dir.path().to_owned()));
        let data = |name: &str| {
            let kind = &configmap::KIND;
            let found = api.cache.shelf(kind).get(&kind.key("default", name));
            found.map(|o| text(&o.value(), "data.a").to_owned())
        };
        until("both are there", || data("one").is_some() && data("two").is_some()).await;
        assert_eq!(data("skipped"), None);
        let record = api.get(&Request::internal("test", &configmap::KIND, NAMESPACE, "manifest.a.yaml"));
        assert!(record.is_ok());
        write("a.yaml", map("one", "changed"));
        until("the change is there and what left the file is gone", || {
            data("one").as_deref() == Some("changed") && data("two").is_none()
        })
        .await;
        write("c.yaml", "kind: [".into());
        write("d.yaml", map("four", "x"));
        until("a wrong file keeps no other one", || data("four").is_some()).await;
        std::fs::remove_file(dir.path().join("d.yaml")).unwrap();
        std::fs::remove_file(dir.path().join("b.yaml.skip")).unwrap();
        until("what is no longer skipped is there", || data("skipped").is_some()).await;
        assert_eq!(data("four").as_deref(), Some("x"), "a file that goes leaves its objects");
        task.abort();
    }
}
