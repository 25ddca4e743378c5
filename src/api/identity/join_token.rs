//! The token with which machines join, and what pins the CA that it speaks of.
//!
//! A rotation leaves the token before good for a while: a machine that is being set up with it still joins.

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::apimachinery::status::Result;
use crate::base::file::write_atomically;

/// What tells how long the token before the last rotation still holds.
const OLD_TOKEN: &str = "token.old";

/// The parts of a join token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the CA's PEM; absent in short tokens, which pin nothing.
    pub ca_hash: Option<String>,
    /// What is secret: the server's own secret, or `<id>.<secret>`.
    pub secret: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct OldToken {
    pub(super) secret: String,
    pub(super) until: Timestamp,
}

/// What a CA is pinned by: the SHA-256 of its PEM text, hexadecimal.
pub fn ca_hash(pem: &[u8]) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, pem))
}

/// Equal, told in a time that says nothing about where they differ.
pub(super) fn same(a: &str, b: &str) -> bool {
    let digest = |t: &str| ring::digest::digest(&ring::digest::SHA256, t.as_bytes());
    digest(a).as_ref() == digest(b).as_ref()
}

/// Makes a new secret for the server's token; the one before holds until `until`. Answers the full token.
pub fn rotate(directory: &Path, new: &str, until: Timestamp) -> std::io::Result<String> {
    let path = directory.join("token");
    let current = std::fs::read_to_string(&path)?;
    let parsed = JoinToken::parse(&current).map_err(std::io::Error::other)?;
    // The old one first: killed between the two, both tokens are the same one.
    let old = OldToken { secret: parsed.secret, until };
    write_atomically(&directory.join(OLD_TOKEN), &serde_json::to_vec(&old)?, 0o600)?;
    let hash = parsed.ca_hash.unwrap_or_default();
    let full = format!("K10{hash}::server:{new}");
    write_atomically(&path, format!("{full}\n").as_bytes(), 0o600)?;
    Ok(full)
}

/// Whether this is the secret that the last rotation has replaced.
pub fn is_rotated_away(directory: &Path, secret: &str) -> bool {
    read_old(directory).is_some_and(|old| same(&old.secret, secret))
}

pub(super) fn read_old(directory: &Path) -> Option<OldToken> {
    serde_json::from_slice(&std::fs::read(directory.join(OLD_TOKEN)).ok()?).ok()
}

// === impl JoinToken ===

impl JoinToken {
    /// Reads `K10<hash>::<user>:<secret>`, `K10<hash>::<id>.<secret>`, or the secret alone.
    pub fn parse(given: &str) -> Result<Self, String> {
        let given = given.trim();
        let (ca_hash, rest) = match given.strip_prefix("K10").and_then(|t| t.split_once("::")) {
            Some((hash, rest)) if hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
                (Some(hash.to_lowercase()), rest)
            }
            Some(_) => return Err("a token that begins with K10 needs 64 hexadecimal digits before ::".into()),
            None => (None, given),
        };
        let secret = rest.rsplit_once(':').map_or(rest, |(_, secret)| secret);
        if secret.is_empty() {
            return Err("the token has no secret: expected K10<hash>::server:<secret>, or the secret alone".into());
        }
        Ok(Self { ca_hash, secret: secret.to_owned() })
    }

    /// Id and secret of a token that `token create` has made.
    pub(super) fn parts(&self) -> Option<(&str, &str)> {
        let (id, secret) = self.secret.split_once('.')?;
        let letters = |t: &str| t.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        (id.len() == 6 && secret.len() == 16 && letters(id) && letters(secret)).then_some((id, secret))
    }
}
