//! The store on one SQLite file.
//!
//! One writer thread owns the write connection (see [`writer`]); readers share a second connection for history, which is
//! needed only by chunked lists and by watches that resume from far back: everything current is answered by the watch
//! cache above. WAL with `synchronous=FULL`: a commit returns after the log is on the disk.

mod copy;
mod shared;
mod writer;

pub use copy::{Copied, Salvaged, copy, describe, renumber, salvage};
pub use shared::Retention;
use shared::{Request, Shared, Volatile, failure};

use std::ops::Bound::Excluded;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::{mpsc, oneshot};

use super::{Change, Commit, Entry, Error, Page, Sink, Store, Txn, prefix_end};

/// Every released schema step, in order; append only.
const MIGRATIONS: &[&str] = &[include_str!("../../../migrations/0001_log.sql")];

/// Commits that may wait for the writer before callers wait for room.
const QUEUE: usize = 1024;

/// Databases up to this size are always checked at start; larger ones only when they were not closed in order.
const CHECK_ALWAYS_BYTES: u64 = 32 << 20;

/// A store on a SQLite file. Dropping it closes it.
pub struct Sqlite {
    path: PathBuf,
    requests: mpsc::Sender<Request>,
    reader: Mutex<Connection>,
    shared: Arc<Shared>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// What is alive: keys after one and before another.
const LIVING: &str = "SELECT l.key, l.revision, l.value FROM current c JOIN log l ON l.revision = c.revision
    WHERE c.key > ?1 AND c.key < ?2 ORDER BY c.key";
/// The same at a revision.
const PAST: &str = "SELECT key, revision, value FROM log WHERE key > ?1 AND key < ?2 AND revision IN
    (SELECT MAX(revision) FROM log WHERE key > ?1 AND key < ?2 AND revision <= ?3 GROUP BY key)
    AND deleted = 0 ORDER BY key";

// === impl Sqlite ===

impl Sqlite {
    /// Opens or makes the database file. The directory must exist.
    pub fn open(path: &Path, retention: Retention) -> Result<Self, Error> {
        let mut connection = connect(path)?;
        migrate(&mut connection, path)?;
        check(&connection, path)?;
        let shared = Arc::new(Shared::default());
        let writer = writer::Writer::new(connection, path.to_owned(), shared.clone(), retention)?;
        let reader = connect(path)?;
        let (requests, queue) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .stack_size(512 << 10)
            .spawn(move || writer.run(queue))
            .map_err(|e| Error::Failed(e.to_string()))?;
        Ok(Self {
            path: path.to_owned(),
            requests,
            reader: Mutex::new(reader),
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// How many times the log was synced to the disk: what a rollout costs an SD card.
    pub fn durable_commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }

    fn send(&self, request: Request) {
        // Only from threads that may block briefly: the queue is drained by a thread that never waits for us.
        let mut request = request;
        while let Err(e) = self.requests.try_send(request) {
            match e {
                mpsc::error::TrySendError::Full(r) => request = r,
                mpsc::error::TrySendError::Closed(_) => return,
            }
            std::thread::yield_now();
        }
    }

    fn query<T>(&self, run: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, Error> {
        let reader = self.reader.lock().expect("no panic while held");
        run(&reader).map_err(|e| failure(&self.path, &e))
    }
}

impl std::fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sqlite({}, head {})", self.path.display(), self.head())
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        self.close();
    }
}

impl Store for Sqlite {
    fn commit(&self, txn: Txn) -> Commit<'_> {
        Box::pin(async move {
            let (answer, result) = oneshot::channel();
            self.requests.send(Request::Commit(txn, answer)).await.map_err(|_| Error::Closed)?;
            result.await.map_err(|_| Error::Closed)?
        })
    }

    fn read(&self, key: &str) -> Result<Option<Entry>, Error> {
        let volatile = self.shared.volatile.lock().expect("no panic while held").get_key_value(key).map(entry_of);
        if volatile.is_some() {
            return Ok(volatile);
        }
        self.query(|c| {
            c.prepare_cached(
                "SELECT l.key, l.revision, l.value FROM current JOIN log l USING (revision) WHERE current.key = ?1",
            )?
            .query_row([key], row_entry)
            .optional()
        })
    }

    fn range_within(&self, prefix: &str, at: u64, after: &str, limit: usize, bytes: usize) -> Result<Page, Error> {
        let (head, oldest) = (self.head(), self.oldest());
        if at > 0 && at < oldest {
            return Err(Error::Compacted { asked: at, oldest });
        }
        let revision = if at == 0 { head } else { at };
        let (low, end) = (if after > prefix { after } else { prefix }, prefix_end(prefix));
        let is_now = at == 0 || at >= head;
        // Read before the file is: what is written to the file meanwhile is in both.
        let volatile: Vec<Entry> = {
            let overlay = self.shared.volatile.lock().expect("no panic while held");
            let range = overlay.range::<str, _>((Excluded(low), Excluded(&*end)));
            range.filter(|(_, v)| v.revision <= revision).map(entry_of).collect()
        };
        self.query(|c| {
            let mut statement = c.prepare_cached(if is_now { LIVING } else { PAST })?;
            let mut rows = if is_now {
                statement.query(params![low, end])?
            } else {
                statement.query(params![low, end, at as i64])?
            };
            let mut volatile = volatile.into_iter().peekable();
            let (mut page, mut left) = (Page::at(revision), bytes);
            while let Some(row) = rows.next()? {
                let key = row.get_ref(0)?.as_str()?;
                while let Some(entry) = volatile.next_if(|entry| *entry.key < *key) {
                    page.push(|| Ok::<_, rusqlite::Error>(entry), limit, &mut left)?;
                }
                // What is in memory is newer than what is in the file.
                if volatile.peek().is_none_or(|entry| *entry.key != *key) {
                    page.push(|| row_entry(row), limit, &mut left)?;
                }
            }
            for entry in volatile {
                page.push(|| Ok::<_, rusqlite::Error>(entry), limit, &mut left)?;
            }
            Ok(page)
        })
    }

