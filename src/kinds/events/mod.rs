//! Events in their newer form.

pub mod event;
