//! The paths of fields that mean nothing or stand twice, as many of them as Kubernetes keeps.
//!
//! A path is put together from the inside out. Both their number and their length are bounded: a field below a key of a
//! megabyte would otherwise make a megabyte of text.

use crate::base::budget::shortened;

/// As many are kept and told of; a hundred and first is not looked for.
const FINDINGS_MAX: usize = 100;
/// A path gets no longer in front once it has this length.
const PATH_BYTES_MAX: usize = 1024;
/// Longer keys are cut.
const KEY_BYTES_MAX: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Findings(Vec<String>);

// === impl Findings ===

impl Findings {
    /// How many there are; given back to [`Findings::within`] and [`Findings::push`] by who looked further since.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether another one would still be kept.
    pub fn has_room(&self) -> bool {
        self.0.len() < FINDINGS_MAX
    }

    /// A member of the object whose findings begin at `since`; each is kept once.
    pub fn push(&mut self, since: usize, name: &str) {
        if self.has_room() {
            let name = shortened(name, KEY_BYTES_MAX);
            if !self.0[since..].iter().any(|known| *known == name) {
                self.0.push(name.into_owned());
            }
        }
    }

    /// A whole path.
    pub fn push_path(&mut self, path: impl FnOnce() -> String) {
        if self.has_room() {
            let path = path();
            if !self.0.contains(&path) {
                self.0.push(path);
            }
        }
    }

    /// What was found since lies below the member `key`.
    pub fn within(&mut self, since: usize, key: &str) {
        if since < self.0.len() {
            self.prefix(since, &shortened(key, KEY_BYTES_MAX));
        }
    }

    /// What was found since lies below an item.
    pub fn within_item(&mut self, since: usize, index: usize) {
        if since < self.0.len() {
            self.prefix(since, &format!("[{index}]"));
        }
    }

    fn prefix(&mut self, since: usize, prefix: &str) {
        for path in &mut self.0[since..] {
            if path.len() < PATH_BYTES_MAX {
                let dot = if path.starts_with('[') { "" } else { "." };
                path.insert_str(0, dot);
                path.insert_str(0, prefix);
            }
        }
    }

    /// The paths, each once, in the order found.
    pub fn into_paths(mut self) -> Vec<String> {
        let mut seen = std::collections::HashSet::new();
        self.0.retain(|path| seen.insert(path.clone()));
        self.0
    }
}
