//! Images from registries and archives to running containers.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::Duration;

use amphipod::containers::image::{HELLO, ImageStore, Policy, Registries, resolve_user};
use amphipod::containers::*;
use serde_json::json;

use crate::lab::Lab;
use crate::registry::{Behaviour, Registry, tar_of};

pub fn store(lab: &Lab) -> ImageStore {
    ImageStore::open(&lab.config, Registries::default()).unwrap()
}

/// Everything that nobody uses goes, however much room there is.
pub fn unused(min_age: Duration) -> Policy {
    Policy { high_percent: 0, low_percent: 0, min_age }
}

fn login(username: &str, password: &str) -> Credentials {
    Credentials { username: username.into(), password: password.into(), ..Credentials::default() }
}

/// Busybox below, two layers of changes above.
fn layers() -> Vec<Vec<u8>> {
    let busybox = fs::read("/bin/busybox").unwrap();
    vec![
        tar_of(&[
            ("bin/", b""),
            ("bin/busybox", &busybox),
            ("bin/sh -> busybox", b""),
            ("bin/ls -> busybox", b""),
            ("bin/cat -> busybox", b""),
            ("etc/", b""),
            ("etc/passwd", b"root:x:0:0::/:/bin/sh\nweb:x:33:34::/:/bin/sh\n"),
            ("etc/group", b"web:x:34:\n"),
            ("usr/lib/", b""),
            ("usr/lib/base", b"base"),
            ("lib -> usr/lib", b""),
            ("dir/", b""),
            ("dir/old", b"old"),
            ("gone", b"x"),
        ]),
        tar_of(&[(".wh.gone", b""), ("dir/.wh..wh..opq", b""), ("dir/new", b"new"), ("lib/added", b"added")]),
        tar_of(&[("top", b"top")]),
    ]
}

/// Everything in the store's working directories.
fn remains(lab: &Lab) -> Vec<String> {
    let names = ["layers", "blobs", "partial", "content"].into_iter().flat_map(|name| {
        fs::read_dir(lab.config.images_dir().join(name))
            .unwrap()
            .flatten()
            .map(move |e| format!("{name}/{:?}", e.file_name()))
    });
    names.collect()
}

#[tokio::test]
async fn an_image_is_pulled_mounted_and_run() {
    let lab = Lab::new().await;
    let (registry, store) = (Registry::start(), store(&lab));
    let config =
        json!({ "Cmd": ["sh", "-c", "cat /top /dir/new /usr/lib/added; ls /dir /lib/; ls /gone"], "User": "web" });
    registry.publish("team/app", "1", &layers(), config);
    let name = format!("{}/team/app:1", registry.address);
    let image = store.pull(&name, &[]).await.unwrap();
    assert_eq!((image.tags.clone(), image.config.user.as_str()), (vec![name.clone()], "web"));
    // Three layers, as directories and as they came, with manifest and configuration.
    assert_eq!(remains(&lab).iter().filter(|name| name.starts_with("layers/")).count(), 3);
    assert_eq!(remains(&lab).iter().filter(|name| name.starts_with("content/")).count(), 5);
    assert_eq!(remains(&lab).len(), 8, "{:?}", remains(&lab));

    let sandbox = lab.sandbox().await;
    let id = new_id();
    let rootfs = store.prepare_rootfs(&name, &id, None).await.unwrap();
    assert_eq!(store.prepare_rootfs(&name, &id, None).await.unwrap(), rootfs);
    let user = resolve_user(&rootfs, "web").unwrap();
    assert_eq!((user.uid, user.gid), (33, 34));
    let spec = ContainerSpec { id: id.clone(), rootfs, args: image.config.cmd.clone(), user, ..lab.script("") };
    let (code, log) = lab.run(&sandbox, spec).await;
    assert_eq!(code, 1);
    assert!(log.contains("topnewadded") && log.contains("new\n") && !log.contains("old"), "{log}");
    assert!(log.contains("base\n") && log.contains("/gone: No such file"), "{log}");

    let used = store.remove(&name).await.unwrap_err();
    assert!(matches!(used, ImageError::InUse { .. }));
    assert!(store.collect_garbage(&unused(Duration::ZERO)).await.unwrap().removed.is_empty());
    lab.runtime.remove_sandbox(&sandbox).await.unwrap();
    store.release_rootfs(&id).await.unwrap();
    store.release_rootfs(&id).await.unwrap();
    assert_eq!(store.collect_garbage(&unused(Duration::from_secs(3600))).await.unwrap().removed.len(), 0);
    assert_eq!(store.collect_garbage(&unused(Duration::ZERO)).await.unwrap().removed, [image.id]);
    assert_eq!(remains(&lab), Vec::<String>::new());
}

