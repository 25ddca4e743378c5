//! Whole copies of the database, and what can be saved of a damaged one.
//!
//! Invariant: a database that was put back numbers on far behind everything that was ever told, so that no watcher takes an
//! old revision for a new one.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::{Error, failure};

/// How far behind the last known revision a restored database goes on. Clients that know later ones are told to list again.
const JUMP: u64 = 1_000_000;
/// How often a damaged log is tried behind an unreadable place.
const ATTEMPTS: usize = 2_000;

/// What a copy holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Its last revision.
    pub revision: u64,
    /// How many objects are alive in it.
    pub objects: u64,
}

/// What was saved out of a damaged database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Salvaged {
    /// Changes that are newer than the copy and were taken over.
    pub changes: u64,
    /// The last revision that could be read.
    pub revision: u64,
    /// Places in the log that could not be read: first and last revision.
    pub unreadable: Vec<(u64, u64)>,
}

fn read_only(path: &Path) -> Result<Connection, Error> {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(|e| failure(path, &e))
}

/// Writes a whole, consistent copy of the database to a new file, while a server may be writing.
pub fn copy(from: &Path, to: &Path) -> Result<Copied, Error> {
    let source = read_only(from)?;
    let text = to.to_string_lossy().into_owned();
    source.execute("VACUUM INTO ?1", [text]).map_err(|e| failure(to, &e))?;
    describe(to)
}

/// What a database holds; an error if it is damaged.
pub fn describe(path: &Path) -> Result<Copied, Error> {
    let connection = read_only(path)?;
    super::check(&connection, path)?;
    let read = || -> rusqlite::Result<Copied> {
        let revision: Option<i64> = connection.query_row("SELECT MAX(revision) FROM log", [], |r| r.get(0))?;
        let objects: i64 = connection.query_row("SELECT COUNT(*) FROM current", [], |r| r.get(0))?;
        Ok(Copied { revision: revision.unwrap_or(0) as u64, objects: objects as u64 })
    };
    read().map_err(|e| failure(path, &e))
}

/// Makes a copy fit to go on from: its numbering jumps, and its history counts as gone.
pub fn renumber(path: &Path) -> Result<(), Error> {
    let last = describe(path)?.revision;
    let connection = read_only(path)?;
    let write = || -> rusqlite::Result<()> {
        let reserved: Option<i64> =
            connection.query_row("SELECT value FROM fact WHERE name = 'reserved'", [], |r| r.get(0)).optional()?;
        let next = last.max(reserved.unwrap_or(0) as u64) + JUMP;
        set(&connection, "reserved", next)?;
        set(&connection, "compacted", last)
    };
    write().map_err(|e| failure(path, &e))
}

fn set(connection: &Connection, name: &str, value: u64) -> rusqlite::Result<()> {
    connection.execute("INSERT OR REPLACE INTO fact VALUES (?1, ?2)", params![name, value as i64]).map(|_| ())
}

struct Row {
    revision: u64,
    key: String,
    created: i64,
    deleted: bool,
    value: Vec<u8>,
}

/// Takes what the log of a damaged database still says into a copy that is older than it. Never fails because of the damage.
pub fn salvage(damaged: &Path, onto: &Path) -> Result<Salvaged, Error> {
    let start = describe(onto)?.revision;
    let mut target = read_only(onto)?;
    let mut salvaged = Salvaged { revision: start, ..Salvaged::default() };
    let Ok(source) = read_only(damaged) else { return Ok(salvaged) };
    let transaction = target.transaction().map_err(|e| failure(onto, &e))?;
    // `after` runs ahead over what cannot be read; `good` is the last row that could.
    let (mut after, mut good, mut step) = (start, start, 1u64);
    for _ in 0..ATTEMPTS {
        let mut troubled = step > 1;
        let before = good;
        let end = each_after(&source, after, |row| {
            if std::mem::take(&mut troubled) && row.revision > good + 1 {
                salvaged.unreadable.push((good + 1, row.revision - 1));
            }
            good = row.revision;
            salvaged.changes += 1;
            put(&transaction, &row)
        });
        match end {
            Ok(()) => break,
            Err(Trouble::Target(e)) => return Err(failure(onto, &e)),
            Err(Trouble::Source) => {
                step = if good > before { 2 } else { step.saturating_mul(2) };
                after = good.max(after).saturating_add(step / 2);
            }
        }
        if after > i64::MAX as u64 / 2 {
            break;
        }
    }
    salvaged.revision = good;
    transaction.commit().map_err(|e| failure(onto, &e))?;
    Ok(salvaged)
}

