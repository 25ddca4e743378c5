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
use crate::base::json::{at, list, remove, set, text};
use crate::base::object::Object;
use crate::base::task;
use crate::kinds::apiextensions::customresourcedefinition as crd;
use crate::kinds::{KindRef, Subresource};

/// The manager of what is written here.
const MANAGER: &str = "kube-apiserver";
/// After a failure to write a status.
const RETRY: Duration = Duration::from_secs(1);

/// What is known of a definition. What was decided of it is here: its status is what others may write too.
#[derive(Default)]
struct Followed {
    uid: Box<str>,
    group: String,
    revision: u64,
    /// What its kinds follow from.
    source: Source,
    kinds: Vec<(KindRef, bool)>,
    /// Some name of it is somebody else's.
    waits: bool,
    is_established: bool,
    /// Its status is still to be written.
    is_owed: bool,
}

/// Everything that kinds follow from. Definitions may be large: of what they say there is only the digest.
#[derive(Clone, Debug, Default, PartialEq)]
struct Source {
    spec: Digest,
    versions: Digest,
    accepted: Value,
    is_served: bool,
}

type Digest = Vec<u8>;

/// A condition that is to be: whether it holds, its reason and message.
type Condition = (bool, &'static str, String);

/// Follows the definitions for as long as the server runs.
pub async fn keep(api: Api) {
    let mut keeper = Keeper { api, known: HashMap::new() };
    keeper.begin();
    let mut told = keeper.api.cache.kind(&crd::KIND).subscribe();
    loop {
        told.mark_unchanged();
        keeper.look().await;
        if keeper.known.values().any(|known| known.is_owed) {
            tokio::time::sleep(RETRY).await;
            continue;
        }
        if told.changed().await.is_err() {
            return;
        }
    }
}

// === impl Api ===

impl Api {
    /// The definition that a kind came of, as a precondition for something new of the kind: it lands only if the definition
    /// is not being deleted. Whoever empties the kind after the deletion has begun therefore sees all that there will be.
    pub(super) fn definition_of(&self, kind: &KindRef, name: &str) -> Result<Option<(Arc<str>, u64)>> {
        let Some(of) = kind.as_custom().filter(|of| !of.definition_uid.is_empty()) else { return Ok(None) };
        let key = crd::KIND.key("", &format!("{}.{}", of.plural, of.group));
        match self.cache.kind(&crd::KIND).get(&key).filter(|d| *d.meta.uid == *of.definition_uid) {
            None => Err(Status::not_found(kind, name)),
            Some(definition) if definition.meta.deleted.is_some() => {
                let why = "create not allowed while custom resource definition is terminating";
                Err(Status::forbidden(kind, name, why))
            }
            Some(definition) => Ok(Some((key, definition.revision))),
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
        let digest = |path: &str| {
            let text = at(definition, path).map(Value::to_string).unwrap_or_default();
            ring::digest::digest(&ring::digest::SHA256, text.as_bytes()).as_ref().to_vec()
        };
        Self {
            spec: digest("spec"),
            versions: [digest("spec.versions"), digest("spec.conversion.strategy")].concat(),
            accepted: at(definition, "status.acceptedNames").cloned().unwrap_or(Value::Null),
            is_served: crd::SERVED_CONDITIONS.iter().any(|c| crd::is_true(definition, c)),
        }
    }
}

// === impl Keeper ===

impl Keeper {
    /// What the cache has begun with. Who is older keeps a name that two say they have.
    fn begin(&mut self) {
        let mut all = self.definitions();
        all.sort_by(|a, b| (&a.meta.created, &a.meta.name).cmp(&(&b.meta.created, &b.meta.name)));
        for object in all {
            let mut value = object.value();
            let had = at(&value, "status.acceptedNames").cloned().unwrap_or(Value::Null);
            let (resources, kinds) = self.taken(&object.meta.name, text(&value, "spec.group"));
            let is_double = names_of(&had, &RESOURCE_NAMES).iter().any(|name| resources.contains(name))
                || names_of(&had, &KIND_NAMES).iter().any(|name| kinds.contains(name));
            if is_double {
                self.serve(&crd::kinds(&value).unwrap_or_default(), &[], false);
                remove(&mut value, "status");
            }
            let kinds = crd::kinds(&value).unwrap_or_default();
            self.note(&object, &value, Source::of(&value), kinds);
        }
    }

    fn definitions(&self) -> Vec<Arc<Object>> {
        self.api.cache.kind(&crd::KIND).list("", "")
    }

    fn note(&mut self, object: &Object, value: &Value, source: Source, kinds: Vec<(KindRef, bool)>) {
        let known = Followed {
            uid: object.meta.uid.clone(),
            group: text(value, "spec.group").to_owned(),
            revision: object.revision,
            source,
            kinds,
            waits: !crd::is_true(value, "NamesAccepted"),
            is_established: crd::is_true(value, "Established"),
            is_owed: false,
        };
        self.known.insert(object.meta.name.clone(), known);
    }

    /// Brings everything to what the definitions say now. A definition that cannot be written holds up no other.
    async fn look(&mut self) {
        let mut released = self.forget_absent();
        for object in self.definitions() {
            let known = self.known.get(&object.meta.name);
            if known.is_none_or(|known| known.revision < object.revision || known.waits || known.is_owed) {
                released |= self.follow(&object).await;
            }
        }
        // A name that is free again may be what another waits for.
        while released {
            released = false;
            for object in self.definitions() {
                if self.known.get(&object.meta.name).is_some_and(|known| known.waits) {
                    released |= self.follow(&object).await;
                }
            }
        }
    }

    /// Serves no longer what has no definition; whether there was any.
    fn forget_absent(&mut self) -> bool {
        let present: HashMap<Box<str>, Box<str>> =
            self.definitions().iter().map(|o| (o.meta.name.clone(), o.meta.uid.clone())).collect();
        // Another one of the same name begins anew.
        let gone: Vec<Box<str>> = self
            .known
            .iter()
            .filter(|(name, known)| present.get(&***name) != Some(&known.uid))
            .map(|(name, _)| name.clone())
            .collect();
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
    async fn follow(&mut self, object: &Arc<Object>) -> bool {
        let mut value = object.value();
        let before = self.known.remove(&object.meta.name).unwrap_or_default();
        let now = self.api.clock.now_text();
        let old_status = value.get("status").cloned();
        let (names, accepted, established) = self.decide(&value, &before);
        set(&mut value, "status.acceptedNames", names);
        crd::set_condition(&mut value, "NamesAccepted", (accepted.0, accepted.1, &accepted.2), &now);
        crd::set_condition(&mut value, "Established", (established.0, established.1, &established.2), &now);
        let source = Source::of(&value);
        let released = is_released(&before.source.accepted, &source.accepted);
        let kinds = if source == before.source {
            before.kinds
        } else {
            let kinds = crd::kinds(&value).map_err(Status::internal);
            let kinds =
                kinds.inspect_err(|error| tracing::error!(%error, "a definition cannot be served")).unwrap_or_default();
            // What is stored looks different, or somebody watches a form that is no more.
            self.serve(&before.kinds, &kinds, source.versions != before.source.versions);
            kinds
        };
        self.note(object, &value, source, kinds);
        if value.get("status") != old_status.as_ref() {
            let request = Request::internal(MANAGER, &crd::KIND, "", &object.meta.name).on(Subresource::Status);
            match self.api.update(&request, Change::Replace(value)).await {
                Ok(_) => {}
                // Somebody has changed it meanwhile, which is looked at next.
                Err(status) if matches!(status.code, 404 | 409) => {}
                // It stays as it is until it is written again: nothing else would come of it.
                Err(error) if error.code < 500 => {
                    tracing::warn!(name = %object.meta.name, %error, "the status of a definition is refused");
                }
                Err(error) => {
                    tracing::warn!(name = %object.meta.name, %error, "the status of a definition cannot be written");
                    self.known.entry(object.meta.name.clone()).and_modify(|known| known.is_owed = true);
                }
            }
        }
        released
    }

    /// Names of resources, and of kinds, that other definitions of a group have.
    fn taken(&self, name: &str, group: &str) -> (HashSet<String>, HashSet<String>) {
        let others = || self.known.iter().filter(|(n, k)| &***n != name && k.group == group).map(|(_, k)| k);
        let all = |keys: &[&str]| others().flat_map(|k| names_of(&k.source.accepted, keys)).collect();
        (all(&RESOURCE_NAMES), all(&KIND_NAMES))
    }

    /// The names that a definition gets, and its conditions.
    fn decide(&self, definition: &Value, before: &Followed) -> (Value, Condition, Condition) {
        let (resources, kinds) = self.taken(text(definition, "metadata.name"), text(definition, "spec.group"));
        decide(definition, before, &resources, &kinds)
    }
}

const RESOURCE_NAMES: [&str; 3] = ["plural", "singular", "shortNames"];
const KIND_NAMES: [&str; 2] = ["kind", "listKind"];

/// The names under some keys.
fn names_of(names: &Value, keys: &[&str]) -> Vec<String> {
    let of = |key: &&str| names.get(*key).and_then(Value::as_array).into_iter().flatten().chain(names.get(*key));
    keys.iter().flat_map(of).filter_map(Value::as_str).filter(|n| !n.is_empty()).map(str::to_owned).collect()
}

/// See [`Keeper::decide`]; `resources` and `kinds` are others' names.
fn decide(
    definition: &Value,
    before: &Followed,
    resources: &HashSet<String>,
    kinds: &HashSet<String>,
) -> (Value, Condition, Condition) {
    let wanted = at(definition, "spec.names").unwrap_or(&Value::Null);
    let had = &before.source.accepted;
    let mut names = if had.is_object() { had.clone() } else { json!({}) };
    let mut refused: Option<(&'static str, String)> = None;
    let in_use = |name: &str| format!("{name:?} is already in use");
    for (key, reason, taken) in [
        ("plural", "PluralConflict", resources),
        ("singular", "SingularConflict", resources),
        ("shortNames", "ShortNamesConflict", resources),
        ("kind", "KindConflict", kinds),
        ("listKind", "ListKindConflict", kinds),
    ] {
        // What is new in it and taken.
        let known = names_of(had, &[key]);
        let wanted_names = names_of(wanted, &[key]);
        let conflicts: Vec<String> =
            wanted_names.iter().filter(|n| !known.contains(n) && taken.contains(*n)).map(|n| in_use(n)).collect();
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
    let established = match before.is_established || accepted.0 {
        true => (true, "InitialNamesAccepted", "the initial names have been accepted".to_owned()),
        false => (false, "NotAccepted", "not all names are accepted".to_owned()),
    };
    (names, accepted, established)
}

fn copy(names: &mut Value, wanted: &Value, key: &str) {
    match wanted.get(key) {
        Some(given) => set(names, key, given.clone()),
        None => drop(remove(names, key)),
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
mod tests;
