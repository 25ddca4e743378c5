//! Expressions that choose devices (`k8s.io/dynamic-resource-allocation/cel`).

use std::sync::{Arc, LazyLock};

use serde_json::Value;

use super::{ATTRIBUTE_BYTES_MAX, ATTRIBUTES_MAX, DRIVER_BYTES_MAX, each};
use crate::base::json::{list, text};
use crate::cel::{Decl, DeclKind, Env, Field, ObjectType, Type};
use crate::kinds::check::Path;
use crate::kinds::field::{self, Errors};

const SELECTORS_MAX: usize = 32;
const EXPRESSION_BYTES_MAX: usize = 10 << 10;
const COST_MAX: u64 = 1_000_000;

static DEVICE: LazyLock<Decl> = LazyLock::new(device);
static ENV: LazyLock<Env> = LazyLock::new(|| Env::new().with("device", DEVICE.type_of()));

/// What is known of a device in an expression. Capacities are quantities, and attributes of any type.
fn device() -> Decl {
    let map = |of: Decl| Decl::new(DeclKind::Map(Arc::new(of)), ATTRIBUTES_MAX as u64, 2);
    let by_domain = || map(map(Decl::new(DeclKind::Untyped, ATTRIBUTE_BYTES_MAX as u64, 2)));
    let fields = [
        ("driver", Decl::new(DeclKind::String, DRIVER_BYTES_MAX as u64, 2)),
        ("allowMultipleAllocations", Decl::new(DeclKind::Bool, 1, 4)),
        ("attributes", by_domain()),
        ("capacity", by_domain()),
    ];
    let field = |(name, decl): (&str, Decl)| (name.into(), Field { name: name.into(), decl: Arc::new(decl) });
    let object = ObjectType { name: "kubernetes.DRADevice".into(), fields: fields.into_iter().map(field).collect() };
    Decl::new(DeclKind::Object(Arc::new(object)), 0, 2)
}

/// `selectors` of a class or of a request.
pub(super) fn selectors(errors: &mut Errors, path: &Path<'_>, of: &Value) {
    each(errors, &path.field("selectors"), list(of, "selectors"), SELECTORS_MAX, |errors, path, selector| {
        let path = path.field("cel");
        match selector.get("cel").filter(|cel| cel.is_object()) {
            None => errors.push(field::required(&path, "")),
            Some(cel) => expression(errors, &path.field("expression"), text(cel, "expression")),
        }
    });
}

fn expression(errors: &mut Errors, path: &Path<'_>, text: &str) {
    if text.len() > EXPRESSION_BYTES_MAX {
        errors.push(field::too_long(path, EXPRESSION_BYTES_MAX));
        return;
    }
    match cost(text) {
        Err(why) => errors.push(field::invalid(path, text, why)),
        Ok(cost) if cost > COST_MAX => errors.push(field::forbidden(path, "too complex, exceeds cost limit")),
        Ok(_) => {}
    }
}

/// What an expression costs at most.
fn cost(text: &str) -> Result<u64, String> {
    let compiled = ENV.compile(text).map_err(|issues| format!("compilation failed: {issues}"))?;
    if !matches!(compiled.output(), Type::Bool | Type::Dyn) {
        return Err(format!("must evaluate to bool or the unknown type, not {}", compiled.output()));
    }
    compiled.program(&ENV).map_err(|error| format!("program instantiation failed: {error}"))?;
    Ok(compiled.cost_max(Some(&DEVICE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_about_a_device_and_have_a_bounded_cost() {
        for right in [
            "true",
            "device.driver == 'gpu.example.com'",
            r#"device.attributes["gpu.example.com"].family == "a" && device.capacity["gpu.example.com"].memory.compareTo(quantity("10Gi")) >= 0"#,
            r#""gpu.example.com" in device.attributes && device.attributes["gpu.example.com"].shared"#,
            "device.allowMultipleAllocations",
        ] {
            assert!(cost(right).is_ok_and(|cost| cost <= COST_MAX), "{right}: {:?}", cost(right));
        }
        for (wrong, why) in [
            ("device.driver", "must evaluate to bool or the unknown type, not string"),
            ("device.", "compilation failed: ERROR: <input>:1:8: Syntax error"),
            ("foo == 1", "undeclared reference to 'foo'"),
            ("device.other == 1", "undefined field 'other'"),
        ] {
            assert!(cost(wrong).unwrap_err().contains(why), "{wrong}: {:?}", cost(wrong));
        }
        let dear = "device.attributes.all(a, device.attributes.all(b, device.attributes.all(c, device.attributes.all(d, \
                    a + b + c + d != ''))))";
        assert!(cost(dear).is_ok_and(|cost| cost > COST_MAX), "{:?}", cost(dear));
    }
}
