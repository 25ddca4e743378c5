//! The controllers, one file each: they bring the cluster to what its objects say.
//!
//! [`ALL`] is the one list. A controller is a [`Reconciler`](crate::reconcile::Reconciler) over shared views: a pure plan
//! computes steps, a thin part applies them. Whatever a controller has written it reads in its next look at a view or an
//! [`Index`], so that nothing has to be remembered between runs and nothing is made twice.

mod amount;
pub mod certificates;
#[cfg(test)]
mod cluster;
pub mod clusterrole;
mod context;
pub mod cronjob;
pub mod customresourcedefinition;
pub mod daemonset;
pub mod deployment;
pub mod disruption;
pub mod endpoint;
pub mod event;
mod failures;
pub mod garbage;
mod history;
pub mod horizontalpodautoscaler;
pub mod index;
pub mod job;
mod member;
pub mod namespace;
pub mod networkpolicy;
pub mod node;
pub mod node_cidr;
pub mod pod_gc;
mod pod_writer;
pub mod pods;
pub mod replicaset;
pub mod resource_quota;
pub mod root_ca;
pub mod service_cidr;
pub mod serviceaccount;
pub mod statefulset;
mod template;
pub mod validatingadmissionpolicy;
pub mod volume;

pub use context::{Context, Options, absent_is_fine, controller_reference, typed};
pub use member::{Member, min_ready};

use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::base::clock::Clock;
use crate::kinds::{apps, batch, core, networking};
use crate::reconcile::{Client, Controller};
use index::Index;

/// The field manager of everything that controllers write.
pub const MANAGER: &str = "kube-controller-manager";

/// Makes a controller.
pub type Make = fn(&Arc<Context>) -> Controller;

/// Every controller.
pub const ALL: &[Make] = &[
    serviceaccount::controller,
    root_ca::controller,
    replicaset::controller,
    replicaset::replication_controller,
    deployment::controller,
    daemonset::controller,
    job::controller,
    cronjob::controller,
    statefulset::controller,
    endpoint::slice::controller,
    endpoint::classic::controller,
    endpoint::mirror::controller,
    namespace::controller,
    networkpolicy::controller,
    garbage::controller,
    clusterrole::controller,
    certificates::controller,
    customresourcedefinition::controller,
    validatingadmissionpolicy::controller,
    node::controller,
    node::evict::controller,
    node_cidr::controller,
    pod_gc::controller,
    event::controller,
    resource_quota::controller,
    disruption::controller,
    horizontalpodautoscaler::controller,
    volume::bind::controller,
    volume::protect::claims,
    volume::protect::volumes,
    volume::ephemeral::controller,
    volume::provision::controller,
    service_cidr::ranges,
    service_cidr::addresses,
];

/// Starts every controller over a client that writes as [`MANAGER`]; aborting the handles stops them.
pub fn start(client: Arc<dyn Client>, clock: Clock, options: Options) -> Vec<JoinHandle<Option<()>>> {
    start_over(&context(client, clock, options))
}

/// As [`start`], over what they share.
pub fn start_over(context: &Arc<Context>) -> Vec<JoinHandle<Option<()>>> {
    ALL.iter().map(|make| make(context).spawn()).collect()
}

/// What controllers share that work through `client`.
pub fn context(client: Arc<dyn Client>, clock: Clock, options: Options) -> Arc<Context> {
    let index = |kind, keys| Index::new(client.informer(kind), keys);
    Arc::new(Context {
        pods: index(&core::pod::KIND, pods::index_keys),
        jobs: index(&batch::job::KIND, pods::owner_keys),
        replica_sets: index(&apps::replicaset::KIND, pods::owner_keys),
        revisions: index(&apps::controllerrevision::KIND, pods::owner_keys),
        claims: index(&core::persistentvolumeclaim::KIND, volume::claim_keys),
        volumes: index(&core::persistentvolume::KIND, volume::volume_keys),
        service_addresses: index(&networking::ipaddress::KIND, service_cidr::service_keys),
        client,
        clock,
        options,
    })
}
