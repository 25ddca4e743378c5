//! Which field of a manifest the server could not read, where its answer says only what is wrong with the value.
//!
//! Kubernetes answers so for values that a type reads itself: quantities, bytes, times. The kinds that are built in here are
//! known, so the field is looked for in the manifest.

use base64::Engine;
use serde_json::Value;

use crate::base::clock::parse_time;
use crate::base::quantity::Quantity;
use crate::kinds::registry;
use crate::schema::manifest::Manifest;
use crate::schema::{Node, Scalar, TypeRef};

/// The first such field, with its value.
pub(super) fn unreadable(manifest: &Manifest) -> Option<String> {
    let snapshot = registry::builtin();
    let kind = snapshot.by_kind(&manifest.api_version, &manifest.kind)?;
    look(kind.type_ref(), &manifest.value, &mut String::new())
}

fn look(of: TypeRef<'_>, value: &Value, path: &mut String) -> Option<String> {
    let length = path.len();
    let found = match (of.node(), value) {
        (Node::Scalar(scalar), value) => (!is_readable(*scalar, value)).then(|| format!("{path}: {value}")),
        (Node::List { .. }, Value::Array(items)) => {
            let item = of.item()?;
            items.iter().enumerate().find_map(|(index, value)| {
                path.truncate(length);
                path.push_str(&format!("[{index}]"));
                look(item, value, path)
            })
        }
        (_, Value::Object(map)) => map.iter().find_map(|(key, value)| {
            path.truncate(length);
            path.push_str(if length == 0 { "" } else { "." });
            path.push_str(key);
            look(of.child(key)?, value, path)
        }),
        _ => None,
    };
    path.truncate(length);
    found
}

fn is_readable(scalar: Scalar, value: &Value) -> bool {
    match (scalar, value) {
        (_, Value::Null) => true,
        (Scalar::Quantity, Value::String(text)) => text.parse::<Quantity>().is_ok(),
        (Scalar::Quantity, value) => value.is_number(),
        (Scalar::Bytes, Value::String(text)) => {
            let plain: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
            base64::engine::general_purpose::STANDARD.decode(plain).is_ok()
        }
        (Scalar::Time | Scalar::MicroTime, Value::String(text)) => parse_time(text).is_some(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::manifest::parse;

    #[test]
    fn the_field_of_a_value_that_cannot_be_read_is_found() {
        let found = |text: &str| unreadable(&parse(text).unwrap()[0]);
        let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {template: {spec: {containers: \
                          [{name: a, resources: {limits: {cpu: 1}}}, {name: b, resources: {limits: {memory: CPU}}}]}}}\n";
        let path = "spec.template.spec.containers[1].resources.limits.memory";
        assert_eq!(found(&deployment.replace("CPU", "1 Gi")).unwrap(), format!("{path}: \"1 Gi\""));
        assert_eq!(found(&deployment.replace("CPU", "1Gi")), None);
        let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {a: YQ==, b: not base64}\n";
        assert_eq!(found(secret).unwrap(), "data.b: \"not base64\"");
        assert_eq!(
            found("apiVersion: v1\nkind: Pod\nmetadata: {name: p, creationTimestamp: today}\n").unwrap(),
            "metadata.creationTimestamp: \"today\""
        );
        assert_eq!(found("apiVersion: example.com/v1\nkind: Cow\nmetadata: {name: s}\n"), None, "a kind of others");
    }
}
