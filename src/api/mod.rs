//! Layer 3: the Kubernetes API over the store.
