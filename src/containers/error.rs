//! What can go wrong with sandboxes and containers. Image errors are [`crate::containers::ImageError`].

use std::io;
use std::path::PathBuf;

/// One variant an operation; messages are fit for a Kubernetes event.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No sandbox of this id.
    #[error("sandbox {0:?} not found")]
    NoSandbox(String),
    /// No container of this id.
    #[error("container {0:?} not found")]
    NoContainer(String),
    /// A sandbox or container of this id is already there.
    #[error("{0:?} exists already")]
    Exists(String),
    /// The container exists but has ended, so nothing can be run in it.
    #[error("container {0:?} is not running")]
    NotRunning(String),
    /// The sandbox could not be set up.
    #[error("failed to create sandbox {id:?}: {message}")]
    CreateSandbox { id: String, message: String },
    /// The container could not be created or its command not be executed.
    #[error("failed to start container {name:?}: {message}")]
    Start { name: String, message: String },
    /// The command could not be executed inside the container.
    #[error("failed to exec in container: {0}")]
    Exec(String),
    /// The pod cannot have users of its own.
    #[error("user namespace: {0}")]
    Users(String),
    /// The specification asks for something impossible.
    #[error("invalid container specification: {0}")]
    Spec(String),
    /// A cgroup file could not be read or written.
    #[error("cgroup {path:?}")]
    Cgroup {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The shim did not answer; it may have been killed.
    #[error("shim of sandbox {sandbox:?} does not answer")]
    Shim {
        sandbox: String,
        #[source]
        source: io::Error,
    },
    /// Shims would run from a file that containers could change.
    #[error("making a read-only view of the executable {path:?}")]
    ProtectExecutable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A file or mount of the run state.
    #[error("{what}: {path:?}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Results of this room.
pub type Result<T, E = Error> = std::result::Result<T, E>;
