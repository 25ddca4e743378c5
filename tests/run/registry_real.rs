//! Debian's `docker-registry`, filled by `skopeo` and `umoci`, and archives that `skopeo` writes.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use amphipod::containers::image::{ImageStore, Registries};
use amphipod::containers::*;

use crate::lab::Lab;

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

struct Server(std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An OCI layout with one image, tag `1`.
fn layout(directory: &Path, rootfs: &Path) -> String {
    let layout = directory.join("layout").display().to_string();
    let image = format!("{layout}:1");
    run("umoci", &["init", "--layout", &layout]);
    run("umoci", &["new", "--image", &image]);
    run("umoci", &["insert", "--image", &image, &rootfs.display().to_string(), "/"]);
    run(
        "umoci",
        &["config", "--image", &image, "--config.cmd", "cat", "--config.cmd", "/etc/passwd", "--config.env", "A=b"],
    );
    image
}

async fn runs(lab: &Lab, store: &ImageStore, image: &Image) {
    let (id, sandbox) = (new_id(), lab.sandbox().await);
    let rootfs = store.prepare_rootfs(&image.id, &id, None).await.unwrap();
    let spec = ContainerSpec { id: id.clone(), rootfs, args: image.config.cmd.clone(), ..lab.script("") };
    let (code, log) = lab.run(&sandbox, spec).await;
    assert!(code == 0 && log.contains("web:x:1000"), "{code} {log}");
    lab.runtime.remove_sandbox(&sandbox).await.unwrap();
    store.release_rootfs(&id).await.unwrap();
}

#[tokio::test]
async fn a_real_registry_as_mirror_of_docker_io() {
    let lab = Lab::new().await;
    let image = layout(&lab.config.data_dir, &lab.rootfs);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = lab.config.data_dir.join("registry.yml");
    let storage = lab.config.data_dir.join("registry");
    let text = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
        storage.display()
    );
    fs::write(&config, text).unwrap();
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("docker-registry is installed");
    let _server = Server(child);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let to = format!("docker://127.0.0.1:{port}/library/box:1");
    run("skopeo", &["copy", "--dest-tls-verify=false", &format!("oci:{image}"), &to]);
    let yaml = lab.config.data_dir.join("registries.yaml");
    fs::write(&yaml, format!("mirrors: {{docker.io: {{endpoint: ['http://127.0.0.1:{port}']}}}}\n")).unwrap();
    let store = ImageStore::open(&lab.config, Registries::load(&yaml).unwrap()).unwrap();
    let pulled = store.pull("box:1", &[]).await.unwrap();
    assert_eq!(pulled.config.env.iter().find(|(name, _)| name == "A").unwrap().1, "b");
    runs(&lab, &store, &pulled).await;
}

#[tokio::test]
async fn archives_of_both_kinds_are_taken_in() {
    let lab = Lab::new().await;
    let image = layout(&lab.config.data_dir, &lab.rootfs);
    let (docker, oci) = (lab.config.data_dir.join("docker.tar"), lab.config.data_dir.join("oci.tar"));
    run("skopeo", &["copy", &format!("oci:{image}"), &format!("docker-archive:{}:team/box:2", docker.display())]);
    run("skopeo", &["copy", &format!("oci:{image}"), &format!("oci-archive:{}:registry.example/box:3", oci.display())]);
    let store = ImageStore::open(&lab.config, Registries::default()).unwrap();
    for (archive, name) in [(&docker, "docker.io/team/box:2"), (&oci, "registry.example/box:3")] {
        let images = store.import(archive).await.unwrap();
        assert_eq!(images.len(), 1);
        assert!(images[0].tags.contains(&name.to_owned()), "{:?}", images[0].tags);
        runs(&lab, &store, &images[0]).await;
        store.remove(name).await.unwrap();
    }
    let broken = lab.config.data_dir.join("broken.tar");
    fs::write(&broken, &fs::read(&docker).unwrap()[..100_000]).unwrap();
    assert!(store.import(&broken).await.is_err());
    assert_eq!(fs::read_dir(lab.config.images_dir().join("blobs")).unwrap().count(), 0);
}
