//! Layer 1: the registration of every Kubernetes kind, one file each.
