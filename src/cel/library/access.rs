//! `authorizer`.

use std::sync::Arc;

use super::super::authorizer::{About, Query, ResourceQuery};
use super::{Failure, Meter, Outcome, Run, Value};
use crate::base::labels::{dns_label_error, dns_subdomain_error};

pub(super) fn run(name: &str) -> Option<Run> {
    Some(match name {
        "path" => |_, args| match (about(args)?, text(args, 1)?) {
            (About::Nothing, path) if path.trim().is_empty() => Err(Failure::error("path must not be empty")),
            (About::Nothing, path) => with(args, About::Path(path.into())),
            _ => Err(Failure::no_overload()),
        },
        "group" => |_, args| match about(args)? {
            About::Nothing => with(args, About::Group(text(args, 1)?.into())),
            _ => Err(Failure::no_overload()),
        },
        "serviceAccount" => service_account,
        "resource" => resource,
        "subresource" => |_, args| narrowed(args, |resource| &mut resource.subresource),
        "namespace" => |_, args| narrowed(args, |resource| &mut resource.namespace),
        "name" => |_, args| narrowed(args, |resource| &mut resource.name),
        "fieldSelector" => |_, args| narrowed(args, |resource| &mut resource.field_selector),
        "labelSelector" => |_, args| narrowed(args, |resource| &mut resource.label_selector),
        "check" => |_, args| match about(args)? {
            About::Path(_) | About::Resource(_) => Ok(Value::Decision(Arc::new(query(args)?.decide(text(args, 1)?)))),
            About::Nothing | About::Group(_) => Err(Failure::no_overload()),
        },
        "errored" => |_, args| decided(args, |d| Value::Bool(d.error.is_some())),
        "error" => |_, args| decided(args, |d| Value::text(d.error.as_deref().unwrap_or(""))),
        "allowed" => |_, args| decided(args, |d| Value::Bool(d.allowed)),
        "reason" => |_, args| decided(args, |d| Value::text(d.reason.as_str())),
        _ => return None,
    })
}

fn query<'v>(args: &'v [Value<'_>]) -> Result<&'v Arc<Query>, Failure> {
    match args.first() {
        Some(Value::Query(query)) => Ok(query),
        _ => Err(Failure::no_overload()),
    }
}

fn about<'v>(args: &'v [Value<'_>]) -> Result<&'v About, Failure> {
    query(args).map(|query| &query.about)
}

fn text<'v>(args: &'v [Value<'_>], at: usize) -> Result<&'v str, Failure> {
    match args.get(at) {
        Some(Value::String(text)) => Ok(text),
        _ => Err(Failure::no_overload()),
    }
}

fn with<'a>(args: &[Value<'a>], about: About) -> Outcome<'a> {
    Ok(Value::Query(Arc::new(query(args)?.about(about))))
}

fn service_account<'a>(_: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    let (namespace, name) = (text(args, 1)?, text(args, 2)?);
    if !matches!(about(args)?, About::Nothing) {
        return Err(Failure::no_overload());
    }
    if dns_subdomain_error(name).is_some() {
        return Err(Failure::error("Invalid service account name"));
    }
    if dns_label_error(namespace).is_some() {
        return Err(Failure::error("Invalid service account namespace"));
    }
    let service_account = Some((namespace.to_owned(), name.to_owned()));
    Ok(Value::Query(Arc::new(Query { service_account, ..Query::clone(query(args)?) })))
}

fn resource<'a>(_: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    let (About::Group(group), resource) = (about(args)?, text(args, 1)?) else { return Err(Failure::no_overload()) };
    if resource.trim().is_empty() {
        return Err(Failure::error("resource must not be empty"));
    }
    let resource = ResourceQuery { group: group.clone(), resource: resource.to_owned(), ..ResourceQuery::default() };
    with(args, About::Resource(Box::new(resource)))
}

fn narrowed<'a>(args: &[Value<'a>], of: fn(&mut ResourceQuery) -> &mut String) -> Outcome<'a> {
    let About::Resource(resource) = about(args)? else { return Err(Failure::no_overload()) };
    let mut resource = resource.clone();
    text(args, 1)?.clone_into(of(&mut resource));
    with(args, About::Resource(resource))
}

fn decided<'a>(args: &[Value<'a>], of: fn(&super::super::authorizer::Decision) -> Value<'a>) -> Outcome<'a> {
    match &args[0] {
        Value::Decision(decision) => Ok(of(decision)),
        _ => Err(Failure::no_overload()),
    }
}
