//! Kinds of `autoscaling`.

pub mod horizontalpodautoscaler;
