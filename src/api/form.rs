//! From request bytes to a dynamic object of a kind, and from one served version to the stored one.

use serde_json::Value;

use super::{FieldValidation, Request};
use crate::apimachinery::status::{Result, Status};
use crate::base::budget::{Budget, Exceeded, shortened};
use crate::base::json::text;
use crate::base::object::Object;
use crate::base::task;
use crate::kinds::{KindRef, registry};
use crate::schema::protobuf::ProtobufError;
use crate::schema::{self, ParseError, TypeRef};

/// Bodies beyond this take long enough to be read that others would notice.
pub const LONG_BYTES: usize = 64 << 10;
/// What is shown of a text that the client sent.
const SHOWN_BYTES_MAX: usize = 1024;
/// Unknown and duplicate fields that are told of, as in Kubernetes.
const FINDINGS_MAX: usize = 100;

/// The body of a request, as a value of the named schema definition; the warnings are for the client.
///
/// Unknown and duplicate fields are dropped, warned about or refused as the request's `fieldValidation` says.
pub fn decode(
    request: &Request,
    kind: &KindRef,
    body: &[u8],
    encoding: Encoding,
    budget: &mut Budget,
) -> Result<(Value, Vec<String>)> {
    decode_as(request, &kind.type_ref(), &kind.api_version(), kind.kind(), body, encoding, budget)
}

/// As [`decode`], for what is no kind of its own (DeleteOptions, Scale, Binding, ...).
pub fn decode_as(
    request: &Request,
    shape: &TypeRef<'_>,
    api_version: &str,
    kind: &str,
    body: &[u8],
    encoding: Encoding,
    budget: &mut Budget,
) -> Result<(Value, Vec<String>)> {
    task::in_place(body.len() > LONG_BYTES, || {
        let (value, duplicates) = parse(body, encoding, budget)?;
        shaped(request, shape, api_version, kind, value, duplicates, budget)
    })
}

/// As [`decode_as`], for a body that is parsed already.
pub fn shaped(
    request: &Request,
    shape: &TypeRef<'_>,
    api_version: &str,
    kind: &str,
    mut value: Value,
    duplicates: Duplicates,
    budget: &mut Budget,
) -> Result<(Value, Vec<String>)> {
    if value.is_null() {
        value = Value::Object(serde_json::Map::new());
    }
    if !value.is_object() {
        return Err(Status::bad_request(format!(
            "couldn't get version/kind; json parse error: expected an object, got {}",
            shortened(&value.to_string(), SHOWN_BYTES_MAX)
        )));
    }
    // The core group may be written as an empty one.
    let (version_given, kind_given) = (text(&value, "apiVersion"), text(&value, "kind"));
    let version_given = version_given.strip_prefix('/').unwrap_or(version_given);
    if (!version_given.is_empty() && version_given != api_version) || (!kind_given.is_empty() && kind_given != kind) {
        return Err(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): {:?} in {:?} is not {kind:?} in {api_version:?}",
            shortened(kind_given, SHOWN_BYTES_MAX),
            shortened(version_given, SHOWN_BYTES_MAX)
        )));
    }
    let warnings = check(request.validation, &mut value, shape, duplicates, budget).map_err(|mut status| {
        if status.code == 400 {
            let version = api_version.rsplit('/').next().unwrap_or("");
            status.message = format!("{kind} in version {version:?} cannot be handled as a {kind}: {}", status.message);
        }
        status
    })?;
    Ok((value, warnings))
}

/// Members of a body that stand twice, as the decoder tells of them that Kubernetes reads the encoding with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Duplicates {
    /// The paths of fields, of JSON.
    Fields(Vec<String>),
    /// A line and a key each, of YAML.
    Lines(Vec<String>),
}

// === impl Duplicates ===

impl Duplicates {
    /// Nothing stands twice.
    pub fn none() -> Self {
        Self::Fields(Vec::new())
    }

    /// Each, where the client is to be warned of it.
    pub fn warnings(self, validation: FieldValidation) -> Vec<String> {
        if validation != FieldValidation::Warn {
            return Vec::new();
        }
        let (lines, fields) = self.beside(Vec::new());
        lines.into_iter().chain(fields).collect()
    }

    /// An applied configuration is refused whole where that was asked for, after all else was right with it.
    pub fn refuse(&self, validation: FieldValidation) -> Result<()> {
        match self {
            Self::Lines(lines) if validation == FieldValidation::Strict && !lines.is_empty() => {
                Err(Status::bad_request(format!(
                    "error strict decoding YAML: error converting YAML to JSON: {}",
                    unmarshal_errors(lines)
                )))
            }
            _ => Ok(()),
        }
    }

    /// The lines, and what is said of fields together with the unknown ones. An unknown field of JSON is told of once,
    /// however often it stands there.
    fn beside(self, unknown: Vec<String>) -> (Vec<String>, Vec<String>) {
        let (lines, twice) = match self {
            Self::Lines(lines) => (lines, Vec::new()),
            Self::Fields(paths) => (Vec::new(), paths.into_iter().filter(|p| !unknown.contains(p)).collect()),
        };
        let unknown = unknown.into_iter().map(|f| format!("unknown field {f:?}"));
        (lines, unknown.chain(twice.into_iter().map(|f| format!("duplicate field {f:?}"))).collect())
    }
}

/// How a request body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

