//! Ingresses and their classes. As in Kubernetes, acting on them is up to an ingress controller that users bring.

pub mod ingress;
pub mod ingressclass;
