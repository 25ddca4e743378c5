//! What an agent was told last, in its run directory: so that its process can begin again while the server is away.
//!
//! A file for each kind: a first line that says of which boot, cluster and node it is, then a line for each state that came
//! (`+` and the object) and for each end (`-` and the key), the latest counting; it is written anew when it has doubled. The
//! run directory is in memory on users' machines, and nothing is written while nothing changes. Invariants: a file is there
//! only while it holds all that was told (an end reaches it at once, a change within a second), and it is used in its own
//! boot only: after a reboot a pod may have been moved, and only the server knows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::follow;
use super::view::{RemoteView, Store};
use crate::base::file::{self, claim_private_dir};
use crate::base::object::Object;
use crate::kinds::KindRef;
use crate::reconcile::informer::{Changed, View};

/// The first word of the first line, with the version of the format.
const FORMAT: &str = "amphipod-known-1";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How long a changed state may wait for others before it is written.
const GATHER: Duration = Duration::from_secs(1);
/// Changes that may stand in a file beside twice what it was when written whole.
const SLACK_BYTES: u64 = 64 << 10;
/// A kind that needs more than this is not kept.
const MOST_BYTES: u64 = 32 << 20;
/// A file that was written whole, with its changes, is shorter.
const READ_MAX: u64 = 3 * MOST_BYTES;
/// How long to wait after a failure.
const RETRY: Duration = Duration::from_secs(600);

/// Where it is kept.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    directory: PathBuf,
    /// The first line of every file, with its end.
    head: Arc<str>,
}

// === impl Checkpoint ===

impl Checkpoint {
    /// In a directory of its own, which is made; `cluster` tells one cluster from another.
    pub fn open(directory: &Path, cluster: &str, node: &str) -> io::Result<Self> {
        claim_private_dir(directory)?;
        let boot = fs::read_to_string(BOOT_ID)?;
        Ok(Self::of_boot(directory, boot.trim(), cluster, node))
    }

    fn of_boot(directory: &Path, boot: &str, cluster: &str, node: &str) -> Self {
        Self { directory: directory.to_owned(), head: format!("{FORMAT} {boot} {cluster} {node}\n").into() }
    }

    fn path(&self, kind: &KindRef) -> PathBuf {
        self.directory.join(kind.plural())
    }

    /// Whether there is anything of this boot about a kind.
    pub fn has(&self, kind: &KindRef) -> bool {
        self.begin(kind).is_ok_and(|file| file.is_some())
    }

