//! The one place where what went wrong becomes a Kubernetes `Status`.
//!
//! Codes, reasons, details and the shape of messages are those of `k8s.io/apimachinery/pkg/api/errors`.

use serde_json::{Map, Value, json};

use crate::base::budget::{Exceeded, shortened};
use crate::kinds::{KindRef, field};

/// A failed request, as the client sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The HTTP status.
    pub code: u16,
    /// The machine-readable reason; empty where Kubernetes gives none.
    pub reason: &'static str,
    pub message: String,
    /// Boxed because errors are rare and results are moved often.
    pub details: Box<Details>,
}

/// `Status.details`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    pub name: String,
    pub group: String,
    pub kind: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    pub retry_after_seconds: Option<u32>,
    /// For the client beside the failure; sent as headers.
    pub warnings: Vec<String>,
    /// With what a list goes on that could not be continued as it was; sent in the metadata.
    pub continue_token: String,
}

/// One of `Status.details.causes`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

/// What is said of one failure, at most.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// When whoever is refused for now may come again.
pub const RETRY_AFTER_SECONDS: u32 = 1;
/// So many causes are listed.
const CAUSES_MAX: usize = 1000;

/// What the API answers with.
pub type Result<T, E = Status> = std::result::Result<T, E>;

// === impl Status ===

impl Status {
    /// The reason with which a machine is refused whose Node was deleted: what it knows of the cluster is over.
    pub const NODE_DELETED: &str = "NodeDeleted";

    /// A failure without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Box::default() }
    }

    /// What another server answered with.
    pub fn received(code: u16, reason: &str, message: impl Into<String>) -> Self {
        const REASONS: &[&str] = &[
            "AlreadyExists",
            "BadRequest",
            "Conflict",
            "Expired",
            "Forbidden",
            "Gone",
            "Invalid",
            "InternalError",
            "MethodNotAllowed",
            Status::NODE_DELETED,
            "NotAcceptable",
            "NotFound",
            "RequestEntityTooLarge",
            "ServiceUnavailable",
            "Timeout",
            "TooManyRequests",
            "Unauthorized",
            "UnsupportedMediaType",
        ];
        Self::new(code, REASONS.iter().find(|r| **r == reason).copied().unwrap_or(""), message)
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403 about an object of a kind.
    pub fn forbidden(kind: &KindRef, name: &str, why: impl std::fmt::Display) -> Self {
        let message = match name {
            "" => format!("{} is forbidden: {why}", resource(kind)),
            _ => format!("{} \"{name}\" is forbidden: {why}", resource(kind)),
        };
        Self::new(403, "Forbidden", message).about(kind, name)
    }

    /// 404 of an object.
    pub fn not_found(kind: &KindRef, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} \"{name}\" not found", resource(kind))).about(kind, name)
    }

    /// 404 of a path.
    pub fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }

    /// 406.
    pub fn not_acceptable(message: impl Into<String>) -> Self {
        Self::new(406, "NotAcceptable", message)
    }

    /// 409 on creation.
    pub fn already_exists(kind: &KindRef, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} \"{name}\" already exists", resource(kind))).about(kind, name)
    }

    /// 409 on a change.
    pub fn conflict(kind: &KindRef, name: &str, why: impl std::fmt::Display) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", resource(kind));
        Self::new(409, "Conflict", message).about(kind, name)
    }

    /// 409 because somebody else was faster.
    pub fn modified(kind: &KindRef, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(kind, name, why)
    }

    /// 410: the asked revision is no longer there.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 413.
    pub fn too_large(why: impl std::fmt::Display) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: {why}"))
    }

    /// 413 or, where it is the nesting, 422: a request that makes too much.
    pub fn exceeded(limit: Exceeded) -> Self {
        match limit {
            Exceeded::Bytes | Exceeded::Steps => Self::too_large(limit),
            Exceeded::Depth => Self::new(422, "Invalid", limit.to_string()),
        }
    }

    /// 415.
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 422 with a cause for each error.
    pub fn invalid(kind: &KindRef, name: &str, errors: &[field::Error]) -> Self {
        // A kind that is stored as another one is checked as that one.
        let mut status = Self::invalid_options(kind.group(), kind.kind(), name, errors);
        status.details.group = kind.stored().group().to_owned();
        status
    }

    /// 422 with a cause for each error, of what is no object: the options of a request.
    pub fn invalid_options(group: &str, kind: &str, name: &str, errors: &[field::Error]) -> Self {
        let mut text = String::new();
        for error in errors {
            if text.len() > MESSAGE_BYTES_MAX {
                break;
            }
            let comma = if text.is_empty() { "" } else { ", " };
            text.push_str(&format!("{comma}{error}"));
        }
        if errors.len() != 1 {
            text = format!("[{text}]");
        }
        let long = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let mut status = Self::new(422, "Invalid", format!("{long} \"{name}\" is invalid: {text}"));
        (status.details.group, status.details.kind) = (group.to_owned(), kind.to_owned());
        status.details.name = name.to_owned();
        let cause =
            |e: &field::Error| Cause { reason: e.reason.cause().into(), message: e.message(), field: e.field.clone() };
        status.details.causes = errors.iter().take(CAUSES_MAX).map(cause).collect();
        status
    }

    /// 429.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let mut status = Self::new(429, "TooManyRequests", message);
        status.details.retry_after_seconds = Some(retry_after_seconds);
        status
    }

    /// 500.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {message}"))
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 504: the asked revision has not come yet.
    pub fn too_large_revision(asked: u64, current: u64) -> Self {
        let mut status = Self::new(504, "Timeout", format!("Too large resource version: {asked}, current: {current}"));
        status.details.retry_after_seconds = Some(1);
        status.details.causes.push(Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            field: String::new(),
        });
        status
    }

    /// Adds what the client should be told beside the failure.
    pub fn warned(mut self, warnings: &[String]) -> Self {
        self.details.warnings.extend_from_slice(warnings);
        self
    }

    /// Says which object it is about.
    pub fn about(mut self, kind: &KindRef, name: &str) -> Self {
        self.details.name = name.to_owned();
        self.details.group = kind.group().to_owned();
        self.details.kind = kind.plural().to_owned();
        self
    }

    /// Adds a cause.
    pub fn cause(mut self, reason: &str, message: impl Into<String>, field: &str) -> Self {
        self.details.causes.push(Cause { reason: reason.into(), message: message.into(), field: field.into() });
        self
    }

    /// The JSON form, with `kind` and `apiVersion`.
    pub fn to_json(&self) -> Value {
        let token = self.details.continue_token.as_str();
        let metadata = if token.is_empty() { json!({}) } else { json!({"continue": token}) };
        let mut out = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure",
            "message": shortened(&self.message, MESSAGE_BYTES_MAX), "code": self.code,
        });
        if !self.reason.is_empty() {
            out["reason"] = self.reason.into();
        }
        let details = self.details.to_json();
        if !details.is_empty() || !matches!(self.code, 401 | 406) {
            out["details"] = Value::Object(details);
        }
        out
    }

    /// The JSON form as it is sent: some clients look for text in it, so the order is that of Kubernetes.
    pub fn to_bytes(&self) -> Vec<u8> {
        written_in_order(&self.to_json())
    }

    /// The answer of a deletion that left nothing.
    pub fn deleted(kind: &KindRef, name: &str, uid: &str) -> Value {
        let details = Details {
            name: name.into(),
            group: kind.group().into(),
            kind: kind.plural().into(),
            uid: uid.into(),
            ..Details::default()
        };
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details.to_json()})
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

