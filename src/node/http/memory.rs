//! What the endpoints remember between two questions.

use std::sync::Arc;

use super::usage::Samples;

/// What the endpoints remember between two questions; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Memory(pub(super) Arc<Samples>);