    /// The file behind its first line, if it is of this boot, cluster and node.
    fn begin(&self, kind: &KindRef) -> io::Result<Option<BufReader<io::Take<File>>>> {
        let mut file = match file::open(&self.path(kind)) {
            Ok(file) => BufReader::new(file.take(READ_MAX)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut head = String::new();
        file.read_line(&mut head)?;
        Ok((*head == *self.head).then_some(file))
    }

    /// Puts on a store what was known, except where the server has told better already; then the store counts as filled.
    pub fn restore(&self, store: &Store) {
        match self.read(store.kind()) {
            Ok(Some(objects)) => {
                let (kind, count) = (store.kind().plural(), objects.len());
                tracing::info!(kind, count, "the server does not answer; what it told last is used");
                store.restore(objects.into_values());
            }
            Ok(None) => {}
            Err(error) => {
                let path = self.path(store.kind());
                tracing::warn!(%error, path = %path.display(), "what the server told last cannot be used");
            }
        }
    }

    fn read(&self, kind: &KindRef) -> io::Result<Option<BTreeMap<Arc<str>, Arc<Object>>>> {
        let Some(mut file) = self.begin(kind)? else { return Ok(None) };
        let (mut objects, mut line) = (BTreeMap::new(), Vec::new());
        loop {
            line.clear();
            file.read_until(b'\n', &mut line)?;
            // Half a line was never complete: the process was killed while it wrote.
            let Some(record) = line.strip_suffix(b"\n") else { return Ok(Some(objects)) };
            match record.split_first() {
                Some((b'+', body)) => {
                    let value: Value = serde_json::from_slice(body).map_err(io::Error::other)?;
                    let object = follow::decode(kind, value);
                    objects.insert(object.key.clone(), object);
                }
                Some((b'-', key)) => drop(objects.remove(&*String::from_utf8_lossy(key))),
                _ => return Err(io::Error::other("a line that is neither a state nor an end")),
            }
        }
    }

    /// Keeps a kind from when its store and `after` are filled until the task is aborted.
    pub async fn keep(self, store: Arc<Store>, after: Arc<Store>) {
        let view = RemoteView(store.clone());
        RemoteView(after).synced().await;
        view.synced().await;
        let mut changes = view.subscribe();
        let path = self.path(store.kind());
        let mut log = self.whole(&path, &store);
        loop {
            if let Err(error) = &log {
                // What is not whole would be taken for the truth.
                let _ = fs::remove_file(&path);
                tracing::warn!(%error, path = %path.display(), "what the server tells cannot be kept for a start without it");
                tokio::time::sleep(RETRY).await;
                log = self.whole(&path, &store);
                continue;
            }
            let mut keys = BTreeSet::new();
            let mut due = None;
            let mut lapsed = false;
            while due.is_none_or(|at| Instant::now() < at) && !lapsed {
                let next = match due {
                    None => Ok(changes.next().await),
                    Some(at) => timeout_at(at, changes.next()).await,
                };
                match next {
                    Ok(Some(changed)) => {
                        let urgent = changed.iter().any(is_urgent);
                        keys.extend(changed.into_iter().map(|c| c.object.key.clone()));
                        due = Some(if urgent { Instant::now() } else { due.unwrap_or(Instant::now() + GATHER) });
                    }
                    Ok(None) => lapsed = true,
                    Err(_) => break,
                }
            }
            log = match log {
                Ok(log) if !lapsed => log.add(&records(&store, &keys)).and_then(|log| match log {
                    Some(log) => Ok(log),
                    None => self.whole(&path, &store),
                }),
                _ => self.whole(&path, &store),
            };
        }
    }

    fn whole(&self, path: &Path, store: &Arc<Store>) -> io::Result<Log> {
        let objects = RemoteView(store.clone()).list("");
        let bytes = self.head.len() as u64 + objects.iter().map(|o| o.body().len() as u64 + 2).sum::<u64>();
        if bytes > MOST_BYTES {
            return Err(io::Error::other(format!("it would take {bytes} bytes, and at most {MOST_BYTES} are used")));
        }
        let new = path.with_extension("new");
        let _ = fs::remove_file(&new);
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&new)?;
        let mut writer = BufWriter::new(file);
        writer.write_all(self.head.as_bytes())?;
        objects.iter().try_for_each(|object| put(&mut writer, object))?;
        let file = writer.into_inner().map_err(|e| e.into_error())?;
        fs::rename(&new, path)?;
        Ok(Log { file, bytes, limit: 2 * bytes + SLACK_BYTES })
    }
}

/// What must not be told wrongly after a crash in the next second: that there is something, is no more, or is to end.
fn is_urgent(change: &Changed) -> bool {
    change.deleted || change.previous.as_ref().is_none_or(|p| p.meta.deleted != change.object.meta.deleted)
}

fn put(to: &mut impl Write, object: &Object) -> io::Result<()> {
    to.write_all(b"+")?;
    to.write_all(object.body())?;
    to.write_all(b"\n")
}

/// The lines that tell of some keys what they are now.
fn records(store: &Store, keys: &BTreeSet<Arc<str>>) -> Vec<u8> {
    let mut lines = Vec::new();
    for key in keys {
        match store.get(key) {
            Some(object) => put(&mut lines, &object).expect("writing to memory"),
            None => lines.extend_from_slice(format!("-{key}\n").as_bytes()),
        }
    }
    lines
}

/// A file that is being added to.
#[derive(Debug)]
struct Log {
    file: File,
    bytes: u64,
    /// Beyond this it is written anew.
    limit: u64,
}

// === impl Log ===

impl Log {
    /// With more lines; none if it is full.
    fn add(mut self, lines: &[u8]) -> io::Result<Option<Self>> {
        self.bytes += lines.len() as u64;
        if self.bytes > self.limit {
            return Ok(None);
        }
        self.file.write_all(lines)?;
        Ok(Some(self))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;
    use crate::base::task;
    use crate::kinds::core::secret;

    const KIND: &KindRef = &secret::KIND;

    fn object(name: &str, revision: u64, word: &str) -> Arc<Object> {
        let value = json!({"metadata": {"name": name, "namespace": "n", "uid": name, "resourceVersion":
            revision.to_string()}, "data": {"word": word}});
        follow::decode(KIND, value)
    }

    fn known(directory: &Path) -> Checkpoint {
        Checkpoint::of_boot(directory, "boot", "cluster", "node")
    }

    /// What a later process would begin with: names, revisions and words.
    fn recalled(known: &Checkpoint) -> Option<Vec<(String, u64, String)>> {
        let store = Arc::new(Store::new(KIND));
        let word = |o: &Object| o.value()["data"]["word"].as_str().unwrap().to_owned();
        let one = |o: Arc<Object>| (o.meta.name.to_string(), o.revision, word(&o));
        known.restore(&store);
        store.is_filled().then(|| RemoteView(store).list("").into_iter().map(one).collect())
    }

    async fn until(what: &str, holds: impl Fn() -> bool) {
        for _ in 0..500 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never: {what}");
    }

    fn keeping(directory: &Path) -> (Arc<Store>, Checkpoint) {
        let (store, known) = (Arc::new(Store::new(KIND)), known(directory));
        drop(task::spawn("known", known.clone().keep(store.clone(), store.clone())));
        (store, known)
    }

    #[tokio::test]
    async fn what_was_told_is_known_to_the_next_process_of_the_same_boot_cluster_and_node() {
        let dir = tempfile::tempdir().unwrap();
        let (store, known) = keeping(dir.path());
        store.put(object("a", 1, "one"));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!known.has(KIND) && recalled(&known).is_none(), "not before everything was told");
        store.fill();
        until("it is written", || known.has(KIND)).await;
        let path = known.path(KIND);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        store.put(object("b", 2, "two\nlines"));
        until("a new one is written", || recalled(&known).is_some_and(|r| r.len() == 2)).await;
        store.put(object("a", 3, "changed"));
        store.remove(&KIND.key("n", "b"));
        let expect = [("a".to_owned(), 3, "changed".to_owned())];
        until("ends and changes are written", || recalled(&known).is_some_and(|r| r == expect)).await;
        for (boot, cluster, node) in
            [("other", "cluster", "node"), ("boot", "other", "node"), ("boot", "cluster", "other")]
        {
            assert_eq!(recalled(&Checkpoint::of_boot(dir.path(), boot, cluster, node)), None);
        }
        // A change alone waits for others, and nothing is written while nothing changes.
        let before = fs::metadata(&path).unwrap().len();
        store.put(object("a", 4, "again"));
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(fs::metadata(&path).unwrap().len(), before);
        until("and is written then", || recalled(&known).is_some_and(|r| r[0].1 == 4)).await;
    }

