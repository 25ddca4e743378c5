//! Layer 5: binds pods to nodes.