/// A disk of its own, 64 MiB, until it is dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: &std::path::Path) -> Self {
        use nix::mount::{MsFlags, mount};
        fs::create_dir_all(at).unwrap();
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some("size=64m")).unwrap();
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn when_the_disk_is_nearly_full_the_image_goes_that_was_used_longest_ago() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config::new(directory.path().join("data"), directory.path().join("run"));
    let _disk = SmallDisk::mount(&config.data_dir);
    let store = ImageStore::open(&config, Registries::default()).unwrap();
    let registry = Registry::start();
    let name = |image: &str| format!("{}/{image}:1", registry.address);
    let shared = tar_of(&[("base", &vec![1; 2 << 20])]);
    let mut released = store.released();
    for (n, image) in (2..).zip(["used", "pinned", "old", "new"]) {
        registry.publish(image, "1", &[shared.clone(), tar_of(&[("top", &vec![n; 12 << 20])])], json!({}));
        store.pull(&name(image), &[]).await.unwrap();
    }
    store.prepare_rootfs(&name("used"), "c", None).await.unwrap();
    store.pin(&name("pinned"), true).unwrap();
    let left = async || {
        let all = store.list().await.into_iter().flat_map(|image| image.tags).filter(|tag| tag != HELLO);
        let all = all.map(|tag| tag.split(['/', ':']).nth(2).unwrap_or_default().to_owned());
        all.collect::<std::collections::BTreeSet<String>>().into_iter().collect::<Vec<_>>().join(" ")
    };
    let now = Policy { min_age: Duration::ZERO, ..Policy::default() };
    // 2 + 4 * 12 MiB of 64 and a bit.
    let nothing = store.collect_garbage(&now).await.unwrap();
    assert_eq!((nothing.wanted_bytes, left().await.as_str()), (0, "new old pinned used"), "{nothing:?}");
    fs::write(config.data_dir.join("others"), vec![0; 5 << 20]).unwrap();
    let young = store.collect_garbage(&Policy::default()).await.unwrap();
    assert!(young.wanted_bytes > 0 && young.removed.is_empty(), "nothing is two minutes old: {young:?}");
    let one = store.collect_garbage(&now).await.unwrap();
    assert_eq!((one.removed.len(), left().await.as_str()), (1, "new pinned used"), "{one:?}");
    assert!(one.freed_bytes >= one.wanted_bytes && one.freed_bytes >= 12 << 20, "{one:?}");
    // What others use cannot be freed; what can be is.
    fs::write(config.data_dir.join("others"), vec![0; 20 << 20]).unwrap();
    let too_little = store.collect_garbage(&now).await.unwrap();
    assert_eq!((too_little.removed.len(), left().await.as_str()), (1, "pinned used"), "{too_little:?}");
    fs::write(config.data_dir.join("others"), vec![0; 30 << 20]).unwrap();
    let too_little = store.collect_garbage(&now).await.unwrap();
    assert!(too_little.removed.is_empty() && too_little.freed_bytes < too_little.wanted_bytes, "{too_little:?}");
    store.release_rootfs("c").await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), released.changed()).await.unwrap().unwrap();
    store.collect_garbage(&now).await.unwrap();
    assert_eq!(left().await, "pinned");
    // What is left is whole.
    let rootfs = store.prepare_rootfs(&name("pinned"), "d", None).await.unwrap();
    assert_eq!(fs::metadata(rootfs.join("base")).unwrap().len(), 2 << 20);
    store.release_rootfs("d").await.unwrap();
}

#[tokio::test]
async fn an_image_that_another_process_takes_in_is_told_of() {
    let lab = Lab::new().await;
    let (ours, theirs) = (store(&lab), store(&lab));
    let registry = Registry::start();
    registry.publish("late", "1", &[tar_of(&[("f", b"1")])], json!({}));
    let (mut came, watching) = (ours.came(), ours.watch().unwrap());
    let name = format!("{}/late:1", registry.address);
    theirs.pull(&name, &[]).await.unwrap();
    let told = async {
        loop {
            came.changed().await.unwrap();
            if ours.status(&name).await.is_some() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), told).await.expect("the other process is noticed");
    watching.abort();
}

