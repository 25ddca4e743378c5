//! The pod network of this node: one namespace, one veth, one host route per pod.
//!
//! - `ipam` reserves addresses durably; - `netns` makes and pins namespaces; - `kernel` joins both into the real
//!   [`PodNetwork`](super::PodNetwork); - `fake` is the one for simulations; - `suite` is what both must pass.
//!
//! Invariant: an address is reserved before the kernel knows it and freed after the kernel forgot it.

#[cfg(any(test, feature = "fakes", debug_assertions))]
pub mod fake;
pub mod ipam;
mod kernel;
mod name;
pub(crate) mod netns;
#[cfg(any(test, feature = "fakes", debug_assertions))]
pub mod suite;

#[cfg(any(test, feature = "fakes", debug_assertions))]
pub use fake::FakePodNetwork;
pub use kernel::KernelPodNetwork;
pub(crate) use kernel::{node_routes, pinned_ids};
pub(crate) use name::group;
