//! `<data-dir>/server/manifests`: what is in its files is applied when the server starts and whenever a file changes.
//!
//! As k3s does: directories below are walked, a file that goes leaves its objects, an object that goes from a file is deleted,
//! `<file>.skip` leaves a file alone, and at every start what others changed is put right. What was applied of a file is noted
//! in a ConfigMap, so that a start writes nothing that did not change. Invariant: an object is only ever deleted here if its
//! annotation says that it came from this file.

pub mod builtin;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::api::local::Local;
use crate::api::{Api, Request};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::{Result, Status};
use crate::base::clock::Clock;
use crate::base::directory::{TreeWatch, tree};
use crate::base::file::write_atomically;
use crate::base::json::text;
use crate::base::object::Object;
use crate::base::task;
use crate::kinds::core::configmap;
use crate::kinds::{KindRef, registry};
use crate::reconcile::{EventType, Recorder};
use crate::schema::manifest::{self, Manifest};
use builtin::Values;

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

/// Applies what is in a directory.
pub struct Deployer {
    api: Api,
    recorder: Recorder,
    directory: PathBuf,
    /// Files of our own that are not in the directory as they should be.
    unwritten: Vec<(PathBuf, String)>,
}

/// A manifest's file as it is now.
struct File<'a> {
    /// Its path below the directory.
    name: &'a str,
    path: &'a Path,
    content: &'a str,
    digest: String,
}

/// How much is done for a file that has not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effort {
    /// Nothing.
    Changed,
    /// What others changed is put right.
    All,
    /// So is what can only be made anew.
    Replace,
}

// === impl Deployer ===

impl Deployer {
    /// Must be called inside a runtime.
    pub fn new(api: Api, clock: Clock, directory: PathBuf) -> Self {
        let recorder = Recorder::new(Arc::new(Local::new(api.clone(), MANAGER)), clock, "deploy", "");
        Self { api, recorder, directory, unwritten: Vec::new() }
    }

    /// Applies the built-in components, and removes those that are `off`. What fails is tried again by [`Self::run`].
    pub async fn stage(&mut self, off: &[String], values: &Values) {
        for component in builtin::ALL {
            let name = component.file();
            let path = self.directory.join(&name);
            let present = std::fs::read_to_string(&path).ok();
            if is_skipped(&path) {
                continue;
            }
            if present.as_ref().is_some_and(|t| !builtin::is_ours(t)) {
                tracing::info!(file = %path.display(), "the user's own file stands in for the built-in one");
            } else if off.iter().any(|o| o == component.name) {
                if let Err(why) = self.remove(&name, &path).await {
                    tracing::error!(file = %path.display(), why, "what is disabled cannot be removed");
                }
            } else {
                let content = component.render(values);
                let file = File::new(&name, &path, &content);
                self.told(&file, self.one(&file, Effort::Replace).await).await;
                if present.as_ref() != Some(&content) {
                    self.unwritten.push((path, content));
                }
            }
        }
    }

    async fn write(&mut self) {
        for (path, content) in std::mem::take(&mut self.unwritten) {
            let write = move || write_atomically(&path, content.as_bytes(), 0o600).map_err(|e| (path, e));
            if let Ok(Err((path, error))) = task::blocking(write).await {
                tracing::error!(%error, file = %path.display(), "a built-in manifest cannot be written");
            }
        }
    }

