//! Plans of whole rollouts (filled below).
