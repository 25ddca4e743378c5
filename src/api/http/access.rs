//! Who asks, for whom, and whether they may.

use std::sync::Arc;

use http::HeaderMap;

use super::Peer;
use super::route::{Route, Target};
use crate::api::Api;
use crate::api::identity::join::check_member;
use crate::api::identity::rbac::Attributes;
use crate::api::identity::token::service_account;
use crate::api::identity::{AUTHENTICATED, User, node};
use crate::api::status::{Result, Status};
use crate::base::labels::FieldSelector;

/// The user of a request: bearer token, else client certificate, else anonymous; then whom they impersonate.
pub fn authenticate(api: &Api, peer: &Peer, headers: &HeaderMap) -> Result<Arc<User>> {
    let user = match bearer(headers) {
        Some(token) => {
            let (user, _) = api.tokens.user(token, &[], &api.cache).ok_or_else(Status::unauthorized)?;
            Arc::new(user)
        }
        None => peer.user.clone().unwrap_or_else(|| Arc::new(User::anonymous())),
    };
    if let Some(node) = user.node_name() {
        check_member(api, node)?;
    }
    if user.is_in(AUTHENTICATED) {
        peer.connection.identify(&user)?;
    }
    impersonate(api, user, headers)
}

/// The bearer token of a request.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|t| !t.is_empty())
}

fn impersonate(api: &Api, user: Arc<User>, headers: &HeaderMap) -> Result<Arc<User>> {
    let all = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|v| v.to_str().ok().map(str::to_owned)).collect()
    };
    let name = all("impersonate-user").into_iter().next().unwrap_or_default();
    let mut groups = all("impersonate-group");
    let uid = all("impersonate-uid").into_iter().next().unwrap_or_default();
    let extra: Vec<(String, Vec<String>)> = headers
        .keys()
        .filter_map(|k| k.as_str().strip_prefix("impersonate-extra-").map(|e| (e.to_owned(), all(k.as_str()))))
        .collect();
    if name.is_empty() {
        if !groups.is_empty() || !extra.is_empty() || !uid.is_empty() {
            return Err(Status::bad_request("requested impersonation without impersonating a user"));
        }
        return Ok(user);
    }
    let mut wanted = vec![match service_account(&name) {
        Some((namespace, account)) => {
            groups.extend(["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]);
            ask("serviceaccounts", "", namespace, account)
        }
        None => ask("users", "", "", &name),
    }];
    wanted.extend(all("impersonate-group").iter().map(|g| ask("groups", "", "", g)));
    if !uid.is_empty() {
        wanted.push(ask("uids", "authentication.k8s.io", "", &uid));
    }
    for (key, values) in &extra {
        wanted.extend(
            values
                .iter()
                .map(|v| Attributes { subresource: key.clone(), ..ask("userextras", "authentication.k8s.io", "", v) }),
        );
    }
    for a in &wanted {
        if !api.rbac.allows(&user, a) {
            return Err(denied(&user, a));
        }
    }
    let who = if name == "system:anonymous" { "system:unauthenticated" } else { "system:authenticated" };
    if !groups.iter().any(|g| g == who) {
        groups.push(who.into());
    }
    Ok(Arc::new(User { name, uid, groups, extra }))
}

fn ask(resource: &str, group: &str, namespace: &str, name: &str) -> Attributes {
    Attributes {
        verb: "impersonate".into(),
        resource: resource.into(),
        group: group.into(),
        namespace: namespace.into(),
        name: name.into(),
        ..Attributes::default()
    }
}

/// Refuses what the user may not do.
pub fn authorize(api: &Api, user: &User, route: &Route) -> Result<()> {
    if user.is_in(crate::api::identity::MASTERS) {
        return Ok(());
    }
    let attributes = match &route.target {
        Target::Path(path) => Attributes { verb: route.verb.into(), path: path.clone(), ..Attributes::default() },
        Target::Resource(r) => Attributes {
            verb: route.verb.into(),
            resource: r.plural.clone(),
            subresource: r.subresource.clone(),
            group: r.group.clone(),
            namespace: r.namespace.clone(),
            name: if r.name.is_empty() { selected_name(route) } else { r.name.clone() },
            ..Attributes::default()
        },
    };
    let allowed = api.rbac.allows(user, &attributes)
        || node::allows(&api.cache, user, &attributes, selected(route, "spec.nodeName").as_deref());
    if allowed { Ok(()) } else { Err(denied(user, &attributes)) }
}

/// A list of one name is access to that one object.
fn selected_name(route: &Route) -> String {
    selected(route, "metadata.name").unwrap_or_default()
}

/// What the field selector asks of a field.
fn selected(route: &Route, field: &str) -> Option<String> {
    let selector = FieldSelector::parse(route.query.get("fieldSelector")).ok()?;
    selector.required(field).map(str::to_owned)
}

/// A refused impersonation is told of as a refusal of what was asked for.
pub fn about_target(mut status: Status, route: &Route) -> Status {
    if let (403, Target::Resource(r)) = (status.code, &route.target) {
        status.details.kind = r.plural.clone();
        status.details.group = r.group.clone();
        status.details.name = r.name.clone();
    }
    status
}

fn denied(user: &User, a: &Attributes) -> Status {
    if a.resource.is_empty() {
        let message = format!("forbidden: User {:?} cannot {} path {:?}", user.name, a.verb, a.path);
        return Status::new(403, "Forbidden", message);
    }
    let (long, full) = match (a.group.as_str(), a.subresource.as_str()) {
        ("", "") => (a.resource.clone(), a.resource.clone()),
        ("", s) => (format!("{}/{s}", a.resource), a.resource.clone()),
        (g, "") => (a.resource.clone(), format!("{}.{g}", a.resource)),
        (g, s) => (format!("{}/{s}", a.resource), format!("{}.{g}", a.resource)),
    };
    let scope = if a.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", a.namespace)
    };
    let what = if a.name.is_empty() { full } else { format!("{full} {:?}", a.name) };
    let message = format!(
        "{what} is forbidden: User {:?} cannot {} resource {long:?} in API group {:?} {scope}",
        user.name, a.verb, a.group
    );
    let mut status = Status::new(403, "Forbidden", message);
    status.details.name = a.name.clone();
    status.details.group = a.group.clone();
    status.details.kind = a.resource.clone();
    status
}
