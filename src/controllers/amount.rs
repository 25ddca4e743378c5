//! Numbers that are given as such or as a part of all.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// An absolute number or a percentage of `total`.
pub(super) fn resolve(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(n) => (*n).max(0),
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%').and_then(|p| p.parse().ok()).unwrap_or(0).max(0);
            let product = percent * i64::from(total);
            let number = if round_up { (product + 99) / 100 } else { product / 100 };
            i32::try_from(number).unwrap_or(i32::MAX)
        }
    }
}
