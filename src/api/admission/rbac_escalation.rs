//! RBAC escalation: nobody may grant what they do not hold, unless they have `escalate` or `bind`.

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::Value;

use super::{Operation, Plugin, Review};
use crate::api::identity::attributes::Attributes;
use crate::api::identity::authorize::authorize;
use crate::api::identity::rbac::Rule;
use crate::api::{Api, Request};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::text;
use crate::base::task;
use crate::kinds::rbac::role;

pub(super) struct RbacEscalation;

#[async_trait]
impl Plugin for RbacEscalation {
    fn handles(&self, review: &Review<'_>) -> bool {
        let writes = matches!(review.operation, Operation::Create | Operation::Update);
        writes && review.request.kind.group() == role::KIND.group()
    }

    async fn validate(&self, review: &Review<'_>, object: &Value) -> Result<Vec<String>> {
        let request = review.request;
        task::in_place(request.heavy, || check(review.api, request, object, review.old)).map(|()| Vec::new())
    }
}

fn check(api: &Api, request: &Request, value: &Value, old: Option<&Value>) -> Result<()> {
    let binding = value.get("roleRef").is_some();
    let unchanged = |key: &str| old.is_some_and(|o| o.get(key) == value.get(key));
    let aggregates = value.get("aggregationRule").is_some_and(|a| !a.is_null());
    let same = if binding {
        unchanged("roleRef") && unchanged("subjects")
    } else {
        unchanged("rules") && unchanged("aggregationRule")
    };
    if same || authorize(api, &request.user, &attributes(request, value, binding)).allowed {
        return Ok(());
    }
    if binding && !crate::api::identity::rbac::role_exists(&api.cache, &request.namespace, &value["roleRef"]) {
        return match request.user.is_in(crate::apimachinery::user::MASTERS) {
            true => Ok(()),
            false => Err(Status::not_found(&request.kind, text(value, "roleRef.name"))),
        };
    }
    let granted = if binding {
        api.rbac.role_rules(&request.namespace, &value["roleRef"])
    } else {
        Vec::<Rule>::deserialize(&value["rules"]).unwrap_or_default()
    };
    let lacks = |namespace: &str, rules: &[Rule]| {
        let missing = api.rbac.missing(&request.user, namespace, rules);
        missing.map_err(|limit| Status::too_large(format!("comparing the rules with those of the user: {limit}")))
    };
    let mut missing = lacks(&request.namespace, &granted)?;
    if aggregates && !binding {
        let everything = Rule {
            verbs: vec!["*".into()],
            api_groups: vec!["*".into()],
            resources: vec!["*".into()],
            ..Rule::default()
        };
        missing.extend(lacks("", &[everything])?);
    }
    if missing.is_empty() {
        return Ok(());
    }
    let name = text(value, "metadata.name");
    let rules: Vec<String> = missing.iter().map(|r| serde_json::to_string(r).unwrap_or_default()).collect();
    let why = format!(
        "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
        request.user.name,
        request.user.groups,
        rules.join("\n")
    );
    Err(Status::forbidden(&request.kind, name, why))
}

fn attributes(request: &Request, value: &Value, binding: bool) -> Attributes {
    let plural = match (binding, text(value, "roleRef.kind")) {
        (false, _) => request.kind.plural(),
        (true, "Role") => "roles",
        (true, _) => "clusterroles",
    };
    let name = if binding { text(value, "roleRef.name") } else { text(value, "metadata.name") };
    Attributes {
        verb: if binding { "bind" } else { "escalate" }.into(),
        group: request.kind.group().into(),
        resource: plural.into(),
        namespace: request.namespace.clone(),
        name: name.into(),
        ..Attributes::default()
    }
}
