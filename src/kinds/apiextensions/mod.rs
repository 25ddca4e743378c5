//! `apiextensions.k8s.io`: kinds that are defined while the server runs.

pub mod customresourcedefinition;
