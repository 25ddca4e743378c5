//! One server that answers for a version of a group.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustls::ClientConfig;
use serde_json::Value;

use super::discovered::Discovered;
use super::trust::{FrontProxy, Trust};
use crate::base::object::Object;

/// A server behind a Service; cheap to clone.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Of its APIService.
    pub(super) name: Arc<str>,
    pub(super) uid: Box<str>,
    pub group: Arc<str>,
    pub version: Arc<str>,
    pub(super) backend: Backend,
    /// Whether its APIService says so; requests are handed on only then.
    pub is_available: bool,
    pub(super) state: Arc<State>,
}

/// Where a server is, and whom to believe to be it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Backend {
    pub namespace: Arc<str>,
    pub service: Arc<str>,
    pub port: u16,
    pub trust: Trust,
}

/// What is known of it as long as its place is the same.
#[derive(Debug)]
pub(super) struct State {
    pub identity: Option<Arc<FrontProxy>>,
    tls: OnceLock<Result<Arc<ClientConfig>, String>>,
    discovered: Mutex<Discovered>,
}

// === impl Remote ===

impl Remote {
    pub(super) fn new(
        of: &Object,
        group: &str,
        version: &str,
        backend: Backend,
        is_available: bool,
        identity: &Option<Arc<FrontProxy>>,
    ) -> Self {
        let state = State { identity: identity.clone(), tls: OnceLock::new(), discovered: Mutex::default() };
        Self {
            name: (&*of.meta.name).into(),
            uid: of.meta.uid.clone(),
            group: group.into(),
            version: version.into(),
            backend,
            is_available,
            state: Arc::new(state),
        }
    }

    /// The same server, found to be available or not.
    pub(super) fn with_availability(&self, is_available: bool) -> Self {
        Self { is_available, ..self.clone() }
    }

    /// Whether both are the same server, of the same APIService.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }

    pub(super) fn discovered(&self) -> MutexGuard<'_, Discovered> {
        self.state.discovered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a client is told of the version when it looks for what there is.
    pub fn shown(&self) -> Value {
        self.discovered().shown(&self.version)
    }

    /// The path under which everything of the version is.
    pub fn root(&self) -> String {
        match &*self.group {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        }
    }

    /// Host and port as they stand in a request.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host(), self.backend.port)
    }

    /// The name that its certificate carries.
    pub(super) fn host(&self) -> String {
        format!("{}.{}.svc", self.backend.service, self.backend.namespace)
    }

    pub(super) fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        let made = self.state.tls.get_or_init(|| {
            let made = self.backend.trust.tls(self.state.identity.as_deref());
            made.map_err(|error| format!("unable to load root certificates: {error}"))
        });
        made.clone()
    }
}
