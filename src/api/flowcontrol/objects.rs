//! The configuration as objects: FlowSchemas and PriorityLevelConfigurations that every cluster has are kept as they are
//! suggested, unless an administrator says otherwise, and what all of them say is what requests meet with
//! (`k8s.io/apiserver/pkg/util/flowcontrol`, `k8s.io/kubernetes/pkg/registry/flowcontrol/ensurer`).
//!
//! Who changes a suggested spec writes the annotation [`AUTOUPDATE`] as `false` too; else it is put back.

use std::time::Duration;

use futures::future::{join_all, select_all};
use serde_json::{Value, json};

use crate::api::write::Change;
use crate::api::{Api, Request};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::Result;
use crate::base::json::{at, int, map_mut, set, text};
use crate::kinds::flowcontrol::{AUTOUPDATE, EXEMPT, MANDATORY, flowschema, prioritylevelconfiguration};
use crate::kinds::{KindRef, Subresource};

/// The manager of the objects that every cluster has.
const MANAGER: &str = "api-priority-and-fairness-config-producer-v1";
/// The manager of what is said of a schema's level.
const STATUS_MANAGER: &str = "api-priority-and-fairness-config-consumer-v1";
/// After a failure to write an object.
const RETRY: Duration = Duration::from_secs(1);

/// The kinds, with the objects that every cluster has of them.
const KINDS: [(&KindRef, fn() -> Vec<Value>); 2] = [
    (&prioritylevelconfiguration::KIND, prioritylevelconfiguration::suggested),
    (&flowschema::KIND, flowschema::suggested),
];

/// Does from now on what the objects say that there are.
pub fn configure(api: &Api) {
    api.flow.configure(all(api, &flowschema::KIND), all(api, &prioritylevelconfiguration::KIND));
}

/// Follows the objects for as long as the server runs.
pub async fn keep(api: Api) {
    let kind_caches = KINDS.map(|(kind, _)| api.cache.kind(kind));
    let mut told = kind_caches.each_ref().map(|kind_cache| kind_cache.subscribe());
    loop {
        told.iter_mut().for_each(|told| told.mark_unchanged());
        configure(&api);
        if let Err(error) = write(&api).await {
            tracing::warn!(%error, "the objects of priority and fairness cannot be kept");
            tokio::time::sleep(RETRY).await;
            continue;
        }
        let changed = told.iter_mut().map(|told| Box::pin(told.changed()));
        if select_all(changed).await.0.is_err() {
            return;
        }
    }
}

fn all(api: &Api, kind: &KindRef) -> Vec<Value> {
    api.cache.kind(kind).list("", "").iter().map(|object| object.value()).collect()
}

/// Writes what is not as it is to be, all of it at once.
async fn write(api: &Api) -> Result<()> {
    let mut writes = Vec::new();
    for (kind, suggested) in KINDS {
        let (live, suggested) = (all(api, kind), suggested());
        for wanted in &suggested {
            let found = live.iter().find(|object| name(object) == name(wanted));
            match found {
                None => writes.push((kind, Write::Create(wanted.clone()))),
                Some(found) => writes.extend(corrected(found, wanted).map(|new| (kind, Write::Replace(new)))),
            }
        }
        // What an older version suggested, and this one does not.
        let left = live.iter().filter(|o| is_kept(o) == Some(true) && !suggested.iter().any(|s| name(s) == name(o)));
        writes.extend(left.filter(|o| !is_ending(o)).map(|o| (kind, Write::Delete(o.clone()))));
    }
    let levels = all(api, &prioritylevelconfiguration::KIND);
    for schema in all(api, &flowschema::KIND) {
        let condition = condition(&schema, &levels, &api.clock.now_text());
        writes.extend(condition.map(|condition| (&flowschema::KIND, Write::Condition(schema, condition))));
    }
    let writes = writes.into_iter().map(|(kind, write)| write.run(api, kind));
    join_all(writes).await.into_iter().collect()
}

