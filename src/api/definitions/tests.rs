//! Tests of definitions against the API without HTTP, and of what happens between the check of a write and its commit.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use super::*;
use crate::api::in_memory;
use crate::apimachinery::delete_options::DeleteOptions;
use crate::store::memory::Memory;
use crate::store::{self, Commit, Entry, Error, Page, Sink, Store, Txn};

fn definition(plural: &str, kind: &str) -> Value {
    let schema = json!({"type": "object", "properties": {"a": {"type": "string"}}});
    json!({
        "metadata": {"name": format!("{plural}.example.com")},
        "spec": {"group": "example.com", "scope": "Cluster", "names": {"kind": kind, "plural": plural}, "versions": [{
            "name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
        }]},
    })
}

fn keeper(api: &Api) -> Keeper {
    Keeper { api: api.clone(), known: HashMap::new() }
}

/// Creates a definition; the kind that comes of it.
async fn define(keeper: &mut Keeper, definition: Value) -> KindRef {
    let (group, kind) = (text(&definition, "spec.group").to_owned(), text(&definition, "spec.names.kind").to_owned());
    let api = keeper.api.clone();
    api.create(&Request::internal("test", &crd::KIND, "", ""), definition).await.unwrap();
    keeper.look().await;
    api.kinds.snapshot().by_kind(&format!("{group}/v1"), &kind).unwrap().clone()
}

fn of_definition(name: &str) -> Request {
    Request::internal("test", &crd::KIND, "", name)
}

/// A store in which the first commit of something of `prefix` waits until it is let go.
#[derive(Default)]
struct Gate {
    inner: Memory,
    was_there: AtomicBool,
    arrived: Notify,
    open: Notify,
}

impl Store for Gate {
    fn commit(&self, txn: Txn) -> Commit<'_> {
        Box::pin(async move {
            let is_custom = txn.ops.iter().any(|op| op.key().starts_with("/example.com/"));
            if is_custom && !self.was_there.swap(true, Ordering::Relaxed) {
                self.arrived.notify_one();
                self.open.notified().await;
            }
            self.inner.commit(txn).await
        })
    }

    fn read(&self, key: &str) -> std::result::Result<Option<Entry>, Error> {
        self.inner.read(key)
    }

    fn range_within(
        &self,
        prefix: &str,
        at: u64,
        after: &str,
        limit: usize,
        bytes: usize,
    ) -> std::result::Result<Page, Error> {
        self.inner.range_within(prefix, at, after, limit, bytes)
    }

    fn read_at(&self, key: &str, at: u64) -> std::result::Result<Option<Entry>, Error> {
        self.inner.read_at(key, at)
    }

    fn changes(
        &self,
        after: u64,
        prefix: &str,
        limit: usize,
        bytes: usize,
    ) -> std::result::Result<Vec<store::Change>, Error> {
        self.inner.changes(after, prefix, limit, bytes)
    }

    fn compact(&self, through: u64) {
        self.inner.compact(through);
    }

    fn head(&self) -> u64 {
        self.inner.head()
    }

    fn oldest(&self) -> u64 {
        self.inner.oldest()
    }

    fn attach(&self, sink: Box<dyn Sink>) {
        self.inner.attach(sink);
    }

    fn close(&self) {
        self.inner.close();
    }
}

#[tokio::test]
async fn nothing_lands_behind_the_end_of_its_definition() {
    let gate = Arc::new(Gate::default());
    let api = in_memory::api_over(gate.clone(), &[]);
    let mut keeper = keeper(&api);
    let kind = define(&mut keeper, definition("foos", "Foo")).await;
    let (of_kind, client) = (kind.clone(), api.clone());
    let late = task::spawn("late", async move {
        client.create(&Request::internal("test", &of_kind, "", ""), json!({"metadata": {"name": "late"}})).await
    });
    gate.arrived.notified().await;

    // Its checks are behind it. Now the definition goes, and who empties the kind finds nothing.
    let name = of_definition("foos.example.com");
    api.delete(&name, &DeleteOptions::default()).await.unwrap();
    assert!(api.cache.kind(&kind).is_empty());
    let mut ended = api.get(&name).unwrap().value();
    remove(&mut ended, "metadata.finalizers");
    api.update(&name.clone().on(Subresource::Status), Change::Replace(ended)).await.unwrap();
    assert_eq!(api.get(&name).unwrap_err().code, 404);

    gate.open.notify_one();
    assert!(late.await.unwrap().unwrap().is_err());
    assert!(api.store.range("/example.com/foos/", 0, "", 0).unwrap().entries.is_empty(), "something is left behind");
    keeper.look().await;
    let gone = api.create(&Request::internal("test", &kind, "", ""), json!({"metadata": {"name": "x"}})).await;
    assert_eq!(gone.unwrap_err().code, 404);
}

