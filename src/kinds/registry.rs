//! The kinds that a server serves now: the built-in ones and the custom ones that come and go.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use tokio::sync::watch;

use super::{BUILTIN, KindRef};

/// The kinds of a running server; cheap to clone. Readers take a [`Snapshot`], which a change replaces as a whole.
#[derive(Clone, Debug)]
pub struct Registry(Arc<watch::Sender<Arc<Snapshot>>>);

/// The kinds at one moment.
#[derive(Debug)]
pub struct Snapshot {
    kinds: Vec<KindRef>,
    /// By plural name: few kinds have the same one.
    by_plural: HashMap<String, Vec<usize>>,
}

static BUILTIN_KINDS: LazyLock<Arc<Snapshot>> = LazyLock::new(|| Arc::new(Snapshot::new(BUILTIN.to_vec())));

/// The built-in kinds.
pub fn builtin() -> &'static Snapshot {
    &BUILTIN_KINDS
}

// === impl Registry ===

impl Registry {
    /// The built-in kinds and no other.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(BUILTIN_KINDS.clone())))
    }

    /// The kinds as they are now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.borrow().clone()
    }

    /// Serves a kind from now on; one of the same group, version and plural name is replaced.
    pub fn add(&self, kind: KindRef) {
        self.0.send_modify(|now| {
            let others = now.kinds.iter().filter(|k| **k != kind).cloned();
            *now = Arc::new(Snapshot::new(others.chain([kind.clone()]).collect()));
        });
    }

    /// Serves kinds in the place of others, at once.
    pub fn replace(&self, old: &[KindRef], new: &[KindRef]) {
        self.0.send_modify(|now| {
            let others = now.kinds.iter().filter(|k| !old.contains(k) && !new.contains(k)).cloned();
            *now = Arc::new(Snapshot::new(others.chain(new.iter().cloned()).collect()));
        });
    }

    /// Serves a kind no longer.
    pub fn remove(&self, kind: &KindRef) {
        self.0.send_modify(|now| {
            *now = Arc::new(Snapshot::new(now.kinds.iter().filter(|k| *k != kind).cloned().collect()));
        });
    }

    /// Wakes on each change; the first value counts as seen.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.0.subscribe()
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Snapshot ===

impl Snapshot {
    fn new(mut kinds: Vec<KindRef>) -> Self {
        let order = |k: &KindRef, of: &KindRef| {
            (k.group(), k.plural(), k.version()).cmp(&(of.group(), of.plural(), of.version()))
        };
        // One came or went: all others are in order.
        kinds.sort_by(order);
        let mut by_plural: HashMap<String, Vec<usize>> = HashMap::new();
        for (i, kind) in kinds.iter().enumerate() {
            by_plural.entry(kind.plural().to_owned()).or_default().push(i);
        }
        Self { kinds, by_plural }
    }

    /// Every kind, by group and plural name.
    pub fn iter(&self) -> impl Iterator<Item = &KindRef> {
        self.kinds.iter()
    }

    /// The kinds under whose own keys objects are stored.
    pub fn stored(&self) -> impl Iterator<Item = &KindRef> {
        self.kinds.iter().filter(|k| k.owns_storage())
    }

    /// The kind served under a group, version and plural name.
    pub fn by_plural(&self, group: &str, version: &str, plural: &str) -> Option<&KindRef> {
        self.named(plural).find(|k| k.group() == group && k.version() == version)
    }

    /// The kind of an `apiVersion` and `kind`.
    pub fn by_kind(&self, api_version: &str, kind: &str) -> Option<&KindRef> {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        self.kinds.iter().find(|k| k.kind() == kind && k.group() == group && k.version() == version)
    }

    /// The kind under whose prefix a store key lies.
    pub fn by_key(&self, key: &str) -> Option<&KindRef> {
        let mut parts = key.splitn(4, '/').skip(1);
        let (group, plural) = (parts.next()?, parts.next()?);
        let group = if group == "core" { "" } else { group };
        self.named(plural).find(|k| k.group() == group && k.owns_storage())
    }

    fn named(&self, plural: &str) -> impl Iterator<Item = &KindRef> {
        self.by_plural.get(plural).into_iter().flatten().map(|i| &self.kinds[*i])
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn names_are_unique_and_keys_lead_back() {
        let all = builtin();
        assert!(all.iter().count() >= 35, "the linker left kinds out");
        for a in all.iter() {
            assert_eq!(all.iter().filter(|b| *b == a).count(), 1, "{a:?} is there twice");
            assert_eq!(all.by_kind(&a.api_version(), a.kind()), Some(a));
            assert_eq!(all.by_plural(a.group(), a.version(), a.plural()), Some(a));
            if a.is_stored() {
                assert_eq!(all.by_key(&a.key("ns", "name")), Some(a.stored()));
            }
            assert!(a.type_ref().as_struct().is_some(), "{a:?} has no schema");
            let row = a.row(&serde_json::json!({"metadata": {}}), Timestamp::UNIX_EPOCH);
            // Kubernetes shows a cell of an IPAddress under no column.
            let more = usize::from(a.kind() == "IPAddress");
            assert_eq!(row.len(), a.columns().len() + more, "{a:?}");
        }
    }
}