/// Something that is to be written.
enum Write {
    Create(Value),
    Replace(Value),
    Delete(Value),
    Condition(Value, Value),
}

// === impl Write ===

impl Write {
    /// What somebody else has done meanwhile is looked at next.
    async fn run(self, api: &Api, kind: &KindRef) -> Result<()> {
        let request = |object: &Value| Request::internal(MANAGER, kind, "", name(object));
        let written = match self {
            Self::Create(object) => api.create(&request(&object), object).await.map(drop),
            Self::Replace(object) => api.update(&request(&object), Change::Replace(object)).await.map(drop),
            Self::Delete(object) => api.delete(&request(&object), &DeleteOptions::default()).await.map(drop),
            Self::Condition(schema, condition) => {
                let request = Request::internal(STATUS_MANAGER, kind, "", name(&schema)).on(Subresource::Status);
                let config = json!({"apiVersion": kind.api_version(), "kind": kind.kind(),
                    "metadata": {"name": name(&schema), "uid": schema["metadata"]["uid"]},
                    "status": {"conditions": [condition]}});
                api.apply_config(&request, config).await.map(drop)
            }
        };
        written.or_else(|status| if matches!(status.code, 404 | 409) { Ok(()) } else { Err(status) })
    }
}

fn name(object: &Value) -> &str {
    text(object, "metadata.name")
}

fn is_ending(object: &Value) -> bool {
    at(object, "metadata.deletionTimestamp").is_some()
}

