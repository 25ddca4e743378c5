//! Layer 5: the node agent.
