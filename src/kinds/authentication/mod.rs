//! Who is asking.

pub mod selfsubjectreview;
pub mod tokenreview;
