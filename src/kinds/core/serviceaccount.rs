//! ServiceAccount.

use linkme::distributed_slice;
use serde_json::Value;

use crate::base::json::at;
use crate::kinds::{BUILTIN, Kind, KindRef, Strategy, Subresource};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    subresources: &[Subresource::Token],
    schema: "io.k8s.api.core.v1.ServiceAccount",
    delete_answers_object: true,
    strategy: Strategy { warnings, ..Strategy::BASE },
    sample: r#"{"metadata":{"name":"sample"}}"#,
    ..Kind::BASE
});

/// Asks for what only secrets listed in an account could do.
const ENFORCE: &str = "kubernetes.io/enforce-mountable-secrets";

fn warnings(account: &Value, old: Option<&Value>) -> Vec<String> {
    let given = |a: &Value| at(a, "metadata.annotations").is_some_and(|a| a.get(ENFORCE).is_some());
    if given(account) && !old.is_some_and(given) {
        return vec![format!(
            "metadata.annotations[{ENFORCE}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"
        )];
    }
    Vec::new()
}
