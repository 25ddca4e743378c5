//! Archives out and in with equal digests, a directory whose archives are taken in, and images from other nodes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use amphipod::containers::image::{ImageStore, Registries, SecretName};
use amphipod::containers::*;
use amphipod::wire::images::{BlobRequest, BlobResponse, Peers};
use async_trait::async_trait;
use serde_json::json;

use crate::images::{store, unused};
use crate::lab::Lab;
use crate::registry::{Registry, tar_of};

fn layers() -> Vec<Vec<u8>> {
    vec![tar_of(&[("a/", b""), ("a/below", b"1"), ("gone", b"x")]), tar_of(&[("a/above", b"2"), (".wh.gone", b"")])]
}

fn offline() -> Registries {
    Registries { offline: true, ..Registries::default() }
}

/// Everything but what differs from machine to machine.
fn same(image: &Image) -> (String, Vec<String>, Vec<String>, ImageConfig, u64) {
    let Image { id, tags, digests, config, size_bytes, .. } = image.clone();
    (id, tags, digests, config, size_bytes)
}

fn digest_by_skopeo(archive: &str) -> String {
    let output = Command::new("skopeo").args(["inspect", archive]).output().unwrap();
    assert!(output.status.success(), "{archive}: {}", String::from_utf8_lossy(&output.stderr));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    told["Digest"].as_str().unwrap().to_owned()
}

fn content(lab: &Lab) -> usize {
    fs::read_dir(lab.config.images_dir().join("content")).unwrap().count()
}

#[tokio::test]
async fn what_is_exported_is_imported_with_equal_digests() {
    let (lab, other) = (Lab::new().await, Lab::new().await);
    let (registry, from, to) = (Registry::start(), store(&lab), store(&other));
    registry.publish("team/app", "1", &layers(), json!({"Cmd": ["a"], "Env": ["A=b"]}));
    registry.publish("team/top", "2", &layers()[..1], json!({"Cmd": ["b"]}));
    let names = ["team/app:1", "team/top:2"].map(|name| format!("{}/{name}", registry.address));
    let mut pulled = Vec::new();
    for name in &names {
        pulled.push(from.pull(name, &[]).await.unwrap());
    }
    drop(registry);
    let mut plain = Vec::new();
    for ending in ["tar", "tar.gz", "tar.zst"] {
        let file = lab.config.data_dir.join(format!("images.{ending}"));
        from.export(&names, &file).await.unwrap();
        let mut came = to.import(&file).await.unwrap();
        came.sort_by_key(|image| image.tags.clone());
        assert_eq!(came.iter().map(same).collect::<Vec<_>>(), pulled.iter().map(same).collect::<Vec<_>>());
        assert!(came.iter().all(|image| image.pinned), "nobody could download them again");
        // And out again, byte for byte.
        let again = other.config.data_dir.join(format!("again.{ending}"));
        to.export(&names, &again).await.unwrap();
        assert!(fs::read(&file).unwrap() == fs::read(&again).unwrap(), "{ending}");
        plain.push(fs::metadata(&file).unwrap().len());
        for image in &came {
            to.remove(&image.id).await.unwrap();
        }
        assert_eq!(content(&other), 0, "nothing is kept of removed images");
    }
    assert!(plain[0] > plain[1] && plain[0] > plain[2], "compressed: {plain:?}");
    let unknown = from.export(&["nothing:1".into()], &lab.config.data_dir.join("x.tar")).await.unwrap_err();
    assert!(matches!(unknown, ImageError::NoImage(_)), "{unknown}");
    assert!(!lab.config.data_dir.join("x.tar").exists());
}

