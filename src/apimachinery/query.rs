//! The parameters of a request, after the question mark.

use std::collections::BTreeMap;

use super::status::{Result, Status};

/// Query parameters; the first of a name counts where one is wanted.
#[derive(Clone, Debug, Default)]
pub struct Query(BTreeMap<String, Vec<String>>);

// === impl Query ===

impl Query {
    /// Reads what follows the question mark.
    pub fn parse(text: &str) -> Self {
        let mut query = Self::default();
        for (k, v) in form_urlencoded::parse(text.as_bytes()) {
            query.0.entry(k.into_owned()).or_default().push(v.into_owned());
        }
        query
    }

    /// The first value, or `""`.
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).and_then(|v| v.first()).map_or("", String::as_str)
    }

    /// Every value.
    pub fn all(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether it was given.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A flag: `true`, `1` (and anything that is not false, as Kubernetes reads it).
    pub fn flag(&self, name: &str) -> bool {
        self.has(name) && self.get(name) != "0" && !self.get(name).eq_ignore_ascii_case("false")
    }

    /// An integer.
    pub fn int(&self, name: &str) -> Result<Option<i64>> {
        match self.get(name) {
            "" if !self.has(name) => Ok(None),
            text => text
                .parse()
                .map(Some)
                .map_err(|_| Status::bad_request(format!("{name}: invalid value {text:?}: expected an integer"))),
        }
    }
}
