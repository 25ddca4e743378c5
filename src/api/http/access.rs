//! Who asks, for whom, and whether they may.

use std::sync::Arc;

use axum::extract::Request;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use http::{Extensions, HeaderMap, HeaderValue};
use percent_encoding::percent_decode_str;
use tower::service_fn;

use super::layer::{Next, answered};
use super::route::{Route, Target};
use crate::api::Api;
use crate::api::identity::attributes::Attributes;
use crate::api::identity::authorize::authorize;
use crate::api::identity::join::check_member;
use crate::api::identity::token::service_account;
use crate::apimachinery::http::peer::Peer;
use crate::apimachinery::http::peer::bearer;
use crate::apimachinery::status::{Result, Status};
use crate::apimachinery::user::{AUTHENTICATED, MASTERS, User, account_groups};
use crate::wire::websocket;

/// Finds out who asks: an `Arc<User>` in the request's extensions.
pub(super) fn authentication<S: Next>(api: Api, mut inner: S) -> impl Next {
    service_fn(move |mut request: Request| {
        answered(identify(&api, &mut request).map(|user| {
            request.extensions_mut().insert(user);
            inner.call(request)
        }))
    })
}

fn identify(api: &Api, request: &mut Request) -> Result<Arc<User>> {
    let taken = take_socket_token(request.headers_mut());
    let (route, peer) = (request.extensions().get::<Route>(), request.extensions().get::<Peer>());
    let (route, peer) = route.zip(peer).ok_or_else(|| Status::internal("a request without a route or a connection"))?;
    let user = taken.and_then(|()| user_of(api, peer, request.headers()).inspect_err(|_| peer.connection.refuse()));
    user.map_err(|status| about_target(status, route))
}

/// Refuses what the user may not do.
pub(super) fn authorization<S: Next>(api: Api, mut inner: S) -> impl Next {
    service_fn(move |request: Request| answered(allow(&api, request.extensions()).map(|()| inner.call(request))))
}

fn allow(api: &Api, extensions: &Extensions) -> Result<()> {
    let (route, user) = (extensions.get::<Route>(), extensions.get::<Arc<User>>());
    let (route, user) = route.zip(user).ok_or_else(|| Status::internal("a request without a route or a user"))?;
    if user.is_in(MASTERS) { Ok(()) } else { require(api, user, &route.attributes()) }
}

/// The user of a request: bearer token, else client certificate, else anonymous; then whom they impersonate.
fn user_of(api: &Api, peer: &Peer, headers: &HeaderMap) -> Result<Arc<User>> {
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

/// Among the sub-protocols of a websocket, what begins so is a bearer token: a script in a browser can set no other header.
const SOCKET_TOKEN: &str = "base64url.bearer.authorization.k8s.io.";

/// Makes a bearer token of the one among a websocket's sub-protocols, as
/// `k8s.io/apiserver/pkg/authentication/request/websocket` reads it. It is agreed on with nobody and handed to nobody.
fn take_socket_token(headers: &mut HeaderMap) -> Result<()> {
    if !websocket::is_wanted(headers) {
        return Ok(());
    }
    let offered = websocket::offered(headers);
    let (tokens, others): (Vec<&str>, Vec<&str>) = offered.iter().partition(|p| p.starts_with(SOCKET_TOKEN));
    let token = match tokens[..] {
        [] => return Ok(()),
        // One protocol has to be left for the answer.
        [token] if !others.is_empty() => &token[SOCKET_TOKEN.len()..],
        _ => return Err(Status::unauthorized()),
    };
    let decoded = URL_SAFE_NO_PAD.decode(token).ok().filter(|t| !t.is_empty());
    let text = decoded.and_then(|t| String::from_utf8(t).ok()).ok_or_else(Status::unauthorized)?;
    let bearer = HeaderValue::from_str(&format!("Bearer {text}")).map_err(|_| Status::unauthorized())?;
    let others = HeaderValue::from_str(&others.join(", ")).map_err(|_| Status::unauthorized())?;
    headers.insert(SEC_WEBSOCKET_PROTOCOL, others);
    headers.entry(AUTHORIZATION).or_insert(bearer);
    Ok(())
}

/// The values of a header. One that is no text is refused: left out, the request would be another one.
fn texts(headers: &HeaderMap, name: &str) -> Result<Vec<String>> {
    let text = |v: &HeaderValue| match std::str::from_utf8(v.as_bytes()) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(Status::bad_request(format!("the header {name} is not UTF-8"))),
    };
    headers.get_all(name).iter().map(text).collect()
}

