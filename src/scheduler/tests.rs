//! Decisions about single pods (filled below).
