//! Whoever makes a policy or a binding must be able to read the parameters that it names: expressions show what is in them
//! (`pkg/registry/admissionregistration/*/authz.go`).

use async_trait::async_trait;
use serde_json::Value;

use super::{Operation, Plugin, Review};
use crate::api::identity::attributes::Attributes;
use crate::api::identity::authorize::authorize;
use crate::apimachinery::status::{Result, Status};
use crate::apimachinery::user::MASTERS;
use crate::base::json::{at, text};
use crate::kinds::KindRef;
use crate::kinds::admissionregistration::{
    mutatingadmissionpolicy, mutatingadmissionpolicybinding, validatingadmissionpolicy,
    validatingadmissionpolicybinding,
};
use crate::kinds::field;

/// Kinds of policies, each with that of its bindings.
static KINDS: [(&KindRef, &KindRef); 2] = [
    (&validatingadmissionpolicy::KIND, &validatingadmissionpolicybinding::KIND),
    (&mutatingadmissionpolicy::KIND, &mutatingadmissionpolicybinding::KIND),
];

pub(super) struct PolicyParams;

#[async_trait]
impl Plugin for PolicyParams {
    fn handles(&self, review: &Review<'_>) -> bool {
        let request = review.request;
        matches!(review.operation, Operation::Create | Operation::Update)
            && request.subresource.is_none()
            && KINDS.iter().any(|(policy, binding)| request.kind == **policy || request.kind == **binding)
    }

    async fn validate(&self, review: &Review<'_>, object: &Value) -> Result<Vec<String>> {
        let kind = &review.request.kind;
        let refused = match KINDS.iter().find(|(_, binding)| kind == *binding) {
            Some((policy, _)) => binding_refusal(review, object, policy),
            None => policy_refusal(review, object),
        };
        match refused {
            Some(error) => Err(Status::invalid(kind, text(object, "metadata.name"), &[error])),
            None => Ok(Vec::new()),
        }
    }
}

/// Whether parts of an object are what they were.
fn is_unchanged(review: &Review<'_>, object: &Value, paths: &[&str]) -> bool {
    review.old.is_some_and(|old| paths.iter().all(|path| at(old, path) == at(object, path)))
}

fn policy_refusal(review: &Review<'_>, object: &Value) -> Option<field::Error> {
    let of = at(object, "spec.paramKind").filter(|kind| kind.is_object())?;
    if is_unchanged(review, object, &["spec.paramKind"]) {
        return None;
    }
    let about = Attributes { namespace: "*".into(), name: "*".into(), ..about(review, Some(of)) };
    let user = &review.request.user.name;
    let why = format!(
        "user {user:?} must have \"get\" permission on all objects of the referenced paramKind (kind={}, apiVersion={})",
        text(of, "kind"),
        text(of, "apiVersion")
    );
    (!may(review, &about)).then(|| field::forbidden("spec.paramKind", why))
}

fn binding_refusal(review: &Review<'_>, object: &Value, policies: &KindRef) -> Option<field::Error> {
    let reference = at(object, "spec.paramRef").filter(|reference| reference.is_object())?;
    if is_unchanged(review, object, &["spec.paramRef", "spec.policyName"]) {
        return None;
    }
    let policy = review.api.cache.kind(policies).get(&policies.key("", text(object, "spec.policyName")));
    let policy = policy.map(|policy| policy.value()).unwrap_or_default();
    let of = at(&policy, "spec.paramKind").filter(|kind| kind.is_object());
    let about = Attributes {
        namespace: text(reference, "namespace").into(),
        name: text(reference, "name").into(),
        ..about(review, of)
    };
    let user = &review.request.user.name;
    let why = format!("user {user:?} does not have \"get\" permission on the object referenced by paramRef");
    (!may(review, &about)).then(|| field::forbidden("spec.paramRef", why))
}

/// Reading objects of a kind; of every kind where it is not known which one it is.
fn about(review: &Review<'_>, of: Option<&Value>) -> Attributes {
    let (mut group, mut resource) = ("*".to_owned(), "*".to_owned());
    if let Some(of) = of {
        let version = text(of, "apiVersion");
        group = version.rsplit_once('/').map_or("", |(group, _)| group).to_owned();
        if let Some(kind) = review.api.kinds.snapshot().by_kind(version, text(of, "kind")) {
            kind.plural().clone_into(&mut resource);
        }
    }
    Attributes { verb: "get".into(), group, resource, ..Attributes::default() }
}

fn may(review: &Review<'_>, about: &Attributes) -> bool {
    let user = &review.request.user;
    user.is_in(MASTERS) || authorize(review.api, user, about).allowed
}
