//! Snapshots: one file that holds a whole server: objects, keys and token.
//!
//! Taken while the server runs, checked by digests, restored on any machine; and a damaged database falls back to the last
//! good one, with what its log still says put on top. Invariant: the server's directory is never without a database that was
//! whole: a restore puts the new one in place by a rename, and keeps the old one beside it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::base::clock::{Clock, seconds_text};
use crate::base::file::make_private_dir;
use crate::base::progress::{self, Counted};
use crate::base::{task, tree};
use crate::server::cluster_configuration;
use crate::store::sqlite::{self, Salvaged};

/// How every snapshot's name ends.
const SUFFIX: &str = ".tar.zst";
const ABOUT: &str = "snapshot.json";
const DATABASE: &str = "state.db";
/// What speaks for the cluster beside the database.
const IDENTITY: [&str; 3] = ["token", "tls", cluster_configuration::FILE];
const FORMAT: u32 = 1;
/// What everything begins with that zstd has compressed.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Work on its way; what is left of it after a kill is removed by the next one.
const SCRATCH: &str = ".new";

/// How often a server takes snapshots of itself, and how many it keeps.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub directory: PathBuf,
    /// Zero: never.
    pub every: Duration,
    pub keep: usize,
}

/// What a snapshot says about itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct About {
    pub format: u32,
    pub version: String,
    pub created: Timestamp,
    /// The last revision in it.
    pub revision: u64,
    pub objects: u64,
    /// SHA-256 of each file, hexadecimal.
    pub files: BTreeMap<String, String>,
}

/// Takes a snapshot of the server in `server`; answers its file.
pub fn save(server: &Path, directory: &Path, name: &str, clock: &Clock) -> Result<(PathBuf, About)> {
    let database = server.join(DATABASE);
    if !database.exists() {
        bail!("{} is not there: is this the --data-dir of a server?", database.display());
    }
    make_private_dir(directory).with_context(|| format!("{} cannot be made", directory.display()))?;
    let created = clock.now();
    let path = directory.join(format!("{name}-{}{SUFFIX}", created.strftime("%Y%m%d-%H%M%S")));
    if path.exists() {
        bail!("{} is there already", path.display());
    }
    let scratch = Scratch::new(directory.join(SCRATCH))?;
    let copied = sqlite::copy(&database, &scratch.0.join(DATABASE)).context("the database cannot be copied")?;
    for part in IDENTITY {
        copy_all(&server.join(part), &scratch.0.join(part))?;
    }
    let mut files = BTreeMap::new();
    for file in walk(&scratch.0)? {
        let relative = file.strip_prefix(&scratch.0)?.to_string_lossy().into_owned();
        files.insert(relative, digest(&file)?);
    }
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let about = About { format: FORMAT, version, created, revision: copied.revision, objects: copied.objects, files };
    let packed = scratch.0.join("packed");
    pack(&scratch.0, &about, &packed).with_context(|| format!("{} cannot be written", packed.display()))?;
    fs::rename(&packed, &path)?;
    File::open(directory)?.sync_all()?;
    Ok((path, about))
}

/// The snapshots in a directory with what they say about themselves, oldest first; those that cannot be read say why.
pub fn list(directory: &Path) -> Vec<(PathBuf, Result<About>)> {
    let mut all: Vec<PathBuf> = fs::read_dir(directory).into_iter().flatten().flatten().map(|e| e.path()).collect();
    all.retain(|p| p.file_name().is_some_and(|n| n.to_string_lossy().ends_with(SUFFIX)));
    let mut all: Vec<(PathBuf, Result<About>)> = all.into_iter().map(|p| (p.clone(), about(&p))).collect();
    all.sort_by_key(|(path, about)| (about.as_ref().map(|a| a.created).unwrap_or(Timestamp::MIN), path.clone()));
    all
}

/// Removes all but the newest `keep`; answers what was removed.
pub fn prune(directory: &Path, keep: usize) -> Result<Vec<PathBuf>> {
    let all = list(directory);
    let gone: Vec<PathBuf> = all.iter().take(all.len().saturating_sub(keep)).map(|(path, _)| path.clone()).collect();
    for path in &gone {
        fs::remove_file(path).with_context(|| format!("{} cannot be removed", path.display()))?;
    }
    Ok(gone)
}

