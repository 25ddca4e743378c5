//! HTTP over TLS without meaning: set-up of connections and websocket streams, shared by the API, clients and nodes.

pub mod channel;
pub mod client;
#[cfg(any(feature = "fuzzing", debug_assertions))]
pub(crate) mod fuzzing;
pub mod grpc;
pub mod images;
pub mod linger;
pub mod relay;
pub mod resolve;
pub mod spdy;
pub mod tls;
pub mod tunnel;
pub mod webhook;
pub mod websocket;
