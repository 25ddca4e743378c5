//! What many kinds' validations share: paths of fields and rules on single values.
//!
//! A [`Path`] is a chain on the stack that becomes text only when there is something to report, so that a valid object
//! costs no allocation. Every rule appends to a list of errors, because a client is told everything at once.

mod condition;
mod net;
mod rule;
mod webhook;

use std::fmt;

use crate::base::budget::shortened;

pub use condition::*;
pub use net::*;
pub use rule::*;
pub use webhook::*;

/// What is shown of a name that a client chose: a thousand errors may lie below it.
const NAME_BYTES_MAX: usize = 256;
/// The beginning of a path may be one already.
const ROOT_BYTES_MAX: usize = 16 << 10;

/// The way from the root of an object to a field.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

// === impl Path ===

impl<'a> Path<'a> {
    /// A top-level field, or several joined by dots.
    pub fn root(name: &'a str) -> Self {
        Self { parent: None, step: Step::Field(name) }
    }

    /// A member of the object here.
    pub fn field(&'a self, name: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Field(name) }
    }

    /// An item of the list here.
    pub fn index(&'a self, index: usize) -> Path<'a> {
        Path { parent: Some(self), step: Step::Index(index) }
    }

    /// An entry of the map here.
    pub fn key(&'a self, key: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Key(key) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Field(name) if self.parent.is_some() => write!(f, ".{}", shortened(name, NAME_BYTES_MAX)),
            Step::Field(name) => f.write_str(&shortened(name, ROOT_BYTES_MAX)),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(key) => write!(f, "[{}]", shortened(key, NAME_BYTES_MAX)),
        }
    }
}

impl From<Path<'_>> for String {
    fn from(path: Path<'_>) -> Self {
        path.to_string()
    }
}

impl From<&Path<'_>> for String {
    fn from(path: &Path<'_>) -> Self {
        path.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_print_as_kubernetes_does() {
        let spec = Path::root("spec");
        let list = spec.field("containers");
        let item = list.index(2);
        let limits = item.field("resources.limits");
        assert_eq!(limits.key("cpu").to_string(), "spec.containers[2].resources.limits[cpu]");
    }
}
