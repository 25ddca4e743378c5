//! The node's private key: where it is kept, and when it is time for another one.
//!
//! Invariant: the file is read and written by root alone, and is there whole or not at all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use super::wireguard::PrivateKey;
use crate::base::clock::between;
use crate::base::file::{make_private_dir, write_atomically};
use crate::net::Error;

/// How long a key is used. Sessions have keys of their own, which WireGuard changes every two minutes; this one says who we are.
pub(super) const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// A private key and when it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) key: PrivateKey,
    pub(super) made: Timestamp,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    private_key: String,
    made: Timestamp,
}

/// How long the key is still good; nothing when another one is due. A clock that was set back by more than a key lives counts
/// like one that has run on.
pub(super) fn lifetime_left(made: Timestamp, now: Timestamp) -> Option<Duration> {
    let age = if made <= now { between(made, now) } else { between(now, made) };
    LIFETIME.checked_sub(age).filter(|left| !left.is_zero())
}

fn path(directory: &Path) -> PathBuf {
    directory.join("wireguard.json")
}

/// A new key.
pub(super) fn make(now: Timestamp) -> Result<Stored, Error> {
    let mut bytes = [0; 32];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| Error::kernel("cannot make a key")(io::Error::other("the kernel gives no random bytes")))?;
    Ok(Stored { key: PrivateKey::new(bytes), made: now })
}

/// The key of an earlier start, as long as it is good.
pub(super) fn load(directory: &Path, now: Timestamp) -> Result<Option<Stored>, Error> {
    let path = path(directory);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::file("cannot read", &path)(e)),
    };
    // What is no key is replaced by one.
    let Ok(file) = serde_json::from_slice::<File>(&bytes) else { return Ok(None) };
    let stored = PrivateKey::from_text(&file.private_key).map(|key| Stored { key, made: file.made });
    Ok(stored.filter(|stored| lifetime_left(stored.made, now).is_some()))
}

/// Keeps a key for the next start.
pub(super) fn save(directory: &Path, stored: &Stored) -> Result<(), Error> {
    let path = path(directory);
    let file = File { private_key: stored.key.to_text(), made: stored.made };
    let written = make_private_dir(directory).and_then(|()| {
        let text = serde_json::to_vec(&file).map_err(io::Error::other)?;
        write_atomically(&path, &text, 0o600)
    });
    written.map_err(Error::file("cannot write", &path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn a_key_is_good_for_a_week_whatever_the_clock_does() {
        let week = LIFETIME.as_secs().cast_signed();
        assert_eq!(lifetime_left(at(0), at(0)), Some(LIFETIME));
        assert_eq!(lifetime_left(at(0), at(week - 60)), Some(Duration::from_secs(60)));
        assert_eq!(lifetime_left(at(0), at(week)), None);
        assert_eq!(lifetime_left(at(100), at(0)), Some(LIFETIME - Duration::from_secs(100)), "set back a little");
        assert_eq!(lifetime_left(at(10 * week), at(0)), None, "set back by years");
    }

    #[test]
    fn a_key_is_kept_for_the_next_start_and_for_root_alone() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("network");
        assert_eq!(load(&directory, at(0)).unwrap(), None);
        let (one, two) = (make(at(0)).unwrap(), make(at(0)).unwrap());
        assert_ne!(one.key, two.key);
        save(&directory, &one).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&path(&directory))), (0o700, 0o600));
        assert_eq!(load(&directory, at(60)).unwrap(), Some(one));
        assert_eq!(load(&directory, at(8 * 24 * 3600)).unwrap(), None, "too old");
        fs::write(path(&directory), "no key").unwrap();
        assert_eq!(load(&directory, at(60)).unwrap(), None);
    }
}