/// Makes the directory of a server that does not run into what the snapshot holds. What was there is kept beside it.
pub fn restore(snapshot: &Path, server: &Path, clock: &Clock) -> Result<(About, Option<PathBuf>)> {
    make_private_dir(server).with_context(|| format!("{} cannot be made", server.display()))?;
    let scratch = Scratch::new(server.join(SCRATCH))?;
    let about = unpack(snapshot, &scratch.0)?;
    sqlite::renumber(&scratch.0.join(DATABASE)).context("the snapshot's database cannot be used")?;
    let aside = set_aside(server, clock)?;
    for part in IDENTITY {
        let (from, to) = (scratch.0.join(part), server.join(part));
        if from.exists() {
            let _ = tree::remove(&to);
            fs::rename(&from, &to).with_context(|| format!("{} cannot be put in place", to.display()))?;
        }
    }
    if !scratch.0.join(cluster_configuration::FILE).exists() {
        // Of a version that kept none; what is there is about the cluster before.
        let _ = fs::remove_file(server.join(cluster_configuration::FILE));
    }
    put_database(&scratch.0.join(DATABASE), server)?;
    Ok((about, aside))
}

/// What became of a damaged database.
#[derive(Debug)]
pub struct Recovered {
    pub snapshot: PathBuf,
    pub about: About,
    pub salvaged: Salvaged,
    /// The damaged database.
    pub aside: Option<PathBuf>,
}

/// Replaces a damaged database by the newest good snapshot and what its log still says. `None`: there is no good snapshot.
pub fn recover(server: &Path, directory: &Path, clock: &Clock) -> Result<Option<Recovered>> {
    for (path, about) in list(directory).into_iter().rev() {
        if about.is_err() {
            continue;
        }
        let scratch = Scratch::new(server.join(SCRATCH))?;
        let Ok(about) = unpack(&path, &scratch.0) else { continue };
        let database = scratch.0.join(DATABASE);
        let salvaged = sqlite::salvage(&server.join(DATABASE), &database).context("what is left cannot be kept")?;
        sqlite::renumber(&database).context("the snapshot's database cannot be used")?;
        let aside = set_aside(server, clock)?;
        put_database(&database, server)?;
        return Ok(Some(Recovered { snapshot: path, about, salvaged, aside }));
    }
    Ok(None)
}

impl Recovered {
    /// What happened, and exactly what is no longer there, for people.
    pub fn tell(&self) -> String {
        let holes: Vec<String> = self.salvaged.unreadable.iter().map(|(a, b)| format!("{a}-{b}")).collect();
        let lost = match (holes.is_empty(), self.salvaged.changes) {
            (true, _) => "no unreadable place was found behind the snapshot".to_owned(),
            (false, _) => format!("the changes at the revisions {} are lost", holes.join(", ")),
        };
        format!(
            "the database was damaged; the snapshot {} of {} (revision {}) took its place, with {} later changes that the \
             damaged log still had (up to revision {}); {lost}; the damaged file is kept: {}",
            self.snapshot.display(),
            seconds_text(self.about.created),
            self.about.revision,
            self.salvaged.changes,
            self.salvaged.revision,
            self.aside.as_ref().map_or_else(|| "-".into(), |p| p.display().to_string())
        )
    }
}