fn parse_protobuf(body: &[u8], budget: &mut Budget) -> Result<(Value, Duplicates)> {
    let decoded = schema::protobuf::decode(body, definition, budget).map_err(|e| match e {
        ProtobufError::Limit(limit) => unreadable(limit),
        other => Status::bad_request(format!("error parsing the request body: {other}")),
    })?;
    let mut value = decoded.value;
    if let Some(map) = value.as_object_mut() {
        map.insert("apiVersion".into(), decoded.api_version.into());
        map.insert("kind".into(), decoded.kind.into());
    }
    Ok((value, Duplicates::none()))
}

/// The definition of what an `apiVersion` and `kind` name, also for what is no kind of its own.
fn definition(api_version: &str, kind: &str) -> Option<String> {
    let known = registry::builtin().by_kind(api_version, kind).map(|k| k.definition().into_owned());
    let other = match kind {
        "DeleteOptions" => "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
        "Scale" => "io.k8s.api.autoscaling.v1.Scale",
        "Eviction" => "io.k8s.api.policy.v1.Eviction",
        "TokenRequest" => "io.k8s.api.authentication.v1.TokenRequest",
        "Binding" => "io.k8s.api.core.v1.Binding",
        _ => "",
    };
    known.or_else(|| Some(other.to_owned()).filter(|d| !d.is_empty()))
}

/// Parses a body; the second part lists what stands twice.
pub fn parse(body: &[u8], encoding: Encoding, budget: &mut Budget) -> Result<(Value, Duplicates)> {
    let parsed = match encoding {
        Encoding::Json => schema::parse_json(body, budget).map(|(value, paths)| (value, Duplicates::Fields(paths))),
        Encoding::Yaml => schema::parse_yaml(body, budget).map(|(value, lines)| (value, Duplicates::Lines(lines))),
        Encoding::Protobuf => return parse_protobuf(body, budget),
    };
    parsed.map_err(|e| unparsed(e, "error parsing the request body"))
}

/// What the client is told of a body that cannot be read.
pub fn unparsed(error: ParseError, what: &str) -> Status {
    match error {
        ParseError::Limit(limit) => unreadable(limit),
        ParseError::Syntax(why) => Status::bad_request(format!("{what}: {why}")),
    }
}

/// A body that is nested too deep is no body that Kubernetes' decoder reads; any other limit is one of size.
fn unreadable(limit: Exceeded) -> Status {
    match limit {
        Exceeded::Depth => Status::bad_request(limit.to_string()),
        Exceeded::Bytes | Exceeded::Steps => Status::exceeded(limit),
    }
}

/// Gives a value the shape of its definition, and treats what does not belong there as asked.
pub fn check(
    validation: FieldValidation,
    value: &mut Value,
    shape: &TypeRef<'_>,
    duplicates: Duplicates,
    budget: &mut Budget,
) -> Result<Vec<String>> {
    let unknown = schema::decode(value, shape, budget).map_err(|e| match e.limit {
        Some(limit) => Status::exceeded(limit),
        None => Status::bad_request(e.to_string()),
    })?;
    let (lines, fields) = duplicates.beside(unknown);
    match validation {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Warn => Ok(lines.into_iter().chain(fields).take(FINDINGS_MAX).collect()),
        FieldValidation::Strict if lines.is_empty() && fields.is_empty() => Ok(Vec::new()),
        FieldValidation::Strict => {
            let yaml = (!lines.is_empty()).then(|| unmarshal_errors(&lines));
            let errors: Vec<String> = yaml.into_iter().chain(fields).take(FINDINGS_MAX).collect();
            Err(Status::bad_request(format!("strict decoding error: {}", errors.join(", "))))
        }
    }
}

/// Lines of YAML that hold what stands twice, as one error.
fn unmarshal_errors(lines: &[String]) -> String {
    format!("yaml: unmarshal errors:\n  {}", lines.join("\n  "))
}

/// An object in the form of the kind (and version) that is asked for, with `kind` and `apiVersion`. Where a webhook converts, it
/// has that form already ([`Api::presented`](super::Api::presented)).
pub fn served(kind: &KindRef, object: &Object) -> Value {
    let mut value = object.value();
    if !kind.has_form_of(object) {
        kind.convert_from_stored(&mut value);
    }
    named(kind, value)
}

/// An object in the form in which it was written, with the kind of that form: nobody has to convert it.
pub fn own(kind: &KindRef, object: &Object) -> (KindRef, Value) {
    let of = written_as(kind, object);
    let value = if of.as_custom().is_some() { named(&of, object.value()) } else { served(kind, object) };
    (of, value)
}

/// The kind in whose form an object was written: another version of a custom kind, perhaps.
pub fn written_as(kind: &KindRef, object: &Object) -> KindRef {
    kind.in_version(kind.version_of(object)).unwrap_or_else(|| kind.clone())
}

/// An object of one version of a kind as of another one, unless a webhook does that.
pub fn converted(from: &KindRef, to: &KindRef, mut value: Value) -> Value {
    if from == to {
        return value;
    }
    if to.as_custom().is_none() {
        from.convert_to_stored(&mut value);
    }
    to.convert_from_stored(&mut value);
    named(to, value)
}

fn named(kind: &KindRef, mut value: Value) -> Value {
    if let Some(map) = value.as_object_mut() {
        map.insert("apiVersion".into(), kind.api_version().into());
        map.insert("kind".into(), kind.kind().into());
    }
    value
}

/// An object of the asked kind in the form that is stored.
pub fn stored(kind: &KindRef, value: &mut Value) {
    kind.convert_to_stored(value);
}