    #[tokio::test]
    async fn a_file_does_not_grow_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let (store, known) = keeping(dir.path());
        store.fill();
        until("it is written", || known.has(KIND)).await;
        let long = "x".repeat(30_000);
        for revision in 1..20 {
            store.put(object("a", revision, &long));
            until("it is written", || recalled(&known).is_some_and(|r| r.len() == 1 && r[0].1 == revision)).await;
            store.remove(&KIND.key("n", "a"));
            until("its end is written", || recalled(&known).is_some_and(|r| r.is_empty())).await;
            assert!(fs::metadata(known.path(KIND)).unwrap().len() < 2 * (SLACK_BYTES + 40_000));
        }
    }

    #[test]
    fn what_the_server_has_told_is_not_replaced_and_half_a_line_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let known = known(dir.path());
        let store = Arc::new(Store::new(KIND));
        store.put(object("a", 1, "old"));
        store.put(object("b", 2, "old"));
        let mut log = known.whole(&known.path(KIND), &store).unwrap();
        log.file.write_all(b"+{\"metadata\":{\"name\":\"c\"").unwrap();
        let store = Store::new(KIND);
        store.put(object("a", 5, "told"));
        known.restore(&store);
        assert!(store.is_filled());
        let revision = |name: &str| store.get(&KIND.key("n", name)).map(|o| o.revision);
        assert_eq!([revision("a"), revision("b"), revision("c")], [Some(5), Some(2), None]);
    }

    #[test]
    fn what_cannot_be_read_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let known = known(dir.path());
        for rest in ["+{\n", "nonsense\n", "\n"] {
            fs::write(known.path(KIND), format!("{}{rest}", known.head)).unwrap();
            assert_eq!(recalled(&known), None, "{rest:?}");
        }
        fs::write(known.path(KIND), "amphipod-known-0 boot cluster node\n").unwrap();
        assert_eq!(recalled(&known), None, "another format");
    }
}