/// Takes a snapshot whenever one is due, until aborted.
pub async fn run(server: PathBuf, schedule: Schedule, name: String, clock: Clock) {
    if schedule.every.is_zero() {
        return;
    }
    loop {
        let newest =
            list(&schedule.directory).into_iter().filter_map(|(_, about)| about.ok()).map(|a| a.created).next_back();
        let age = newest.map(|n| clock.now().duration_since(n)).and_then(|d| Duration::try_from(d).ok());
        // A server that is restarted all the time takes them no more often than one that is not.
        let wait = age.map_or(schedule.every.min(Duration::from_secs(300)), |age| schedule.every.saturating_sub(age));
        tokio::time::sleep(wait).await;
        let (server, schedule, name, clock) = (server.clone(), schedule.clone(), name.clone(), clock.clone());
        let taken = task::blocking(move || {
            let taken = save(&server, &schedule.directory, &name, &clock)?;
            prune(&schedule.directory, schedule.keep)?;
            Ok::<_, anyhow::Error>(taken)
        });
        match taken.await {
            Ok(Ok((path, about))) => {
                tracing::info!(path = %path.display(), revision = about.revision, "a snapshot was taken")
            }
            Ok(Err(error)) => {
                tracing::error!(error = format!("{error:#}"), "no snapshot was taken; it is tried again in an hour");
                tokio::time::sleep(Duration::from_secs(3600)).await;
            }
            Err(_) => return,
        }
    }
}

/// A directory that goes with its value, and begins empty.
struct Scratch(PathBuf);

impl Scratch {
    fn new(path: PathBuf) -> Result<Self> {
        let _ = tree::remove(&path);
        make_private_dir(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = tree::remove(&self.0);
    }
}

fn walk(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(walk(&path)?) } else { found.push(path) }
    }
    found.sort();
    Ok(found)
}

fn copy_all(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        make_private_dir(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy_all(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    match fs::copy(from, to) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map(|_| ()).with_context(|| format!("{} cannot be copied", from.display())),
    }
}

fn digest(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

fn pack(root: &Path, about: &About, to: &Path) -> Result<()> {
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    let mut archive = tar::Builder::new(zstd::Encoder::new(file, 3)?);
    let text = serde_json::to_vec_pretty(about)?;
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o600);
    // First, so that a list need not read everything.
    archive.append_data(&mut header, ABOUT, text.as_slice())?;
    let sizes = about.files.keys().map(|name| fs::metadata(root.join(name)).map_or(0, |metadata| metadata.len()));
    progress::expect(sizes.sum());
    for name in about.files.keys() {
        let file = File::open(root.join(name))?;
        let mut header = tar::Header::new_gnu();
        header.set_metadata(&file.metadata()?);
        archive.append_data(&mut header, name, Counted::new(file, 0))?;
    }
    let mut file = archive.into_inner()?.finish()?;
    file.flush()?;
    file.sync_all()?;
    Ok(())
}

fn open(snapshot: &Path) -> Result<tar::Archive<zstd::Decoder<'static, std::io::BufReader<Counted<File>>>>> {
    let cannot = || format!("{} cannot be read", snapshot.display());
    let mut file = File::open(snapshot).with_context(cannot)?;
    if !file.metadata().with_context(cannot)?.is_file() {
        bail!("{} is not a snapshot: it is no file", snapshot.display());
    }
    let mut begin = Vec::new();
    (&mut file).take(MAGIC.len() as u64).read_to_end(&mut begin).with_context(cannot)?;
    if begin != MAGIC {
        bail!(
            "{} is not a snapshot: it is no archive that zstd has compressed, as `amphipod snapshot save` makes them",
            snapshot.display()
        );
    }
    file.rewind().with_context(cannot)?;
    let size_bytes = file.metadata().with_context(cannot)?.len();
    Ok(tar::Archive::new(zstd::Decoder::new(Counted::new(file, size_bytes))?))
}

fn about(snapshot: &Path) -> Result<About> {
    let mut archive = open(snapshot)?;
    let not = |what: &str| format!("{} is not a snapshot: {what}", snapshot.display());
    let no_tar = || not("what zstd has compressed there is no tar");
    let mut first = match archive.entries().with_context(no_tar)?.next() {
        Some(first) => first.with_context(no_tar)?,
        None => bail!("{}", not("it is empty")),
    };
    if first.path().with_context(no_tar)? != Path::new(ABOUT) {
        bail!("{}", not(&format!("its first file is not {ABOUT}")));
    }
    let about: About = serde_json::from_reader(&mut first).with_context(|| not(&format!("its {ABOUT} is damaged")))?;
    if about.format > FORMAT {
        bail!("it was made by a newer version, {}", about.version);
    }
    Ok(about)
}

