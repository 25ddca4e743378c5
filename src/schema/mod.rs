//! Layer 1: what Kubernetes objects look like: decoding, patches, server-side apply, OpenAPI.
//!
//! Everything here works on `serde_json::Value` and a [`TypeRef`] into a [`Schema`], so built-in and custom kinds share
//! every line. Nothing here does IO or knows a clock.

mod bundle;
mod types;

pub use bundle::{Descriptions, bundle, type_of};
pub use types::{Emit, Field, ListKey, ListKind, Node, PatchStrategy, Scalar, Schema, Struct, TypeRef};