#[tokio::test]
async fn layers_are_shared_and_simultaneous_pulls_share_one_download() {
    let lab = Lab::new().await;
    let (registry, store) = (Registry::start(), store(&lab));
    registry.publish("a", "1", &layers()[..2], json!({}));
    registry.publish("b", "1", &layers(), json!({}));
    let (a, b) = (format!("{}/a:1", registry.address), format!("{}/b:1", registry.address));
    let pulls = futures::future::join_all((0..8).map(|_| store.pull(&a, &[]))).await;
    assert!(pulls.iter().all(Result::is_ok));
    assert_eq!(registry.blob_requests.load(Ordering::SeqCst), 2);
    store.pull(&b, &[]).await.unwrap();
    assert_eq!(registry.blob_requests.load(Ordering::SeqCst), 3);
    store.remove(&a).await.unwrap();
    assert_eq!(remains(&lab).len(), 8, "{:?}", remains(&lab));
    // The index survives a restart, and so does what it names.
    drop(store);
    let again = ImageStore::open(&lab.config, Registries::default()).unwrap();
    assert_eq!(again.status(&b).await.unwrap().tags, [b.clone()]);
    assert!(again.status(&a).await.is_none());
}

#[tokio::test]
async fn tokens_basic_logins_and_refusals() {
    let lab = Lab::new().await;
    let (registry, store) = (Registry::start(), store(&lab));
    registry.publish("private", "1", &[tar_of(&[("f", b"1")])], json!({}));
    let name = format!("{}/private:1", registry.address);
    registry.behaviour.lock().unwrap().token_for = Some("me:secret".into());
    let refused = store.pull(&name, &[login("me", "wrong")]).await.unwrap_err();
    assert!(matches!(&refused, ImageError::Unauthorized { .. }), "{refused}");
    assert!(refused.to_string().contains("authentication required"), "{refused}");
    store.pull(&name, &[login("me", "wrong"), login("me", "secret")]).await.unwrap();
    store.remove(&name).await.unwrap();
    {
        let mut behaviour = registry.behaviour.lock().unwrap();
        behaviour.token_for = None;
        behaviour.basic_for = Some("me:other".into());
    }
    assert!(matches!(store.pull(&name, &[]).await, Err(ImageError::Unauthorized { .. })));
    store.pull(&name, &[login("me", "other")]).await.unwrap();
}

#[tokio::test]
async fn who_a_registry_redirects_to_gets_no_credentials() {
    let lab = Lab::new().await;
    let (registry, elsewhere, store) = (Registry::start(), Registry::start(), store(&lab));
    for registry in [&registry, &elsewhere] {
        registry.publish("private", "1", &[tar_of(&[("f", b"1")])], json!({}));
    }
    registry.behaviour.lock().unwrap().redirect_to = Some(elsewhere.address.clone());
    let name = format!("{}/private:1", registry.address);
    let asks: [fn(&mut crate::registry::Behaviour); 2] = [
        |behaviour| behaviour.token_for = Some("me:secret".into()),
        |behaviour| behaviour.basic_for = Some("me:secret".into()),
    ];
    for ask in asks {
        *elsewhere.behaviour.lock().unwrap() = crate::registry::Behaviour::default();
        ask(&mut elsewhere.behaviour.lock().unwrap());
        let refused = store.pull(&name, &[login("me", "secret")]).await.unwrap_err();
        assert!(matches!(&refused, ImageError::Unauthorized { .. }), "{refused}");
        assert!(refused.to_string().contains(&format!("redirects to {}", elsewhere.address)), "{refused}");
        assert_eq!(*elsewhere.authorizations.lock().unwrap(), Vec::<String>::new());
    }
    // One that wants nothing gives what was asked for.
    *elsewhere.behaviour.lock().unwrap() = crate::registry::Behaviour::default();
    store.pull(&name, &[login("me", "secret")]).await.unwrap();
    assert_eq!(*elsewhere.authorizations.lock().unwrap(), Vec::<String>::new());
}

/// Work in a network of its own, where this machine has an address, and one that clouds tell machines their credentials at.
fn in_a_network(work: impl Future<Output = ()> + Send + 'static) {
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        for words in ["link set lo up", "addr add 192.0.2.1/32 dev lo", "addr add 169.254.169.254/32 dev lo"] {
            assert!(std::process::Command::new("ip").args(words.split(' ')).status().unwrap().success());
        }
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
    });
    thread.join().unwrap();
}

