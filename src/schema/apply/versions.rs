//! Objects of a kind as of its other versions, for whoever compares them.
//!
//! Whoever converts objects may have to ask somebody for it. What is not known yet ends the computation
//! ([`Unconverted`]), which is begun anew once it is.

use serde_json::Value;

use crate::schema::types::TypeRef;

/// Objects of a kind as of its other versions.
pub trait Versions: std::fmt::Debug + Sync {
    /// What objects of a version look like, if there is such a version.
    fn shape(&self, api_version: &str) -> Option<TypeRef<'_>>;

    /// An object as of a version that there is.
    fn convert(&self, object: &Value, api_version: &str) -> Result<Value, Unconverted>;
}

/// An object in another version is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an object is not known in another version yet")]
pub struct Unconverted;
