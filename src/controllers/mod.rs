//! Layer 5: the controllers, one file each.
