//! The store on disk: an index, unpacked layers, and the root file systems of containers.
//!
//! `index.json` is the truth and is replaced atomically after the layers it names were synced; at start everything
//! it does not name is removed. Layer directories have short numbers for names, because overlay options are limited.

mod images;
pub(super) mod index;

use std::collections::{BTreeMap, HashMap, HashSet, btree_map};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use futures::future::{BoxFuture, Shared};
use jiff::Timestamp;
use tokio::task::JoinHandle;

use index::{Archive, CachedIndex, Entry, Index, Layer, Reading, first_index, read_index, stamp};

use super::super::{Config, Users};
use super::access::{Access, Verdict};
use super::content::Content;
use super::digest::blob_name;
use super::disk::{remove_all, sync_file_system};
use super::error::io;
use super::gc::{Candidate, Interest};
use super::lock::Lock;
use super::unpack::{Unpacked, unpack};
use super::{Credentials, Image, ImageError, Reference, Registries, Result, builtin, rootfs};
use crate::base::directory::DirectoryWatch;
use crate::base::file::{claim_private_dir, write_atomically};
use crate::base::signal::Signal;
use crate::base::task;
use crate::wire::images::Peers;

/// The real [`Images`].
#[derive(Clone)]
pub struct ImageStore {
    pub(super) inner: Arc<Inner>,
}

impl std::fmt::Debug for ImageStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ImageStore").field("directory", &self.inner.directory).finish_non_exhaustive()
    }
}

/// The last part tells whether the registry itself has to be asked.
type PullKey = (String, Vec<Credentials>, bool);
type SharedPull = Shared<BoxFuture<'static, Result<Image>>>;

pub(super) struct Inner {
    pub config: Config,
    pub directory: PathBuf,
    pub registries: Registries,
    index: Mutex<CachedIndex>,
    _user: super::lock::Lock,
    /// Pulls under way, so that others can wait for them.
    pulls: Mutex<HashMap<PullKey, SharedPull>>,
    /// One unpacking at a time: it is bound by the disk, and two may want the same layer.
    unpacking: tokio::sync::Mutex<()>,
    pub client: super::client::Client,
    /// The other nodes, once there is a way to them.
    pub peers: OnceLock<Arc<dyn Peers>>,
    /// Held for writing while archives are taken in that were put into their directory.
    pub taking_in: Arc<tokio::sync::RwLock<()>>,
    pub interest: Mutex<Interest>,
    /// Told when there may be images that were not there before.
    came: Signal,
    /// Told when a container's root file system is gone.
    released: Signal,
}

