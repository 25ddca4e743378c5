//! Layer 1: what Kubernetes objects look like: decoding, patches, server-side apply, OpenAPI.