#[tokio::test]
async fn a_definition_that_changes_holds_up_nothing_new() {
    let gate = Arc::new(Gate::default());
    let api = in_memory::api_over(gate.clone(), &[]);
    let mut keeper = keeper(&api);
    let kind = define(&mut keeper, definition("foos", "Foo")).await;
    let client = api.clone();
    let late = task::spawn("late", async move {
        client.create(&Request::internal("test", &kind, "", ""), json!({"metadata": {"name": "late"}})).await
    });
    gate.arrived.notified().await;
    let name = of_definition("foos.example.com");
    let mut changed = api.get(&name).unwrap().value();
    set(&mut changed, "metadata.labels", json!({"a": "b"}));
    api.update(&name, Change::Replace(changed)).await.unwrap();
    gate.open.notify_one();
    assert!(late.await.unwrap().unwrap().is_ok());
}

#[tokio::test]
async fn defaults_do_not_multiply_what_is_stored() {
    let api = in_memory::api();
    let mut keeper = keeper(&api);
    let of = |default: &str| {
        let mut of = definition("foos", "Foo");
        let item = json!({"type": "object", "properties": {"x": {"type": "string"}}});
        of["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["l"] =
            json!({"type": "array", "items": item});
        if !default.is_empty() {
            of["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["l"]["items"]["properties"]["x"]["default"] =
                default.into();
        }
        of
    };
    let kind = define(&mut keeper, of("")).await;
    for i in 0..50 {
        let object =
            json!({"metadata": {"name": format!("o{i}")}, "l": vec![json!({}); if i == 0 { 1000 } else { 30 }]});
        api.create(&Request::internal("test", &kind, "", ""), object).await.unwrap();
    }
    let name = of_definition("foos.example.com");
    let mut larger = of(&"x".repeat(100_000));
    let old = api.get(&name).unwrap().value();
    larger["metadata"] = old["metadata"].clone();
    larger["status"] = old["status"].clone();
    api.update(&name, Change::Replace(larger)).await.unwrap();
    keeper.look().await;
    let all = api.cache.kind(&kind).list("", "");
    let bytes: usize = all.iter().map(|o| o.body().len()).sum();
    assert!(all.len() == 50 && bytes < 130 << 20, "{bytes}");
    assert_eq!(all[0].value()["l"][0], json!({}), "all or none");
    assert!(all[1].value()["l"][0]["x"].is_string());
    assert_eq!(all[49].value()["l"][29], json!({}));
}

#[tokio::test]
async fn a_definition_that_cannot_be_written_holds_up_no_other() {
    let api = in_memory::api();
    let mut keeper = keeper(&api);
    // Just small enough to be stored, until somebody adds a condition.
    let mut large = definition("larges", "Large");
    large["metadata"]["annotations"] = json!({"a": "x".repeat(200_000)});
    large["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["description"] =
        "x".repeat(crate::base::budget::STORED_BYTES_MAX - 201_300).into();
    api.create(&Request::internal("test", &crd::KIND, "", ""), large).await.unwrap();
    define(&mut keeper, definition("smalls", "Small")).await;
    let small = api.get(&of_definition("smalls.example.com")).unwrap().value();
    assert!(crd::is_true(&small, "Established"));
    let large = api.get(&of_definition("larges.example.com")).unwrap();
    assert!(!crd::is_true(&large.value(), "Established"), "{}", large.body().len());
    assert!(keeper.known.values().all(|known| !known.is_owed), "nothing would come of it");
}

#[tokio::test]
async fn no_status_that_somebody_wrote_takes_a_name_from_another() {
    let api = in_memory::api();
    let mut keeper = keeper(&api);
    let ours = define(&mut keeper, definition("widgets", "Widget")).await;
    // Its plural name is the singular one of the other, so that it is not accepted; its status says that all is well.
    let theirs = definition("widget", "Other");
    api.create(&Request::internal("test", &crd::KIND, "", ""), theirs).await.unwrap();
    let name = of_definition("widget.example.com");
    for _ in 0..2 {
        let mut forged = api.get(&name).unwrap().value();
        let names = json!({"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"});
        set(&mut forged, "status.acceptedNames", names);
        let hold = |of_type: &str| {
            json!({"type": of_type, "status": "True", "reason": "R", "message": "m",
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        set(&mut forged, "status.conditions", json!([hold("NamesAccepted"), hold("Established")]));
        api.update(&name.clone().on(Subresource::Status), Change::Replace(forged.clone())).await.unwrap();
        let none = crd::kinds(&forged).unwrap();
        assert!(none.is_empty(), "{none:?}");

        keeper.look().await;
        let status = api.get(&name).unwrap().value()["status"].clone();
        assert_eq!(status["acceptedNames"]["plural"], "", "{status}");
        let snapshot = api.kinds.snapshot();
        let served = snapshot.by_plural("example.com", "v1", "widgets").unwrap();
        assert_eq!(served.as_custom().unwrap().definition_uid, ours.as_custom().unwrap().definition_uid);
        assert_eq!(snapshot.iter().filter(|k| k.group() == "example.com").count(), 1);
    }
    // Nor does it after a restart, whoever comes first by name.
    let mut again = self::keeper(&api);
    again.begin();
    again.look().await;
    let status = api.get(&of_definition("widgets.example.com")).unwrap().value()["status"].clone();
    assert!(crd::is_true(&json!({"status": status}), "NamesAccepted"), "{status}");
}

fn decided(wanted: Value, had: Value, resources: &[&str], kinds: &[&str]) -> (Value, &'static str, bool) {
    let definition = json!({"spec": {"names": wanted}});
    let before = Followed { source: Source { accepted: had, ..Source::default() }, ..Followed::default() };
    let set = |all: &[&str]| all.iter().map(|n| (*n).to_owned()).collect();
    let (names, accepted, established) = decide(&definition, &before, &set(resources), &set(kinds));
    (names, accepted.1, established.0)
}

#[test]
fn names_are_accepted_one_by_one_where_they_are_free() {
    let wanted =
        json!({"plural": "bars", "singular": "bar", "kind": "Foo", "listKind": "FooList", "shortNames": ["b"]});
    let none = json!({"kind": "", "plural": ""});
    let (names, reason, established) = decided(wanted.clone(), none.clone(), &["foos"], &["Foo", "FooList"]);
    assert_eq!(names, json!({"kind": "", "plural": "bars", "singular": "bar", "shortNames": ["b"]}));
    assert_eq!((reason, established), ("ListKindConflict", false));
    let (names, reason, _) = decided(wanted.clone(), none.clone(), &["b"], &[]);
    assert_eq!((names.get("shortNames"), reason), (None, "ShortNamesConflict"));
    let (names, reason, established) = decided(wanted.clone(), none, &[], &[]);
    assert_eq!((&names, reason, established), (&wanted, "NoConflicts", true));
    let (_, reason, _) = decided(wanted.clone(), wanted, &["bars"], &["Foo"]);
    assert_eq!(reason, "NoConflicts", "what it has it keeps");
}

#[tokio::test]
async fn a_server_begins_with_the_kinds_whose_definitions_are_stored() {
    let api = crate::api::in_memory::api();
    let mut keeper = keeper(&api);
    let kind = define(&mut keeper, definition("foos", "Foo")).await;
    let object = json!({"metadata": {"name": "x"}, "a": "b"});
    api.create(&Request::internal("test", &kind, "", ""), object).await.unwrap();

    let again = crate::api::cache::Cache::load(&*api.store).unwrap();
    let found = again.kinds().snapshot().by_kind("example.com/v1", "Foo").cloned().unwrap();
    assert_eq!(again.kind(&found).get(&found.key("", "x")).unwrap().value()["a"], "b");
}