// === impl Details ===

impl Details {
    fn to_json(&self) -> Map<String, Value> {
        let mut out = Map::new();
        for (key, value) in [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)] {
            if !value.is_empty() {
                out.insert(key.into(), value.as_str().into());
            }
        }
        if !self.causes.is_empty() {
            out.insert("causes".into(), self.causes.iter().take(CAUSES_MAX).map(Cause::to_json).collect());
        }
        if let Some(seconds) = self.retry_after_seconds {
            out.insert("retryAfterSeconds".into(), seconds.into());
        }
        out
    }
}

// === impl Cause ===

impl Cause {
    fn to_json(&self) -> Value {
        let mut out = Map::new();
        for (key, value) in [("reason", &self.reason), ("message", &self.message), ("field", &self.field)] {
            if !value.is_empty() {
                out.insert(key.into(), value.as_str().into());
            }
        }
        Value::Object(out)
    }
}

/// A Status in Kubernetes' order of fields, with the end of line that Go's encoder writes.
pub fn written_in_order(status: &Value) -> Vec<u8> {
    const STATUS: &[&str] = &["kind", "apiVersion", "metadata", "status", "message", "reason", "details", "code"];
    let mut out = Vec::with_capacity(256);
    write_members(&mut out, status, STATUS);
    out.push(b'\n');
    out
}

fn write_members(out: &mut Vec<u8>, object: &Value, order: &[&str]) {
    const DETAILS: &[&str] = &["name", "group", "kind", "uid", "causes", "retryAfterSeconds"];
    const CAUSE: &[&str] = &["reason", "message", "field"];
    out.push(b'{');
    let present = order.iter().filter_map(|name| Some((*name, object.get(name)?)));
    for (i, (name, value)) in present.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(format!("\"{name}\":").as_bytes());
        match (name, value) {
            ("details", details) => write_members(out, details, DETAILS),
            ("causes", Value::Array(causes)) => {
                out.push(b'[');
                for (i, cause) in causes.iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    write_members(out, cause, CAUSE);
                }
                out.push(b']');
            }
            (_, value) => serde_json::to_writer(&mut *out, value).unwrap_or_default(),
        }
    }
    out.push(b'}');
}

/// `pods` or `deployments.apps`.
pub fn resource(kind: &KindRef) -> String {
    if kind.group().is_empty() { kind.plural().to_owned() } else { format!("{}.{}", kind.plural(), kind.group()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_written_in_the_order_of_kubernetes() {
        let status = Status::not_found(&crate::kinds::core::pod::KIND, "p").cause("R", "m", "f");
        assert_eq!(
            String::from_utf8(status.to_bytes()).unwrap(),
            "{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\
             \"message\":\"pods \\\"p\\\" not found\",\"reason\":\"NotFound\",\"details\":{\"name\":\"p\",\"kind\":\"pods\",\
             \"causes\":[{\"reason\":\"R\",\"message\":\"m\",\"field\":\"f\"}]},\"code\":404}\n"
        );
        let deleted = Status::deleted(&crate::kinds::core::pod::KIND, "p", "u");
        let written = written_in_order(&deleted);
        assert_eq!(serde_json::from_slice::<Value>(&written).unwrap(), deleted, "nothing is lost");
    }
}
