//! Layer 1: what Kubernetes objects look like: decoding, patches, server-side apply, OpenAPI.
//!
//! Everything here works on `serde_json::Value` and a [`TypeRef`] into a [`Schema`], so built-in and custom kinds share
//! every line. Nothing here does IO or knows a clock.

pub mod apply;
mod bundle;
mod custom;
mod decode;
mod findings;
pub mod manifest;
pub mod openapi;
mod parse;
pub mod patch;
pub mod protobuf;
pub mod structural;
mod types;
mod yaml;

pub use bundle::{Descriptions, bundle, type_of};
pub use custom::{CustomNames, StructuralError};
pub use decode::{DecodeError, decode, settle, zero};
pub use parse::{ParseError, parse_json};
pub use patch::PatchError;
pub use types::{Emit, Field, ListKey, ListKind, Node, PatchStrategy, Scalar, Schema, Struct, TypeRef};
pub use yaml::parse_yaml;

#[cfg(test)]
mod replay;