#[tokio::test]
async fn an_index_survives_and_other_tools_read_what_is_exported() {
    let (lab, other) = (Lab::new().await, Lab::new().await);
    let (registry, from, to) = (Registry::start(), store(&lab), store(&other));
    registry.publish_index("multi", "1", &layers(), &["arm64", "amd64"]);
    let multi = format!("{}/multi:1", registry.address);
    registry.publish("one", "1", &layers(), json!({}));
    let one = format!("{}/one:1", registry.address);
    let (pulled, single) = (from.pull(&multi, &[]).await.unwrap(), from.pull(&one, &[]).await.unwrap());
    let file = lab.config.data_dir.join("multi.tar");
    from.export(&[pulled.digests[0].clone()], &file).await.unwrap();
    let came = to.import(&file).await.unwrap();
    assert_eq!((&came[0].id, &came[0].digests), (&pulled.id, &pulled.digests), "the digest of the index");
    assert!(to.status(&pulled.digests[0]).await.is_some());

    let file = lab.config.data_dir.join("one.tar");
    from.export(&[one], &file).await.unwrap();
    // One image under two names, which came by two manifests: each name keeps its own.
    let digest = single.digests.iter().find_map(|name| name.split_once("/one@")).unwrap().1;
    assert_eq!(digest_by_skopeo(&format!("oci-archive:{}", file.display())), digest);
    // That kind has no digest of its own; it has to be readable.
    digest_by_skopeo(&format!("docker-archive:{}", file.display()));
}

/// A docker archive, made by hand as `docker save` made them before it wrote layouts.
fn docker_archive(file: &Path, tag: &str, layer: &[u8]) {
    let id = |bytes: &[u8]| {
        use sha2::Digest;
        hex::encode(sha2::Sha256::digest(bytes))
    };
    let config = json!({"os": "linux", "config": {"Cmd": ["x"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", id(layer))]}});
    let config = config.to_string().into_bytes();
    let name = format!("{}.json", id(&config));
    let list = json!([{"Config": name, "RepoTags": [tag], "Layers": ["l/layer.tar"]}]).to_string();
    let tar = tar_of(&[(&name, &config), ("l/", b""), ("l/layer.tar", layer), ("manifest.json", list.as_bytes())]);
    let hidden = file.with_file_name(".new");
    fs::write(&hidden, tar).unwrap();
    fs::rename(hidden, file).unwrap();
}

/// An OCI layout with one image, as other tools write them, and what its index calls it.
fn oci_archive(file: &Path, annotations: &serde_json::Value, layer: &[u8]) {
    let digest = |bytes: &[u8]| {
        use sha2::Digest;
        hex::encode(sha2::Sha256::digest(bytes))
    };
    let layer_digest = digest(layer);
    let config = json!({"os": "linux", "config": {"Cmd": ["x"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]}});
    let config = config.to_string().into_bytes();
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": format!("sha256:{}", digest(&config)),
                   "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": format!("sha256:{layer_digest}"),
                    "size": layer.len()}]});
    let manifest = manifest.to_string().into_bytes();
    let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": format!("sha256:{}", digest(&manifest)), "size": manifest.len(), "annotations": annotations}]});
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", digest(bytes));
    let (index, layout) = (index.to_string(), br#"{"imageLayoutVersion":"1.0.0"}"#);
    let tar = tar_of(&[
        ("oci-layout", layout),
        ("index.json", index.as_bytes()),
        ("blobs/", b""),
        ("blobs/sha256/", b""),
        (&blob(&config), &config),
        (&blob(&manifest), &manifest),
        (&blob(layer), layer),
    ]);
    fs::write(file, tar).unwrap();
}

#[tokio::test]
async fn an_image_with_a_short_name_or_none_can_be_named_after_it_came() {
    let lab = Lab::new().await;
    let store = ImageStore::open(&lab.config, offline()).unwrap();
    let file = lab.config.data_dir.join("layout.tar");
    let standard = "org.opencontainers.image.ref.name";
    for (annotations, tags) in [
        (json!({standard: "app"}), vec!["docker.io/library/app:latest"]),
        (json!({standard: "app:2"}), vec!["docker.io/library/app:2"]),
        (json!({"io.containerd.image.name": "team/app:3", standard: "3"}), vec!["docker.io/team/app:3"]),
        (json!({standard: "NoName"}), vec![]),
        (json!({}), vec![]),
    ] {
        oci_archive(&file, &annotations, &layers()[0]);
        let came = store.import(&file).await.unwrap().remove(0);
        assert_eq!(came.tags, tags, "{annotations}");
        let named = tags.first().map_or(came.id[7..19].to_owned(), |tag| (*tag).to_owned());
        assert_eq!(store.status(&named).await.unwrap().id, came.id, "{annotations}: a user can say which");
        assert!(store.list().await.iter().any(|image| image.id == came.id));
        store.remove(&came.id).await.unwrap();
    }
    // With a name for what has none, and the tag that the archive knows.
    for (annotations, name, tag) in [
        (json!({}), "mine", "docker.io/library/mine:latest"),
        (json!({}), "mine:7", "docker.io/library/mine:7"),
        (json!({standard: "v1"}), "host.example/mine", "host.example/mine:v1"),
    ] {
        oci_archive(&file, &annotations, &layers()[0]);
        let came = store.import_as(&file, name).await.unwrap().remove(0);
        assert_eq!(came.tags, [tag], "{annotations} as {name}");
        store.remove(&came.id).await.unwrap();
    }
    assert!(store.import_as(&file, "No Name").await.is_err());
    oci_archive(&file, &json!({standard: "app:2"}), &layers()[0]);
    let refused = store.import_as(&file, "mine").await.unwrap_err().to_string();
    assert!(refused.contains("all of its images have names"), "a name without effect: {refused}");
    docker_archive(&file, "short", &layers()[0]);
    assert_eq!(store.import(&file).await.unwrap()[0].tags, ["docker.io/library/short:latest"]);
}

async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < Duration::from_secs(20), "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn archives_in_their_directory_are_taken_in_at_the_start_and_on_change() {
    let lab = Lab::new().await;
    let directory = lab.config.archives_dir();
    fs::create_dir_all(&directory).unwrap();
    let file = |name: &str| directory.join(name);
    docker_archive(&file("early.tar"), "early:1", &layers()[0]);
    fs::write(file("notes.txt"), "no archive").unwrap();
    fs::write(file("broken.tar"), "no archive either").unwrap();
    let store = ImageStore::open(&lab.config, offline()).unwrap();
    let taking = store.take_in().unwrap();
    // Who asks for it while it is taken in gets it.
    let early = store.obtain("early:1", &[]).await.unwrap();
    assert!(early.pinned && early.digests[0].starts_with("docker.io/library/early@sha256:"), "{early:?}");

    docker_archive(&file("late.tar"), "late:1", &layers()[1]);
    until("the late one is there", async || store.status("late:1").await.is_some()).await;
    docker_archive(&file("late.tar"), "late:2", &layers()[1]);
    until("the file is read again", async || store.status("late:2").await.is_some()).await;
    assert!(store.collect_garbage(&unused(Duration::ZERO)).await.unwrap().removed.is_empty(), "all are pinned");
    fs::remove_file(file("late.tar")).unwrap();
    until("it may go", async || !store.status("late:2").await.unwrap().pinned).await;
    assert_eq!(store.collect_garbage(&unused(Duration::ZERO)).await.unwrap().removed.len(), 1);
    assert!(store.status("early:1").await.is_some());

    // Known at the next start: the image is as it was, and unchanged files are not read.
    taking.abort();
    let _ = taking.await;
    let before = store.status("early:1").await.unwrap();
    drop(store);
    docker_archive(&file("between.tar"), "between:1", &layers()[1]);
    let store = ImageStore::open(&lab.config, offline()).unwrap();
    let _taking = store.take_in().unwrap();
    store.obtain("between:1", &[]).await.unwrap();
    assert_eq!(store.status("early:1").await.unwrap(), before);
    let missing = store.obtain("nowhere:1", &[]).await.unwrap_err().to_string();
    let put = format!("put an archive that holds it into {}", directory.display());
    assert!(missing.contains("docker.io/library/nowhere:1") && missing.contains(&put), "{missing}");
}

