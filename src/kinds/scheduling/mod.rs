//! Priorities.

pub mod priorityclass;