/// What the annotation says, in one of the words that Go reads as a truth value.
fn is_kept(object: &Value) -> Option<bool> {
    match object["metadata"]["annotations"][AUTOUPDATE].as_str()? {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// An object as it is to be, where it is not.
fn corrected(live: &Value, wanted: &Value) -> Option<Value> {
    let is_mandatory = MANDATORY.contains(&name(wanted)) && name(wanted) != EXEMPT;
    // Whoever never changed the spec has not said that it is theirs.
    let is_kept = is_mandatory || is_kept(live).unwrap_or(int(live, "metadata.generation") == Some(1));
    let mut new = live.clone();
    let annotation = if is_kept { "true" } else { "false" };
    if self::is_kept(live) != Some(is_kept) {
        map_mut(&mut new, "metadata.annotations").insert(AUTOUPDATE.into(), annotation.into());
    }
    if is_kept {
        set(&mut new, "spec", wanted["spec"].clone());
    }
    (new != *live).then_some(new)
}

/// What is to be said of a schema's level, where it is not.
fn condition(schema: &Value, levels: &[Value], now: &str) -> Option<Value> {
    let level = text(schema, "spec.priorityLevelConfiguration.name");
    let is_there = levels.iter().any(|object| name(object) == level);
    let begin = format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?}");
    let (status, reason, message) = match is_there {
        true => ("False", "Found", format!("{begin} and it exists")),
        false => ("True", "NotFound", format!("{begin} but there is no such object")),
    };
    let said = flowschema::dangling(schema);
    if said.is_some_and(|c| (text(c, "status"), text(c, "reason"), text(c, "message")) == (status, reason, &*message)) {
        return None;
    }
    Some(json!({"type": flowschema::DANGLING, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": now}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::in_memory;
    use crate::base::task;

    fn request(kind: &KindRef, name: &str) -> Request {
        Request::internal("test", kind, "", name)
    }

    async fn patch(api: &Api, kind: &KindRef, name: &str, change: impl Fn(&mut Value) + Sync) {
        let mut change = |live: &Value| {
            let mut new = live.clone();
            change(&mut new);
            Ok(new)
        };
        api.update(&request(kind, name), Change::Patch(&mut change)).await.unwrap();
    }

    async fn rest() {
        tokio::time::sleep(Duration::from_secs(2)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_suggested_comes_back_until_an_administrator_says_otherwise() {
        let api = in_memory::api();
        task::spawn("keep", keep(api.clone()));
        rest().await;
        let levels = &prioritylevelconfiguration::KIND;
        let spec = |api: &Api, name: &str| api.get(&request(levels, name)).map(|o| o.value()["spec"].clone());
        let suggested = spec(&api, "workload-low").unwrap();
        let head = api.cache.head();
        rest().await;
        assert_eq!(api.cache.head(), head, "nothing is written when everything is there");

        api.delete(&request(levels, "workload-low"), &DeleteOptions::default()).await.unwrap();
        rest().await;
        assert_eq!(spec(&api, "workload-low").unwrap(), suggested);
        let few = |object: &mut Value| object["spec"]["limited"]["nominalConcurrencyShares"] = json!(1);
        patch(&api, levels, "workload-low", few).await;
        rest().await;
        assert_eq!(spec(&api, "workload-low").unwrap(), suggested);
        patch(&api, levels, "workload-low", |object| {
            few(object);
            object["metadata"]["annotations"][AUTOUPDATE] = json!("false");
        })
        .await;
        rest().await;
        assert_eq!(spec(&api, "workload-low").unwrap()["limited"]["nominalConcurrencyShares"], 1);
        let left = json!({"metadata": {"name": "left", "annotations": {AUTOUPDATE: "true"}}, "spec": suggested});
        api.create(&request(levels, ""), left).await.unwrap();
        rest().await;
        assert_eq!(spec(&api, "left").unwrap_err().code, 404);
    }

    #[tokio::test(start_paused = true)]
    async fn a_schema_says_whether_its_level_is_there_and_requests_follow() {
        let api = in_memory::api();
        task::spawn("keep", keep(api.clone()));
        rest().await;
        let jane = crate::apimachinery::user::User { name: "jane".into(), ..Default::default() };
        let target = super::super::Target { verb: "get", path: "/x", ..Default::default() };
        let uids = |api: &Api| api.flow.place(&jane, &target).uids().0.to_str().unwrap().to_owned();
        let catch_all = api.get(&request(&flowschema::KIND, "catch-all")).unwrap().meta.uid.to_string();
        assert_eq!(uids(&api), catch_all);
        let schema = json!({"metadata": {"name": "jane"}, "spec": {"matchingPrecedence": 7,
            "priorityLevelConfiguration": {"name": "janes"}, "rules": [{"subjects": [{"kind": "User", "user": {"name": "jane"}}],
            "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]}]}});
        let made = api.create(&request(&flowschema::KIND, ""), schema).await.unwrap().object;
        rest().await;
        let said = |api: &Api| {
            let schema = api.get(&request(&flowschema::KIND, "jane")).unwrap().value();
            let condition = flowschema::dangling(&schema).unwrap();
            (text(condition, "status").to_owned(), text(condition, "reason").to_owned())
        };
        assert_eq!(said(&api), ("True".into(), "NotFound".into()));
        assert_eq!(uids(&api), catch_all);
        let level = json!({"metadata": {"name": "janes"}, "spec": {"type": "Limited",
            "limited": {"limitResponse": {"type": "Reject"}}}});
        api.create(&request(&prioritylevelconfiguration::KIND, ""), level).await.unwrap();
        rest().await;
        assert_eq!(said(&api), ("False".into(), "Found".into()));
        assert_eq!(uids(&api), made.meta.uid.to_string());
        // Who says otherwise is corrected.
        let mut change = |live: &Value| {
            let mut new = live.clone();
            new["status"] = json!({"conditions": [{"type": "Dangling", "status": "True"}]});
            Ok(new)
        };
        let status = request(&flowschema::KIND, "jane").on(Subresource::Status);
        api.update(&status, Change::Patch(&mut change)).await.unwrap();
        rest().await;
        assert_eq!(said(&api).0, "False");
        api.delete(&request(&prioritylevelconfiguration::KIND, "janes"), &DeleteOptions::default()).await.unwrap();
        rest().await;
        assert_eq!((said(&api).0.as_str(), uids(&api)), ("True", catch_all));
    }
}
