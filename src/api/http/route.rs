//! From method and path to what is meant (`k8s.io/apiserver/pkg/endpoints/request.RequestInfo`).

use http::{Method, Uri};
use percent_encoding::percent_decode_str;

use crate::api::flowcontrol;
use crate::api::identity::attributes::Attributes;
use crate::apimachinery::query::Query;
use crate::apimachinery::status::{Result, Status};
use crate::base::labels::FieldSelector;

/// A request, read but not yet checked.
#[derive(Clone, Debug)]
pub struct Route {
    pub verb: &'static str,
    pub target: Target,
    pub query: Query,
    /// Its path begins with `/watch`.
    watched: bool,
}

/// What the path leads to.
#[derive(Clone, Debug)]
pub enum Target {
    /// `/healthz` and the like.
    Path(String),
    Resource(Resource),
}

/// A path into an API group.
#[derive(Clone, Debug, Default)]
pub struct Resource {
    pub group: String,
    pub version: String,
    pub plural: String,
    pub namespace: String,
    pub name: String,
    pub subresource: String,
    /// What follows the subresource (`proxy/...`).
    pub rest: String,
}

// === impl Route ===

impl Route {
    /// Whether it may last as long as the client likes: it has no seat among the requests that run, once it has begun.
    pub fn is_long_running(&self) -> bool {
        match &self.target {
            Target::Path(_) => false,
            Target::Resource(resource) => {
                let subresource = resource.subresource.as_str();
                self.verb == "watch" || matches!(subresource, "attach" | "exec" | "log" | "portforward" | "proxy")
            }
        }
    }

    /// What decides about its priority.
    pub fn flow_target(&self) -> flowcontrol::Target<'_> {
        let verb = self.verb;
        match &self.target {
            Target::Path(path) => flowcontrol::Target { verb, path, ..flowcontrol::Target::default() },
            Target::Resource(resource) => flowcontrol::Target {
                verb,
                group: &resource.group,
                resource: &resource.plural,
                subresource: &resource.subresource,
                namespace: &resource.namespace,
                path: "",
            },
        }
    }

    /// Reads method and path; nothing is looked up.
    pub fn parse(method: &Method, uri: &Uri) -> Result<Self> {
        let query = Query::parse(uri.query().unwrap_or(""));
        let path =
            percent_decode_str(uri.path()).decode_utf8().map_err(|_| Status::bad_request("the path is not UTF-8"))?;
        // Split after decoding, as Kubernetes does: an escaped slash separates too.
        let mut parts: Vec<&str> = path.split('/').skip(1).collect();
        let group_parts = match parts.first() {
            Some(&"api") if parts.len() > 2 && !parts[2].is_empty() => 2,
            Some(&"apis") if parts.len() > 3 && !parts[3].is_empty() => 3,
            _ => {
                return Ok(Self {
                    verb: path_verb(method),
                    target: Target::Path(path.to_string()),
                    query,
                    watched: false,
                });
            }
        };
        if parts.last() == Some(&"") && parts.len() > group_parts + 1 && !parts.contains(&"proxy") {
            parts.pop();
        }
        let mut resource = Resource::default();
        if group_parts == 3 {
            resource.group = parts[1].to_owned();
        }
        resource.version = parts[group_parts - 1].to_owned();
        let mut rest = &parts[group_parts..];
        let watched = rest.first() == Some(&"watch") && rest.len() > 1;
        if watched {
            rest = &rest[1..];
        }
        if rest.first() == Some(&"namespaces") && rest.len() > 2 && !matches!(rest[2], "status" | "finalize") {
            resource.namespace = rest[1].to_owned();
            rest = &rest[2..];
        }
        let mut rest = rest.iter();
        let mut next = || rest.next().map_or_else(String::new, |s| (*s).to_owned());
        (resource.plural, resource.name, resource.subresource) = (next(), next(), next());
        resource.rest = rest.copied().collect::<Vec<_>>().join("/");
        if resource.plural == "namespaces" && resource.group.is_empty() {
            resource.namespace = resource.name.clone();
        }
        let verb = verb(method, &resource, &query, watched);
        Ok(Self { verb, target: Target::Resource(resource), query, watched })
    }

    /// What is asked, for the one decision whether it may be done.
    pub fn attributes(&self) -> Attributes {
        let verb = self.verb.to_owned();
        let resource = match &self.target {
            Target::Path(path) => return Attributes { verb, path: path.clone(), ..Attributes::default() },
            Target::Resource(resource) => resource.clone(),
        };
        let mut attributes = Attributes {
            verb,
            resource: resource.plural,
            subresource: resource.subresource,
            group: resource.group,
            namespace: resource.namespace,
            name: resource.name,
            ..Attributes::default()
        };
        // Selectors count where something is done to all that they select, and not below `/watch`.
        if !self.watched && matches!(self.verb, "list" | "watch" | "deletecollection") {
            attributes.fields = FieldSelector::parse(self.query.get("fieldSelector")).map(|s| s.0).unwrap_or_default();
            // To list or watch one name is access to that object; to delete a collection never is.
            if self.verb != "deletecollection" && attributes.name.is_empty() {
                let name = attributes.required("metadata.name").filter(|name| is_segment(name));
                attributes.name = name.unwrap_or_default().to_owned();
            }
        }
        attributes
    }
}

