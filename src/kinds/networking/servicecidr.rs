//! ServiceCIDR: ranges that Services get their addresses from (`api::allocate`, `controllers::service_cidr`).

use std::net::IpAddr;

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::{Value, json};

use crate::base::json::{at, list, map_mut};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Kind, KindRef, Strategy, Subresource};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "networking.k8s.io",
    kind: "ServiceCIDR",
    plural: "servicecidrs",
    singular: "servicecidr",
    namespaced: false,
    subresources: &[Subresource::Status],
    has_status: true,
    schema: "io.k8s.api.networking.v1.ServiceCIDR",
    columns: COLUMNS,
    row,
    strategy: Strategy {
        prepare_create: |range| drop(map_mut(range, "").insert("status".into(), json!({}))),
        validate,
        validate_update,
        warnings: |new, old| {
            let before = old.map(|old| list(old, "spec.cidrs")).unwrap_or_default();
            let all = list(new, "spec.cidrs").iter().enumerate().filter(|(_, range)| !before.contains(range));
            let unused = all.filter(|(_, range)| range.as_str().is_some_and(|r| r.contains(':')));
            unused.map(|(i, _)| format!("spec.cidrs[{i}]: Services get no addresses of IPv6 in this version")).collect()
        },
        allocates: true,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"cidrs":["10.196.0.0/24"]}}"#,
    ..Kind::BASE
});

/// The object of the range that the cluster was made with.
pub const DEFAULT: &str = "kubernetes";
/// What holds a range while Services have addresses of it alone.
pub const PROTECTION: &str = "networking.k8s.io/service-cidr-finalizer";
const COLUMNS: &[Column] = &[table::NAME, string("CIDRs", "The ranges."), table::AGE];

fn row(range: &Value, now: Timestamp) -> Vec<Value> {
    let ranges: Vec<&str> = list(range, "spec.cidrs").iter().filter_map(Value::as_str).collect();
    vec![table::name(range), ranges.join(",").into(), table::age(range, now)]
}

/// The ranges of an object.
pub fn ranges(object: &Value) -> impl Iterator<Item = (IpAddr, u8)> + '_ {
    list(object, "spec.cidrs").iter().filter_map(|range| check::parse_cidr(range.as_str()?))
}

fn validate(range: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::root("spec.cidrs");
    let all = list(range, "spec.cidrs");
    if all.is_empty() {
        errors.push(field::required(&path, "at least one CIDR required"));
    }
    if all.len() > 2 {
        errors.push(field::invalid(&path, all.to_vec(), "may only hold up to 2 values"));
    }
    if let [a, b] = all
        && a.as_str().map(|r| r.contains(':')) == b.as_str().map(|r| r.contains(':'))
    {
        let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        errors.push(field::invalid(&path, all.to_vec(), why));
    }
    for (i, one) in all.iter().enumerate() {
        let (one, path) = (one.as_str().unwrap_or_default(), path.index(i));
        if check::cidr(&mut errors, &path, one).is_some() && !check::is_canonical_cidr(one) {
            errors.push(field::invalid(&path, one, "wrong CIDR format, IP doesn't match network IP address"));
        }
    }
    errors
}

/// A range of the other family may be added.
fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    if let ([was], [is, _]) = (list(old, "spec.cidrs"), list(new, "spec.cidrs"))
        && was == is
    {
        return errors;
    }
    check::immutable(&mut errors, &Path::root("spec.cidrs"), at(new, "spec.cidrs"), at(old, "spec.cidrs"));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_canonical_and_one_of_each_family() {
        let of = |ranges: &[&str]| json!({"spec": {"cidrs": ranges}});
        let wrong = |ranges: &[&str]| validate(&of(ranges)).iter().map(|e| e.field.clone()).collect::<Vec<_>>();
        assert!(wrong(&["10.0.0.0/24", "fd00::/112"]).is_empty());
        assert_eq!(wrong(&[]), ["spec.cidrs"]);
        assert_eq!(wrong(&["10.0.0.0/24", "10.1.0.0/24"]), ["spec.cidrs"]);
        assert_eq!(wrong(&["x"]), ["spec.cidrs[0]"]);
        assert_eq!(wrong(&["10.0.0.1/24"]), ["spec.cidrs[0]"]);
        let change = |new: &[&str], old: &[&str]| validate_update(&of(new), &of(old)).len();
        assert_eq!(change(&["10.0.0.0/24", "fd00::/112"], &["10.0.0.0/24"]), 0);
        assert_eq!(change(&["10.0.0.0/25"], &["10.0.0.0/24"]), 1);
        assert_eq!(change(&["10.0.0.0/24"], &["10.0.0.0/24", "fd00::/112"]), 1);
    }
}
