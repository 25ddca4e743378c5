//! Images made of Debian's busybox and of what a test puts on top, as archives that a node takes in: no registry.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sha2::Digest;

/// The plain one: all applets, nothing configured.
pub const IMAGE: &str = "box.test/busybox:1";

/// What a layer holds at a path.
pub enum Entry<'a> {
    Directory,
    File(u32, &'a [u8]),
    Link(&'a str),
}

fn tar_of(entries: &[(&str, Entry<'_>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, entry) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(0);
        match entry {
            Entry::Directory => header.set_entry_type(tar::EntryType::Directory),
            Entry::Link(_) => header.set_entry_type(tar::EntryType::Symlink),
            Entry::File(mode, bytes) => {
                header.set_mode(*mode);
                header.set_size(bytes.len() as u64);
            }
        }
        match entry {
            Entry::Link(to) => tar.append_link(&mut header, name, to).unwrap(),
            Entry::File(_, bytes) => tar.append_data(&mut header, name, *bytes).unwrap(),
            Entry::Directory => tar.append_data(&mut header, name, &b""[..]).unwrap(),
        }
    }
    tar.into_inner().unwrap()
}

/// An archive as `docker save` writes it: busybox, the layers on top, and the configuration.
pub fn archive(name: &str, layers: &[&[(&str, Entry<'_>)]], config: Value) -> Vec<u8> {
    let busybox = fs::read("/bin/busybox").expect("busybox-static is installed");
    let applets = "awk cat date df echo env grep head hostname id kill ls mkdir mount nc netstat ping pwd rm seq sh sleep \
        sort stat stty tail tar touch tr true usleep wc wget yes";
    let paths: Vec<String> = applets.split_whitespace().map(|a| format!("bin/{a}")).collect();
    let mut first =
        vec![("bin", Entry::Directory), ("bin/busybox", Entry::File(0o755, &busybox)), ("tmp", Entry::Directory)];
    first.extend(paths.iter().map(|path| (path.as_str(), Entry::Link("busybox"))));
    let layers: Vec<Vec<u8>> = std::iter::once(&first[..]).chain(layers.iter().copied()).map(tar_of).collect();
    let digest = |layer: &Vec<u8>| format!("sha256:{}", hex::encode(sha2::Sha256::digest(layer)));
    let diff_ids: Vec<String> = layers.iter().map(digest).collect();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({"architecture": architecture, "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    .to_string();
    let names: Vec<String> = (0..layers.len()).map(|n| format!("{n}.tar")).collect();
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": names}]).to_string();
    let mut files: Vec<(&str, Entry<'_>)> =
        names.iter().zip(&layers).map(|(name, layer)| (name.as_str(), Entry::File(0o644, layer))).collect();
    files.push(("config.json", Entry::File(0o644, config.as_bytes())));
    files.push(("manifest.json", Entry::File(0o644, manifest.as_bytes())));
    tar_of(&files)
}

/// Puts the plain one where a node takes images in.
pub fn put(data: &Path) {
    put_archive(data, "busybox", &archive(IMAGE, &[], json!({"Cmd": ["sh"]})));
}

/// Puts an archive there, under its name in one step.
pub fn put_archive(data: &Path, name: &str, archive: &[u8]) {
    let directory = data.join("agent/images");
    fs::create_dir_all(&directory).unwrap();
    let hidden = directory.join(format!(".{name}.tar"));
    fs::write(&hidden, archive).unwrap();
    fs::rename(hidden, directory.join(format!("{name}.tar"))).unwrap();
}
