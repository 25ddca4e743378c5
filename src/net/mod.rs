//! Layer 2: pod network, and in `net::proxy` (layer 5) the Services.