/// Unpacks a snapshot and checks every file of it.
fn unpack(snapshot: &Path, to: &Path) -> Result<About> {
    let damaged = || format!("the snapshot {} cannot be used", snapshot.display());
    let about = about(snapshot)?;
    let mut archive = open(snapshot)?;
    for entry in archive.entries().with_context(damaged)? {
        let mut entry = entry.with_context(damaged)?;
        let path = entry.path()?.into_owned();
        if path == Path::new(ABOUT) {
            continue;
        }
        let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
        if !plain || !entry.header().entry_type().is_file() || !about.files.contains_key(&*path.to_string_lossy()) {
            bail!("{}: {} does not belong there", damaged(), path.display());
        }
        let target = to.join(&path);
        make_private_dir(target.parent().unwrap_or(to))?;
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target)?;
        std::io::copy(&mut entry, &mut file).with_context(damaged)?;
        file.sync_all()?;
    }
    for (name, expected) in &about.files {
        let found = digest(&to.join(name)).with_context(|| format!("{}: {name} is missing", damaged()))?;
        if found != *expected {
            bail!("{}: {name} has the digest {found}, expected {expected}", damaged());
        }
    }
    sqlite::describe(&to.join(DATABASE)).with_context(damaged)?;
    Ok(about)
}

/// Moves the database that is there out of the way.
fn set_aside(server: &Path, clock: &Clock) -> Result<Option<PathBuf>> {
    let database = server.join(DATABASE);
    if !database.exists() {
        return Ok(None);
    }
    let aside = server.join(format!("{DATABASE}.before-{}", clock.now().strftime("%Y%m%d-%H%M%S")));
    // The log goes with it, or it would be taken for the new one's.
    for tail in ["-wal", "-shm"] {
        let with = |p: &Path| PathBuf::from(format!("{}{tail}", p.display()));
        if with(&database).exists() {
            fs::rename(with(&database), with(&aside))?;
        }
    }
    // A second name for it: the new one takes its place in one step, and a start in between finds a database and no empty place.
    let kept = fs::hard_link(&database, &aside).or_else(|_| fs::rename(&database, &aside));
    kept.with_context(|| format!("{} cannot be moved away", database.display()))?;
    Ok(Some(aside))
}

