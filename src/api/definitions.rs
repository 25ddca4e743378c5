//! Custom kinds come and go with their definitions: names are accepted where nobody else has them, and what is accepted is
//! served (`k8s.io/apiextensions-apiserver/pkg/controller/status` and `.../establish`).
//!
//! A kind is served before its definition says `Established`, so that whoever has waited for the condition finds it. At the
//! start of a server the kinds are there before anybody asks: the cache begins with what is stored.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::write::Change;
use super::{Api, Request};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{at, list, set, text};
use crate::base::object::Object;
use crate::base::task;
use crate::kinds::apiextensions::customresourcedefinition as crd;
use crate::kinds::{KindRef, Subresource};

/// The manager of what is written here.
const MANAGER: &str = "kube-apiserver";
/// After a failure to write a status.
const RETRY: Duration = Duration::from_secs(1);

/// What is known of a definition.
struct Followed {
    group: String,
    revision: u64,
    /// What its kinds follow from.
    source: Source,
    kinds: Vec<(KindRef, bool)>,
    accepted: Value,
    /// Some name of it is somebody else's.
    waits: bool,
}

/// Everything that kinds follow from.
#[derive(Clone, Debug, Default, PartialEq)]
struct Source {
    spec: Value,
    accepted: Value,
    is_served: bool,
    is_ending: bool,
}