#[test]
fn a_registry_sends_nobody_to_what_only_the_node_reaches() {
    in_a_network(async {
        let lab = Lab::new().await;
        let registry = Registry::start_at("192.0.2.1");
        registry.publish("a", "1", &[tar_of(&[("f", b"1")])], json!({}));
        let name = format!("{}/a:1", registry.address);
        let plain = |configs: &str| {
            let text = format!(
                "mirrors: {{ '{0}': {{ endpoint: ['http://{0}'] }} }}\nconfigs: {{ {configs} }}\n",
                registry.address
            );
            let file = lab.config.data_dir.join("registries.yaml");
            fs::write(&file, text).unwrap();
            ImageStore::open(&lab.config, Registries::load(&file).unwrap()).unwrap()
        };
        let behave = |behaviour| *registry.behaviour.lock().unwrap() = behaviour;
        let redirect = |to: &str| Behaviour { redirect_to: Some(to.to_owned()), ..Behaviour::default() };
        let realm = |to: &str| Behaviour { realm: Some(format!("http://{to}/token")), ..Behaviour::default() };
        let store = plain("");
        for near in [Registry::start(), Registry::start_at("169.254.169.254"), Registry::start_at("::1")] {
            near.publish("a", "1", &[tar_of(&[("f", b"1")])], json!({}));
            let by_name = near.address.replace("127.0.0.1", "localhost");
            let unspecified = near.address.replace("127.0.0.1", "0.0.0.0").replace("[::1]", "[::]");
            let mapped = near.address.replace("127.0.0.1", "[::ffff:127.0.0.1]");
            for target in [near.address.clone(), by_name, unspecified, mapped] {
                for (behaviour, words) in [(redirect(&target), "redirects to"), (realm(&target), "token service")] {
                    behave(behaviour);
                    let refused = store.pull(&name, &[]).await.unwrap_err().to_string();
                    assert!(refused.contains(words) && refused.contains(&target), "{refused}");
                    assert!(refused.contains("no registry elsewhere may send it"), "{refused}");
                }
            }
            assert_eq!(near.requests.load(Ordering::SeqCst), 0, "nothing was asked of {}", near.address);
            // An idle connection of somebody who may is of no use to somebody who may not.
            let own = format!("{}/a:1", near.address);
            if near.address.starts_with("127.") {
                store.pull(&own, &[]).await.unwrap();
                store.remove(&own).await.unwrap();
                let before = near.requests.load(Ordering::SeqCst);
                behave(redirect(&near.address));
                store.pull(&name, &[]).await.unwrap_err();
                assert_eq!(near.requests.load(Ordering::SeqCst), before);
            }
            // What an administrator has named may be led to.
            behave(redirect(&near.address));
            let configured = plain(&format!("'{}': {{}}", near.address));
            configured.pull(&name, &[]).await.unwrap();
            assert!(near.requests.load(Ordering::SeqCst) > 0);
            configured.remove(&name).await.unwrap();
        }
        let other = Registry::start_at("192.0.2.1");
        other.publish("a", "1", &[tar_of(&[("f", b"1")])], json!({}));
        behave(redirect(&other.address));
        store.pull(&name, &[]).await.unwrap();
    });
}

