//! An image of Debian's busybox, as an archive that a node takes in: no registry is needed for a shell.

use serde_json::json;
use sha2::Digest;

/// Its name.
pub const IMAGE: &str = "hostile.test/busybox:1";

fn tar_of(entries: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, mode, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(*mode);
        header.set_size(bytes.len() as u64);
        if name.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
        }
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

/// As `docker save` writes it.
pub fn archive() -> Vec<u8> {
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    let layer = tar_of(&[
        ("bin/", 0o755, b""),
        ("bin/busybox", 0o755, &busybox),
        // Every applet is found by name this way.
        ("bin/sh", 0o755, &busybox),
        ("etc/", 0o755, b""),
        ("etc/passwd", 0o644, b"root:x:0:0::/:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n"),
        ("tmp/", 0o1777, b""),
        // Its directories are made by whoever unpacks it.
        ("opt/made/file", 0o644, b"made"),
    ]);
    let diff_id = format!("sha256:{}", hex::encode(sha2::Sha256::digest(&layer)));
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({"architecture": architecture, "os": "linux", "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
    let manifest = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    tar_of(&[
        ("layer.tar", 0o644, &layer),
        ("config.json", 0o644, config.to_string().as_bytes()),
        ("manifest.json", 0o644, manifest.to_string().as_bytes()),
    ])
}
