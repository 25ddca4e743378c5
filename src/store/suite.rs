//! What every store must do, run over each of them, and a differential run of random operations.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use proptest::prelude::*;

use super::memory::Memory;
use super::sqlite::{Retention, Sqlite};
use super::{Change, Error, Op, Sink, Store, Txn};

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Change>>>);

impl Sink for Recorder {
    fn publish(&mut self, changes: Vec<Change>) {
        self.0.lock().unwrap().extend(changes);
    }
}

fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.into(), value: Bytes::copy_from_slice(value.as_bytes()), payload: None, volatile: false }
}

fn volatile(key: &str, value: &str) -> Op {
    Op::Put { key: key.into(), value: Bytes::copy_from_slice(value.as_bytes()), payload: None, volatile: true }
}

fn delete(key: &str) -> Op {
    Op::Delete { key: key.into(), value: Bytes::from_static(b"last"), payload: None }
}

async fn commit(store: &dyn Store, ops: Vec<Op>) -> u64 {
    store.commit(Txn { expect: vec![], ops }).await.unwrap()
}

fn keys(store: &dyn Store, at: u64) -> Vec<String> {
    store.range("/a/", at, "", 0).unwrap().entries.iter().map(|e| e.key.to_string()).collect()
}

async fn suite(store: &dyn Store) {
    let seen = Recorder::default();
    store.attach(Box::new(seen.clone()));
    let one = commit(store, vec![put("/a/x", "1")]).await;
    let two = commit(store, vec![put("/a/y", "1"), put("/b/z", "1")]).await;
    assert_eq!(two, one + 2, "each change has its own revision");
    assert_eq!(store.head(), two);
    assert_eq!(keys(store, 0), ["/a/x", "/a/y"]);
    assert_eq!(keys(store, one), ["/a/x"]);

    let stale = store.commit(Txn { expect: vec![("/a/x".into(), one + 9)], ops: vec![put("/a/x", "2")] }).await;
    assert_eq!(stale, Err(Error::Conflict { key: "/a/x".into(), expected: one + 9, actual: one }));
    let exists =
        store.commit(Txn { expect: vec![("/a/x".into(), 0)], ops: vec![put("/a/q", "2"), put("/a/x", "2")] }).await;
    assert!(matches!(exists, Err(Error::Conflict { .. })));
    assert_eq!(store.read("/a/q").unwrap(), None, "a refused transaction leaves nothing");

    let three = store.commit(Txn { expect: vec![("/a/x".into(), one)], ops: vec![put("/a/x", "2")] }).await.unwrap();
    assert_eq!(&store.read("/a/x").unwrap().unwrap().value[..], b"2");
    let four = commit(store, vec![delete("/a/y"), delete("/a/none")]).await;
    assert_eq!(four, three + 1, "deleting what is not there is no change");
    assert_eq!(keys(store, 0), ["/a/x"]);
    assert_eq!(keys(store, three), ["/a/x", "/a/y"]);

    let page = store.range("/a/", two, "", 1).unwrap();
    assert_eq!((page.entries.len(), page.remaining, page.revision), (1, 1, two));
    let rest = store.range("/a/", two, &page.entries[0].key, 1).unwrap();
    assert_eq!((&*rest.entries[0].key, rest.remaining), ("/a/y", 0));

    let little = store.range_within("/a/", two, "", 0, 1).unwrap();
    assert_eq!((little.entries.len(), little.remaining), (1, 1), "they have a byte");
    let little = store.range_within("/a/", 0, "", 0, 0).unwrap();
    assert_eq!((little.entries.len(), little.remaining), (0, 1));

    let changes = store.changes(one, "/a/", 10, 100).unwrap();
    let got: Vec<_> = changes.iter().map(|c| (&*c.key, c.deleted)).collect();
    assert_eq!(got, [("/a/y", false), ("/a/x", false), ("/a/y", true)]);
    assert_eq!(store.changes(one, "/a/", 10, 1).unwrap().len(), 1, "they have a byte");
    assert_eq!(store.changes(one, "/a/", 2, 100).unwrap().len(), 2);
    let was = |key: &str, at: u64| store.read_at(key, at).unwrap().map(|e| (e.revision, e.value));
    assert_eq!(was("/a/x", two), Some((one, "1".into())));
    assert_eq!(was("/a/x", four), Some((three, "2".into())));
    assert_eq!((was("/a/y", three).map(|found| found.0), was("/a/y", four)), (Some(one + 1), None));
    assert_eq!(was("/a", four), None);
    let published: Vec<_> = seen.0.lock().unwrap().iter().map(|c| c.revision).collect();
    assert_eq!(published, (one..=four).collect::<Vec<_>>(), "gap-free and in order");

    let five = commit(store, vec![volatile("/a/v", "beat")]).await;
    assert_eq!(five, four + 1);
    assert_eq!(keys(store, 0), ["/a/v", "/a/x"]);
    assert_eq!(&store.read("/a/v").unwrap().unwrap().value[..], b"beat");
    let guarded = store.commit(Txn { expect: vec![("/a/v".into(), five)], ops: vec![volatile("/a/v", "beat2")] }).await;
    assert_eq!(guarded, Ok(five + 1));
    commit(store, vec![delete("/a/v")]).await;
    assert_eq!(keys(store, 0), ["/a/x"]);

    store.compact(three);
    commit(store, vec![put("/b/z", "2")]).await;
    for _ in 0..200 {
        if store.oldest() >= three {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(store.oldest(), three);
    assert_eq!(store.changes(one, "/a/", 10, 100).unwrap_err(), Error::Compacted { asked: one, oldest: three });
    assert!(matches!(store.range("/a/", two, "", 0), Err(Error::Compacted { .. })));
    assert!(matches!(store.read_at("/a/x", two), Err(Error::Compacted { .. })));
    assert_eq!(keys(store, three), ["/a/x", "/a/y"]);

    store.close();
    let closed = store.commit(Txn { expect: vec![], ops: vec![put("/a/w", "1")] }).await;
    assert_eq!(closed, Err(Error::Closed));
}

fn open(dir: &tempfile::TempDir) -> Sqlite {
    Sqlite::open(&dir.path().join("state.db"), Retention::default()).unwrap()
}

#[tokio::test]
async fn memory_passes() {
    suite(&Memory::new()).await;
}

#[tokio::test]
async fn sqlite_passes() {
    let dir = tempfile::tempdir().unwrap();
    suite(&open(&dir)).await;
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_reopening_and_revisions_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let r = commit(&store, vec![put("/a/x", "1"), volatile("/a/v", "beat")]).await;
    drop(store);
    let store = open(&dir);
    assert_eq!(keys(&store, 0), ["/a/v", "/a/x"], "an orderly close writes volatile keys too");
    assert!(commit(&store, vec![put("/a/y", "1")]).await > r);
}

#[tokio::test]
async fn volatile_keys_cost_no_sync() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    commit(&store, vec![put("/a/x", "1")]).await;
    let before = store.durable_commits();
    for _ in 0..100 {
        commit(&store, vec![volatile("/a/v", "beat")]).await;
    }
    commit(&store, vec![delete("/a/v")]).await;
    assert_eq!(store.durable_commits(), before);
}

#[tokio::test]
async fn history_beyond_the_byte_bound_is_forgotten_without_being_asked() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { age: std::time::Duration::from_secs(1), bytes: 10_000 };
    let store = Sqlite::open(&dir.path().join("state.db"), retention).unwrap();
    for i in 0..40 {
        commit(&store, vec![put("/a/x", &format!("{i:01000}"))]).await;
    }
    let head = store.head();
    for _ in 0..500 {
        if store.oldest() == head {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("still keeps everything since {}, head {head}", store.oldest());
}

#[test]
fn a_damaged_file_is_refused_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    std::fs::write(&path, vec![7u8; 8192]).unwrap();
    let error = Sqlite::open(&path, Retention::default()).unwrap_err();
    assert!(matches!(error, Error::Corrupted { .. }), "{error}");
}

#[derive(Clone, Debug)]
enum Act {
    Put(u8),
    Volatile(u8),
    Delete(u8),
    Guarded(u8, bool),
    Compact(u8),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0..6u8).prop_map(Act::Put),
        1 => (6..8u8).prop_map(Act::Volatile),
        2 => (0..8u8).prop_map(Act::Delete),
        2 => (0..6u8, any::<bool>()).prop_map(|(k, ok)| Act::Guarded(k, ok)),
        1 => (0..20u8).prop_map(Act::Compact),
    ]
}

