//! Which policies are about a request, by which binding and with which parameters
//! (`k8s.io/apiserver/pkg/admission/plugin/policy/generic/policy_dispatcher.go`).

use serde_json::Value;

use super::configured::{Binding, Bound};
use super::params::{self, Param};
use crate::api::admission::Review;
use crate::kinds::KindRef;

/// A policy that is about a request.
pub(super) struct Invocation<'b> {
    pub of: &'b Bound,
    /// By which binding; none where the policy itself cannot be used.
    pub binding: Option<&'b (Box<str>, std::sync::Arc<Binding>)>,
    pub how: Result<How, String>,
}

/// How it is evaluated.
pub(super) struct How {
    /// As of what kind it sees the objects.
    pub kind: KindRef,
    pub param: Option<Param>,
}

/// All policies that are about a request, in their order.
pub(super) fn invocations<'b>(review: &Review<'_>, object: &Value, all: &'b [Bound]) -> Vec<Invocation<'b>> {
    let mut found = Vec::new();
    for of in all {
        let kind = match of.policy.spec.match_constraints.matched(review, object) {
            Ok(Some(kind)) => kind,
            Ok(None) => continue,
            Err(status) => {
                found.push(Invocation { of, binding: None, how: Err(status.message) });
                continue;
            }
        };
        let param_kind = of.policy.spec.param_kind.as_ref();
        let params_of = match param_kind.map(|of| params::kind(review, of)).transpose() {
            Ok(kind) => kind,
            Err(why) => {
                found.push(Invocation { of, binding: None, how: Err(why) });
                continue;
            }
        };
        for binding in &of.bindings {
            let spec = &binding.1.spec;
            let matched = spec.match_resources.as_ref().map(|resources| resources.matched(review, object));
            let params = match matched {
                Some(Ok(None)) => continue,
                Some(Err(status)) => Err(status.message),
                None | Some(Ok(Some(_))) => params::collect(review, params_of.as_ref(), spec.param_ref.as_ref()),
            };
            let with = |param| Invocation { of, binding: Some(binding), how: Ok(How { kind: kind.clone(), param }) };
            match params {
                Ok(params) => found.extend(params.into_iter().map(with)),
                Err(why) => found.push(Invocation { of, binding: Some(binding), how: Err(why) }),
            }
        }
    }
    found
}
