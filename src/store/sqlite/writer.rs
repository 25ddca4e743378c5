//! The one writer: drains the queue, makes one SQLite transaction of what it found, syncs once, publishes, answers.
//!
//! The order is the promise: durable, then published, then acknowledged. A commit of volatile keys alone touches no disk.
//! Compaction goes in small steps between commits and only when there is history to forget, so an idle writer sleeps.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::{mpsc, oneshot};

use super::{Request, Retention, Shared, Volatile, failure};
use crate::store::{Change, Error, Op, Sink, Txn};

/// Transactions that share one sync at most.
const GROUP: usize = 512;
/// Revisions that are reserved at once: after a crash the numbering goes on behind the block.
const RESERVE: u64 = 10_000;
/// History rows that one compaction step forgets.
const STEP: usize = 256;
/// A volatile value is written at the latest after this time, if the process lives.
const FLUSH_AFTER: Duration = Duration::from_secs(900);
/// Or when this many wait.
const FLUSH_COUNT: usize = 4096;
/// The newest revision of a key, and the one at which its life began.
const LIVING: &str =
    "SELECT l.revision, l.created FROM current c JOIN log l ON l.revision = c.revision WHERE c.key = ?1";

type Answer = oneshot::Sender<Result<u64, Error>>;

pub(super) struct Writer {
    connection: Connection,
    path: PathBuf,
    shared: Arc<Shared>,
    retention: Retention,
    sink: Option<Box<dyn Sink>>,
    head: u64,
    reserved: u64,
    /// When which revision was the head, and how many bytes were written since the mark before.
    marks: VecDeque<(Instant, u64, u64)>,
    history_bytes: u64,
    /// Up to which revision history must go.
    forget: u64,
    flush_at: Option<Instant>,
}

/// What one transaction did inside the group.
struct Done {
    answer: Answer,
    result: Result<u64, Error>,
}

// === impl Writer ===

