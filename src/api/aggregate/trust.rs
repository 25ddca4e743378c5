//! Who this server is to the servers behind it, and whom it believes to be one of them.

use std::io;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::ClientConfig;

use crate::api::identity::pki::{Identity, Pki};
use crate::wire::tls::{self, Belief};

/// The front proxy: an identity of an authority of its own, by which other servers know that the headers which name a user
/// are this server's. It opens nothing here.
#[derive(Clone)]
pub struct FrontProxy {
    /// The authority of clients of this server, PEM.
    pub client_ca: Vec<u8>,
    /// The authority of `chain`, PEM.
    pub ca: Vec<u8>,
    pub chain: Vec<u8>,
    pub key: Vec<u8>,
}

/// Which certificates of a server are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Of these authorities: PEM, as base64.
    Bundle(Arc<str>),
    /// Of those that the system believes.
    System,
    Anyone,
}

impl std::fmt::Debug for FrontProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FrontProxy")
    }
}

// === impl FrontProxy ===

impl From<&Pki> for FrontProxy {
    fn from(pki: &Pki) -> Self {
        let Identity { chain, key } = pki.front_proxy.clone();
        Self { client_ca: pki.ca.clone(), ca: pki.front_proxy_ca.clone(), chain, key }
    }
}

// === impl Trust ===

impl Trust {
    /// How connections are made under it.
    pub(super) fn tls(&self, identity: Option<&FrontProxy>) -> io::Result<Arc<ClientConfig>> {
        let shown = identity.map(|identity| (&*identity.chain, &*identity.key));
        match self {
            Self::Bundle(bundle) => {
                let pem = STANDARD.decode(&**bundle).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                tls::believer(Belief::In(&pem), shown)
            }
            Self::System => tls::believer(Belief::System, shown),
            Self::Anyone => tls::believer(Belief::Anyone, shown),
        }
    }
}
