//! What becomes of every field that a pod may have: the one place that says it.
//!
//! [`TABLE`] has a row for each field of `PodSpec` and of every type inside it, down to where a row is about all that is
//! below. Warnings and the list in the documentation are made from it. Invariants, which the tests hold: a field of the
//! schema has one row and a row has its field; what is said to be done is shown by a test of that name; what is said to be
//! warned of, refused or dropped is.

mod row;
mod table;
#[cfg(test)]
mod tests;

use row::{How, Row};

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;

use crate::kinds::check::Path;
use crate::schema::{self, Node, TypeRef};

use table::TABLE;

/// Definition names of the types that the table is about begin so.
const CORE: &str = "io.k8s.api.core.v1.";

/// The rows that may warn, by type.
static WARNING: LazyLock<HashMap<&'static str, Vec<&'static Row>>> = LazyLock::new(|| {
    let mut map: HashMap<&'static str, Vec<&'static Row>> = HashMap::new();
    for row in TABLE.iter().filter(|row| matches!(row.how, How::Warned(_) | How::Partly { .. })) {
        map.entry(row.kind).or_default().push(row);
    }
    map
});

/// Warnings about what is set in a pod's spec and not done: one for each row, about the first place, so that no spec
/// makes more of them than there are rows.
pub(super) fn warnings(out: &mut Vec<String>, path: &Path<'_>, spec: &Value) {
    Walk { out, seen: Vec::new() }.value(path, kind("PodSpec"), spec);
}

/// The same for ephemeral containers that are new.
pub(super) fn ephemeral_warnings<'v>(
    out: &mut Vec<String>,
    base: &Path<'_>,
    containers: impl Iterator<Item = (usize, &'v Value)>,
) {
    let mut walk = Walk { out, seen: Vec::new() };
    for (i, container) in containers {
        walk.value(&base.index(i), kind("EphemeralContainer"), container);
    }
}

fn kind(name: &str) -> TypeRef<'static> {
    schema::type_of(&format!("{CORE}{name}")).expect("the types that the table begins with are in the schema")
}

struct Walk<'o> {
    out: &'o mut Vec<String>,
    /// Rows that were told of.
    seen: Vec<(&'static str, &'static str)>,
}

impl Walk<'_> {
    fn value(&mut self, path: &Path<'_>, kind: TypeRef<'_>, value: &Value) {
        match (kind.node(), value) {
            (Node::List { .. }, Value::Array(items)) => {
                let Some(item) = kind.item().filter(|item| item.as_struct().is_some()) else { return };
                items.iter().enumerate().for_each(|(i, value)| self.value(&path.index(i), item, value));
            }
            (Node::Struct { .. }, Value::Object(members)) => {
                let name = kind.as_struct().and_then(|s| s.name.strip_prefix(CORE)).unwrap_or_default();
                let rows = WARNING.get(name).map_or(&[][..], Vec::as_slice);
                for (key, member) in members {
                    let path = path.field(key);
                    let row = rows.iter().find(|row| row.field == key);
                    match row.map(|row| (*row, row.how)) {
                        _ if !is_set(member) && !member.is_boolean() => {}
                        Some((row, How::Warned(warning))) if is_set(member) => self.tell(row, &path, warning),
                        Some((row, How::Partly { unless, warning, .. })) if unless(value, &path.to_string()) => {
                            self.tell(row, &path, warning);
                        }
                        _ => kind.child(key).into_iter().for_each(|child| self.value(&path, child, member)),
                    }
                }
            }
            _ => {}
        }
    }

    fn tell(&mut self, row: &'static Row, path: &Path<'_>, warning: &str) {
        if !self.seen.contains(&(row.kind, row.field)) {
            self.seen.push((row.kind, row.field));
            self.out.push(format!("{path}: {warning}"));
        }
    }
}

/// What a client has said, other than what a missing field means too.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(set) => *set,
        Value::Number(number) => number.as_i64() != Some(0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(_) => true,
    }
}
