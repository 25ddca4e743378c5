//! Images: references, registries, a content-addressed store of unpacked layers, and root file systems made of them.
//!
//! Layers are unpacked once, each on top of its parents, into directories that overlayfs takes as they are; what they came
//! as is kept beside them, for other nodes and for export. Invariant: what the index names is complete on disk (content is
//! synced before it is referenced, and references change by atomic rename), so a crash at any instant costs a download at
//! most.

mod access;
mod archive;
mod archive_dir;
mod builtin;
mod client;
mod collect;
mod connect;
mod content;
mod credentials;
mod description;
mod digest;
mod disk;
mod document;
mod error;
mod export;
#[cfg(any(feature = "fuzzing", debug_assertions))]
pub(crate) mod fuzzing;
mod gc;
mod images;
mod in_root;
mod lock;
mod manifest;
mod offer;
mod pull;
mod reach;
mod reference;
mod registries;
mod rootfs;
mod source;
mod store;
mod unpack;
mod users;

pub use archive_dir::Taking;
pub use builtin::HELLO;
pub use credentials::{Credentials, SecretName};
pub use description::{Image, ImageConfig};
pub(crate) use digest::digest_of;
pub use error::{ImageError, Result};
pub use gc::{Collected, Policy};
pub use images::Images;
pub(crate) use in_root::{make_directory_in, read_in};
pub use reference::Reference;
pub use registries::Registries;
pub(super) use rootfs::probe_mapped_overlay;
pub use rootfs::probe_overlay;
pub use store::ImageStore;
pub(super) use users::home_in;
pub use users::resolve_user;