#[allow(clippy::disallowed_methods)] // The writer's own thread measures intervals; nothing here is simulated.
impl Writer {
    pub(super) fn new(
        connection: Connection,
        path: PathBuf,
        shared: Arc<Shared>,
        retention: Retention,
    ) -> Result<Self, Error> {
        let fact =
            |name: &str| connection.query_row("SELECT value FROM fact WHERE name = ?1", [name], |r| r.get::<_, i64>(0));
        let read = || -> rusqlite::Result<(u64, u64, u64)> {
            let last: Option<i64> = connection.query_row("SELECT MAX(revision) FROM log", [], |r| r.get(0))?;
            Ok((last.unwrap_or(0) as u64, fact("reserved")? as u64, fact("compacted")? as u64))
        };
        let (last, reserved, compacted) = read().map_err(|e| failure(&path, &e))?;
        connection.execute("INSERT OR REPLACE INTO fact VALUES ('clean', 0)", []).map_err(|e| failure(&path, &e))?;
        let head = last.max(reserved);
        shared.head.store(head, Ordering::Release);
        shared.compacted.store(compacted, Ordering::Release);
        let marks = VecDeque::from([(Instant::now(), head, 0)]);
        Ok(Self {
            connection,
            path,
            shared,
            retention,
            sink: None,
            head,
            reserved: head,
            marks,
            history_bytes: 0,
            forget: compacted,
            flush_at: None,
        })
    }

    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a timer needs no resources");
        loop {
            let next = match self.next_chore() {
                None => queue.blocking_recv(),
                Some(at) => {
                    let wait = at.saturating_duration_since(Instant::now());
                    match runtime.block_on(async { tokio::time::timeout(wait, queue.recv()).await }) {
                        Ok(request) => request,
                        Err(_) => {
                            self.chores();
                            continue;
                        }
                    }
                }
            };
            let Some(first) = next else { break };
            if self.serve(first, &mut queue) {
                break;
            }
        }
        queue.close();
        self.finish();
    }

    /// Serves one request and what waits behind it; true ends the thread.
    fn serve(&mut self, first: Request, queue: &mut mpsc::Receiver<Request>) -> bool {
        let mut group = Vec::new();
        let mut next = Some(first);
        let mut end = false;
        while let Some(request) = next {
            match request {
                Request::Commit(txn, answer) => group.push((txn, answer)),
                Request::Compact(through) => self.forget = self.forget.max(through.min(self.head)),
                Request::Attach(sink) => self.sink = Some(sink),
                Request::Close => {
                    end = true;
                    break;
                }
            }
            if group.len() >= GROUP {
                break;
            }
            next = queue.try_recv().ok();
        }
        if !group.is_empty() {
            self.commit(group);
        }
        if self.forget > self.shared.compacted.load(Ordering::Relaxed) {
            self.compact_step();
        }
        end
    }

    fn commit(&mut self, group: Vec<(Txn, Answer)>) {
        let head = self.head;
        let mut changes = Vec::new();
        let mut volatile: HashMap<Arc<str>, Volatile> = HashMap::new();
        let mut done = Vec::with_capacity(group.len());
        let mut wrote = false;
        let outcome = (|| -> rusqlite::Result<()> {
            for (txn, answer) in group {
                let result = self.apply(txn, &mut changes, &mut volatile, &mut wrote);
                match result {
                    Ok(result) => done.push(Done { answer, result }),
                    Err(e) => {
                        done.push(Done { answer, result: Ok(0) });
                        return Err(e);
                    }
                }
            }
            if self.head > self.reserved {
                self.begin(&mut wrote)?;
                self.reserved = self.head + RESERVE;
                self.fact("reserved", self.reserved)?;
            }
            if wrote { self.connection.execute_batch("COMMIT") } else { Ok(()) }
        })();
        match outcome {
            Ok(()) => self.publish(changes, volatile, done, wrote),
            Err(e) => {
                let error = failure(&self.path, &e);
                tracing::error!(%error, "commit failed");
                if wrote {
                    let _ = self.connection.execute_batch("ROLLBACK");
                }
                self.head = head;
                self.reserved = self.reserved.min(head);
                for d in done {
                    let _ = d.answer.send(Err(error.clone()));
                }
            }
        }
    }

    fn publish(&mut self, changes: Vec<Change>, volatile: HashMap<Arc<str>, Volatile>, done: Vec<Done>, wrote: bool) {
        {
            let mut overlay = self.shared.volatile.lock().expect("no panic while held");
            for c in changes.iter().filter(|c| !volatile.contains_key(&c.key)) {
                overlay.remove(&c.key);
            }
            if volatile.values().any(|v| v.revision > 0) {
                self.flush_at.get_or_insert_with(|| Instant::now() + FLUSH_AFTER);
            }
            for (key, v) in volatile {
                if v.revision == 0 {
                    overlay.remove(&key);
                } else {
                    overlay.insert(key, v);
                }
            }
        }
        if wrote {
            self.shared.commits.fetch_add(1, Ordering::Relaxed);
        }
        let bytes: u64 = changes.iter().map(|c| (c.value.len() + c.key.len()) as u64).sum();
        self.mark(bytes);
        self.shared.head.store(self.head, Ordering::Release);
        if let (Some(sink), false) = (&mut self.sink, changes.is_empty()) {
            sink.publish(changes);
        }
        for d in done {
            let _ = d.answer.send(d.result);
        }
    }

    fn begin(&self, wrote: &mut bool) -> rusqlite::Result<()> {
        if !*wrote {
            self.connection.execute_batch("BEGIN IMMEDIATE")?;
            *wrote = true;
        }
        Ok(())
    }

    /// The living revision of a key and where this life began, as seen inside the group.
    fn living(&self, key: &str, group: &HashMap<Arc<str>, Volatile>) -> rusqlite::Result<Option<(u64, u64)>> {
        if let Some(v) = group.get(key) {
            return Ok((v.revision > 0).then_some((v.revision, v.created)));
        }
        if let Some(v) = self.shared.volatile.lock().expect("no panic while held").get(key) {
            return Ok(Some((v.revision, v.created)));
        }
        self.connection
            .prepare_cached(LIVING)?
            .query_row([key], |r| Ok((r.get::<_, i64>(0)? as u64, r.get::<_, i64>(1)? as u64)))
            .optional()
    }

    fn in_file(&self, key: &str) -> rusqlite::Result<bool> {
        self.connection.prepare_cached("SELECT 1 FROM current WHERE key = ?1")?.exists([key])
    }

    fn apply(
        &mut self,
        txn: Txn,
        changes: &mut Vec<Change>,
        group: &mut HashMap<Arc<str>, Volatile>,
        wrote: &mut bool,
    ) -> rusqlite::Result<Result<u64, Error>> {
        for (key, expected) in txn.expect {
            let actual = self.living(&key, group)?.map_or(0, |(r, _)| r);
            if actual != expected {
                return Ok(Err(Error::Conflict { key, expected, actual }));
            }
        }
        for op in txn.ops {
            let living = self.living(op.key(), group)?;
            if matches!(op, Op::Delete { .. }) && living.is_none() {
                continue;
            }
            self.head += 1;
            let created = living.map_or(self.head, |(_, created)| created);
            let change = match op {
                Op::Put { key, value, payload, volatile: true } => {
                    group.insert(key.clone(), Volatile { revision: self.head, created, value: value.clone() });
                    changes.push(Change { key, revision: self.head, value, deleted: false, payload });
                    continue;
                }
                Op::Put { key, value, payload, .. } => {
                    Change { key, revision: self.head, value, deleted: false, payload }
                }
                Op::Delete { key, value, payload } => {
                    Change { key, revision: self.head, value, deleted: true, payload }
                }
            };
            let in_file = self.in_file(&change.key)?;
            if change.deleted && !in_file {
                // Lived and died in memory. Revision 0 marks the end for the rest of the group.
                group.insert(change.key.clone(), Volatile { revision: 0, created: 0, value: change.value.clone() });
                changes.push(change);
                continue;
            }
            group.remove(&change.key);
            self.begin(wrote)?;
            self.insert(&change, created)?;
            if change.deleted {
                group.insert(change.key.clone(), Volatile { revision: 0, created: 0, value: change.value.clone() });
            }
            changes.push(change);
        }
        Ok(Ok(self.head))
    }

    fn insert(&self, change: &Change, created: u64) -> rusqlite::Result<()> {
        let (key, revision) = (&*change.key, change.revision as i64);
        self.connection
            .prepare_cached("INSERT INTO log (revision, key, created, deleted, value) VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![revision, key, created as i64, change.deleted, &change.value[..]])?;
        if change.deleted {
            self.connection.prepare_cached("DELETE FROM current WHERE key = ?1")?.execute([key])?;
        } else {
            self.connection
                .prepare_cached("INSERT INTO current VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET revision = ?2")?
                .execute(params![key, revision])?;
        }
        Ok(())
    }

    fn fact(&self, name: &str, value: u64) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO fact VALUES (?1, ?2)")?
            .execute(params![name, value as i64])
            .map(|_| ())
    }

    /// Notes how much was written when, at most once a second, and decides what history must go.
    fn mark(&mut self, bytes: u64) {
        let now = Instant::now();
        self.history_bytes += bytes;
        match self.marks.back_mut() {
            Some((at, revision, sum)) if now.duration_since(*at) < Duration::from_secs(1) => {
                *revision = self.head;
                *sum += bytes;
            }
            _ => self.marks.push_back((now, self.head, bytes)),
        }
        self.expire(now);
    }

    fn expire(&mut self, now: Instant) {
        while let Some((at, revision, bytes)) = self.marks.front().copied() {
            let old = now.duration_since(at) > self.retention.age;
            let big = self.history_bytes > self.retention.bytes && self.marks.len() > 1;
            if !old && (!big || revision >= self.head) {
                break;
            }
            // The newest state is no history: the head itself can always be resumed from.
            self.forget = self.forget.max(revision.min(self.head));
            self.history_bytes -= bytes.min(self.history_bytes);
            self.marks.pop_front();
        }
    }

    fn next_chore(&self) -> Option<Instant> {
        if self.forget > self.shared.compacted.load(Ordering::Relaxed) {
            return Some(Instant::now());
        }
        let expiry = self.marks.front().map(|(at, ..)| *at + self.retention.age + Duration::from_secs(1));
        [expiry, self.flush_at].into_iter().flatten().min()
    }

    fn chores(&mut self) {
        let now = Instant::now();
        self.expire(now);
        if self.forget > self.shared.compacted.load(Ordering::Relaxed) {
            self.compact_step();
        }
        let waiting = self.shared.volatile.lock().expect("no panic while held").len();
        if self.flush_at.is_some_and(|at| at <= now) || waiting > FLUSH_COUNT {
            self.flush();
        }
    }

    /// Forgets at most `STEP` rows of history. Readers learn first that the revisions are gone.
    fn compact_step(&mut self) {
        let target = self.forget as i64;
        let step = || -> rusqlite::Result<u64> {
            let from = self.shared.compacted.load(Ordering::Relaxed) as i64;
            let rows: Vec<i64> = self
                .connection
                .prepare_cached(
                    "SELECT revision FROM log WHERE revision > ?1 AND revision <= ?2 ORDER BY revision LIMIT ?3",
                )?
                .query_map(params![from, target, STEP as i64], |r| r.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            let through = if rows.len() < STEP { target } else { *rows.last().expect("STEP rows") };
            if rows.is_empty() {
                // Only volatile keys have changed: an idle node's heartbeats cost the disk nothing here either.
                return Ok(through as u64);
            }
            // What a row replaced is forgotten with it: everything older than the newest row of each key at `through`.
            self.connection.execute_batch("BEGIN IMMEDIATE")?;
            self.connection
                .prepare_cached(
                    "DELETE FROM log WHERE revision IN (
                       SELECT old.revision FROM log AS new JOIN log AS old ON old.key = new.key AND old.revision < new.revision
                       WHERE new.revision > ?1 AND new.revision <= ?2)",
                )?
                .execute(params![from, through])?;
            self.connection
                .prepare_cached("DELETE FROM log WHERE revision > ?1 AND revision <= ?2 AND deleted = 1")?
                .execute(params![from, through])?;
            self.fact("compacted", through as u64)?;
            self.connection.execute_batch("COMMIT")?;
            Ok(through as u64)
        };
        match step() {
            Ok(through) => {
                self.shared.compacted.store(through, Ordering::Release);
                if let Some(sink) = &mut self.sink {
                    sink.forget(through);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "compaction step failed; it is tried again with the next commit");
                let _ = self.connection.execute_batch("ROLLBACK");
                self.forget = self.shared.compacted.load(Ordering::Relaxed);
            }
        }
    }

    /// Writes the volatile values in one transaction and forgets their history at once.
    fn flush(&mut self) {
        self.flush_at = None;
        let overlay = std::mem::take(&mut *self.shared.volatile.lock().expect("no panic while held"));
        if overlay.is_empty() {
            return;
        }
        let write = || -> rusqlite::Result<()> {
            self.connection.execute_batch("BEGIN IMMEDIATE")?;
            for (key, v) in &overlay {
                self.connection.prepare_cached("DELETE FROM log WHERE key = ?1")?.execute([&**key])?;
                let change = Change {
                    key: key.clone(),
                    revision: v.revision,
                    value: v.value.clone(),
                    deleted: false,
                    payload: None,
                };
                self.insert(&change, v.created)?;
            }
            self.connection.execute_batch("COMMIT")
        };
        if let Err(error) = write() {
            tracing::warn!(%error, "heartbeats and events were not written; they stay in memory");
            let _ = self.connection.execute_batch("ROLLBACK");
            *self.shared.volatile.lock().expect("no panic while held") = overlay;
        } else {
            self.shared.commits.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn finish(mut self) {
        self.flush();
        let close = || -> rusqlite::Result<()> {
            self.fact("reserved", self.head)?;
            self.fact("clean", 1)?;
            self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        };
        if let Err(error) = close() {
            tracing::warn!(%error, "the database was not closed in order; the next start checks it");
        }
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;
    use crate::store::sqlite::{connect, migrate};

    #[test]
    fn what_each_write_asks_is_planned_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let mut connection = connect(&path).unwrap();
        migrate(&mut connection, &path).unwrap();
        for key in ["/core/pods/a/b", "/core/pods/a/c", "/core/pods/a/d"] {
            let mut statement = connection.prepare_cached(LIVING).unwrap();
            assert!(!statement.exists([key]).unwrap());
            assert_eq!(statement.get_status(StatementStatus::RePrepare), 0, "{key}");
        }
    }
}
