//! Layer 1: HTTP over TLS without meaning: set-up of connections, websocket streams.
