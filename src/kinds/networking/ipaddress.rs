//! IPAddress: an address that somebody has, above all a Service (`api::allocate`).

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::{Value, json};

use crate::base::json::{at, text};
use crate::base::labels::dns_subdomain_error;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Kind, KindRef, NameRule, Strategy};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "networking.k8s.io",
    kind: "IPAddress",
    plural: "ipaddresses",
    singular: "ipaddress",
    short_names: &["ip"],
    namespaced: false,
    schema: "io.k8s.api.networking.v1.IPAddress",
    // The name itself says what it may be.
    name_rule: NameRule::PathSegment,
    columns: COLUMNS,
    row,
    strategy: Strategy {
        validate,
        validate_update: |new, old| {
            let mut errors = Errors::new();
            let path = Path::root("spec.parentRef");
            check::immutable(&mut errors, &path, at(new, "spec.parentRef"), at(old, "spec.parentRef"));
            errors
        },
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"192.0.2.1"},"spec":{"parentRef":{"group":"example.com","resource":"gateways","name":"g"}}}"#,
    ..Kind::BASE
});

/// Says which part of the cluster made the object.
pub const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
/// What gives Services their addresses.
pub const ALLOCATOR: &str = "ipallocator.k8s.io";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const COLUMNS: &[Column] = &[table::NAME, string("ParentRef", "Who has the address.")];

/// The object of a Service's address.
pub fn of_service(address: std::net::IpAddr, namespace: &str, name: &str) -> Value {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    json!({
        "metadata": {"name": address.to_string(), "labels": {FAMILY: family, MANAGED_BY: ALLOCATOR}},
        "spec": {"parentRef": {"resource": "services", "namespace": namespace, "name": name}},
    })
}

/// The namespace and name of the Service whose address it is, if it is one's.
pub fn service_of(address: &Value) -> Option<(&str, &str)> {
    let parent = at(address, "spec.parentRef")?;
    let is_service = text(parent, "group").is_empty() && text(parent, "resource") == "services";
    is_service.then(|| (text(parent, "namespace"), text(parent, "name")))
}

/// Whether it was made with a Service.
pub fn is_allocated(address: &Value) -> bool {
    address["metadata"]["labels"][MANAGED_BY] == ALLOCATOR
}

/// There is a cell more than there are columns, as with Kubernetes.
fn row(address: &Value, now: Timestamp) -> Vec<Value> {
    let part = |key: &str| text(address, &format!("spec.parentRef.{key}"));
    let parts = [part("group"), part("resource"), part("namespace"), part("name")];
    let parent: Vec<&str> = parts.into_iter().filter(|p| !p.is_empty()).collect();
    vec![table::name(address), parent.join("/").into(), table::age(address, now)]
}

fn validate(address: &Value) -> Errors {
    let mut errors = Errors::new();
    let name = text(address, "metadata.name");
    if check::parse_ip(name).is_none_or(|parsed| parsed.to_string() != name) {
        let why = "must be a valid IP address in canonical form, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        errors.push(field::invalid("metadata.name", name, why));
    }
    let path = Path::root("spec.parentRef");
    let Some(parent) = at(address, "spec.parentRef").filter(|p| p.is_object()) else {
        errors.push(field::required(&path, ""));
        return errors;
    };
    let group = text(parent, "group");
    if !group.is_empty() {
        errors.extend(dns_subdomain_error(group).map(|why| field::invalid(path.field("group"), group, why)));
    }
    for key in ["resource", "name"] {
        check::given(&mut errors, &path.field(key), text(parent, key));
    }
    for key in ["resource", "name", "namespace"] {
        let given = text(parent, key);
        if matches!(given, "." | "..") || given.contains(['/', '%']) {
            errors.push(field::invalid(path.field(key), given, "may not be '.' or '..' or contain '/' or '%'"));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_a_service_is_valid_and_says_whose_it_is() {
        for address in ["10.43.0.7", "fd00::7"] {
            let object = of_service(address.parse().unwrap(), "web", "front");
            assert!(validate(&object).is_empty());
            assert_eq!((service_of(&object), is_allocated(&object)), (Some(("web", "front")), true));
        }
        let other = json!({"metadata": {"name": "fd00::0007"}, "spec": {"parentRef": {"group": "a", "resource": "services", "name": "../x"}}});
        let fields: Vec<_> = validate(&other).iter().map(|e| e.field.clone()).collect();
        assert_eq!((fields, service_of(&other)), (vec!["metadata.name".into(), "spec.parentRef.name".into()], None));
    }
}
