//! Digests, as names of content.

use super::{ImageError, Result};
use crate::wire::images::is_digest;

/// `sha256:<hex>` of some bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    use sha2::Digest;
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}

/// The id of each layer with everything below it.
pub(super) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => diff_id.clone(),
            Some(below) => digest_of(format!("{below} {diff_id}").as_bytes()),
        });
    }
    chain
}

/// Whether `digest` may be used as a file name.
pub(super) fn blob_name(digest: &str) -> Result<&str> {
    match is_digest(digest) {
        true => Ok(&digest["sha256:".len()..]),
        false => Err(ImageError::invalid("digest", format!("{digest:?} (only sha256 is supported)"))),
    }
}
