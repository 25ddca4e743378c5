//! Layer 2: running containers from images.
