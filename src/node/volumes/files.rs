//! What the files of a volume are.

use std::collections::BTreeMap;

/// Path, bytes and mode of each file.
pub type Files = BTreeMap<String, (Vec<u8>, u32)>;