fn put_database(from: &Path, server: &Path) -> Result<()> {
    for tail in ["-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{tail}", from.display()));
    }
    fs::set_permissions(from, fs::Permissions::from_mode(0o600))?;
    fs::rename(from, server.join(DATABASE)).context("the database cannot be put in place")?;
    File::open(server)?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::identity::pki::{Names, Pki};
    use crate::store::sqlite::{Retention, Sqlite};
    use crate::store::{Op, Store, Txn};

    async fn put(store: &Sqlite, key: &str) {
        let value = bytes::Bytes::from(format!("{{\"metadata\":{{\"name\":\"{}\"}}}}", "x".repeat(2000)));
        let op = Op::Put { key: key.into(), value, payload: None, volatile: false };
        store.commit(Txn { expect: vec![], ops: vec![op] }).await.unwrap();
    }

    #[tokio::test]
    async fn a_server_is_saved_listed_restored_elsewhere_and_pruned() {
        let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (clock, server, directory) = (Clock::system(), home.path(), home.path().join("snapshots"));
        let pki = Pki::load(server, &Names { dns: vec!["a".into()], addresses: vec![] }, None, &clock).unwrap();
        let store = Sqlite::open(&server.join(DATABASE), Retention::default()).unwrap();
        put(&store, "/core/configmaps/n/one").await;
        let (path, about) = save(server, &directory, "s", &clock).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        put(&store, "/core/configmaps/n/later").await;
        assert_eq!(list(&directory).len(), 1);
        let (found, aside) = restore(&path, other.path(), &clock).unwrap();
        assert_eq!((found.objects, found.revision, aside), (1, about.revision, None));
        let elsewhere = Names { dns: vec!["b".into()], addresses: vec!["192.0.2.9".parse().unwrap()] };
        let restored = Pki::load(other.path(), &elsewhere, None, &clock).unwrap();
        assert_eq!((&restored.ca, &restored.join_token), (&pki.ca, &pki.join_token), "agents find it again");
        let copy = Sqlite::open(&other.path().join(DATABASE), Retention::default()).unwrap();
        assert!(copy.read("/core/configmaps/n/one").unwrap().is_some());
        assert!(copy.read("/core/configmaps/n/later").unwrap().is_none());
        copy.close();
        let kept = set_aside(other.path(), &clock).unwrap().unwrap();
        assert!(kept.exists() && other.path().join(DATABASE).exists(), "killed here, a server starts with what it had");
        fs::remove_file(kept).unwrap();
        let (_, aside) = restore(&path, other.path(), &clock).unwrap();
        assert!(aside.unwrap().exists(), "what was there is kept");
        assert_eq!(prune(&directory, 1).unwrap().len(), 0);
        assert_eq!(prune(&directory, 0).unwrap(), [path]);
    }

    #[test]
    fn what_is_not_a_snapshot_is_told_what_it_is_not() {
        let home = tempfile::tempdir().unwrap();
        let (path, server) = (home.path().join("file"), home.path().join("server"));
        let said = |path: &Path| {
            let why = format!("{:#}", restore(path, &server, &Clock::system()).unwrap_err());
            why.strip_prefix(&format!("{} is not a snapshot: ", path.display())).expect(&why).to_owned()
        };
        let packed = |bytes: &[u8]| zstd::encode_all(bytes, 0).unwrap();
        let mut other = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        other.append_data(&mut header, "etcd.db", &b"x"[..]).unwrap();
        let other = other.into_inner().unwrap();
        let none = "it is no archive that zstd has compressed, as `amphipod snapshot save` makes them";
        for (content, why) in [
            (b"apiVersion: v1\n".to_vec(), none),
            (Vec::new(), none),
            (packed(b""), "it is empty"),
            (packed(&other), "its first file is not snapshot.json"),
        ] {
            fs::write(&path, content).unwrap();
            assert_eq!(said(&path), why);
        }
        fs::write(&path, packed(&[b'x'; 2000])).unwrap();
        assert!(said(&path).starts_with("what zstd has compressed there is no tar"), "{}", said(&path));
        assert_eq!(said(home.path()), "it is no file");
    }

    #[tokio::test]
    async fn a_damaged_database_falls_back_and_a_damaged_snapshot_is_not_believed() {
        let home = tempfile::tempdir().unwrap();
        let (clock, server, directory) = (Clock::system(), home.path(), home.path().join("snapshots"));
        let database = server.join(DATABASE);
        let store = Sqlite::open(&database, Retention::default()).unwrap();
        for n in 0..50 {
            put(&store, &format!("/core/configmaps/n/{n}")).await;
        }
        let (good, _) = save(server, &directory, "good", &clock).unwrap();
        fs::write(directory.join(format!("bad{SUFFIX}")), b"nothing").unwrap();
        put(&store, "/core/configmaps/n/later").await;
        store.close();
        drop(store);
        fs::write(&database, vec![0xa5; 400_000]).unwrap();
        assert!(Sqlite::open(&database, Retention::default()).is_err());
        let recovered = recover(server, &directory, &clock).unwrap().unwrap();
        assert_eq!((&recovered.snapshot, recovered.about.objects), (&good, 50));
        assert!(recovered.tell().contains("took its place") && recovered.aside.as_ref().unwrap().exists());
        let store = Sqlite::open(&database, Retention::default()).unwrap();
        assert!(store.read("/core/configmaps/n/7").unwrap().is_some());
        store.close();
        let mut bytes = fs::read(&good).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::write(&good, bytes).unwrap();
        assert!(restore(&good, server, &clock).is_err());
        assert!(Sqlite::open(&database, Retention::default()).is_ok(), "a refused restore changes nothing");
        assert!(recover(server, &directory, &clock).unwrap().is_none());
    }
}