    fn read_at(&self, key: &str, at: u64) -> Result<Option<Entry>, Error> {
        let oldest = self.oldest();
        if at < oldest {
            return Err(Error::Compacted { asked: at, oldest });
        }
        let volatile = self.shared.volatile.lock().expect("no panic while held").get_key_value(key).map(entry_of);
        if let Some(entry) = volatile.filter(|entry| entry.revision <= at) {
            return Ok(Some(entry));
        }
        let found = self.query(|c| {
            c.prepare_cached(
                "SELECT key, revision, value, deleted FROM log WHERE key = ?1 AND revision <= ?2
                 ORDER BY revision DESC LIMIT 1",
            )?
            .query_row(params![key, at as i64], |row| Ok((row_entry(row)?, row.get::<_, bool>(3)?)))
            .optional()
        })?;
        Ok(found.filter(|(_, deleted)| !deleted).map(|(entry, _)| entry))
    }

    fn changes(&self, after: u64, prefix: &str, limit: usize, bytes: usize) -> Result<Vec<Change>, Error> {
        let oldest = self.oldest();
        if after < oldest {
            return Err(Error::Compacted { asked: after, oldest });
        }
        self.query(|c| {
            let mut statement = c.prepare_cached(
                "SELECT key, revision, value, deleted FROM log
                 WHERE revision > ?1 AND key >= ?2 AND key < ?3 ORDER BY revision LIMIT ?4",
            )?;
            let mut rows = statement.query(params![after as i64, prefix, prefix_end(prefix), limit as i64])?;
            let (mut found, mut left) = (Vec::new(), bytes);
            while let Some(row) = if found.is_empty() || left > 0 { rows.next()? } else { None } {
                let Entry { key, revision, value } = row_entry(row)?;
                left = left.saturating_sub(value.len());
                found.push(Change { key, revision, value, deleted: row.get(3)?, payload: None });
            }
            Ok(found)
        })
    }

    fn compact(&self, through: u64) {
        self.send(Request::Compact(through));
    }

    fn head(&self) -> u64 {
        self.shared.head.load(Ordering::Acquire)
    }

    fn oldest(&self) -> u64 {
        self.shared.compacted.load(Ordering::Acquire)
    }

    fn attach(&self, sink: Box<dyn Sink>) {
        self.send(Request::Attach(sink));
    }

    fn close(&self) {
        self.send(Request::Close);
        if let Some(thread) = self.thread.lock().expect("no panic while held").take() {
            let _ = thread.join();
        }
    }
}

fn entry_of((key, v): (&Arc<str>, &Volatile)) -> Entry {
    Entry { key: key.clone(), revision: v.revision, value: v.value.clone() }
}

fn row_entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        key: Arc::from(row.get_ref(0)?.as_str()?),
        revision: row.get::<_, i64>(1)? as u64,
        value: Bytes::copy_from_slice(row.get_ref(2)?.as_blob()?),
    })
}

fn connect(path: &Path) -> Result<Connection, Error> {
    let open = || -> rusqlite::Result<Connection> {
        let c = Connection::open(path)?;
        c.busy_timeout(Duration::from_secs(5))?;
        c.pragma_update(None, "journal_mode", "WAL")?;
        c.pragma_update(None, "synchronous", "FULL")?;
        c.pragma_update(None, "cache_size", -1024)?;
        c.pragma_update(None, "temp_store", "MEMORY")?;
        c.set_prepared_statement_cache_capacity(32);
        // Without it a statement whose plan may depend on a value is planned anew each time that it comes from the cache.
        c.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        Ok(c)
    };
    open().map_err(|e| failure(path, &e))
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), Error> {
    let found: u32 =
        connection.pragma_query_value(None, "user_version", |r| r.get(0)).map_err(|e| failure(path, &e))?;
    let known = MIGRATIONS.len() as u32;
    if found > known {
        return Err(Error::Newer { path: path.display().to_string(), found, known });
    }
    for (step, sql) in MIGRATIONS.iter().enumerate().skip(found as usize) {
        let run = |c: &mut Connection| -> rusqlite::Result<()> {
            let t = c.transaction()?;
            t.execute_batch(sql)?;
            t.pragma_update(None, "user_version", step as u32 + 1)?;
            t.commit()
        };
        run(connection).map_err(|e| failure(path, &e))?;
    }
    Ok(())
}

/// Looks for damage: always where that is quick, and after an unclean end.
fn check(connection: &Connection, path: &Path) -> Result<(), Error> {
    let clean: Option<i64> = connection
        .query_row("SELECT value FROM fact WHERE name = 'clean'", [], |r| r.get(0))
        .optional()
        .map_err(|e| failure(path, &e))?;
    let size = std::fs::metadata(path).map(|m| m.len()).unwrap_or(0);
    if size > CHECK_ALWAYS_BYTES && clean == Some(1) {
        return Ok(());
    }
    let verdict: String =
        connection.query_row("PRAGMA quick_check(1)", [], |r| r.get(0)).map_err(|e| failure(path, &e))?;
    if verdict == "ok" {
        return Ok(());
    }
    // A head line, then what is wrong, each on its own.
    let detail = verdict.lines().find(|l| !l.starts_with("***")).unwrap_or("the integrity check failed").to_owned();
    Err(Error::Corrupted { path: path.display().to_string(), detail })
}
