//! What a worker is told.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::super::machine::Event;
use super::super::sandbox_context::SandboxContext;
use super::resizing;
use crate::base::object::Object;

/// What a worker is told.
#[derive(Debug)]
pub enum Message {
    /// The pod as the API has it now.
    Pod(Arc<Object>),
    /// The pod is no longer in the API.
    Vanished,
    /// Something the machine must know.
    Happened(Event),
    /// The sandbox is up.
    Prepared(Box<SandboxContext>),
    /// A sandbox is gone.
    SandboxGone { sandbox: String },
    /// A container of the sandbox has ended: look how.
    Exited { container: String },
    /// A ConfigMap or Secret of a volume has changed.
    Content,
    /// There may be images that were not there before.
    Images,
    /// The last report has reached the API (or not).
    Reported(bool),
    /// Another pod of the node has gone, or takes less.
    Room,
    /// What was done of a change of resources.
    Resized(resizing::Done),
    /// The volumes were brought up to date, or one was not.
    Refreshed { stale: bool },
}

/// How to reach a worker.
pub type Handle = mpsc::Sender<Message>;