async fn perform(store: &dyn Store, act: &Act, step: usize) -> Result<u64, Error> {
    let key = |k: &u8| format!("/a/{k}");
    let ops = match act {
        Act::Put(k) => vec![put(&key(k), &step.to_string())],
        Act::Volatile(k) => vec![volatile(&key(k), &step.to_string())],
        Act::Delete(k) => vec![delete(&key(k))],
        Act::Guarded(k, ok) => {
            let now = store.read(&key(k))?.map_or(0, |e| e.revision);
            let expect = vec![(key(k).into(), if *ok { now } else { now + 1 })];
            return store.commit(Txn { expect, ops: vec![put(&key(k), &step.to_string())] }).await;
        }
        Act::Compact(back) => {
            store.compact(store.head().saturating_sub(u64::from(*back)));
            vec![]
        }
    };
    store.commit(Txn { expect: vec![], ops }).await
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn memory_and_sqlite_answer_alike(acts in proptest::collection::vec(act(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let (model, real) = (Memory::new(), open(&dir));
            for (step, a) in acts.iter().enumerate() {
                assert_eq!(perform(&model, a, step).await, perform(&real, a, step).await, "{a:?}");
                assert_eq!(model.range("/a/", 0, "", 0), real.range("/a/", 0, "", 0));
                assert_eq!(model.range("/a/", 0, "/a/2", 2), real.range("/a/", 0, "/a/2", 2));
            }
        });
    }
}
