//! Kubernetes quantities: parse, compare, add, and the canonical text.
