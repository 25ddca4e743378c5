//! Selectors of typed objects.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::base::labels::{Op, Requirement, Selector};

/// The selector of a `metav1.LabelSelector` that was validated when its object was written.
pub fn selector_of(selector: &LabelSelector) -> Selector {
    let mut out = Selector::from_map(selector.match_labels.iter().flatten());
    for e in selector.match_expressions.iter().flatten() {
        let op = Op::named(&e.operator).unwrap_or(Op::DoesNotExist);
        out.0.push(Requirement { key: e.key.clone(), op, values: e.values.clone().unwrap_or_default() });
    }
    out
}
