//! Layer 2: durable keys, values and revisions.
