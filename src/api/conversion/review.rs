//! `ConversionReview`: what a webhook is asked, and how its answer is read
//! (`k8s.io/apiextensions-apiserver/pkg/apiserver/conversion/webhook_converter.go`).

use serde_json::{Value, json};

use crate::base::budget::shortened;
use crate::base::json::text;
use crate::kinds::field::Errors;
use crate::kinds::{KindRef, meta};

/// What is shown of something that a webhook has answered.
const SHOWN_BYTES_MAX: usize = 256;

/// What is asked, in one of the versions that the webhook reads.
pub(super) struct Question<'q> {
    uid: String,
    version: &'static str,
    to: &'q KindRef,
    originals: &'q [Value],
}

// === impl Question ===

impl<'q> Question<'q> {
    /// Asks for objects as of another version of their kind; the error says why the webhook cannot be asked.
    pub fn new(uid: String, known: &[String], to: &'q KindRef, originals: &'q [Value]) -> Result<Self, String> {
        let version = known.iter().find_map(|version| match version.as_str() {
            "v1" => Some("apiextensions.k8s.io/v1"),
            "v1beta1" => Some("apiextensions.k8s.io/v1beta1"),
            _ => None,
        });
        let version = version.ok_or("no supported conversion review versions")?;
        Ok(Self { uid, version, to, originals })
    }

    /// The body of the question.
    pub fn body(&self) -> Value {
        json!({
            "kind": "ConversionReview", "apiVersion": self.version,
            "request": {"uid": self.uid, "desiredAPIVersion": self.to.api_version(), "objects": self.originals},
            "response": {"uid": "", "convertedObjects": null, "result": {"metadata": {}}},
        })
    }

    /// Which conversion it is, for messages: of one object what it is, of several what is wanted.
    pub fn subject(&self) -> String {
        match self.originals {
            [one] => format!("{}, Kind={}", text(one, "apiVersion"), text(one, "kind")),
            _ => format!("{}, Kind={}", self.to.api_version(), self.to.list_kind()),
        }
    }

    /// The converted objects of an answer, in the order of the originals and with their metadata but for labels and
    /// annotations; the error says what is wrong.
    pub fn read(&self, answer: Value) -> Result<Vec<Value>, String> {
        let subject = self.subject();
        let converted =
            self.response(answer).map_err(|why| format!("conversion webhook for {subject} failed: {why}"))?;
        if converted.len() != self.originals.len() {
            let (given, expected) = (converted.len(), self.originals.len());
            return Err(format!("conversion webhook for {subject} returned {given} objects, expected {expected}"));
        }
        let pairs = self.originals.iter().zip(converted).enumerate();
        let checked = pairs.map(|(i, (original, converted))| {
            let told = self.told(i);
            self.checked(original, converted, &told).map_err(|why| format!("conversion webhook for {subject} {why}"))
        });
        checked.collect()
    }

    fn response(&self, mut answer: Value) -> Result<Vec<Value>, String> {
        let strict = self.version.ends_with("/v1");
        let (version, kind) = (text(&answer, "apiVersion"), text(&answer, "kind"));
        if strict && (version, kind) != (self.version, "ConversionReview") {
            let (version, kind) = (shortened(version, SHOWN_BYTES_MAX), shortened(kind, SHOWN_BYTES_MAX));
            let wanted = self.version;
            return Err(format!(
                "expected webhook response of {wanted}, Kind=ConversionReview, got {version}, Kind={kind}"
            ));
        }
        if !answer["response"].is_object() {
            return Err("no response provided".to_owned());
        }
        let uid = text(&answer, "response.uid");
        if strict && uid != self.uid {
            return Err(format!("expected response.uid={:?}, got {:?}", self.uid, shortened(uid, SHOWN_BYTES_MAX)));
        }
        let status = text(&answer, "response.result.status");
        if status != "Success" {
            return Err(match text(&answer, "response.result.message") {
                "" => format!("response.result.status was '{}', not 'Success'", shortened(status, SHOWN_BYTES_MAX)),
                message => shortened(message, 4 * SHOWN_BYTES_MAX).into_owned(),
            });
        }
        match answer["response"]["convertedObjects"].take() {
            Value::Array(objects) => Ok(objects),
            _ => Ok(Vec::new()),
        }
    }