/// Where the volumes of a container are that show images.
const VOLUMES_DIR: &str = "volumes";
/// The id of an image.
const MARKER_BYTES_MAX: u64 = 256;
impl ImageStore {
    /// Opens the store, making it when it is new, and clears what a crash left half done.
    pub fn open(config: &Config, registries: Registries) -> Result<Self> {
        let directory = config.images_dir();
        for name in ["layers", "blobs", "partial", "content"] {
            let path = directory.join(name);
            claim_private_dir(&path).map_err(io("creating", &path))?;
        }
        let containers = config.data_dir.join("containers");
        claim_private_dir(&containers).map_err(io("creating", &containers))?;
        let user = super::lock::join(&directory, || {
            sweep(&directory, &first_index(&directory)?, &containers);
            builtin::install(&directory)
        })?;
        let path = directory.join("index.json");
        let known = match read_index(&path) {
            Ok(known) => known,
            Err(_) => first_index(&directory).and_then(|_| read_index(&path))?,
        };
        let inner = Inner {
            config: config.clone(),
            index: Mutex::new(known),
            _user: user,
            directory,
            registries,
            pulls: Mutex::new(HashMap::new()),
            unpacking: tokio::sync::Mutex::new(()),
            client: super::client::Client::default(),
            peers: OnceLock::new(),
            taking_in: Arc::default(),
            interest: Mutex::default(),
            came: Signal::default(),
            released: Signal::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// From now on the other nodes are asked before the Internet.
    pub fn set_peers(&self, peers: Arc<dyn Peers>) {
        let _ = self.inner.peers.set(peers);
    }

    /// Whether the Internet is out of bounds.
    pub(super) fn is_offline(&self) -> bool {
        self.inner.registries.offline
    }

    /// Runs blocking work of the store.
    pub(super) async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Inner) -> T + Send + 'static) -> T {
        let inner = self.inner.clone();
        match task::blocking(move || work(&inner)).await {
            Ok(value) => value,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Keeps new layers from being taken for unused ones; waits while a collection is under way.
    pub(super) async fn pulling(&self) -> Result<Lock> {
        self.blocking(|inner| super::lock::pulling(&inner.directory)).await
    }

    /// Makes a layer out of a verified blob, unless it is there. `below` are the chain ids under it, lowest first.
    pub(super) async fn add_layer(&self, below: &[String], chain_id: &str, diff_id: &str, blob: PathBuf) -> Result<()> {
        let _turn = self.inner.unpacking.lock().await;
        if self.inner.index().layers.contains_key(chain_id) {
            return Ok(());
        }
        let (below, chain_id, diff_id) = (below.to_vec(), chain_id.to_owned(), diff_id.to_owned());
        self.blocking(move |inner| {
            let file = fs::File::open(&blob).map_err(io("opening", &blob))?;
            inner.unpack_layer(&below, &chain_id, &diff_id, std::io::BufReader::with_capacity(1 << 16, file))
        })
        .await
    }

    pub(super) fn has_layer(&self, chain_id: &str) -> bool {
        self.inner.index().layers.contains_key(chain_id)
    }

    /// Records a complete image; its names leave other images. With the repository that it came from and for whom; what comes from
    /// elsewhere is for everyone.
    pub(super) fn add_image(
        &self,
        mut image: Image,
        chain: Vec<String>,
        content: Option<Content>,
        opened: Option<(String, Access)>,
    ) -> Result<Image> {
        let added = self.inner.change(|index| {
            for other in index.images.values_mut().filter(|other| other.image.id != image.id) {
                other.image.tags.retain(|tag| !image.tags.contains(tag));
            }
            let layers = chain.iter().filter_map(|id| index.layers.get(id));
            image.size_bytes = layers.map(|layer| layer.size_bytes).sum();
            let mut contents: Vec<Content> = content.into_iter().collect();
            let mut access = BTreeMap::new();
            if let Some(old) = index.images.get(&image.id) {
                contents.extend(old.contents.iter().cloned());
                // Who may have it once may always.
                let open = opened.is_none() || contents.iter().any(|content| !content.private);
                contents.iter_mut().for_each(|content| content.private &= !open);
                let mut seen = HashSet::new();
                contents.retain(|content| seen.insert(content.target.clone()));
                let (tags, digests) = (old.image.tags.clone(), old.image.digests.clone());
                image.tags.extend(tags);
                image.digests.extend(digests);
                image.pinned |= old.image.pinned;
                access.clone_from(&old.access);
            }
            match opened {
                None => access.clear(),
                Some((repository, now)) => match access.entry(repository) {
                    btree_map::Entry::Vacant(vacant) => drop(vacant.insert(now)),
                    btree_map::Entry::Occupied(mut known) => known.get_mut().add(now),
                },
            }
            for list in [&mut image.tags, &mut image.digests] {
                list.sort();
                list.dedup();
            }
            index.images.insert(image.id.clone(), Entry { image: image.clone(), chain, contents, access });
            Ok(image)
        })?;
        self.inner.came.tell();
        Ok(added)
    }

    /// Looks when another process may have changed the index, until it is dropped. Must be called inside a runtime.
    pub fn watch(&self) -> Result<JoinHandle<Option<()>>> {
        let directory = &self.inner.directory;
        let mut watch = DirectoryWatch::files(directory).map_err(io("watching", directory))?;
        let store = self.clone();
        Ok(crate::base::task::spawn("image index", async move {
            // Whoever reads the index tells when another process has replaced it.
            while watch.changed().await.is_ok() {
                drop(store.inner.index());
            }
        }))
    }

    /// Keeps an image from garbage collection, or gives it up.
    pub fn pin(&self, reference: &str, pinned: bool) -> Result<()> {
        self.inner.change(|index| {
            let id = index.find(reference).ok_or_else(|| ImageError::NoImage(reference.to_owned()))?;
            if let Some(entry) = index.images.get_mut(&id) {
                entry.image.pinned = pinned;
            }
            Ok(())
        })
    }
}

impl Inner {
    fn index_path(&self) -> PathBuf {
        self.directory.join("index.json")
    }

    /// The index, read again if another process has replaced it.
    fn index(&self) -> Reading<'_> {
        let mut known = self.index.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let path = self.index_path();
        if known.file != stamp(&path) {
            match read_index(&path) {
                Ok(now) => {
                    *known = now;
                    self.came.tell();
                }
                Err(error) => tracing::error!(%error, "the image index cannot be read; what was known is used"),
            }
        }
        Reading(known)
    }

    /// Changes the index in memory and on disk, or in neither.
    fn change<T>(&self, change: impl FnOnce(&mut Index) -> Result<T>) -> Result<T> {
        let _writing = super::lock::index(&self.directory)?;
        let mut known = self.index().0;
        let mut next = known.index.clone();
        let result = change(&mut next)?;
        let path = self.index_path();
        let bytes = serde_json::to_vec(&next).map_err(|error| ImageError::invalid("image index", error))?;
        write_atomically(&path, &bytes, 0o600).map_err(io("writing", &path))?;
        *known = CachedIndex { index: next, file: stamp(&path) };
        Ok(result)
    }

    pub(super) fn image(&self, reference: &str) -> Option<Image> {
        let index = self.index();
        let id = index.find(reference)?;
        index.images.get(&id).map(|entry| entry.image.clone())
    }

    /// Whether these credentials open an image that is here.
    pub(super) fn allows(&self, id: &str, reference: &str, credentials: &[Credentials]) -> Result<bool> {
        let repository = Reference::parse(reference).map(|parsed| parsed.name()).unwrap_or_default();
        let verdict = self.index().images.get(id).map_or(Verdict::No, |entry| entry.verdict(&repository, credentials));
        if let Verdict::Also(login) = verdict.clone() {
            self.change(|index| {
                if let Some(access) = index.images.get_mut(id).and_then(|entry| entry.access.get_mut(&repository)) {
                    access.add(Access::Logins(vec![login]));
                }
                Ok(())
            })?;
        }
        Ok(verdict != Verdict::No)
    }

    /// What the image that a user means is made of.
    pub(super) fn content(&self, reference: &str) -> Option<Content> {
        let index = self.index();
        let entry = index.images.get(&index.find(reference)?)?;
        let meant = Reference::parse(reference).ok();
        let means = |content: &&Content| {
            meant
                .as_ref()
                .is_some_and(|name| entry.image.digests.contains(&format!("{}@{}", name.name(), content.target)))
        };
        let exact = |content: &&Content| {
            meant.as_ref().and_then(|name| name.digest.as_ref()).is_none_or(|digest| *digest == content.target)
        };
        let found = entry.contents.iter().filter(exact).find(means);
        found.or_else(|| entry.contents.iter().find(exact)).cloned()
    }

    /// Whether a blob belongs to an image that other nodes may have.
    pub(super) fn serves(&self, digest: &str) -> bool {
        let index = self.index();
        let mut contents = index.images.values().flat_map(|entry| &entry.contents);
        contents.any(|content| !content.private && content.blobs().any(|blob| blob == digest))
    }

    /// Which archives are known.
    pub(super) fn archives(&self) -> BTreeMap<String, Archive> {
        self.index().archives.clone()
    }

    /// Remembers what became of an archive, or forgets one that is gone. Its images are kept while one archive has them.
    pub(super) fn set_archive(&self, name: &str, archive: Option<Archive>) -> Result<()> {
        self.change(|index| {
            let old = match archive {
                Some(archive) => index.archives.insert(name.to_owned(), archive),
                None => index.archives.remove(name),
            };
            let held: Vec<&String> = index.archives.values().flat_map(|archive| &archive.images).collect();
            let given_up = old.into_iter().flat_map(|old| old.images).filter(|id| !held.contains(&id));
            for id in given_up.collect::<Vec<_>>() {
                if let Some(entry) = index.images.get_mut(&id) {
                    entry.image.pinned = false;
                }
            }
            Ok(())
        })
    }

    fn layer_dir(&self, number: u64) -> PathBuf {
        self.directory.join("layers").join(number.to_string())
    }

    fn lower_dirs(&self, chain: &[String]) -> Result<Vec<PathBuf>> {
        let index = self.index();
        let layer = |id: &String| {
            index
                .layers
                .get(id)
                .map(|layer| self.layer_dir(layer.number))
                .ok_or_else(|| ImageError::NoImage(id.clone()))
        };
        chain.iter().map(layer).collect()
    }

    fn unpack_layer(&self, below: &[String], chain_id: &str, diff_id: &str, reader: impl Read) -> Result<()> {
        let number = self.change(|index| {
            index.next_layer += 1;
            Ok(index.next_layer)
        })?;
        let layers = self.directory.join("layers");
        // Not in the index until it is complete; a crash leaves it to `sweep`.
        let scratch = layers.join(format!("{number}.new"));
        let result = self.unpack_into(&scratch, below, diff_id, reader).and_then(|unpacked| {
            sync_file_system(&layers)?;
            let path = self.layer_dir(number);
            fs::rename(scratch.join("upper"), &path).map_err(io("renaming", &path))?;
            let ours = self.change(|index| {
                let new = || Layer { number, size_bytes: unpacked.size_bytes };
                Ok(index.layers.entry(chain_id.to_owned()).or_insert_with(new).number == number)
            })?;
            // Another process was faster.
            if ours { Ok(()) } else { remove_all(&path) }
        });
        let _ = remove_all(&scratch);
        result
    }

    fn unpack_into(&self, scratch: &Path, below: &[String], diff_id: &str, reader: impl Read) -> Result<Unpacked> {
        let (upper, work, view) = (scratch.join("upper"), scratch.join("work"), scratch.join("view"));
        for path in [&upper, &work, &view] {
            rootfs::make_directory(path)?;
        }
        let lower = self.lower_dirs(below)?;
        let unpacked = if lower.is_empty() {
            unpack(reader, &upper, false, diff_id)
        } else {
            rootfs::mount_overlay(&lower, &upper, &work, &view)?;
            let unpacked = unpack(reader, &view, true, diff_id);
            rootfs::unmount(&view)?;
            unpacked
        }?;
        if unpacked.diff_id != diff_id {
            return Err(ImageError::WrongDigest { expected: diff_id.to_owned(), actual: unpacked.diff_id });
        }
        Ok(unpacked)
    }

    fn prepare(&self, reference: &str, container: &str, users: Option<&Users>) -> Result<PathBuf> {
        let directory = self.config.container_dir(container);
        let target = directory.join("rootfs");
        if rootfs::is_mounted(&target) {
            return Ok(target);
        }
        for name in ["upper", "work", "rootfs"] {
            rootfs::make_directory(&directory.join(name))?;
        }
        let (id, lower) = self.layers_of(reference)?;
        let marker = directory.join("image");
        fs::write(&marker, &id).map_err(io("writing", &marker))?;
        match users {
            None => rootfs::mount_overlay(&lower, &directory.join("upper"), &directory.join("work"), &target)?,
            Some(users) => rootfs::mount_mapped_overlay(&lower, &directory, users)?,
        }
        Ok(target)
    }

    /// An image that is used from now on: its id and its layers, lowest first.
    fn layers_of(&self, reference: &str) -> Result<(String, Vec<PathBuf>)> {
        if builtin::is_hello(reference) {
            builtin::complete(&self.directory, &self.config.executable)?;
            return Ok((builtin::image().id, vec![builtin::layer_dir(&self.directory)]));
        }
        let now = Timestamp::now();
        let (id, chain) = self.change(|index| {
            let id = index.find(reference).ok_or_else(|| ImageError::NoImage(reference.to_owned()))?;
            let entry = index.images.get_mut(&id).ok_or_else(|| ImageError::NoImage(reference.to_owned()))?;
            entry.image.last_used = now;
            Ok((id, entry.chain.clone()))
        })?;
        Ok((id, self.lower_dirs(&chain)?))
    }

    fn prepare_volume(&self, reference: &str, container: &str, name: &str, users: Option<&Users>) -> Result<PathBuf> {
        if name.is_empty() || name.contains(['/', '.']) {
            return Err(ImageError::invalid("volume", format!("{name:?} is no name of one")));
        }
        let directory = self.config.container_dir(container).join(VOLUMES_DIR);
        let (target, empty) = (directory.join(name), directory.join(".empty"));
        if rootfs::is_mounted(&target) {
            return Ok(target);
        }
        for path in [&target, &empty] {
            rootfs::make_directory(path)?;
        }
        let (id, lower) = self.layers_of(reference)?;
        let marker = directory.join(format!("{name}.image"));
        fs::write(&marker, &id).map_err(io("writing", &marker))?;
        rootfs::mount_for_reading(&lower, &empty, &target, users)?;
        Ok(target)
    }

    fn release(&self, container: &str) -> Result<()> {
        let directory = self.config.container_dir(container);
        let image = crate::base::file::read_text(&directory.join("image"), MARKER_BYTES_MAX);
        super::super::runtime::unmount_below(&directory).map_err(|error| ImageError::Io {
            what: "unmounting".into(),
            path: directory.display().to_string(),
            reason: crate::base::error::chain(&error),
        })?;
        remove_all(&directory)?;
        if let Ok(image) = image {
            self.interest.lock().unwrap_or_else(std::sync::PoisonError::into_inner).release(&image);
            self.released.tell();
        }
        Ok(())
    }

    /// Which containers use which image.
    fn users(&self) -> Vec<(String, String)> {
        let Ok(entries) = fs::read_dir(self.config.data_dir.join("containers")) else { return Vec::new() };
        let mut all = Vec::new();
        for entry in entries.flatten() {
            let Ok(container) = entry.file_name().into_string() else { continue };
            let volumes = fs::read_dir(entry.path().join(VOLUMES_DIR)).into_iter().flatten().flatten();
            let of_volumes = volumes.map(|v| v.path()).filter(|path| path.extension().is_some_and(|e| e == "image"));
            for marker in std::iter::once(entry.path().join("image")).chain(of_volumes) {
                if let Ok(image) = crate::base::file::read_text(&marker, MARKER_BYTES_MAX) {
                    all.push((container.clone(), image));
                }
            }
        }
        all
    }

    fn remove(&self, reference: &str) -> Result<()> {
        if builtin::is_hello(reference) {
            return Err(ImageError::invalid("image", "the built-in image is part of the executable"));
        }
        let users = self.users();
        self.change(|index| {
            let Some(id) = index.find(reference) else { return Err(ImageError::NoImage(reference.to_owned())) };
            let Some(entry) = index.images.get_mut(&id) else { return Ok(()) };
            if let Ok(name) = Reference::parse(reference) {
                let name = name.to_string();
                let by_tag = entry.image.tags.contains(&name);
                if by_tag && entry.image.tags.len() > 1 {
                    entry.image.tags.retain(|tag| *tag != name);
                    return Ok(());
                }
            }
            if let Some((container, _)) = users.iter().find(|(_, image)| *image == id) {
                return Err(ImageError::InUse { image: reference.to_owned(), container: container.clone() });
            }
            index.images.remove(&id);
            Ok(())
        })?;
        self.drop_unused_layers()
    }

    fn drop_unused_layers(&self) -> Result<()> {
        // A pull under way may be about to use them; then the next removal gets them.
        let Some(_lock) = super::lock::nobody_pulls(&self.directory)? else { return Ok(()) };
        self.drop_unused().map(|_| ())
    }

    /// Removes what no image needs, while nobody pulls; answers the size of the layers.
    pub(super) fn drop_unused(&self) -> Result<u64> {
        let gone = self.change(|index| {
            let used: Vec<&String> = index.images.values().flat_map(|entry| &entry.chain).collect();
            let unused: Vec<String> = index.layers.keys().filter(|id| !used.contains(id)).cloned().collect();
            Ok(unused.iter().filter_map(|id| index.layers.remove(id)).collect::<Vec<_>>())
        })?;
        gone.iter().try_for_each(|layer| remove_all(&self.layer_dir(layer.number)))?;
        drop_unused_content(&self.directory, &self.index())?;
        Ok(gone.iter().map(|layer| layer.size_bytes).sum())
    }

    /// Removes the image that is chosen among those that are neither pinned nor used.
    pub(super) fn remove_one(&self, choose: impl FnOnce(Vec<Candidate>) -> Option<String>) -> Result<Option<String>> {
        let users = self.users();
        self.change(|index| {
            let free = |image: &Image| !image.pinned && !users.iter().any(|(_, used)| *used == image.id);
            let all = index.images.values().map(|entry| &entry.image).filter(|image| free(image));
            let all = all.map(|image| Candidate { id: image.id.clone(), last_used: image.last_used });
            let chosen = choose(all.collect());
            if let Some(id) = &chosen {
                index.images.remove(id);
            }
            Ok(chosen)
        })
    }
}

/// Removes layer directories and blobs that the index does not name. Whatever is there, and what cannot be removed, keeps
/// nobody from starting.
fn sweep(directory: &Path, index: &Index, containers: &Path) {
    let _ = super::super::runtime::unmount_below(directory);
    let known: HashSet<String> = index.layers.values().map(|layer| layer.number.to_string()).collect();
    let in_use = || fs::read_dir(containers).into_iter().flatten().flatten();
    // After a damaged index: those that containers have mounted are not known. They go with a later start.
    let in_use = in_use().any(|entry| rootfs::is_mounted(&entry.path().join("rootfs")));
    let keep = |name: &str| known.contains(name) || in_use && name.parse::<u64>().is_ok();
    let swept = drop_unused_content(directory, index)
        .and_then(|()| drop_entries(&directory.join("blobs"), |_| false))
        .and_then(|()| drop_entries(&directory.join("layers"), keep));
    if let Err(error) = swept {
        tracing::warn!(%error, "what a crash left in the image store is not all removed");
    }
}

/// Removes content that no image has.
fn drop_unused_content(directory: &Path, index: &Index) -> Result<()> {
    let contents = index.images.values().flat_map(|entry| &entry.contents);
    let used: HashSet<&str> = contents.flat_map(Content::blobs).filter_map(|digest| blob_name(digest).ok()).collect();
    drop_entries(&directory.join("content"), |name| used.contains(name))
}

fn drop_entries(directory: &Path, keep: impl Fn(&str) -> bool) -> Result<()> {
    let mut first = Ok(());
    for entry in fs::read_dir(directory).map_err(io("reading", directory))?.flatten() {
        if !entry.file_name().to_str().is_some_and(&keep)
            && let Err(error) = remove_all(&entry.path())
            && first.is_ok()
        {
            first = Err(error);
        }
    }
    first
}