    /// Applies what is in the directory until aborted.
    pub async fn run(mut self) {
        self.write().await;
        let mut watch = match TreeWatch::new(&self.directory) {
            Ok(watch) => watch,
            Err(error) => {
                return tracing::error!(%error, directory = %self.directory.display(), "manifests are not followed");
            }
        };
        // What a file said when it was found wrong; it is not read again before it changes.
        let mut wrong: BTreeMap<String, String> = BTreeMap::new();
        let mut retry = RETRY.0;
        let mut effort = Effort::All;
        loop {
            let failed = self.all(&mut wrong, effort).await;
            effort = Effort::Changed;
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

    /// Applies every file that has changed; true if something should be tried again.
    async fn all(&self, wrong: &mut BTreeMap<String, String>, effort: Effort) -> bool {
        let mut failed = false;
        for path in files(&self.directory) {
            let Ok(content) = std::fs::read_to_string(&path) else { continue };
            let name = path.strip_prefix(&self.directory).unwrap_or(&path).to_string_lossy().into_owned();
            let file = File::new(&name, &path, &content);
            if wrong.get(&name) == Some(&file.digest) {
                continue;
            }
            match self.told(&file, self.one(&file, effort).await).await {
                None => drop(wrong.remove(&name)),
                Some(Failure::Content(_)) => drop(wrong.insert(name.clone(), file.digest)),
                Some(Failure::Api(_)) => failed = true,
            }
        }
        failed
    }

    /// Says how it went.
    async fn told(&self, file: &File<'_>, outcome: std::result::Result<(), Failure>) -> Option<Failure> {
        let failure = outcome.err()?;
        let path = file.path.display();
        let (reason, why) = match &failure {
            Failure::Content(why) => {
                tracing::error!(file = %path, why, "a manifest is wrong; it is read again when it changes");
                ("ParseManifestFailed", why)
            }
            Failure::Api(why) => {
                tracing::warn!(file = %path, why, "a manifest is not applied whole; it is tried again");
                ("ApplyManifestFailed", why)
            }
        };
        // An event is about something: a file of which nothing was applied yet has nothing else.
        if self.record(file.name).is_none() {
            let _ = self.note(file, "", &[]).await;
        }
        self.say(file.name, EventType::Warning, reason, why);
        Some(failure)
    }

    async fn one(&self, file: &File<'_>, effort: Effort) -> std::result::Result<(), Failure> {
        let before = self.record(file.name).as_ref().map(|r| r.value()).unwrap_or_default();
        let is_new = text(&before, "data.checksum") != file.digest;
        if !is_new && effort == Effort::Changed {
            return Ok(());
        }
        let manifests = manifest::parse(file.content).map_err(|e| Failure::Content(e.to_string()))?;
        let old = made_before(&before);
        let mut made = Vec::new();
        let mut errors = Vec::new();
        for manifest in manifests {
            match self.apply(file.name, &manifest, effort).await {
                Ok(object) => made.push(object),
                Err(status) => errors.push(format!("{} {:?}: {}", manifest.kind, manifest.name, status.message)),
            }
        }
        if !errors.is_empty() {
            // What is there already is found again, also if the file says something else when it is whole.
            made.extend(old);
            made.sort();
            made.dedup();
            self.note(file, "", &made).await?;
            return Err(Failure::Api(errors.join("; ")));
        }
        for gone in old.iter().filter(|o| !made.contains(o)) {
            self.prune(file.name, gone).await?;
        }
        self.note(file, &file.digest, &made).await?;
        if is_new {
            let path = file.path.display().to_string();
            tracing::info!(file = path, objects = made.len(), "a manifest was applied");
            self.say(file.name, EventType::Normal, "AppliedManifest", &format!("Applied manifest at {path:?}"));
        }
        Ok(())
    }

    /// Removes a built-in file with what was made of it.
    async fn remove(&self, name: &str, path: &Path) -> std::result::Result<(), String> {
        if let Some(record) = self.record(name) {
            for gone in made_before(&record.value()) {
                self.prune(name, &gone).await.map_err(|s| s.message)?;
            }
            let request = Request::internal(MANAGER, &configmap::KIND, NAMESPACE, &record.meta.name);
            self.api.delete(&request, &DeleteOptions::default()).await.map_err(|s| s.message)?;
            tracing::info!(file = name, "a built-in manifest is disabled; its objects were removed");
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.to_string()),
            _ => Ok(()),
        }
    }

    async fn apply(&self, file: &str, manifest: &Manifest, effort: Effort) -> Result<Made> {
        let kind = kind_of(&manifest.api_version, &manifest.kind)?;
        let namespace = match (&manifest.namespace, kind.namespaced()) {
            (Some(namespace), true) => namespace.clone(),
            (None, true) => "default".to_owned(),
            (_, false) => String::new(),
        };
        let mut config = manifest.value.clone();
        let annotations = &mut config["metadata"]["annotations"];
        if !annotations.is_object() && !annotations.is_null() {
            return Err(Status::bad_request("metadata.annotations: expected keys and values"));
        }
        annotations[FILE] = file.into();
        let request = Request::internal(MANAGER, &kind, &namespace, &manifest.name);
        match self.api.apply_config(&request, config.clone()).await {
            // What cannot be changed, such as a Service's address, is made anew.
            Err(status) if status.code == 422 && effort == Effort::Replace => {
                self.api.delete(&request, &DeleteOptions::default()).await?;
                self.api.apply_config(&request, config).await?;
            }
            applied => drop(applied?),
        }
        Ok(Made {
            api_version: manifest.api_version.clone(),
            kind: manifest.kind.clone(),
            namespace,
            name: manifest.name.clone(),
        })
    }

    async fn prune(&self, file: &str, gone: &Made) -> Result<()> {
        let Ok(kind) = kind_of(&gone.api_version, &gone.kind) else { return Ok(()) };
        let request = Request::internal(MANAGER, &kind, &gone.namespace, &gone.name);
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
        self.api.cache.kind(kind).get(&kind.key(NAMESPACE, &record_name(name)))
    }

    async fn note(&self, file: &File<'_>, digest: &str, made: &[Made]) -> Result<()> {
        let record = record_name(file.name);
        let objects = serde_json::to_string(made).map_err(Status::internal)?;
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": record, "namespace": NAMESPACE, "labels": {LABEL: "true"}},
            "data": {"source": file.path.display().to_string(), "checksum": digest, "objects": objects},
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

// === impl File ===

impl<'a> File<'a> {
    fn new(name: &'a str, path: &'a Path, content: &'a str) -> Self {
        Self { name, path, content, digest: hex::encode(Sha256::digest(content.as_bytes())) }
    }
}

fn made_before(record: &Value) -> Vec<Made> {
    serde_json::from_str(text(record, "data.objects")).unwrap_or_default()
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

fn kind_of(api_version: &str, kind: &str) -> Result<KindRef> {
    let found = registry::builtin().by_kind(api_version, kind).filter(|k| k.is_stored());
    found
        .cloned()
        .ok_or_else(|| Status::bad_request(format!("no matches for kind {kind:?} in version {api_version:?}")))
}

/// The name of a file's ConfigMap: what a name may not have becomes a dash. Files that would have the same one are told apart by
/// a digest.
fn record_name(file: &str) -> String {
    let safe: String =
        file.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let safe = safe.trim_matches(['-', '.']);
    match safe == file {
        true => format!("manifest.{safe}"),
        false => format!("manifest.{safe}-{}", hex::encode(&Sha256::digest(file.as_bytes())[..4])),
    }
}

/// The manifests in and below a directory, in order of their paths, without those that are to be skipped.
fn files(directory: &Path) -> Vec<PathBuf> {
    let is_manifest = |p: &Path| {
        p.extension().is_some_and(|e| ["yaml", "yml", "json"].iter().any(|known| e.eq_ignore_ascii_case(known)))
    };
    let hidden = |p: &Path| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
    let mut all = tree(directory).files;
    all.retain(|p| is_manifest(p) && !hidden(p) && !is_skipped(p));
    all
}

/// Whether there is a file of its name with `.skip` beside it.
fn is_skipped(path: &Path) -> bool {
    let mut skip = path.as_os_str().to_owned();
    skip.push(".skip");
    Path::new(&skip).symlink_metadata().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::in_memory;
    use crate::kinds::core::{namespace, service};
    use crate::reconcile::Client;

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

    async fn api() -> Api {
        let api = in_memory::api();
        let client = Local::new(api.clone(), "test");
        for name in ["default", "kube-system"] {
            client.create(&namespace::KIND, "", json!({"metadata": {"name": name}})).await.unwrap();
        }
        api
    }

    fn data(api: &Api, name: &str) -> Option<String> {
        let kind = &configmap::KIND;
        let found = api.cache.kind(kind).get(&kind.key("default", name));
        found.map(|o| text(&o.value(), "data.a").to_owned())
    }

    #[tokio::test]
    async fn files_are_applied_followed_and_tracked() {
        let api = api().await;
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
        write("a.yaml", map("one", "x") + &map("two", "x"));
        write("b.yaml", map("skipped", "x"));
        write("b.yaml.skip", String::new());
        let deployer = Deployer::new(api.clone(), Clock::system(), dir.path().to_owned());
        let task = crate::base::task::spawn("manifests", deployer.run());
        let data = |name: &str| data(&api, name);
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
        std::fs::create_dir_all(dir.path().join("sub/deep")).unwrap();
        write("sub/deep/a.yml", map("below", "x"));
        until("directories below are followed", || data("below").is_some()).await;
        write("sub/deep/a.yml", map("below", "z"));
        until("and so are their files", || data("below").as_deref() == Some("z")).await;
        assert_eq!(data("one").as_deref(), Some("changed"), "files of one name do not meddle with each other");
        task.abort();
    }

    #[tokio::test]
    async fn a_start_puts_right_what_others_changed_and_else_writes_nothing() {
        let api = api().await;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.yaml"), map("one", "x")).unwrap();
        let start = async || {
            let deployer = Deployer::new(api.clone(), Clock::system(), dir.path().to_owned());
            assert!(!deployer.all(&mut BTreeMap::new(), Effort::All).await);
        };
        start().await;
        // Events come from a task of their own.
        let record =
            |api: &Api| api.get(&Request::internal("t", &configmap::KIND, NAMESPACE, "manifest.a.yaml")).unwrap();
        let one = Request::internal("user", &configmap::KIND, "default", "one");
        let revisions = (record(&api).revision, api.get(&one).unwrap().revision);
        start().await;
        assert_eq!((record(&api).revision, api.get(&one).unwrap().revision), revisions);
        api.delete(&one, &DeleteOptions::default()).await.unwrap();
        start().await;
        assert_eq!(data(&api, "one").as_deref(), Some("x"));
        assert_eq!(record(&api).revision, revisions.0);
    }

    #[test]
    fn no_two_files_are_noted_in_one_place() {
        let names = ["a-b.yaml", "a_b.yaml", "A-b.yaml", "a/b.yaml", "-a-b.yaml"].map(record_name);
        assert_eq!(names[0], "manifest.a-b.yaml");
        assert!((1..names.len()).all(|i| !names[..i].contains(&names[i])), "{names:?}");
    }

    #[tokio::test]
    async fn what_is_left_of_a_file_that_failed_is_removed_with_it() {
        let api = api().await;
        let dir = tempfile::tempdir().unwrap();
        let deployer = Deployer::new(api.clone(), Clock::system(), dir.path().to_owned());
        let write = |text: String| std::fs::write(dir.path().join("a.yaml"), text).unwrap();
        write(map("one", "x") + "---\napiVersion: v1\nkind: Nothing\nmetadata: {name: a, annotations: []}\n");
        assert!(deployer.all(&mut BTreeMap::new(), Effort::All).await);
        assert!(data(&api, "one").is_some());
        write(map("two", "x"));
        assert!(!deployer.all(&mut BTreeMap::new(), Effort::Changed).await);
        assert!(data(&api, "one").is_none() && data(&api, "two").is_some());
    }

    #[tokio::test]
    async fn built_in_components_are_files_that_can_be_disabled_skipped_and_replaced() {
        let api = api().await;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dns.yaml");
        let start = async |off: &[&str], dns: &str| {
            let mut deployer = Deployer::new(api.clone(), Clock::system(), dir.path().to_owned());
            let off: Vec<String> = off.iter().map(|o| (*o).to_owned()).collect();
            let values = Values { cluster_dns: dns.parse().unwrap(), cluster_domain: "cluster.local".into() };
            deployer.stage(&off, &values).await;
            deployer.write().await;
            assert!(!deployer.all(&mut BTreeMap::new(), Effort::All).await);
        };
        let service = || {
            let found = api.cache.kind(&service::KIND).get(&service::KIND.key(NAMESPACE, "kube-dns"));
            found.map(|o| (text(&o.value(), "spec.clusterIP").to_owned(), o.revision))
        };
        start(&[], "10.43.0.10").await;
        let (address, revision) = service().unwrap();
        assert_eq!(address, "10.43.0.10");
        assert!(std::fs::read_to_string(&path).unwrap().contains("kind: Service"));
        start(&[], "10.43.0.10").await;
        assert_eq!(service().unwrap().1, revision, "nothing is written twice");
        start(&[], "10.43.0.11").await;
        assert_eq!(service().unwrap().0, "10.43.0.11", "another address is another Service");
        std::fs::write(dir.path().join("dns.yaml.skip"), "").unwrap();
        start(&["dns"], "10.43.0.10").await;
        assert!(service().is_some() && path.exists(), "neither applied nor removed");
        std::fs::remove_file(dir.path().join("dns.yaml.skip")).unwrap();
        start(&["dns"], "10.43.0.10").await;
        assert!(service().is_none() && !path.exists());
        std::fs::write(&path, map("mine", "x")).unwrap();
        for off in [&["dns"][..], &[]] {
            start(off, "10.43.0.10").await;
            assert_eq!((service(), data(&api, "mine").as_deref()), (None, Some("x")), "the user's own file");
        }
        std::fs::remove_file(&path).unwrap();
        start(&[], "10.43.0.10").await;
        assert!(service().is_some());
    }
}