    /// How an object of the answer is told of: Kubernetes counts those of a list from one.
    fn told(&self, index: usize) -> Told {
        match self.originals.len() {
            1 => Told {
                version: "returned invalid object at index 0".into(),
                object: "returned invalid object".into(),
                metadata: "returned invalid metadata".into(),
            },
            _ => {
                let object = format!("returned invalid converted object at index {}", index + 1);
                Told {
                    version: object.clone(),
                    object,
                    metadata: format!("returned invalid metadata in object at index {}", index + 1),
                }
            }
        }
    }

    fn checked(&self, original: &Value, mut converted: Value, told: &Told) -> Result<Value, String> {
        if !converted.is_object() || text(&converted, "kind").is_empty() {
            let shown = converted.to_string();
            return Err(format!(
                "{}: Object 'Kind' is missing in '{}'",
                told.version,
                shortened(&shown, SHOWN_BYTES_MAX)
            ));
        }
        let (wanted, given) = (self.to.api_version(), text(&converted, "apiVersion"));
        if given != wanted {
            let given = shortened(given, SHOWN_BYTES_MAX);
            return Err(format!("{}: invalid groupVersion (expected {wanted}, received {given})", told.version));
        }
        let (wanted, given) = (text(original, "kind"), text(&converted, "kind"));
        if given != wanted {
            let given = shortened(given, SHOWN_BYTES_MAX);
            return Err(format!("{}: invalid kind (expected {wanted}, received {given})", told.version));
        }
        for (path, name) in [("metadata.name", "name"), ("metadata.namespace", "namespace"), ("metadata.uid", "UID")] {
            let (was, is) = (text(original, path), text(&converted, path));
            if was != is {
                let is = shortened(is, SHOWN_BYTES_MAX);
                return Err(format!("{}: must have the same {name}: {was} != {is}", told.object));
            }
        }
        restore_metadata(original, &mut converted).map_err(|why| format!("{}: {why}", told.metadata))?;
        Ok(converted)
    }
}

/// How what is wrong with an object begins.
struct Told {
    version: String,
    object: String,
    metadata: String,
}

/// Gives a converted object the metadata of the original, with the labels and annotations that the webhook gave it.
fn restore_metadata(original: &Value, converted: &mut Value) -> Result<(), String> {
    let mut given = match converted.get_mut("metadata").map(Value::take) {
        Some(Value::Object(given)) => given,
        Some(other) => return Err(format!("invalid metadata of type {} in converted object", go_type(&other))),
        None => return Err("missing metadata in converted object".to_owned()),
    };
    let mut metadata = original["metadata"].as_object().cloned().unwrap_or_default();
    for key in ["labels", "annotations"] {
        let new = match given.remove(key) {
            None | Some(Value::Null) => {
                metadata.remove(key);
                continue;
            }
            Some(new @ Value::Object(_)) => new,
            Some(other) => {
                return Err(format!("invalid metadata.{key} of type {} in converted object", go_type(&other)));
            }
        };
        let mut members = new.as_object().into_iter().flatten();
        if let Some((name, value)) = members.find(|(_, value)| !value.is_string()) {
            let (name, found) = (shortened(name, SHOWN_BYTES_MAX), go_type(value));
            return Err(format!("metadata.{key}[{name}] must be a string, but is {found} in converted object"));
        }
        if metadata.get(key) != Some(&new) {
            let errors = match key {
                "labels" => meta::labels("metadata.labels", Some(&new)),
                _ => meta::annotations("metadata.annotation", Some(&new)),
            };
            aggregate(&errors)?;
        }
        metadata.insert(key.to_owned(), new);
    }
    converted["metadata"] = Value::Object(metadata);
    Ok(())
}

/// Errors as one text.
fn aggregate(errors: &Errors) -> Result<(), String> {
    let mut texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    texts.dedup();
    match &texts[..] {
        [] => Ok(()),
        [one] => Err(one.clone()),
        all => Err(shortened(&format!("[{}]", all.join(", ")), 4 * SHOWN_BYTES_MAX).into_owned()),
    }
}

