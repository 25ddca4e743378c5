//! The pure state machine of a pod on its node.
//!
//! [`step`] takes what a pod is, what happened, and the time, and answers what it is now and what must be done. It never
//! waits, never does IO, and never loses a container: whatever was started is stopped before the pod is torn down.
//!
//! Every effect that lasts is in the state until its answer comes: that of the pod as a whole in [`PodState::out`], that of a
//! container in its [`ContainerState`]. Invariant: one effect of the pod as a whole is out at a time, and none while a container is being
//! started; so whatever an effect makes is there, and known, when the next one removes it.

mod plan;
mod state;
mod step;

pub use plan::{ContainerPlan, Plan, Restart, Role};
pub use state::{Container, ContainerState, Effect, Ended, Event, Phase, PodState, Stage, Work};
pub use step::step;

#[cfg(test)]
mod tests;
