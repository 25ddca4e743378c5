//! User and group names of an image, looked up in its own files: static glibc would ask the host's name services.

use std::path::Path;

use super::super::spec::User;
use super::{ImageError, Result, unpack};

/// Resolves `user[:group]` (names or numbers) against a root file system's `/etc/passwd` and `/etc/group`.
///
/// Without a group the user's own applies, and the groups that list the user are added, as container runtimes do.
pub fn resolve_user(rootfs: &Path, user: &str) -> Result<User> {
    let passwd = unpack::read_in(rootfs, Path::new("etc/passwd"));
    let group = unpack::read_in(rootfs, Path::new("etc/group"));
    resolve(user, &passwd, &group)
}

fn resolve(text: &str, passwd: &str, groups: &str) -> Result<User> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let by_number: Option<u32> = user.parse().ok();
    let entry = passwd.lines().map(fields).find(|entry| {
        entry.len() > 3 && (entry[0] == user || by_number.is_some() && entry[2].parse().ok() == by_number)
    });
    let uid = match (&entry, by_number) {
        (Some(entry), _) => entry[2].parse().map_err(|_| missing("user", user))?,
        (None, Some(uid)) => uid,
        (None, None) => return Err(missing("user", user)),
    };
    if let Some(group) = group.filter(|group| !group.is_empty()) {
        let listed = groups.lines().map(fields).find(|entry| entry.len() > 2 && entry[0] == group);
        let gid = listed.map(|entry| entry[2].clone()).unwrap_or_else(|| group.to_owned());
        let gid = gid.parse().map_err(|_| missing("group", group))?;
        return Ok(User { uid, gid, additional_gids: Vec::new() });
    }
    let gid = entry.as_ref().and_then(|entry| entry[3].parse().ok()).unwrap_or(0);
    let name = entry.map(|entry| entry[0].clone()).unwrap_or_default();
    let member =
        |entry: &Vec<String>| entry.len() > 3 && !name.is_empty() && entry[3].split(',').any(|who| who == name);
    let additional = groups.lines().map(fields).filter(member).filter_map(|entry| entry[2].parse().ok());
    Ok(User { uid, gid, additional_gids: additional.filter(|other| *other != gid).collect() })
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
        assert_eq!(shown(""), Some((0, 0, vec![])));
        assert_eq!(shown("web"), Some((33, 33, vec![4])));
        assert_eq!(shown("33"), Some((33, 33, vec![4])));
        assert_eq!(shown("web:log"), Some((33, 4, vec![])));
        assert_eq!(shown("1000:7"), Some((1000, 7, vec![])));
        assert_eq!(shown("1000"), Some((1000, 0, vec![])));
        assert_eq!(shown("nobody"), None);
        assert_eq!(shown("web:nogroup"), None);
    }
}