/// What a value of JSON is in Go.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_i64() => "int64",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::custom::CustomKind;
    use crate::schema::{CustomNames, Schema};

    fn kind() -> KindRef {
        let names =
            CustomNames { definition: "com.example.v2.Link", group: "example.com", version: "v2", kind: "Link" };
        let schema = Schema::custom(&names, &json!({"type": "object"})).unwrap().into();
        let (group, version) = ("example.com".into(), "v2".into());
        let (kind, list_kind, plural) = ("Link".into(), "LinkList".into(), "links".into());
        KindRef::custom(CustomKind { group, version, kind, list_kind, plural, ..CustomKind::bare(schema) })
    }

    fn link(version: &str, name: &str) -> Value {
        json!({"apiVersion": format!("example.com/{version}"), "kind": "Link",
            "metadata": {"name": name, "labels": {"a": "b"}, "generation": 3}})
    }

    fn answered(reviews: &str, change: impl Fn(&mut Value)) -> Result<Vec<Value>, String> {
        let (kind, originals) = (kind(), [link("v1", "a"), link("v1", "b")]);
        let question = Question::new("u".into(), &[reviews.to_owned()], &kind, &originals)?;
        let asked = question.body();
        let objects = json!([link("v2", "a"), link("v2", "b")]);
        let response = json!({"uid": "u", "result": {"status": "Success"}, "convertedObjects": objects});
        let mut answer = json!({"kind": "ConversionReview", "apiVersion": asked["apiVersion"], "response": response});
        change(&mut answer);
        question.read(answer)
    }

    #[test]
    fn of_several_objects_each_is_told_by_its_number() {
        let second = "/response/convertedObjects/1";
        let set = |path: &'static str, value: Value| {
            answered("v1", move |answer| *answer.pointer_mut(path).unwrap() = value.clone()).unwrap_err()
        };
        let list = "conversion webhook for example.com/v2, Kind=LinkList";
        let at = format!("{list} returned invalid converted object at index 2");
        assert_eq!(
            set("/response/convertedObjects/1/metadata/name", "c".into()),
            format!("{at}: must have the same name: b != c")
        );
        assert_eq!(
            set("/response/convertedObjects/1/apiVersion", "example.com/v1".into()),
            format!("{at}: invalid groupVersion (expected example.com/v2, received example.com/v1)")
        );
        assert_eq!(
            set("/response/convertedObjects/1/metadata/labels", 1.into()),
            format!(
                "{list} returned invalid metadata in object at index 2: invalid metadata.labels of type int64 in converted object"
            )
        );
        assert_eq!(set(second, 1.into()), format!("{at}: Object 'Kind' is missing in '1'"));
        assert_eq!(set("/response/convertedObjects", json!([])), format!("{list} returned 0 objects, expected 2"));
        assert_eq!(set("/response", Value::Null), format!("{list} failed: no response provided"));
        let expected =
            "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got x, Kind=ConversionReview";
        assert_eq!(set("/apiVersion", "x".into()), format!("{list} failed: {expected}"));
    }

    #[test]
    fn metadata_is_the_originals_and_the_older_review_is_looked_at_less() {
        let changed = |answer: &mut Value| {
            let object = &mut answer["response"]["convertedObjects"][0];
            object["metadata"] = json!({"name": "a", "generation": 9, "annotations": {"c": "d"}});
        };
        let read = answered("v1", changed).unwrap();
        assert_eq!(read[0]["metadata"], json!({"name": "a", "generation": 3, "annotations": {"c": "d"}}));
        assert_eq!(read[1], link("v2", "b"));
        let odd = |answer: &mut Value| {
            answer["response"]["uid"] = "other".into();
            answer["kind"] = "".into();
        };
        assert!(answered("v1", odd).is_err() && answered("v1beta1", odd).is_ok());
        assert_eq!(answered("v3", |_| ()).unwrap_err(), "no supported conversion review versions");
    }
}