enum Trouble {
    Source,
    Target(rusqlite::Error),
}

fn each_after(
    source: &Connection,
    after: u64,
    mut take: impl FnMut(Row) -> rusqlite::Result<()>,
) -> Result<(), Trouble> {
    let damage = |_| Trouble::Source;
    let sql = "SELECT revision, key, created, deleted, value FROM log WHERE revision > ?1 ORDER BY revision";
    let mut statement = source.prepare(sql).map_err(damage)?;
    let mut rows = statement.query([after as i64]).map_err(damage)?;
    while let Some(row) = rows.next().map_err(damage)? {
        let read = || -> rusqlite::Result<Row> {
            Ok(Row {
                revision: row.get::<_, i64>(0)? as u64,
                key: row.get(1)?,
                created: row.get(2)?,
                deleted: row.get(3)?,
                value: row.get(4)?,
            })
        };
        take(read().map_err(damage)?).map_err(Trouble::Target)?;
    }
    Ok(())
}

fn put(target: &Connection, row: &Row) -> rusqlite::Result<()> {
    target.execute(
        "INSERT OR REPLACE INTO log (revision, key, created, deleted, value) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![row.revision as i64, row.key, row.created, row.deleted, row.value],
    )?;
    if row.deleted {
        target.execute("DELETE FROM current WHERE key = ?1", [&row.key])?;
    } else {
        target.execute("INSERT OR REPLACE INTO current VALUES (?1, ?2)", params![row.key, row.revision as i64])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::{Retention, Sqlite};
    use crate::store::{Error, Op, Store, Txn};
    use bytes::Bytes;

    fn put_txn(key: &str, value: &str) -> Txn {
        let value = Bytes::copy_from_slice(value.as_bytes());
        Txn { expect: vec![], ops: vec![Op::Put { key: key.into(), value, payload: None, volatile: false }] }
    }

    async fn filled(path: &Path, from: usize, to: usize) -> u64 {
        let store = Sqlite::open(path, Retention::default()).unwrap();
        for n in from..to {
            store.commit(put_txn(&format!("/core/configmaps/n/{n:05}"), &"x".repeat(2000))).await.unwrap();
        }
        let head = store.head();
        store.close();
        head
    }

    #[tokio::test]
    async fn a_copy_of_a_running_store_is_whole_and_goes_on_far_behind() {
        let dir = tempfile::tempdir().unwrap();
        let (path, copied) = (dir.path().join("state.db"), dir.path().join("copy.db"));
        filled(&path, 0, 20).await;
        let running = Sqlite::open(&path, Retention::default()).unwrap();
        let found = copy(&path, &copied).unwrap();
        assert_eq!(found.objects, 20);
        running.commit(put_txn("/core/configmaps/n/later", "x")).await.unwrap();
        renumber(&copied).unwrap();
        let restored = Sqlite::open(&copied, Retention::default()).unwrap();
        assert!(restored.head() > running.head() + JUMP / 2, "{} and {}", restored.head(), running.head());
        assert!(restored.read("/core/configmaps/n/later").unwrap().is_none());
        assert!(restored.read("/core/configmaps/n/00007").unwrap().is_some());
        assert!(matches!(restored.changes(found.revision - 1, "/", 10, 100), Err(Error::Compacted { .. })));
    }

    #[tokio::test]
    async fn what_a_damaged_log_still_says_is_taken_over_its_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let (path, snapshot) = (dir.path().join("state.db"), dir.path().join("copy.db"));
        filled(&path, 0, 50).await;
        copy(&path, &snapshot).unwrap();
        let head = filled(&path, 50, 400).await;
        // Pages in the middle are overwritten.
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2 / 4096 * 4096;
        bytes[middle..middle + 8 * 4096].fill(0xa5);
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(Sqlite::open(&path, Retention::default()), Err(Error::Corrupted { .. })));
        let salvaged = salvage(&path, &snapshot).unwrap();
        assert!(salvaged.changes > 150 && salvaged.changes < 350, "{salvaged:?}");
        assert!(!salvaged.unreadable.is_empty() && salvaged.revision == head, "{salvaged:?} {head}");
        renumber(&snapshot).unwrap();
        let restored = Sqlite::open(&snapshot, Retention::default()).unwrap();
        assert!(restored.read("/core/configmaps/n/00399").unwrap().is_some());
        assert!(restored.read("/core/configmaps/n/00049").unwrap().is_some());
    }
}
