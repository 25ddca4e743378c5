//! Ingresses and their classes: as in Kubernetes, acting on them is up to an ingress controller that users bring. The addresses
//! of Services and the ranges that they are from.

pub mod ingress;
pub mod ingressclass;
pub mod ipaddress;
pub mod networkpolicy;
pub mod servicecidr;
