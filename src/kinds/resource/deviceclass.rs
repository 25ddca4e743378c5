//! DeviceClass: which devices are meant by a name.

use linkme::distributed_slice;
use serde_json::Value;

use super::{CONFIGS_MAX, configuration, each, nothing_allocates, selector};
use crate::base::json::{at, list};
use crate::kinds::check::Path;
use crate::kinds::core::podspec;
use crate::kinds::field::{self, Errors};
use crate::kinds::{BUILTIN, Generation, Kind, KindRef, Strategy};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "resource.k8s.io",
    kind: "DeviceClass",
    plural: "deviceclasses",
    singular: "deviceclass",
    namespaced: false,
    generation: Generation::Spec,
    schema: "io.k8s.api.resource.v1.DeviceClass",
    delete_answers_object: true,
    strategy: Strategy { validate, warnings: |_, old| nothing_allocates(old, "spec"), ..Strategy::BASE },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"selectors":[{"cel":{"expression":"true"}}]}}"#,
    ..Kind::BASE
});

fn validate(class: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, nothing) = (Path::root("spec"), Value::Null);
    let spec = class.get("spec").unwrap_or(&nothing);
    selector::selectors(&mut errors, &path, spec);
    each(&mut errors, &path.field("config"), list(spec, "config"), CONFIGS_MAX, configuration);
    if let Some(name) = at(spec, "extendedResourceName").and_then(Value::as_str)
        && !podspec::is_extended(name)
    {
        let path = path.field("extendedResourceName");
        errors.push(field::invalid(path, name, "must be a valid extended resource name"));
    }
    errors
}
