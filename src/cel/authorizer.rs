//! `authorizer`: questions about what somebody may do, which whoever evaluates an expression answers.

use std::fmt;
use std::sync::Arc;

/// Answers whether the user of a request, or a service account instead, may do something.
pub trait Authorizer: fmt::Debug + Send + Sync {
    /// Decides about a verb.
    fn decide(&self, query: &Query, verb: &str) -> Decision;
}

/// What is asked about, as far as it is said.
#[derive(Clone, Debug)]
pub struct Query {
    pub(super) authorizer: Arc<dyn Authorizer>,
    /// Namespace and name of a service account that is asked about instead of the user.
    pub service_account: Option<(String, String)>,
    pub about: About,
}

#[derive(Clone, Debug)]
pub enum About {
    Nothing,
    Path(String),
    Group(String),
    Resource(Box<ResourceQuery>),
}

/// A resource that is asked about.
#[derive(Clone, Debug, Default)]
pub struct ResourceQuery {
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: String,
    pub label_selector: String,
}

/// The answer.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    pub allowed: bool,
    pub reason: String,
    pub error: Option<String>,
}

// === impl Query ===

impl Query {
    /// About nothing yet.
    pub fn new(authorizer: Arc<dyn Authorizer>) -> Self {
        Self { authorizer, service_account: None, about: About::Nothing }
    }

    /// The same of something else.
    #[must_use]
    pub fn about(&self, about: About) -> Self {
        Self { about, ..self.clone() }
    }

    /// The name of its type.
    pub(super) fn type_name(&self) -> &'static str {
        match self.about {
            About::Nothing => "kubernetes.authorization.Authorizer",
            About::Path(_) => "kubernetes.authorization.PathCheck",
            About::Group(_) => "kubernetes.authorization.GroupCheck",
            About::Resource(_) => "kubernetes.authorization.ResourceCheck",
        }
    }

    pub(super) fn decide(&self, verb: &str) -> Decision {
        self.authorizer.decide(self, verb)
    }
}
