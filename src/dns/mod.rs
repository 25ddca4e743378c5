//! Layer 5: cluster DNS.
