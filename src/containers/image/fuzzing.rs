//! What registries, archives and administrators give about images, as bytes, through everything that reads it.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use super::archive::DockerEntry;
use super::digest::{blob_name, chain_ids};
use super::document::List;
use super::manifest::{ConfigFile, MANIFESTS_MAX, choose, own_platform, parse_manifest};
use super::unpack::{self, Limits};
use super::{Reference, Registries};

/// What a layer may take here: enough for every branch, little enough for millions of inputs.
const LIMITS: Limits = Limits { bytes: 256 << 10, entries: 64 };
const OUTSIDE: &str = "outside";
const BLOCK_BYTES: usize = 512;

/// A manifest, a list of them, a configuration, the list of a docker archive, a reference.
pub(crate) fn image_manifest(data: &[u8]) {
    if let Ok(manifest) = parse_manifest(data) {
        let chosen = choose(&manifest.manifests, &own_platform(), "fuzz");
        assert!(chosen.is_err() || !manifest.manifests.is_empty());
        for descriptor in manifest.layers.iter().chain(manifest.manifests.iter()).chain(&manifest.config) {
            if let Ok(name) = blob_name(&descriptor.digest) {
                assert!(!name.contains(['/', '.']) && !name.is_empty(), "{name:?} as a file's name");
            }
        }
    }
    if let Ok(file) = ConfigFile::parse(data) {
        let _ = file.check_platform("fuzz");
        assert_eq!(chain_ids(&file.rootfs.diff_ids).len(), file.rootfs.diff_ids.len());
        let _ = file.image_config();
    }
    if let Ok(entries) = serde_json::from_slice::<List<DockerEntry, MANIFESTS_MAX>>(data) {
        entries.iter().for_each(|entry| drop(entry.names()));
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(reference) = Reference::parse(text)
    {
        let printed = reference.to_string();
        let again = Reference::parse(&printed).expect("what was printed is read");
        assert_eq!(again.to_string(), printed);
    }
}

/// `registries.yaml`: every registry has a place to be asked, whatever the file says.
pub(crate) fn registries(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(parsed) = Registries::parse(text) else { return };
    let named = parsed.mirrors.keys().chain(parsed.configs.keys()).take(4).map(String::as_str);
    for registry in ["docker.io", "quay.io", "localhost:5000"].into_iter().chain(named) {
        let endpoints = parsed.endpoints(registry, "library/a");
        assert!(endpoints.iter().all(|endpoint| !endpoint.host.is_empty() || registry.is_empty()));
        assert!(!endpoints.is_empty());
        let _ = (parsed.credentials(registry), parsed.tls(registry));
    }
}

/// A layer, as it is and with its headers' checksums mended, alone and over a lower layer. Nothing beside its root changes.
pub(crate) fn image_layer(data: &[u8]) {
    SCRATCH.with_borrow_mut(|scratch| {
        let scratch = scratch.get_or_insert_with(Scratch::new);
        for merged in [false, true] {
            scratch.unpack(data, merged);
        }
        let mended = mended(data);
        if mended != data {
            scratch.unpack(&mended, true);
        }
    });
}

thread_local!(static SCRATCH: RefCell<Option<Scratch>> = const { RefCell::new(None) });

/// Places of this thread, on a file system in memory where there is one.
struct Scratch {
    directory: PathBuf,
}

// === impl Scratch ===

impl Scratch {
    fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let name = format!("amphipod-fuzz-{}-{:?}", std::process::id(), std::thread::current().id());
        let directory = parent.join(name.replace(['(', ')'], ""));
        fs::create_dir_all(&directory).expect("a scratch directory");
        Self { directory }
    }

    /// Unpacks into a fresh root beside a file that must stay as it is.
    fn unpack(&self, data: &[u8], merged: bool) {
        let (root, outside) = (self.directory.join("root"), self.directory.join(OUTSIDE));
        fs::create_dir(&root).expect("a root");
        fs::write(&outside, OUTSIDE).expect("a file beside the root");
        if merged {
            lower(&root);
        }
        let before = state(&self.directory);
        let result = unpack::unpack_within(data, &root, merged, "fuzz", LIMITS);
        if let Ok(unpacked) = &result {
            assert!(unpacked.size_bytes <= LIMITS.bytes, "{} bytes", unpacked.size_bytes);
        }
        assert_eq!(state(&self.directory), before, "something outside of the root has changed: {result:?}");
        crate::base::tree::remove(&root).expect("a root is removed");
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = crate::base::tree::remove(&self.directory);
    }
}

/// A layer below: a file, a directory with a file, and links that lead out.
fn lower(root: &Path) {
    fs::create_dir_all(root.join("d/e")).expect("a directory");
    fs::write(root.join("d/e/old"), "old").expect("a file");
    fs::write(root.join("f"), "old").expect("a file");
    symlink("../..", root.join("up")).expect("a link");
    symlink(format!("../{OUTSIDE}"), root.join("out")).expect("a link");
}

/// What is beside the root: names, and what the file is.
fn state(directory: &Path) -> (Vec<PathBuf>, String, [u64; 4]) {
    let mut names: Vec<PathBuf> = fs::read_dir(directory).expect("a directory").flatten().map(|e| e.path()).collect();
    names.sort();
    let outside = directory.join(OUTSIDE);
    let about = outside.symlink_metadata().expect("the file beside the root");
    let numbers = [about.nlink(), u64::from(about.mode()), u64::from(about.uid()), about.mtime() as u64];
    (names, fs::read_to_string(&outside).expect("its content"), numbers)
}

/// The tar with a right checksum in every header, so that a changed byte in a header does not end everything.
fn mended(data: &[u8]) -> Vec<u8> {
    let mut tar = data.to_vec();
    let mut at = 0usize;
    while let Some(block) = tar.get_mut(at..at.saturating_add(BLOCK_BYTES)) {
        if block.iter().all(|byte| *byte == 0) {
            break;
        }
        let mut header = tar::Header::new_old();
        header.as_mut_bytes().copy_from_slice(block);
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
        let size = header.entry_size().unwrap_or(0);
        let blocks = usize::try_from(size.div_ceil(BLOCK_BYTES as u64)).unwrap_or(usize::MAX);
        at = at.saturating_add(BLOCK_BYTES).saturating_add(blocks.saturating_mul(BLOCK_BYTES));
    }
    tar
}