/// Other nodes, in this process.
struct Others {
    store: ImageStore,
    asked: AtomicUsize,
    /// Blobs come with their last byte changed.
    lying: bool,
}

#[async_trait]
impl Peers for Others {
    async fn ask(&self, ask: &BlobRequest) -> Result<Option<BlobResponse>, String> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let Some(found) = self.store.offer(ask).await else { return Ok(None) };
        if !self.lying || matches!(ask, BlobRequest::Manifest { .. }) {
            return Ok(Some(found));
        }
        let head = found.head.clone();
        let mut bytes = found.collect(1 << 24).await.unwrap().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        Ok(Some(BlobResponse::whole(&head.media_type, &head.digest, bytes.into())))
    }
}

fn others(store: &ImageStore, lying: bool) -> Arc<Others> {
    Arc::new(Others { store: store.clone(), asked: AtomicUsize::new(0), lying })
}

fn archive(lab: &Lab, tag: &str, layer: &[u8]) -> PathBuf {
    let file = lab.config.data_dir.join("archive.tar");
    docker_archive(&file, tag, layer);
    file
}

#[tokio::test]
async fn nodes_without_a_registry_give_each_other_images() {
    let (lab, other) = (Lab::new().await, Lab::new().await);
    let first = store(&lab);
    let second = ImageStore::open(&other.config, offline()).unwrap();
    let brought = first.import(&archive(&lab, "app:1", &layers()[0])).await.unwrap().remove(0);
    let peers = others(&first, false);
    second.set_peers(peers.clone());
    let got = second.obtain("app:1", &[]).await.unwrap();
    assert_eq!((same(&got), got.pinned), (same(&brought), false));
    assert_eq!(second.obtain(&brought.digests[0], &[]).await.unwrap().id, brought.id);
    assert!(second.obtain("app:2", &[]).await.is_err());
    // The policy Always: what the other side has under that name today, and what is here when it has nothing.
    let newer = first.import(&archive(&lab, "app:1", &layers()[1])).await.unwrap().remove(0);
    assert_eq!(second.pull("app:1", &[]).await.unwrap().id, newer.id);
    first.remove("app:1").await.unwrap();
    assert_eq!(second.pull("app:1", &[]).await.unwrap().id, newer.id);
}

