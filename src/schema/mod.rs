//! Layer 1: what Kubernetes objects look like: decoding, patches, server-side apply, OpenAPI.
//!
//! Everything here works on `serde_json::Value` and a [`TypeRef`] into a [`Schema`], so built-in and custom kinds share
//! every line. Nothing here does IO or knows a clock.

pub mod apply;
mod bundle;
mod decode;
pub mod openapi;
mod parse;
pub mod patch;
mod types;

pub use bundle::{Descriptions, bundle, type_of};
pub use decode::{DecodeError, decode, zero};
pub use parse::{ParseError, parse_json, parse_yaml};
pub use patch::PatchError;
pub use types::{Emit, Field, ListKey, ListKind, Node, PatchStrategy, Scalar, Schema, Struct, TypeRef};

#[cfg(test)]
mod replay;