/// Whether it can be a name in a path.
fn is_segment(name: &str) -> bool {
    !matches!(name, "." | "..") && !name.contains(['/', '%'])
}

/// Whether a `%` in the path is not followed by two hexadecimal digits; Go's server does not read such a request.
pub fn has_bad_escape(uri: &Uri) -> bool {
    let bytes = uri.path().as_bytes();
    bytes.iter().enumerate().any(|(i, b)| {
        *b == b'%' && !bytes.get(i + 1..i + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

fn path_verb(method: &Method) -> &'static str {
    match method.as_str() {
        "POST" => "post",
        "PUT" => "put",
        "PATCH" => "patch",
        "DELETE" => "delete",
        "HEAD" => "head",
        "OPTIONS" => "options",
        _ => "get",
    }
}

fn verb(method: &Method, resource: &Resource, query: &Query, watched: bool) -> &'static str {
    let collection = resource.name.is_empty();
    match method.as_str() {
        _ if watched => "watch",
        "GET" | "HEAD" if collection && query.flag("watch") => "watch",
        "GET" | "HEAD" if collection => "list",
        "GET" | "HEAD" => "get",
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" if collection => "deletecollection",
        "DELETE" => "delete",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(method: &str, path: &str) -> (&'static str, Resource) {
        let route = Route::parse(&method.parse().unwrap(), &path.parse().unwrap()).unwrap();
        match route.target {
            Target::Resource(r) => (route.verb, r),
            Target::Path(p) => panic!("{p} is no resource"),
        }
    }

    #[test]
    fn paths_are_read_as_kubernetes_reads_them() {
        let (verb, r) = resource("GET", "/api/v1/namespaces/n/pods/p/log?follow=true");
        assert_eq!((verb, &*r.namespace, &*r.plural, &*r.name, &*r.subresource), ("get", "n", "pods", "p", "log"));
        let (verb, r) = resource("GET", "/apis/apps/v1/deployments?watch=1");
        assert_eq!((verb, &*r.group, &*r.plural, &*r.namespace), ("watch", "apps", "deployments", ""));
        let (verb, r) = resource("PUT", "/api/v1/namespaces/n/finalize");
        assert_eq!((verb, &*r.plural, &*r.name, &*r.subresource), ("update", "namespaces", "n", "finalize"));
        let (verb, r) = resource("GET", "/api/v1/watch/namespaces/n/pods/p");
        assert_eq!((verb, &*r.namespace, &*r.name), ("watch", "n", "p"));
        let (_, r) = resource("GET", "/api/v1/namespaces/n/services/s:80/proxy/a/b");
        assert_eq!((&*r.subresource, &*r.rest), ("proxy", "a/b"));
        let (_, r) = resource("GET", "/api/v1/namespaces/n/configmaps/a%2Fb");
        assert_eq!((&*r.name, &*r.subresource), ("a", "b"));
        assert!(has_bad_escape(&"/api/v1/nodes/a%z".parse().unwrap()));
        let route = Route::parse(&Method::GET, &"/apis/apps".parse().unwrap()).unwrap();
        assert!(matches!(route.target, Target::Path(p) if p == "/apis/apps"));
    }

    fn attributes(method: &str, path: &str) -> (String, String, String) {
        let a = Route::parse(&method.parse().unwrap(), &path.parse().unwrap()).unwrap().attributes();
        (a.verb, format!("{}/{}", a.resource, a.subresource), a.name)
    }

    #[test]
    fn a_field_selector_names_what_is_listed_or_watched_and_nothing_else() {
        let maps = "/api/v1/namespaces/n/configmaps";
        let named = |method: &str, path: &str| attributes(method, &format!("{maps}{path}"));
        let is = |verb: &str, what: &str, name: &str| (verb.to_owned(), what.to_owned(), name.to_owned());
        let one = "fieldSelector=metadata.name=a";
        assert_eq!(named("GET", &format!("?{one}")), is("list", "configmaps/", "a"));
        assert_eq!(named("HEAD", &format!("/?{one}")), is("list", "configmaps/", "a"));
        assert_eq!(named("GET", &format!("?watch=true&{one}")), is("watch", "configmaps/", "a"));
        assert_eq!(named("GET", &format!("?watch=FALSE&{one}")), is("list", "configmaps/", "a"));
        assert_eq!(named("GET", &format!("?watch=&{one}")), is("watch", "configmaps/", "a"));
        for name in ["..", "a/b", "a%252fb"] {
            assert_eq!(named("GET", &format!("?fieldSelector=metadata.name={name}")), is("list", "configmaps/", ""));
        }
        assert_eq!(named("POST", &format!("?{one}")), is("create", "configmaps/", ""), "nothing has a name yet");
        assert_eq!(named("DELETE", &format!("?{one}")), is("deletecollection", "configmaps/", ""));
        assert_eq!(named("PUT", &format!("?{one}")), is("update", "configmaps/", ""));
        assert_eq!(named("PATCH", &format!("?{one}")), is("patch", "configmaps/", ""));
        assert_eq!(named("GET", &format!("/b?{one}")), is("get", "configmaps/", "b"));
        assert_eq!(named("post", &format!("?{one}")), is("", "configmaps/", ""), "methods are written in capitals");
        let watch = "/api/v1/watch/namespaces/n/configmaps";
        assert_eq!(attributes("GET", &format!("{watch}?{one}")), is("watch", "configmaps/", ""));
        assert_eq!(attributes("POST", &format!("{watch}?{one}")), is("watch", "configmaps/", ""));
    }

    #[test]
    fn what_is_made_below_an_object_has_the_objects_name() {
        let is = |verb: &str, what: &str, name: &str| (verb.to_owned(), what.to_owned(), name.to_owned());
        for (resource, sub) in
            [("pods", "exec"), ("pods", "binding"), ("pods", "eviction"), ("serviceaccounts", "token")]
        {
            let path = format!("/api/v1/namespaces/n/{resource}/x/{sub}?fieldSelector=metadata.name=y");
            assert_eq!(attributes("POST", &path), is("create", &format!("{resource}/{sub}"), "x"));
            assert_eq!(attributes("GET", &path), is("get", &format!("{resource}/{sub}"), "x"));
        }
        assert_eq!(attributes("GET", "/api/v1/nodes/x/proxy/a/b"), is("get", "nodes/proxy", "x"));
        assert_eq!(attributes("DELETE", "/api/v1/namespaces/n/pods/x:80/proxy/"), is("delete", "pods/proxy", "x:80"));
        assert_eq!(attributes("DELETE", "/api/v1/namespaces/n"), is("delete", "namespaces/", "n"));
        assert_eq!(attributes("GET", "/api/v1/namespaces/n/status"), is("get", "namespaces/status", "n"));
        assert_eq!(
            attributes("GET", "/api/v1/namespaces?fieldSelector=metadata.name=n"),
            is("list", "namespaces/", "n")
        );
        assert_eq!(attributes("GET", "/healthz?fieldSelector=metadata.name=n"), is("get", "/", ""));
    }
}
