//! Every Kubernetes kind, one file each: pure data and small functions.
//!
//! A file registers its kind in [`BUILTIN`] at link time; [`registry::Registry`] holds these and the custom kinds of a
//! running server. Routes, discovery, OpenAPI, table output, short names, field selectors, store keys and watch caches
//! are derived from it, so a kind is one new file and one `mod` line of its group. See `docs/adding-a-kind.md`.

use linkme::distributed_slice;

pub mod admissionregistration;
pub mod apiextensions;
pub mod apiregistration;
pub mod apps;
pub mod authentication;
pub mod authorization;
pub mod autoscaling;
pub mod batch;
pub mod certificates;
pub mod check;
pub mod coordination;
pub mod core;
pub mod custom;
pub mod discovery;
pub mod events;
pub mod field;
pub mod flowcontrol;
mod kind_ref;
pub mod meta;
pub mod networking;
pub mod node;
pub mod policy;
mod property;
pub mod rbac;
pub mod registry;
pub mod resource;
pub mod scheduling;
pub mod storage;
mod strategy;
mod subresource;
pub mod table;
pub mod version;

pub use kind_ref::{Conversion, Kind, KindRef};
pub use property::{CUSTOM_VERBS, Column, Field, Generation, NameRule, VERBS};
pub use strategy::{Creation, Strategy, UpdateStrategy, Volatile, keep, keep_all_but};
pub use subresource::Subresource;

/// The kinds of this build, in no order: each file adds its own.
#[distributed_slice]
pub static BUILTIN: [KindRef];
