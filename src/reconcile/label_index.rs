//! Objects grouped by what a label of theirs names, such as EndpointSlices by their Service.
//!
//! Invariant: an object is in one group at most, that of the label it has now; every group that gained, lost or changed
//! a member is named to the caller.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Key;
use crate::base::object::Object;

/// Says which Service an EndpointSlice belongs to.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Objects by the name in one label, in their own namespace.
#[derive(Debug)]
pub struct LabelIndex {
    label: &'static str,
    groups: HashMap<Key, BTreeMap<Arc<str>, Arc<Object>>>,
    /// In which group each object is.
    places: HashMap<Key, Key>,
}

// === impl LabelIndex ===

impl LabelIndex {
    /// Nothing, to be grouped by `label`.
    pub fn by(label: &'static str) -> Self {
        Self { label, groups: HashMap::new(), places: HashMap::new() }
    }

    /// The members of a group, by name.
    pub fn members(&self, group: &Key) -> impl Iterator<Item = &Arc<Object>> {
        self.groups.get(group).into_iter().flat_map(BTreeMap::values)
    }

    /// Takes in an object as it is now; answers the groups this touched.
    pub fn take(&mut self, object: &Arc<Object>, deleted: bool) -> impl Iterator<Item = Key> + use<> {
        let key = Key::of(object);
        let before = self.places.remove(&key);
        if let Some(before) = &before
            && let Some(group) = self.groups.get_mut(before)
        {
            group.remove(&key.name);
            if group.is_empty() {
                self.groups.remove(before);
            }
        }
        let name = object.meta.labels.get(self.label).filter(|_| !deleted);
        let now = name.map(|name| Key::new(&key.namespace, name));
        if let Some(now) = &now {
            self.groups.entry(now.clone()).or_default().insert(key.name.clone(), object.clone());
            self.places.insert(key, now.clone());
        }
        before.into_iter().chain(now)
    }

    /// These are all objects there are; answers the groups there were and are.
    pub fn replace(&mut self, all: &[Arc<Object>]) -> Vec<Key> {
        self.places.clear();
        let mut touched: Vec<Key> = std::mem::take(&mut self.groups).into_keys().collect();
        touched.extend(all.iter().flat_map(|object| self.take(object, false)));
        touched
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(name: &str, service: Option<&str>) -> Arc<Object> {
        let mut value = json!({"metadata": {"namespace": "n", "name": name, "labels": {}}});
        if let Some(service) = service {
            value["metadata"]["labels"][SERVICE_NAME] = service.into();
        }
        Arc::new(Object::new(format!("/d/n/{name}").into(), 1, &value, Box::default()))
    }

    #[test]
    fn an_object_follows_its_label() {
        let mut grouped = LabelIndex::by(SERVICE_NAME);
        let (a, b) = (Key::new("n", "a"), Key::new("n", "b"));
        let names = |g: &LabelIndex, k: &Key| g.members(k).map(|o| o.meta.name.to_string()).collect::<Vec<_>>();
        let took = |g: &mut LabelIndex, o: &Arc<Object>, deleted| g.take(o, deleted).collect::<Vec<_>>();
        assert_eq!(took(&mut grouped, &object("x", Some("a")), false), [a.clone()]);
        assert_eq!(grouped.take(&object("x", Some("b")), false).collect::<Vec<_>>(), [a.clone(), b.clone()]);
        assert_eq!((names(&grouped, &a).len(), names(&grouped, &b)), (0, vec!["x".to_owned()]));
        assert_eq!(grouped.replace(&[object("y", Some("a"))]), [b.clone(), a.clone()]);
        assert_eq!(grouped.take(&object("y", None), true).collect::<Vec<_>>(), [a.clone()]);
        assert_eq!(names(&grouped, &a).len() + names(&grouped, &b).len(), 0);
    }
}
