//! The composition root: one call per room in start order; stop order is its reverse.