#[tokio::test]
async fn a_lying_node_is_found_out_and_a_registry_has_the_last_word() {
    let (lab, other, third) = (Lab::new().await, Lab::new().await, Lab::new().await);
    let (registry, first) = (Registry::start(), store(&lab));
    registry.publish("app", "1", &layers(), json!({}));
    let name = format!("{}/app:1", registry.address);
    let old = first.pull(&name, &[]).await.unwrap();
    let downloads = || registry.blob_requests.swap(0, Ordering::SeqCst);
    assert_eq!(downloads(), 2);
    // Always, with the registry there: it says what is meant, the other node gives the layers.
    let second = store(&other);
    second.set_peers(others(&first, false));
    assert_eq!(second.pull(&name, &[]).await.unwrap().id, old.id);
    assert_eq!(downloads(), 0, "layers come from the other node");
    // The name means something new, which no node has.
    registry.publish("app", "1", &layers()[..1], json!({}));
    assert_ne!(second.pull(&name, &[]).await.unwrap().id, old.id);
    // One that lies: nothing of it is kept, the registry is asked instead.
    let liar = store(&third);
    let peers = others(&first, true);
    liar.set_peers(peers.clone());
    let by_digest = &old.digests[0];
    assert_eq!(liar.obtain(by_digest, &[]).await.unwrap().id, old.id);
    assert!(peers.asked.load(Ordering::SeqCst) >= 2 && downloads() == 2);
}

#[tokio::test]
async fn what_a_pods_own_login_opened_is_not_given_away() {
    let (lab, other) = (Lab::new().await, Lab::new().await);
    let (registry, first) = (Registry::start(), store(&lab));
    registry.publish("private", "1", &layers(), json!({}));
    registry.behaviour.lock().unwrap().basic_for = Some("me:secret".into());
    let name = format!("{}/private:1", registry.address);
    let login = |secret: &str, password: &str| Credentials {
        username: "me".into(),
        password: password.into(),
        secret: Some(SecretName { namespace: "n".into(), name: secret.into(), uid: secret.into() }),
        ..Credentials::default()
    };
    let image = first.pull(&name, &[login("one", "secret")]).await.unwrap();
    for (other, opens) in [
        (vec![], false),
        (vec![login("two", "guess")], false),
        (vec![login("one", "secret")], true),
        (vec![login("two", "secret")], true),
    ] {
        assert_eq!(first.allows(&image, &name, &other).await, opens, "{other:?}");
    }
    let second = store(&other);
    second.set_peers(others(&first, false));
    assert!(matches!(second.obtain(&name, &[]).await, Err(ImageError::Unauthorized { .. })));
    let blob = BlobRequest::Blob { name: "x/y".into(), digest: image.id.clone() };
    assert!(first.offer(&blob).await.is_none(), "nor part of it");
    // Who imports it decides otherwise.
    let file = lab.config.data_dir.join("private.tar");
    first.export(std::slice::from_ref(&name), &file).await.unwrap();
    first.import(&file).await.unwrap();
    assert!(first.allows(&image, &name, &[]).await);
    assert_eq!(second.obtain(&name, &[]).await.unwrap().id, image.id);
}