/// A condition that is to be: whether it holds, its reason and message.
type Condition = (bool, &'static str, String);

/// Follows the definitions for as long as the server runs.
pub async fn keep(api: Api) {
    let mut keeper = Keeper { api, known: HashMap::new() };
    keeper.begin();
    let mut told = keeper.api.cache.kind(&crd::KIND).subscribe();
    loop {
        told.mark_unchanged();
        if let Err(error) = keeper.look().await {
            tracing::warn!(%error, "a definition of a custom kind cannot be written");
            tokio::time::sleep(RETRY).await;
            continue;
        }
        if told.changed().await.is_err() {
            return;
        }
    }
}

struct Keeper {
    api: Api,
    /// By name.
    known: HashMap<Box<str>, Followed>,
}

// === impl Source ===

impl Source {
    fn of(definition: &Value) -> Self {
        let part = |path: &str| at(definition, path).cloned().unwrap_or(Value::Null);
        Self {
            spec: part("spec"),
            accepted: part("status.acceptedNames"),
            is_served: crd::SERVED_CONDITIONS.iter().any(|c| crd::is_true(definition, c)),
            is_ending: at(definition, "metadata.deletionTimestamp").is_some(),
        }
    }

    /// Whether objects that are stored look different from now on.
    fn changes_objects(&self, before: &Self) -> bool {
        let shape = |source: &Self| {
            let stored = list(&source.spec, "versions").iter().find(|v| crate::base::json::flag(v, "storage"));
            let fields = list(&source.spec, "versions").iter().map(|v| v.get("selectableFields").cloned());
            (stored.and_then(|v| v.get("schema").cloned()), fields.collect::<Vec<_>>())
        };
        shape(self) != shape(before)
    }
}

// === impl Keeper ===

impl Keeper {
    /// What the cache has begun with.
    fn begin(&mut self) {
        for object in self.definitions() {
            let value = object.value();
            let kinds = crd::kinds(&value).unwrap_or_default();
            self.note(&object, &value, Source::of(&value), kinds);
        }
    }

    fn definitions(&self) -> Vec<Arc<Object>> {
        self.api.cache.kind(&crd::KIND).list("", "")
    }

    fn note(&mut self, object: &Object, value: &Value, source: Source, kinds: Vec<(KindRef, bool)>) {
        let known = Followed {
            group: text(value, "spec.group").to_owned(),
            revision: object.revision,
            source,
            kinds,
            accepted: at(value, "status.acceptedNames").cloned().unwrap_or(Value::Null),
            waits: !crd::is_true(value, "NamesAccepted"),
        };
        self.known.insert(object.meta.name.clone(), known);
    }

    /// Brings everything to what the definitions say now.
    async fn look(&mut self) -> Result<()> {
        let mut released = self.forget_absent();
        for object in self.definitions() {
            let known = self.known.get(&object.meta.name);
            if known.is_none_or(|known| known.revision < object.revision || known.waits) {
                released |= self.follow(&object).await?;
            }
        }
        // A name that is free again may be what another waits for.
        while released {
            released = false;
            for object in self.definitions() {
                if self.known.get(&object.meta.name).is_some_and(|known| known.waits) {
                    released |= self.follow(&object).await?;
                }
            }
        }
        Ok(())
    }

    /// Serves no longer what has no definition; whether there was any.
    fn forget_absent(&mut self) -> bool {
        let present: HashSet<Box<str>> = self.definitions().iter().map(|o| o.meta.name.clone()).collect();
        let gone: Vec<Box<str>> = self.known.keys().filter(|name| !present.contains(*name)).cloned().collect();
        for name in &gone {
            if let Some(known) = self.known.remove(name) {
                self.serve(&known.kinds, &[], false);
            }
        }
        !gone.is_empty()
    }

    fn serve(&self, old: &[(KindRef, bool)], new: &[(KindRef, bool)], reload: bool) {
        let old: Vec<KindRef> = old.iter().map(|(kind, _)| kind.clone()).collect();
        let set = || self.api.cache.set_kinds(&*self.api.store, &old, new, reload);
        if let Err(error) = task::in_place(true, set) {
            tracing::error!(?new, %error, "the objects of a custom kind cannot be read");
        }
    }

    /// Accepts the names of a definition as far as they are free, serves its kinds, and says so; whether it let go of a name.
    async fn follow(&mut self, object: &Arc<Object>) -> Result<bool> {
        let mut value = object.value();
        let before = self.known.remove(&object.meta.name);
        let was_accepted = at(&value, "status.acceptedNames").cloned().unwrap_or(Value::Null);
        let now = self.api.clock.now_text();
        let old_status = value.get("status").cloned();
        let (names, accepted, established) = self.decide(&value);
        set(&mut value, "status.acceptedNames", names);
        crd::set_condition(&mut value, "NamesAccepted", (accepted.0, accepted.1, &accepted.2), &now);
        crd::set_condition(&mut value, "Established", (established.0, established.1, &established.2), &now);
        let source = Source::of(&value);
        let (old_kinds, old_source) = before.map_or_else(Default::default, |known| (known.kinds, known.source));
        let kinds = if source == old_source {
            old_kinds
        } else {
            let kinds = crd::kinds(&value).map_err(Status::internal);
            let kinds =
                kinds.inspect_err(|error| tracing::error!(%error, "a definition cannot be served")).unwrap_or_default();
            let reload = source.changes_objects(&old_source);
            self.serve(&old_kinds, &kinds, reload);
            kinds
        };
        let released = is_released(&was_accepted, &source.accepted);
        self.note(object, &value, source, kinds);
        if value.get("status") != old_status.as_ref() {
            let request = Request::internal(MANAGER, &crd::KIND, "", &object.meta.name).on(Subresource::Status);
            match self.api.update(&request, Change::Replace(value)).await {
                Ok(_) => {}
                // Somebody has changed it meanwhile, which is looked at next.
                Err(status) if matches!(status.code, 404 | 409) => {}
                Err(status) => return Err(status),
            }
        }
        Ok(released)
    }

    /// The names that a definition gets, and its conditions.
    fn decide(&self, definition: &Value) -> (Value, Condition, Condition) {
        let name = text(definition, "metadata.name");
        let group = text(definition, "spec.group");
        let others: Vec<&Value> =
            self.known.iter().filter(|(n, k)| &***n != name && k.group == group).map(|(_, k)| &k.accepted).collect();
        let taken = |keys: &[&str]| -> HashSet<String> {
            let mut all: HashSet<String> = HashSet::new();
            for other in &others {
                all.extend(keys.iter().map(|key| text(other, key).to_owned()));
                if keys.contains(&"plural") {
                    all.extend(list(other, "shortNames").iter().filter_map(|n| n.as_str().map(str::to_owned)));
                }
            }
            all
        };
        let wanted = at(definition, "spec.names").cloned().unwrap_or(Value::Null);
        let resources = taken(&["plural", "singular"]);
        decide(&wanted, definition, &resources, &taken(&["kind", "listKind"]))
    }
}

/// See [`Keeper::decide`]; `resources` and `kinds` are others' names.
fn decide(
    wanted: &Value,
    definition: &Value,
    resources: &HashSet<String>,
    kinds: &HashSet<String>,
) -> (Value, Condition, Condition) {
    let had = at(definition, "status.acceptedNames").cloned().unwrap_or(Value::Null);
    let mut names = had.clone();
    let mut refused: Option<(&'static str, String)> = None;
    let in_use = |name: &str| format!("{name:?} is already in use");
    for (key, reason, taken) in [
        ("plural", "PluralConflict", resources),
        ("singular", "SingularConflict", resources),
        ("shortNames", "ShortNamesConflict", resources),
        ("kind", "KindConflict", kinds),
        ("listKind", "ListKindConflict", kinds),
    ] {
        // A list or a text: what is new in it and taken.
        let part = |of: &Value| -> Vec<String> {
            let texts = of.get(key).and_then(Value::as_array).into_iter().flatten().chain(of.get(key));
            texts.filter_map(|n| n.as_str().map(str::to_owned)).collect()
        };
        let known = part(&had);
        let conflicts: Vec<String> =
            part(wanted).iter().filter(|n| !known.contains(n) && taken.contains(*n)).map(|n| in_use(n)).collect();
        if !conflicts.is_empty() {
            refused = Some((reason, conflicts.join(", ")));
            continue;
        }
        copy(&mut names, wanted, key);
    }
    copy(&mut names, wanted, "categories");
    for key in ["kind", "plural"] {
        crate::base::json::set_default(&mut names, key, json!(""));
    }
    let accepted = match &refused {
        None => (true, "NoConflicts", "no conflicts found".to_owned()),
        Some((reason, message)) => (false, *reason, message.clone()),
    };
    let established = match crd::condition(definition, "Established") {
        Some(now) if text(now, "status") == "True" => (true, "InitialNamesAccepted", text(now, "message").to_owned()),
        _ if accepted.0 => (true, "InitialNamesAccepted", "the initial names have been accepted".to_owned()),
        _ => (false, "NotAccepted", "not all names are accepted".to_owned()),
    };
    (names, accepted, established)
}

fn copy(names: &mut Value, wanted: &Value, key: &str) {
    match wanted.get(key) {
        Some(given) => set(names, key, given.clone()),
        None => drop(crate::base::json::remove(names, key)),
    }
}

/// Whether a name was given up.
fn is_released(before: &Value, now: &Value) -> bool {
    let short = |of: &Value| list(of, "shortNames").to_vec();
    ["plural", "singular", "kind", "listKind"]
        .iter()
        .any(|key| !text(before, key).is_empty() && text(before, key) != text(now, key))
        || short(before).iter().any(|n| !short(now).contains(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(wanted: Value, had: Value, resources: &[&str], kinds: &[&str]) -> (Value, &'static str, bool) {
        let definition = json!({"status": {"acceptedNames": had}});
        let set = |all: &[&str]| all.iter().map(|n| (*n).to_owned()).collect();
        let (names, accepted, established) = decide(&wanted, &definition, &set(resources), &set(kinds));
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
        let definition = json!({
            "metadata": {"name": "foos.example.com"},
            "spec": {"group": "example.com", "scope": "Cluster", "names": {"kind": "Foo", "plural": "foos"}, "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"a": {"type": "string"}}}},
            }]},
        });
        api.create(&Request::internal("test", &crd::KIND, "", ""), definition).await.unwrap();
        let mut keeper = Keeper { api: api.clone(), known: HashMap::new() };
        keeper.look().await.unwrap();
        let kind = api.kinds.snapshot().by_kind("example.com/v1", "Foo").unwrap().clone();
        let object = json!({"metadata": {"name": "x"}, "a": "b"});
        api.create(&Request::internal("test", &kind, "", ""), object).await.unwrap();

        let again = crate::api::cache::Cache::load(&*api.store).unwrap();
        let found = again.kinds().snapshot().by_kind("example.com/v1", "Foo").cloned().unwrap();
        assert_eq!(again.kind(&found).get(&found.key("", "x")).unwrap().value()["a"], "b");
    }
}
