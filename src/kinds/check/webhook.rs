//! How a webhook is reached (`WebhookClientConfig`).

use serde_json::Value;

use super::Path;
use crate::base::json::{int, text};
use crate::base::labels::dns_subdomain_error;
use crate::kinds::field::{self, Errors};

const FORM: &str = "; desired format: https://host[/path]";

/// A `WebhookClientConfig`: a URL or a Service.
pub fn client_config(errors: &mut Errors, path: &Path<'_>, config: &Value) {
    let of = |key: &str| config.get(key).filter(|v| !v.is_null());
    match (of("url"), of("service")) {
        (Some(address), None) => url(errors, &path.field("url"), address.as_str().unwrap_or_default()),
        (None, Some(reference)) => service(errors, &path.field("service"), reference),
        _ => errors.push(field::required(path, "exactly one of url or service is required")),
    }
}

fn url(errors: &mut Errors, path: &Path<'_>, url: &str) {
    let (rest, fragment) = url.split_once('#').unwrap_or((url, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (scheme, rest) = rest.split_once("://").unwrap_or(("", rest));
    if scheme != "https" {
        errors.push(field::invalid(path, scheme, format!("'https' is the only allowed URL scheme{FORM}")));
    }
    let authority = if scheme.is_empty() { "" } else { rest.split('/').next().unwrap_or_default() };
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if host.is_empty() {
        errors.push(field::invalid(path, "", format!("host must be provided{FORM}")));
    } else if let Err(error) = format!("https://{host}").parse::<http::Uri>() {
        errors.push(field::required(path, format!("url must be a valid URL: {error}{FORM}")));
    }
    for (part, what) in [(user, "user information is"), (fragment, "fragments are"), (query, "query parameters are")] {
        if !part.is_empty() {
            errors.push(field::invalid(path, part, format!("{what} not permitted in the URL")));
        }
    }
}

fn service(errors: &mut Errors, path: &Path<'_>, service: &Value) {
    for (key, why) in [("name", "service name is required"), ("namespace", "service namespace is required")] {
        if text(service, key).is_empty() {
            errors.push(field::required(&path.field(key), why));
        }
    }
    if let Some(port) = int(service, "port").filter(|port| !(1..=65535).contains(port)) {
        let why = "port is not valid: must be between 1 and 65535, inclusive";
        errors.push(field::invalid(&path.field("port"), port, why));
    }
    let given = text(service, "path");
    let path = path.field("path");
    if matches!(given, "" | "/") {
        return;
    }
    let Some(rest) = given.strip_prefix('/') else {
        errors.push(field::invalid(&path, given, "must start with a '/'"));
        return;
    };
    for (i, segment) in rest.strip_suffix('/').unwrap_or(rest).split('/').enumerate() {
        if segment.is_empty() {
            errors.push(field::invalid(&path, given, format!("segment[{i}] may not be empty")));
        } else if let Some(why) = dns_subdomain_error(segment) {
            errors.push(field::invalid(&path, given, format!("segment[{i}]: {why}")));
        }
    }
}
