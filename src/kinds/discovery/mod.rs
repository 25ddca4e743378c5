//! Where Services lead.

pub mod endpointslice;
