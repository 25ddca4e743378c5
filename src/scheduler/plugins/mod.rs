//! What decides about nodes, a file each: plugins refuse nodes and rate them, in the steps of Kubernetes' framework.
//!
//! A decision asks every plugin whether the pod can be anywhere ([`Plugin::refuse`]), then its [`Plugin::filter`] about every
//! node (or what its [`Plugin::pre_filter`] has made of the whole cluster before), then [`Plugin::pre_score`] about those that are left;
//! a plugin that has something to say rates each of them, its rates are normalised to 0 to 100, and count with its weight.

pub mod affinity;
pub mod fit;
pub mod image;
pub mod interpod;
pub mod name;
mod plugin;
pub mod ports;
pub mod spread;
pub mod taint;
pub mod unschedulable;
pub mod volumes;

pub use plugin::{ByNode, Cycle, Filter, Normal, Plugin, Rating, Refusal, SCORE_MAX};

/// Every plugin, in the order in which they are asked; weights as in Kubernetes' default profile.
pub const ALL: &[&dyn Plugin] = &[
    &unschedulable::NodeUnschedulable,
    &name::NodeName,
    &taint::TaintToleration,
    &affinity::NodeAffinity,
    &ports::NodePorts,
    &fit::NodeResourcesFit,
    &volumes::VolumeRestrictions,
    &volumes::VolumeBinding,
    &spread::PodTopologySpread,
    &interpod::InterPodAffinity,
    &fit::BalancedAllocation,
    &image::ImageLocality,
];
