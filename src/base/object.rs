//! The immutable object that every room passes around in an `Arc`.
//!
//! An object is kept as the JSON bytes that go on the wire, without the `apiVersion` and `kind` that the request's
//! version decides and with its resourceVersion spliced in: lists and watches copy bytes and never serialise again.
//! The stored form is the same text without the resourceVersion (it is the revision of the row), so that
//! `{"metadata":{` + `"resourceVersion":"7",` + the rest of the stored form is the wire form. `metadata` is never empty
//! (every object has a name), which is why the comma is always right.

use std::any::Any;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use super::clock::parse_time;

/// How every stored form begins.
const HEAD: &str = r#"{"metadata":{"#;

/// An API object at one revision.
pub struct Object {
    /// The store key: `/<group>/<plural>/[<namespace>/]<name>`.
    pub key: Arc<str>,
    /// The revision, which is its `metadata.resourceVersion`.
    pub revision: u64,
    /// What most readers want to know without decoding.
    pub meta: Meta,
    /// The selectable fields of its kind, in the order of the kind's list; behind them, of a custom kind, the version in whose
    /// form it is.
    pub fields: Box<[Box<str>]>,
    body: Bytes,
    typed: Mutex<Typed>,
}

/// The typed view of an object. `Unread` becomes `Kept` with the first reader; each of them becomes `Past`, for good,
/// when the object is no longer the newest of its key.
enum Typed {
    Unread,
    Kept(Arc<dyn Any + Send + Sync>),
    /// Whoever still reads it decodes for themselves: views are several times the size of their text.
    Past,
}

/// The parsed part of an object's metadata.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meta {
    pub name: Box<str>,
    /// Empty for cluster-scoped objects.
    pub namespace: Box<str>,
    pub uid: Box<str>,
    pub generation: i64,
    pub created: Option<Timestamp>,
    pub deleted: Option<Timestamp>,
    pub labels: BTreeMap<Box<str>, Box<str>>,
    pub owners: Box<[Owner]>,
    pub finalizers: Box<[Box<str>]>,
}

/// One of `metadata.ownerReferences`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    #[serde(default)]
    pub api_version: Box<str>,
    #[serde(default)]
    pub kind: Box<str>,
    #[serde(default)]
    pub name: Box<str>,
    #[serde(default)]
    pub uid: Box<str>,
    #[serde(default)]
    pub controller: bool,
    #[serde(default)]
    pub block_owner_deletion: bool,
}

// === impl Object ===

impl Object {
    /// An object from its dynamic form; `fields` are its selectable fields. The resourceVersion in `value`, if any, is ignored.
    pub fn new(key: Arc<str>, revision: u64, value: &Value, fields: Box<[Box<str>]>) -> Self {
        let draft = Draft::new(key, value, fields);
        draft.at(revision)
    }

    /// The wire form without `kind` and `apiVersion`: begins with `{"metadata":{"resourceVersion":"`.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The dynamic form (without `kind` and `apiVersion`), decoded anew.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body was written by us")
    }

    /// The typed form, decoded at most once while the object is the newest of its key. One object is always read as one
    /// type. `managedFields` are left out: nobody reads them in this form, and they would be most of its memory.
    pub fn typed<T: DeserializeOwned + Send + Sync + 'static>(&self) -> Result<Arc<T>, serde_json::Error> {
        if let Typed::Kept(typed) = &*self.typed.lock().expect("no panic while held")
            && let Ok(typed) = typed.clone().downcast::<T>()
        {
            return Ok(typed);
        }
        let typed: Arc<T> = Arc::new(serde_json::from_slice(&without_managed_fields(&self.body))?);
        let mut slot = self.typed.lock().expect("no panic while held");
        if matches!(*slot, Typed::Unread) {
            *slot = Typed::Kept(typed.clone());
        }
        Ok(typed)
    }

    /// Lets go of the typed form, for good: the object is history.
    pub fn retire(&self) {
        *self.typed.lock().expect("no panic while held") = Typed::Past;
    }

    /// About how many bytes of memory it takes, without the typed form.
    pub fn weight(&self) -> usize {
        self.body.len() + self.key.len() + 512
    }

    /// The controlling owner, if any.
    pub fn controller(&self) -> Option<&Owner> {
        self.meta.owners.iter().find(|o| o.controller)
    }
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Object({}@{})", self.key, self.revision)
    }
}

