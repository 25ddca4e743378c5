//! What the client is told of a failure of the store.

use crate::apimachinery::status::Status;
use crate::store;

impl From<store::Error> for Status {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Compacted { .. } => Self::expired("The resourceVersion for the provided list is too old."),
            store::Error::Closed => Self::unavailable("the server is shutting down"),
            store::Error::DiskFull { .. } => Self::new(507, "InternalError", error.to_string()),
            other => Self::internal(other),
        }
    }
}
