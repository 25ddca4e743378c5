//! What of the parameters of a list or watch goes together (`ValidateListOptions`, Kubernetes 1.36): everything that is
//! wrong is told at once.

use crate::apimachinery::status::{Result, Status};
use crate::kinds::field::{self, Errors};

/// The parameters that exclude one another.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListParameters<'a> {
    pub watch: bool,
    pub resource_version: &'a str,
    /// `resourceVersionMatch`.
    pub how: &'a str,
    pub continued: bool,
    /// `sendInitialEvents` was given.
    pub initial_events: bool,
}

const MATCH: &str = "resourceVersionMatch";

// === impl ListParameters ===

impl ListParameters<'_> {
    /// A 422 of ListOptions that names every conflict.
    pub fn check(&self) -> Result<()> {
        let errors = if self.watch { self.of_watch() } else { self.of_list() };
        if errors.is_empty() {
            return Ok(());
        }
        Err(Status::invalid_options("meta.k8s.io", "ListOptions", "", &errors))
    }

    fn of_list(&self) -> Errors {
        let mut errors = Errors::new();
        if !self.how.is_empty() {
            if self.resource_version.is_empty() {
                errors.push(field::forbidden(
                    MATCH,
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            if self.continued {
                errors.push(field::forbidden(MATCH, "resourceVersionMatch is forbidden when continue is provided"));
            }
            if !matches!(self.how, "Exact" | "NotOlderThan") {
                errors.push(field::not_supported(MATCH, self.how, &["Exact", "NotOlderThan", ""]));
            }
            if self.how == "Exact" && self.resource_version == "0" {
                let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                errors.push(field::forbidden(MATCH, why));
            }
        }
        if self.initial_events {
            errors.push(field::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
        }
        errors
    }

    fn of_watch(&self) -> Errors {
        let mut errors = Errors::new();
        if self.initial_events && self.how != "NotOlderThan" {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            errors.push(field::forbidden(MATCH, why));
        }
        if !self.how.is_empty() && !self.initial_events {
            let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            errors.push(field::forbidden(MATCH, why));
        }
        if !matches!(self.how, "" | "NotOlderThan") {
            errors.push(field::not_supported(MATCH, self.how, &["NotOlderThan"]));
        }
        if self.continued && (self.initial_events || !self.how.is_empty()) {
            errors.push(field::forbidden(MATCH, "resourceVersionMatch is forbidden when continue is provided"));
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn causes(parameters: ListParameters<'_>) -> Vec<(String, String)> {
        let status = parameters.check().err();
        status.map_or_else(Vec::new, |s| s.details.causes.into_iter().map(|c| (c.field, c.reason)).collect())
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let list = ListParameters::default();
        assert!(list.check().is_ok());
        assert!(ListParameters { resource_version: "5", how: "Exact", ..list }.check().is_ok());
        assert_eq!(causes(ListParameters { how: "Foo", ..list }).len(), 2);
        assert_eq!(causes(ListParameters { how: "NotOlderThan", initial_events: true, ..list }).len(), 2);
        assert_eq!(causes(ListParameters { resource_version: "0", how: "Exact", ..list })[0].1, "FieldValueForbidden");
    }

    #[test]
    fn a_watch_is_not_older_than_with_its_initial_events() {
        let watch = ListParameters { watch: true, ..ListParameters::default() };
        assert!(ListParameters { how: "NotOlderThan", initial_events: true, ..watch }.check().is_ok());
        assert_eq!(causes(ListParameters { how: "Exact", initial_events: true, ..watch }).len(), 2);
        assert_eq!(causes(ListParameters { how: "NotOlderThan", ..watch }).len(), 1);
        assert_eq!(causes(ListParameters { initial_events: true, ..watch }).len(), 1);
    }
}