fn impersonate(api: &Api, user: Arc<User>, headers: &HeaderMap) -> Result<Arc<User>> {
    if !headers.keys().any(|k| k.as_str().starts_with("impersonate-")) {
        return Ok(user);
    }
    let name = texts(headers, "impersonate-user")?.into_iter().next().unwrap_or_default();
    let mut groups = texts(headers, "impersonate-group")?;
    let uid = texts(headers, "impersonate-uid")?.into_iter().next().unwrap_or_default();
    let mut extra: Vec<(String, Vec<String>)> = Vec::new();
    for header in headers.keys() {
        if let Some(key) = header.as_str().strip_prefix("impersonate-extra-") {
            // Slashes and the like are escaped.
            let key = percent_decode_str(key).decode_utf8().map_or_else(|_| key.to_owned(), |k| k.into_owned());
            extra.push((key, texts(headers, header.as_str())?));
        }
    }
    if name.is_empty() {
        if !groups.is_empty() || !extra.is_empty() || !uid.is_empty() {
            return Err(Status::bad_request("requested impersonation without impersonating a user"));
        }
        return Ok(user);
    }
    let account = service_account(&name);
    let mut wanted = vec![match account {
        Some((namespace, account)) => impersonation("serviceaccounts", "", namespace, account),
        None => impersonation("users", "", "", &name),
    }];
    wanted.extend(groups.iter().map(|g| impersonation("groups", "", "", g)));
    if !uid.is_empty() {
        wanted.push(impersonation("uids", "authentication.k8s.io", "", &uid));
    }
    for (key, values) in &extra {
        wanted.extend(values.iter().map(|v| Attributes {
            subresource: key.clone(),
            ..impersonation("userextras", "authentication.k8s.io", "", v)
        }));
    }
    wanted.iter().try_for_each(|a| require(api, &user, a))?;
    // The groups of an account are known; who names others gets those.
    if let (Some((namespace, _)), true) = (account, groups.is_empty()) {
        groups.extend(account_groups(namespace));
    }
    let (authenticated, unauthenticated) = ("system:authenticated", "system:unauthenticated");
    let anonymous = name == "system:anonymous";
    if !groups.iter().any(|g| g == unauthenticated || (!anonymous && g == authenticated)) {
        groups.push(if anonymous { unauthenticated } else { authenticated }.into());
    }
    Ok(Arc::new(User { name, uid, groups, extra }))
}

fn impersonation(resource: &str, group: &str, namespace: &str, name: &str) -> Attributes {
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
pub fn require(api: &Api, user: &User, attributes: &Attributes) -> Result<()> {
    if authorize(api, user, attributes).allowed { Ok(()) } else { Err(denied(user, attributes)) }
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::Request;
    use crate::api::in_memory;
    use crate::apimachinery::http::connections::Connections;
    use crate::kinds::authorization::subjectaccessreview;
    use crate::kinds::core::node;

    #[tokio::test]
    async fn a_deleted_nodes_certificate_opens_nothing_and_nobody_is_told_that_it_may() {
        let api = in_memory::api();
        let peer = || Peer {
            user: Some(Arc::new(User::node("one"))),
            key: "".into(),
            connection: Arc::new(Connections::default().open([192, 0, 2, 1].into())),
        };
        let asks = || user_of(&api, &peer(), &HeaderMap::new()).map(|user| user.name.clone());
        let review = || {
            let attributes = json!({"verb": "get", "resource": "nodes", "name": "one", "version": "v1"});
            let user = User::node("one");
            let asked = json!({"spec": {"user": user.name, "groups": user.groups, "resourceAttributes": attributes}});
            let request = Request::internal("another node", &subjectaccessreview::KIND, "", "");
            api.review(&request, asked).unwrap()["status"].take()
        };
        let refused = asks().unwrap_err();
        assert_eq!((refused.code, refused.reason), (403, Status::NODE_DELETED), "it never was one");
        let request = Request::internal("test", &node::KIND, "", "");
        api.create(&request, json!({"metadata": {"name": "one"}})).await.unwrap();
        assert_eq!(asks().unwrap(), "system:node:one");
        assert_eq!(review()["allowed"], true);
        let request = Request { name: "one".into(), ..request };
        api.delete(&request, &Default::default()).await.unwrap();
        assert_eq!(asks().unwrap_err().code, 403);
        let answer: Value = review();
        assert_eq!(answer["allowed"], false, "{answer}");
        assert!(answer["reason"].as_str().unwrap().contains("was deleted"), "{answer}");
    }

    #[test]
    fn a_token_among_the_sub_protocols_becomes_the_bearer_and_goes_no_further() {
        let take = |protocols: &str, bearer: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert("upgrade", HeaderValue::from_static("websocket"));
            headers.insert("sec-websocket-key", HeaderValue::from_static("x"));
            headers.insert(SEC_WEBSOCKET_PROTOCOL, protocols.parse().unwrap());
            if let Some(bearer) = bearer {
                headers.insert(AUTHORIZATION, bearer.parse().unwrap());
            }
            take_socket_token(&mut headers).map(|()| {
                let text = |name: &str| headers.get(name).map_or("", |v| v.to_str().unwrap()).to_owned();
                (text("authorization"), text("sec-websocket-protocol"))
            })
        };
        let both = |a: &str, b: &str| Ok((a.to_owned(), b.to_owned()));
        let token = format!("{SOCKET_TOKEN}YS5i");
        assert_eq!(take(&format!("{token}, v4.channel.k8s.io"), None), both("Bearer a.b", "v4.channel.k8s.io"));
        assert_eq!(take(&format!("x,{token},y"), Some("Bearer own")), both("Bearer own", "x, y"));
        assert_eq!(take("x, y", None), both("", "x, y"));
        for bad in [token.clone(), format!("{token}, {token}, x"), format!("{SOCKET_TOKEN}, x"), format!("{token}=, x")]
        {
            assert_eq!(take(&bad, None).unwrap_err().code, 401, "{bad}");
        }
        let mut plain = HeaderMap::new();
        plain.insert(SEC_WEBSOCKET_PROTOCOL, format!("{token}, x").parse().unwrap());
        take_socket_token(&mut plain).unwrap();
        assert!(!plain.contains_key(AUTHORIZATION), "no websocket");
    }
}
