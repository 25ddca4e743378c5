//! The body of a PATCH: its media type, what is read of it, and what it makes of an object.

use bytes::Bytes;
use serde_json::Value;

use super::context::RequestContext;
use super::{Body, body_of};

use crate::api::form;
use crate::apimachinery::status::{Result, Status};
use crate::base::budget::{Budget, shortened};
use crate::base::json::text;
use crate::base::task;
use crate::kinds::{KindRef, field};
use crate::schema;

/// Unknown members of JSON patches that are told of, and how much of each.
const FINDINGS_MAX: usize = 100;
const KEY_BYTES_MAX: usize = 256;

/// A PATCH body by its media type.
pub(super) enum Patch {
    Json(Value),
    Merge(Value),
    Strategic(Value),
    Apply { config: Value, force: bool },
}

// === impl Patch ===

impl Patch {
    /// The patch, and the fields that stand twice in it or mean nothing.
    pub(super) async fn read(
        context: &RequestContext,
        http: http::Request<Body>,
        budget: &mut Budget,
    ) -> Result<(Self, form::Duplicates)> {
        let media =
            http.headers().get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
        let media = media.split(';').next().unwrap_or("").trim().to_owned();
        let body = body_of(http).await?;
        let mut json = |body: &Bytes| {
            let parsed = task::in_place(body.len() > form::LONG_BYTES, || schema::parse_json(body, budget));
            parsed.map_err(|e| form::unparsed(e, "error decoding patch"))
        };
        match media.as_str() {
            "application/json-patch+json" => {
                let (patch, mut findings) = json(&body)?;
                findings.extend(unknown_members(&patch));
                Ok((Self::Json(patch), form::Duplicates::Fields(findings)))
            }
            "application/merge-patch+json" => json(&body).map(|(p, d)| (Self::Merge(p), form::Duplicates::Fields(d))),
            "application/strategic-merge-patch+json" if context.request.kind.as_custom().is_none() => {
                json(&body).map(|(p, d)| (Self::Strategic(p), form::Duplicates::Fields(d)))
            }
            "application/apply-patch+yaml" => {
                if context.query.get("fieldManager").is_empty() {
                    let error = field::required("fieldManager", "is required for apply patch");
                    return Err(invalid_options(error));
                }
                let (config, duplicates) =
                    task::in_place(body.len() > form::LONG_BYTES, || form::parse(&body, form::Encoding::Yaml, budget))?;
                Ok((Self::Apply { config, force: context.query.flag("force") }, duplicates))
            }
            other => Err(Status::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, \
                 application/apply-patch+yaml (got {other:?})"
            ))),
        }
    }

    pub(super) fn apply(&self, target: &mut Value, shape: &schema::TypeRef<'_>, budget: &mut Budget) -> Result<()> {
        let result = match self {
            Self::Json(patch) => schema::patch::json::apply(target, patch, budget),
            Self::Merge(patch) => schema::patch::merge::apply(target, patch, budget),
            Self::Strategic(patch) => schema::patch::strategic::apply(target, patch, shape, budget),
            Self::Apply { .. } => return Err(Status::unsupported_media_type("apply is not offered here")),
        };
        result.map_err(|e| match e.code() {
            413 => Status::too_large(e),
            code => Status::new(code, e.reason(), e.to_string()),
        })
    }
}

/// A patched custom object must still be of its kind.
pub(super) fn check_kept(kind: &KindRef, name: &str, version: &str, given: &str) -> Result<()> {
    let error = match () {
        () if given != kind.kind() => field::invalid("kind", given, format!("must be {}", kind.kind())),
        () if version != kind.api_version() => {
            field::invalid("apiVersion", version, format!("must be {}", kind.api_version()))
        }
        () => return Ok(()),
    };
    let mut status = Status::invalid(kind, name, &[error]);
    status.details.kind = given.to_owned();
    status.details.group = version.rsplit_once('/').map_or("", |(group, _)| group).to_owned();
    Err(status)
}

/// An applied configuration must say in full what it is about.
pub(super) fn check_configuration(config: &Value, api_version: &str, kind: &str) -> Result<()> {
    if !config.is_object() {
        return Err(Status::bad_request("error decoding YAML: the configuration must be an object"));
    }
    let (given_version, given_kind) = (text(config, "apiVersion"), text(config, "kind"));
    if !given_version.is_empty() && given_version != api_version {
        return Err(Status::bad_request(format!(
            "Incorrect version specified in apply patch. Specified patch version: {given_version}, expected: {api_version}"
        )));
    }
    if given_version != api_version || given_kind != kind {
        return Err(Status::bad_request(format!(
            "apiVersion and kind must be {api_version:?} and {kind:?}, got {given_version:?} and {given_kind:?}"
        )));
    }
    Ok(())
}

/// Members of JSON patch operations that mean nothing.
pub(super) fn unknown_members(patch: &Value) -> Vec<String> {
    let mut out = Vec::new();
    for (i, operation) in patch.as_array().into_iter().flatten().enumerate() {
        for key in operation.as_object().into_iter().flatten().map(|(k, _)| k) {
            if out.len() < FINDINGS_MAX && !matches!(key.as_str(), "op" | "path" | "from" | "value") {
                out.push(format!("[{i}].{}", shortened(key, KEY_BYTES_MAX)));
            }
        }
    }
    out
}

/// What a patch makes is no object of the kind.
pub(super) fn unfit(why: &str) -> Status {
    Status::invalid_options("", "", "", &[field::invalid_unshown("patch", why)])
}

pub(super) fn no_force() -> Status {
    invalid_options(field::forbidden("force", "may not be specified for non-apply patch"))
}

fn invalid_options(error: field::Error) -> Status {
    Status::invalid_options("meta.k8s.io", "PatchOptions", "", &[error])
}