#[tokio::test]
async fn a_pods_credentials_for_a_registry_are_not_for_its_mirrors() {
    let lab = Lab::new().await;
    let mirror = Registry::start();
    mirror.publish("app", "1", &[tar_of(&[("f", b"1")])], json!({}));
    mirror.behaviour.lock().unwrap().basic_for = Some("me:secret".into());
    let path = lab.config.data_dir.join("registries.yaml");
    fs::write(&path, format!("mirrors: {{'127.0.0.1:1': {{endpoint: ['http://{}']}}}}", mirror.address)).unwrap();
    let store = ImageStore::open(&lab.config, Registries::load(&path).unwrap()).unwrap();
    assert!(store.pull("127.0.0.1:1/app:1", &[login("me", "secret")]).await.is_err());
    assert_eq!(*mirror.authorizations.lock().unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_blob_longer_than_its_manifest_says_is_given_up() {
    let lab = Lab::new().await;
    let (registry, store) = (Registry::start(), store(&lab));
    registry.publish("app", "1", &[tar_of(&[("f", &[7; 1 << 20])])], json!({}));
    registry.shrink_sizes("app", "1");
    let refused = store.pull(&format!("{}/app:1", registry.address), &[]).await.unwrap_err();
    assert!(matches!(refused, ImageError::WrongDigest { .. }), "{refused}");
    assert_eq!(remains(&lab), Vec::<String>::new());
}

#[tokio::test]
async fn causes_of_failure_are_told_and_leave_nothing() {
    let lab = Lab::new().await;
    let (registry, store) = (Registry::start(), store(&lab));
    let big: Vec<u8> = (0..200_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    registry.publish("app", "1", &[tar_of(&[("big", &big)])], json!({}));
    registry.publish_index("multi", "arm", &[tar_of(&[("f", b"")])], &["arm64"]);
    registry.publish_index("multi", "both", &[tar_of(&[("f", b"")])], &["arm64", "amd64"]);
    let name = |rest: &str| format!("{}/{rest}", registry.address);
    let set = |change: fn(&mut crate::registry::Behaviour)| change(&mut registry.behaviour.lock().unwrap());

    let missing = store.pull(&name("app:2"), &[]).await.unwrap_err();
    assert!(matches!(missing, ImageError::NotFound { .. }), "{missing}");
    let invalid = store.pull("UPPER", &[]).await.unwrap_err();
    assert!(matches!(invalid, ImageError::InvalidName { .. }), "{invalid}");
    let unreachable = store.pull("127.0.0.1:1/x:y", &[]).await.unwrap_err();
    assert!(matches!(unreachable, ImageError::Unreachable { .. }), "{unreachable}");
    if cfg!(target_arch = "x86_64") {
        let platform = store.pull(&name("multi:arm"), &[]).await.unwrap_err();
        assert!(
            platform.to_string().contains("linux/amd64") && platform.to_string().contains("linux/arm64"),
            "{platform}"
        );
        store.pull(&name("multi:both"), &[]).await.unwrap();
        store.remove(&name("multi:both")).await.unwrap();
    }
    set(|behaviour| behaviour.corrupt = true);
    let wrong = store.pull(&name("app:1"), &[]).await.unwrap_err();
    assert!(matches!(wrong, ImageError::WrongDigest { .. }), "{wrong}");
    set(|behaviour| *behaviour = crate::registry::Behaviour { cut_blobs_after: Some(1000), ..Default::default() });
    let short = store.pull(&name("app:1"), &[]).await.unwrap_err();
    assert!(matches!(short, ImageError::Truncated { .. }), "{short}");
    assert_eq!(remains(&lab), Vec::<String>::new());
    // The same connection trouble with a registry that can resume costs some requests and no failure.
    set(|behaviour| {
        *behaviour = crate::registry::Behaviour { cut_blobs_after: Some(300_000), ranges: true, ..Default::default() }
    });
    store.pull(&name("app:1"), &[]).await.unwrap();
}

#[tokio::test]
async fn a_malicious_layer_is_refused_and_leaves_nothing() {
    let lab = Lab::new().await;
    let (registry, store) = (Registry::start(), store(&lab));
    let mut tar = tar_of(&[("xx/evil", b"bad")]);
    tar[..2].copy_from_slice(b"..");
    let sum: u32 = tar[..148].iter().chain(&tar[156..512]).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
    tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    registry.publish("evil", "1", &[tar_of(&[("fine", b"")]), tar], json!({}));
    let refused = store.pull(&format!("{}/evil:1", registry.address), &[]).await.unwrap_err();
    assert!(matches!(&refused, ImageError::Malicious { path, .. } if path == "../evil"), "{refused}");
    assert!(store.list().await.iter().all(|image| image.tags == [HELLO]));
    // The honest layer below was complete; it goes with the next cleaning.
    store.collect_garbage(&unused(Duration::ZERO)).await.unwrap();
    assert_eq!(remains(&lab), Vec::<String>::new());
}

#[tokio::test]
async fn mirrors_come_before_the_registry() {
    let lab = Lab::new().await;
    let registry = Registry::start();
    registry.publish("base/nginx", "1", &[tar_of(&[("f", b"1")])], json!({}));
    registry.behaviour.lock().unwrap().basic_for = Some("m:p".into());
    let path = lab.config.data_dir.join("registries.yaml");
    let yaml = format!(
        "mirrors:\n  docker.io:\n    endpoint: ['http://127.0.0.1:1', 'http://{0}']\n    rewrite: {{'^library/(.*)': 'base/$1'}}\n\
         configs:\n  '{0}': {{auth: {{username: m, password: p}}}}\n",
        registry.address
    );
    fs::write(&path, yaml).unwrap();
    let store = ImageStore::open(&lab.config, Registries::load(&path).unwrap()).unwrap();
    let image = store.pull("nginx:1", &[]).await.unwrap();
    assert_eq!(image.tags, ["docker.io/library/nginx:1"]);
    for name in ["nginx:1", "docker.io/library/nginx:1", &image.id, &image.id[7..19], &image.digests[0]] {
        assert_eq!(store.status(name).await.unwrap().id, image.id, "{name}");
    }
}

#[tokio::test]
async fn the_hello_image_is_always_there_and_answers() {
    let lab = Lab::new().await;
    let store = store(&lab);
    let image = store.pull("amphipod.local/hello", &[]).await.unwrap();
    assert!(store.status(HELLO).await.is_some() && store.list().await.iter().any(|image| image.tags == [HELLO]));
    assert!(store.remove(HELLO).await.is_err());
    let id = new_id();
    let rootfs = store.prepare_rootfs(HELLO, &id, None).await.unwrap();
    // A network namespace of its own, so that port 8080 is free.
    let sandbox =
        lab.runtime.create_sandbox(SandboxSpec { netns: Some(lab.netns()), ..lab.sandbox_spec() }).await.unwrap();
    let spec = ContainerSpec { id: id.clone(), rootfs, args: image.config.entrypoint, ..lab.script("") };
    lab.runtime.start_container(&sandbox.spec.id, spec).await.unwrap();
    let answer = lab.http_get_in(sandbox.pid, 8080).await;
    assert!(answer.contains("Hello from pod lab-pod") && answer.contains("request: GET / HTTP/1.1"), "{answer}");
    let stopping = std::time::Instant::now();
    lab.runtime.stop_container(&id, Duration::from_secs(20)).await.unwrap();
    assert_eq!(lab.runtime.container(&id).await.unwrap().exit_code(), Some(0));
    assert!(stopping.elapsed() < Duration::from_secs(10));
    lab.runtime.remove_sandbox(&sandbox.spec.id).await.unwrap();
    store.release_rootfs(&id).await.unwrap();
}

/// Locks are of the open file, so two stores of one process behave as two processes do.
#[tokio::test]
async fn a_store_is_shared_by_processes() {
    let (lab, began) = (Lab::new().await, std::time::Instant::now());
    let registry = Registry::start();
    registry.publish("shared", "1", &layers(), json!({}));
    let name = format!("{}/shared:1", registry.address);
    let (agent, command) = (store(&lab), store(&lab));
    let (a, b) = tokio::join!(agent.pull(&name, &[]), command.pull(&name, &[]));
    assert_eq!(a.unwrap().id, b.unwrap().id);
    assert_eq!(remains(&lab).len(), 8, "layers that both made are there once: {:?}", remains(&lab));
    // One who comes later does not take for left behind what others work on.
    let scratch = lab.config.images_dir().join("blobs/under-way");
    fs::write(&scratch, "x").unwrap();
    let third = store(&lab);
    assert!(scratch.exists() && third.status(&name).await.is_some());
    command.remove(&name).await.unwrap();
    assert!(agent.status(&name).await.is_none(), "what one removes, the others do not have");
    agent.pull(&name, &[]).await.unwrap();
    assert!(command.status(&name).await.is_some());
    drop((agent, command, third));
    // A program that another test starts holds our locks for the instant until it is executed.
    let alone = loop {
        let alone = store(&lab);
        if !scratch.exists() || began.elapsed() > Duration::from_secs(20) {
            break alone;
        }
    };
    assert!(!scratch.exists() && alone.status(&name).await.is_some());
}

#[tokio::test]
async fn a_pull_that_waits_for_the_end_of_a_collection_holds_up_nobody() {
    let lab = Lab::new().await;
    let store = store(&lab);
    let lock = fs::File::create(lab.config.images_dir().join("pulls.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let collecting = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(4));
        drop(lock);
    });
    let began = std::time::Instant::now();
    let pull = store.pull("127.0.0.1:1/x:y", &[]);
    tokio::pin!(pull);
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut pull).await.is_err(), "it waits");
    assert!(began.elapsed() < Duration::from_secs(3), "and so does whatever shares its thread");
    let unreachable = pull.await.unwrap_err();
    assert!(matches!(unreachable, ImageError::Unreachable { .. }), "{unreachable}");
    collecting.join().unwrap();
}
