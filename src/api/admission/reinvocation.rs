//! Who is asked once more where an object changes after they have seen it: policies among themselves, and webhooks.

use std::collections::HashSet;

use serde_json::Value;

/// What those of one kind have done to the object of one request.
#[derive(Clone, Default)]
pub(super) struct Reinvocation {
    is_second: bool,
    /// What the object was when the last round was over.
    seen: Value,
    /// Asked, and to be asked again when another one changes something.
    asked: HashSet<String>,
    due: HashSet<String>,
    /// One has changed the object.
    pub is_needed: bool,
}

// === impl Reinvocation ===

impl Reinvocation {
    /// The second round, with what others have made of the object since.
    pub fn again(&mut self, object: &Value) {
        self.is_second = true;
        if self.seen != *object {
            self.due.extend(self.asked.drain());
        }
    }

    /// Whether one has nothing to do in this round.
    pub fn skips(&self, id: &str) -> bool {
        self.is_second && !self.due.contains(id)
    }

    /// One has changed the object.
    pub fn changed(&mut self) {
        self.due.extend(self.asked.drain());
        self.is_needed = true;
    }

    /// One wishes to see what comes after it.
    pub fn ask_again(&mut self, id: String) {
        self.asked.insert(id);
    }

    /// The round is over.
    pub fn end(&mut self, object: &Value) {
        if !self.is_second && (self.is_needed || !self.asked.is_empty()) {
            self.seen = object.clone();
        }
    }
}
