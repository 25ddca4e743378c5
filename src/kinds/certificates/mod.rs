//! Certificates of the cluster's authority, asked for as objects.

pub mod certificatesigningrequest;