/// An object that waits for its revision: what a write hands to the store beside the bytes, so that nobody parses them again.
#[derive(Clone, Debug)]
pub struct Draft {
    key: Arc<str>,
    meta: Meta,
    fields: Box<[Box<str>]>,
    stored: Bytes,
}

// === impl Draft ===

impl Draft {
    /// Serialises `value` into the stored form.
    pub fn new(key: Arc<str>, value: &Value, fields: Box<[Box<str>]>) -> Self {
        Self { key, meta: Meta::of(value), fields, stored: encode(value) }
    }

    /// From the stored form; `fields` computes the selectable fields. An error means the bytes are not an object.
    pub fn decode(
        key: Arc<str>,
        stored: Bytes,
        fields: impl FnOnce(&Value) -> Box<[Box<str>]>,
    ) -> Result<Self, serde_json::Error> {
        let value: Value = serde_json::from_slice(&stored)?;
        Ok(Self { key, meta: Meta::of(&value), fields: fields(&value), stored })
    }

    /// The bytes to store.
    pub fn stored(&self) -> &Bytes {
        &self.stored
    }

    /// The selectable fields.
    pub fn fields(&self) -> &[Box<str>] {
        &self.fields
    }

    /// The object at `revision`.
    pub fn at(&self, revision: u64) -> Object {
        let mut body = BytesMut::with_capacity(self.stored.len() + 44);
        body.extend_from_slice(HEAD.as_bytes());
        body.extend_from_slice(br#""resourceVersion":""#);
        body.extend_from_slice(revision.to_string().as_bytes());
        body.extend_from_slice(br#"","#);
        body.extend_from_slice(&self.stored[HEAD.len()..]);
        Object {
            key: self.key.clone(),
            revision,
            meta: self.meta.clone(),
            fields: self.fields.clone(),
            body: body.freeze(),
            typed: Mutex::new(Typed::Unread),
        }
    }
}

/// The body with `null` in place of `metadata.managedFields`.
fn without_managed_fields(body: &[u8]) -> Cow<'_, [u8]> {
    #[derive(Deserialize)]
    struct Outline<'a> {
        #[serde(borrow)]
        metadata: Metadata<'a>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata<'a> {
        #[serde(borrow)]
        managed_fields: Option<&'a RawValue>,
    }
    let outline: Option<Outline<'_>> = serde_json::from_slice(body).ok();
    let Some(cut) = outline.and_then(|o| o.metadata.managed_fields).map(RawValue::get) else { return body.into() };
    // A borrowed raw value is a part of the text that it was read from.
    let start = cut.as_ptr().addr() - body.as_ptr().addr();
    [&body[..start], b"null", &body[start + cut.len()..]].concat().into()
}

/// The stored form: `metadata` first and without resourceVersion, no `kind`, no `apiVersion`.
fn encode(value: &Value) -> Bytes {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(br#"{"metadata":{"#);
    let entry = |out: &mut Vec<u8>, key: &str, value: &Value| {
        if !out.ends_with(b"{") {
            out.push(b',');
        }
        serde_json::to_writer(&mut *out, key).expect("writing to memory");
        out.push(b':');
        serde_json::to_writer(&mut *out, value).expect("writing to memory");
    };
    for (key, v) in value.get("metadata").and_then(Value::as_object).into_iter().flatten() {
        if key != "resourceVersion" {
            entry(&mut out, key, v);
        }
    }
    out.push(b'}');
    for (key, v) in value.as_object().into_iter().flatten() {
        if !matches!(key.as_str(), "metadata" | "kind" | "apiVersion") {
            entry(&mut out, key, v);
        }
    }
    out.push(b'}');
    out.into()
}

// === impl Meta ===

impl Meta {
    /// Reads the metadata of a dynamic object; what is absent or of a wrong type stays empty.
    pub fn of(value: &Value) -> Self {
        let Some(m) = value.get("metadata") else { return Self::default() };
        let text = |key: &str| Box::from(m.get(key).and_then(Value::as_str).unwrap_or(""));
        let time = |key: &str| m.get(key).and_then(Value::as_str).and_then(parse_time);
        let labels = m
            .get("labels")
            .and_then(Value::as_object)
            .map(|l| l.iter().filter_map(|(k, v)| Some((Box::from(k.as_str()), Box::from(v.as_str()?)))).collect());
        let owners = m.get("ownerReferences").and_then(|o| Vec::<Owner>::deserialize(o).ok());
        let finalizers = m.get("finalizers").and_then(Value::as_array);
        Self {
            name: text("name"),
            namespace: text("namespace"),
            uid: text("uid"),
            generation: m.get("generation").and_then(Value::as_i64).unwrap_or(0),
            created: time("creationTimestamp"),
            deleted: time("deletionTimestamp"),
            labels: labels.unwrap_or_default(),
            owners: owners.unwrap_or_default().into(),
            finalizers: finalizers.into_iter().flatten().filter_map(|f| f.as_str().map(Box::from)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_wire_form_is_the_stored_form_with_the_revision_spliced_in() {
        let value = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "b"},
            "metadata": {"name": "x", "namespace": "n", "resourceVersion": "3", "labels": {"l": "1"}}});
        let draft = Draft::new("/core/configmaps/n/x".into(), &value, Box::default());
        let object = draft.at(7);
        let expect =
            r#"{"metadata":{"resourceVersion":"7","labels":{"l":"1"},"name":"x","namespace":"n"},"data":{"a":"b"}}"#;
        assert_eq!(&object.body()[..], expect.as_bytes());
        let again = Draft::decode(object.key.clone(), draft.stored().clone(), |_| Box::default()).unwrap().at(7);
        assert_eq!(again.body(), object.body());
        assert_eq!(again.meta, object.meta);
        assert_eq!(&*again.meta.labels["l"], "1");
    }

    #[test]
    fn the_typed_form_is_decoded_once() {
        use k8s_openapi::api::core::v1::ConfigMap;
        let value = json!({"metadata": {"name": "x"}, "data": {"a": "b"}});
        let object = Object::new("/core/configmaps/n/x".into(), 1, &value, Box::default());
        let first = object.typed::<ConfigMap>().unwrap();
        assert!(Arc::ptr_eq(&first, &object.typed::<ConfigMap>().unwrap()));
        assert_eq!(first.metadata.resource_version.as_deref(), Some("1"));
        object.retire();
        let second = object.typed::<ConfigMap>().unwrap();
        assert!(!Arc::ptr_eq(&first, &second) && *first == *second);
        assert!(!Arc::ptr_eq(&second, &object.typed::<ConfigMap>().unwrap()), "views of the past are not kept");
    }

    #[test]
    fn the_typed_form_has_no_managed_fields_and_everything_else() {
        use k8s_openapi::api::core::v1::ConfigMap;
        let data = json!({"managedFields": "of \"metadata\": not mine", "z": "\u{20ac}"});
        let mut value = json!({"data": data, "metadata": {"annotations": {"managedFields": "nor this"}, "name": "x",
            "managedFields": [{"manager": "a", "operation": "Update", "fieldsV1": {"f:data": {"f:]}": {}}}}]}});
        let read = |v: &Value| Object::new("/core/configmaps/n/x".into(), 1, v, Box::default()).typed::<ConfigMap>();
        let with = read(&value).unwrap();
        value["metadata"].as_object_mut().unwrap().remove("managedFields");
        assert_eq!(*with, *read(&value).unwrap());
        assert_eq!(with.data.as_ref().unwrap()["z"], "\u{20ac}");
    }
}
