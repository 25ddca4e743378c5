//! Plans of slices (filled below).
