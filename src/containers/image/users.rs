//! User and group names of an image, looked up in its own files: static glibc would ask the host's name services.

use std::path::Path;

use super::super::spec::User;
use super::{ImageError, Result, in_root};

/// Resolves `user[:group]` (names or numbers) against a root file system's `/etc/passwd` and `/etc/group`.
///
/// Without a group the user's own applies. The additional groups are that one and those which list the user, in order, as
/// container runtimes have it.
pub fn resolve_user(rootfs: &Path, user: &str) -> Result<User> {
    let passwd = in_root::read_in(rootfs, Path::new("etc/passwd"));
    let group = in_root::read_in(rootfs, Path::new("etc/group"));
    resolve(user, &passwd, &group)
}

fn fields(line: &str) -> Vec<&str> {
    line.split(':').collect()
}

/// The entry of a user, by name or number.
fn entry_of<'a>(passwd: &'a str, user: &str) -> Option<Vec<&'a str>> {
    let number: Option<u32> = user.parse().ok();
    let fits = |entry: &Vec<&str>| match number {
        Some(number) => entry[2].parse() == Ok(number),
        None => entry[0] == user,
    };
    passwd.lines().map(fields).find(|entry| entry.len() > 3 && fits(entry))
}

/// The home of a user: what `passwd` says, else `/`.
pub(in super::super) fn home_in(passwd: &str, uid: u32) -> String {
    let entry = entry_of(passwd, &uid.to_string());
    let home = entry.and_then(|entry| entry.get(5).copied()).map(str::trim).filter(|home| !home.is_empty());
    home.unwrap_or("/").to_owned()
}

fn resolve(text: &str, passwd: &str, groups: &str) -> Result<User> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entry = entry_of(passwd, user);
    let (uid, own_gid) = match (&entry, user.parse()) {
        (Some(entry), _) => {
            (entry[2].parse().map_err(|_| missing("user", user))?, entry[3].parse().ok().unwrap_or_default())
        }
        (None, Ok(uid)) => (uid, 0),
        (None, Err(_)) => return Err(missing("user", user)),
    };
    let gid = match group.filter(|group| !group.is_empty()) {
        None => own_gid,
        Some(group) => {
            let listed = groups.lines().map(fields).find(|entry| entry.len() > 2 && entry[0] == group);
            let number = listed.map_or(group, |entry| entry[2]);
            number.parse().map_err(|_| missing("group", group))?
        }
    };
    let name = entry.map(|entry| entry[0]).unwrap_or_default();
    let lists = |entry: &Vec<&str>| {
        entry.len() > 3 && !name.is_empty() && entry[0] != name && entry[3].split(',').any(|who| who == name)
    };
    let listing = groups.lines().map(fields).filter(lists).filter_map(|entry| entry[2].parse().ok());
    let mut additional_gids: Vec<u32> = listing.chain([gid]).collect();
    additional_gids.sort_unstable();
    additional_gids.dedup();
    Ok(User { uid, gid, additional_gids })
}

fn missing(kind: &str, name: &str) -> ImageError {
    ImageError::invalid(kind, format!("{name:?} is not in the image"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_resolved() {
        let passwd = "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/:/bin/sh\n";
        let groups = "root:x:0:\nweb:x:33:\nlog:x:4:web,other\n";
        let user = |text: &str| resolve(text, passwd, groups);
        let shown = |text: &str| user(text).map(|user| (user.uid, user.gid, user.additional_gids)).ok();
        assert_eq!(shown(""), Some((0, 0, vec![0])));
        assert_eq!(shown("web"), Some((33, 33, vec![4, 33])));
        assert_eq!(shown("33"), Some((33, 33, vec![4, 33])));
        assert_eq!(shown("web:log"), Some((33, 4, vec![4])));
        assert_eq!(shown("web:99"), Some((33, 99, vec![4, 99])));
        assert_eq!(shown("1000:7"), Some((1000, 7, vec![7])));
        assert_eq!(shown("1000"), Some((1000, 0, vec![0])));
        assert_eq!(shown("nobody"), None);
        assert_eq!(shown("web:nogroup"), None);
        let home = |uid| home_in("root:x:0:0::/root:/bin/sh\nbare:x:5:5:::\nshort:x:6:6\n", uid);
        assert_eq!([0, 5, 6, 7].map(home), ["/root", "/", "/", "/"]);
    }
}
