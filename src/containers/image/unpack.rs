//! Tar layers onto a directory, without ever leaving it.
//!
//! Every path is resolved by the kernel with `openat2(RESOLVE_IN_ROOT)`: symbolic links and `..` cannot lead outside.
//! What only an attack would contain (names or hard links that climb above the root) is refused instead of bent.
//! Upper layers are unpacked into an overlay of their parents, as a container would see them, so removal marks become
//! plain removals and the kernel makes the right whiteouts and opaque directories.

use std::collections::HashSet;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use tar::EntryType;

use super::super::error::Error;
use super::super::spec::User;
use super::{ImageError, Result};

/// A tar file is made of these.
const BLOCK_BYTES: u64 = 512;

/// What is read of a text file of an image.
const READ_IN_BYTES_MAX: u64 = 4 << 20;

/// What came out of a layer.
#[derive(Debug)]
pub(crate) struct Unpacked {
    /// Digest of the uncompressed tar.
    pub diff_id: String,
    pub size_bytes: u64,
}

/// Unpacks a layer (plain, gzip or zstd) into `root`. With `merged` there are lower layers below it.
pub(crate) fn unpack(reader: impl Read, root: &Path, merged: bool, layer: &str) -> Result<Unpacked> {
    let directory = fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(super::error::io("opening", root))?;
    let broken = |error: io::Error| ImageError::invalid(format!("layer {layer}"), error);
    let mut hashing = Hashing { inner: decompress(reader).map_err(broken)?, hasher: Sha256::new() };
    let mut target =
        Target { root: directory, merged, layer, seen: HashSet::new(), directories: Vec::new(), size_bytes: 0 };
    // Some tools leave out the last entry's padding and the end mark, and Go's reader takes that. Where more is missing
    // than what nobody needs, the digest says so.
    let padded = (&mut hashing).chain(io::repeat(0).take(2 * BLOCK_BYTES));
    let mut archive = tar::Archive::new(padded);
    for entry in archive.entries().map_err(broken)? {
        target.add(&mut entry.map_err(broken)?)?;
    }
    target.finish()?;
    let size_bytes = target.size_bytes;
    // What follows the end mark belongs to the digest.
    io::copy(&mut hashing, &mut io::sink()).map_err(broken)?;
    Ok(Unpacked { diff_id: format!("sha256:{}", hex::encode(hashing.hasher.finalize())), size_bytes })
}

/// Tells the compression by the first bytes.
pub(crate) fn decompress<'a>(mut reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = [0u8; 4];
    let mut got = 0;
    while got < magic.len() {
        match reader.read(&mut magic[got..])? {
            0 => break,
            count => got += count,
        }
    }
    let whole = io::Cursor::new(magic[..got].to_vec()).chain(reader);
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::new(whole)?),
        _ => Box::new(whole),
    })
}

struct Hashing<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

struct Target<'a> {
    root: OwnedFd,
    merged: bool,
    layer: &'a str,
    /// Paths of this layer, with their ancestors: removal marks speak of lower layers only.
    seen: HashSet<PathBuf>,
    /// Times of directories are set last, because filling them changes them.
    directories: Vec<(PathBuf, Timestamps)>,
    size_bytes: u64,
}

impl Target<'_> {
    fn malicious(&self, path: &[u8], reason: &str) -> ImageError {
        let path = String::from_utf8_lossy(path).into_owned();
        ImageError::Malicious { layer: self.layer.to_owned(), path, reason: reason.to_owned() }
    }

    fn failed(&self, what: &str, path: &Path) -> impl FnOnce(Errno) -> ImageError {
        let (what, path) = (format!("unpacking layer {}: {what}", self.layer), path.display().to_string());
        move |error| ImageError::Io { what, path, reason: io::Error::from(error).to_string() }
    }

    /// A name of the archive as a path below the root.
    fn inside(&self, name: &[u8]) -> Result<PathBuf> {
        use std::os::unix::ffi::OsStrExt;
        let mut path = PathBuf::new();
        for component in Path::new(std::ffi::OsStr::from_bytes(name)).components() {
            match component {
                Component::Normal(part) => path.push(part),
                Component::ParentDir if !path.pop() => return Err(self.malicious(name, "climbs above the root")),
                Component::ParentDir | Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        Ok(path)
    }

    fn add<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<()> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader | EntryType::XHeader) {
            return Ok(());
        }
        let name = entry.path_bytes().into_owned();
        let path = self.inside(&name)?;
        let Some(file_name) = path.file_name().map(std::ffi::OsStr::to_owned) else {
            return self.root_metadata(entry);
        };
        let parent_path = path.parent().unwrap_or(Path::new("")).to_owned();
        let parent = self.parent(&parent_path)?;
        if let Some(hidden) = file_name.as_encoded_bytes().strip_prefix(b".wh.") {
            return self.white_out(&parent, &parent_path, hidden);
        }
        self.make_room(&parent, &path, Path::new(&file_name), kind)?;
        self.create(entry, &parent, &path, Path::new(&file_name), kind)?;
        self.remember(&path);
        Ok(())
    }

    fn remember(&mut self, path: &Path) {
        for ancestor in path.ancestors() {
            if ancestor.as_os_str().is_empty() || !self.seen.insert(ancestor.to_owned()) {
                break;
            }
        }
    }

    /// Opens a directory below the root, making what is missing.
    fn parent(&self, path: &Path) -> Result<OwnedFd> {
        open_directory(self.root.as_fd(), path).map_err(self.failed("opening directory", path))
    }

    /// Removes what is in the way of a new entry; a directory stays for a directory.
    fn make_room(&self, parent: &OwnedFd, path: &Path, name: &Path, kind: EntryType) -> Result<()> {
        match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.failed("looking at", path)(error)),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() && kind.is_dir() => Ok(()),
            Ok(_) => remove_tree(parent, name).map_err(self.failed("replacing", path)),
        }
    }

    fn create<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        parent: &OwnedFd,
        path: &Path,
        name: &Path,
        kind: EntryType,
    ) -> Result<()> {
        let mode = Mode::from_raw_mode(entry.header().mode().unwrap_or(0o644) & 0o7777);
        match kind {
            EntryType::Directory => match fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(self.failed("making directory", path)(error)),
            },
            EntryType::Symlink => {
                let target = self.link_target(entry)?;
                fs::symlinkat(as_path(&target), parent, name).map_err(self.failed("making link", path))?;
            }
            EntryType::Link => {
                let target = self.link_target(entry)?;
                return self.hard_link(&target, parent, path, name);
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let kind = match kind {
                    EntryType::Char => FileType::CharacterDevice,
                    EntryType::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let number = |value: io::Result<Option<u32>>| value.ok().flatten().unwrap_or(0);
                let header = entry.header();
                let device = fs::makedev(number(header.device_major()), number(header.device_minor()));
                fs::mknodat(parent, name, kind, mode, device).map_err(self.failed("making device", path))?;
            }
            _ => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))
                    .map_err(self.failed("making file", path))?;
                let mut file = std::fs::File::from(file);
                let written = io::copy(entry, &mut file).map_err(|error| ImageError::Io {
                    what: format!("unpacking layer {}: writing", self.layer),
                    path: path.display().to_string(),
                    reason: error.to_string(),
                })?;
                self.size_bytes += written;
            }
        }
        self.metadata(entry, parent, path, name, kind, mode)
    }

    fn link_target<R: Read>(&self, entry: &tar::Entry<'_, R>) -> Result<Vec<u8>> {
        let target = entry.link_name_bytes().map(std::borrow::Cow::into_owned).filter(|target| !target.is_empty());
        target.ok_or_else(|| self.malicious(&entry.path_bytes(), "is a link to nothing"))
    }

    /// The target is a path of the same root; links to outside cannot be expressed honestly.
    fn hard_link(&self, target: &[u8], parent: &OwnedFd, path: &Path, name: &Path) -> Result<()> {
        let inside = self.inside(target)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat2(&self.root, &inside, flags, Mode::empty(), RESOLVE)
            .map_err(self.failed("hard link to a missing file", path))?;
        fs::linkat(&file, "", parent, name, AtFlags::EMPTY_PATH).map_err(self.failed("linking", path))
    }

    fn metadata<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        parent: &OwnedFd,
        path: &Path,
        name: &Path,
        kind: EntryType,
        mode: Mode,
    ) -> Result<()> {
        let number = |value: io::Result<u64>| u32::try_from(value.unwrap_or(0)).unwrap_or(0);
        let owner = Some(fs::Uid::from_raw(number(entry.header().uid())));
        let group = Some(fs::Gid::from_raw(number(entry.header().gid())));
        fs::chownat(parent, name, owner, group, AtFlags::SYMLINK_NOFOLLOW).map_err(self.failed("owner of", path))?;
        if kind != EntryType::Symlink {
            // After the owner, whose change clears the set-user-id bits.
            fs::chmodat(parent, name, mode, AtFlags::empty()).map_err(self.failed("mode of", path))?;
        }
        self.attributes(entry, parent, path, name, kind)?;
        let times = times(entry.header().mtime().unwrap_or(0));
        if kind.is_dir() {
            self.directories.push((path.to_owned(), times));
            return Ok(());
        }
        fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(self.failed("times of", path))
    }

    fn attributes<R: Read>(
        &self,
        entry: &mut tar::Entry<'_, R>,
        parent: &OwnedFd,
        path: &Path,
        name: &Path,
        kind: EntryType,
    ) -> Result<()> {
        if !(kind.is_dir() || kind.is_file()) {
            return Ok(());
        }
        let mut wanted: Vec<(String, Vec<u8>)> = Vec::new();
        if let Ok(Some(extensions)) = entry.pax_extensions() {
            for extension in extensions.flatten() {
                let Some(key) = extension.key().ok().and_then(|key| key.strip_prefix("SCHILY.xattr.")) else {
                    continue;
                };
                // Overlay's own attributes would redirect lookups.
                if !key.starts_with("trusted.overlay.") && !key.starts_with("user.overlay.") {
                    wanted.push((key.to_owned(), extension.value_bytes().to_vec()));
                }
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let file = fs::openat(parent, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .map_err(self.failed("opening", path))?;
        for (key, value) in wanted {
            match fs::fsetxattr(&file, &key, &value, XattrFlags::empty()) {
                // A file system without such attributes: SELinux labels and the like are not worth failing for.
                Err(Errno::OPNOTSUPP | Errno::PERM) if key != "security.capability" => {}
                result => result.map_err(self.failed("attributes of", path))?,
            }
        }
        Ok(())
    }

    fn root_metadata<R: Read>(&mut self, entry: &tar::Entry<'_, R>) -> Result<()> {
        let root = Path::new(".");
        let mode = Mode::from_raw_mode(entry.header().mode().unwrap_or(0o755) & 0o7777);
        fs::chmodat(&self.root, root, mode, AtFlags::empty()).map_err(self.failed("mode of", root))
    }

    /// `.wh.NAME` removes NAME of lower layers, `.wh..wh..opq` everything of theirs in this directory.
    fn white_out(&mut self, parent: &OwnedFd, directory: &Path, hidden: &[u8]) -> Result<()> {
        if !self.merged {
            return Ok(());
        }
        if hidden == b".wh..opq" {
            return self.clear(parent, directory);
        }
        if hidden.is_empty() || hidden == b"." || hidden == b".." || hidden.contains(&b'/') {
            return Err(self.malicious(hidden, "is no name to remove"));
        }
        if hidden.starts_with(b".wh.") {
            return Ok(()); // aufs' own bookkeeping
        }
        let name = as_path(hidden);
        let path = directory.join(name);
        match self.seen.contains(&path) {
            true => Ok(()),
            false => remove_tree(parent, name).map_err(self.failed("removing", &path)),
        }
    }

    fn clear(&mut self, parent: &OwnedFd, directory: &Path) -> Result<()> {
        for (name, is_directory) in list(parent).map_err(self.failed("reading", directory))? {
            let path = directory.join(&name);
            if !self.seen.contains(&path) {
                remove_tree(parent, &name).map_err(self.failed("removing", &path))?;
            } else if is_directory {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let child = fs::openat(parent, &name, flags, Mode::empty()).map_err(self.failed("opening", &path))?;
                self.clear(&child, &path)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        for (path, times) in std::mem::take(&mut self.directories).into_iter().rev() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            // It may have been replaced by a later entry of the same layer.
            if let Ok(directory) = fs::openat2(&self.root, &path, flags, Mode::empty(), RESOLVE) {
                fs::futimens(&directory, &times).map_err(self.failed("times of", &path))?;
            }
        }
        Ok(())
    }
}

const RESOLVE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

fn as_path(bytes: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

fn times(seconds: u64) -> Timestamps {
    let time = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(0), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

/// Opens `path` below `root`, following links inside it, and makes directories where nothing is.
fn open_directory(root: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    let root = root.as_fd();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &Path| {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        fs::openat2(root, path, flags, Mode::empty(), RESOLVE)
    };
    match open(path) {
        Err(Errno::NOENT) => {}
        result => return result,
    }
    let mut parent = open(Path::new(""))?;
    let mut done = PathBuf::new();
    for part in path.components().filter(|part| matches!(part, Component::Normal(_))) {
        done.push(part);
        parent = match open(&done) {
            Err(Errno::NOENT) => {
                let name = Path::new(part.as_os_str());
                match fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                    // A link that leads nowhere is in the way of what the layer wants to be a directory.
                    Err(Errno::EXIST) => {
                        remove_tree(&parent, name)?;
                        fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
                    }
                    result => result?,
                }
                let made = open(&done)?;
                // Whatever our umask is: it belongs to an image or a container.
                fs::fchmod(&made, Mode::from_raw_mode(0o755))?;
                made
            }
            result => result?,
        };
    }
    Ok(parent)
}

fn list(directory: &OwnedFd) -> Result<Vec<(PathBuf, bool)>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            let path = as_path(name).to_owned();
            let stat = fs::statat(directory, &path, AtFlags::SYMLINK_NOFOLLOW)?;
            names.push((path, FileType::from_raw_mode(stat.st_mode).is_dir()));
        }
    }
    Ok(names)
}

/// Removes a name with everything below; links are removed, never followed. A missing one is fine.
fn remove_tree(parent: &OwnedFd, name: &Path) -> Result<(), Errno> {
    crate::base::tree::remove_at(parent, name).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Makes a directory (with parents) inside a root file system, wherever its links lead inside it.
pub(crate) fn make_directory_in(root: &Path, path: &Path, _user: &User) -> Result<(), Error> {
    let failed =
        |error: Errno| Error::Io { what: "making the working directory", path: path.to_owned(), source: error.into() };
    let directory = fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| Error::Io { what: "opening root file system", path: root.to_owned(), source: error.into() })?;
    let relative = path.strip_prefix("/").unwrap_or(path);
    open_directory(directory, relative).map(drop).map_err(failed)
}

/// A small text file inside a root file system; empty when it is not there.
pub(crate) fn read_in(root: &Path, path: &Path) -> String {
    let open = || -> Result<OwnedFd, Errno> {
        let directory = fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        fs::openat2(directory, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty(), RESOLVE)
    };
    let mut text = Vec::new();
    if let Ok(file) = open().map_err(io::Error::from).and_then(crate::base::beneath::regular) {
        let _ = file.take(READ_IN_BYTES_MAX).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    /// Builds a tar whose names are written raw, as an attacker would.
    fn raw_tar(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o755);
            header.set_mtime(1);
            header.set_uid(0);
            header.set_gid(0);
            let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
            if is_link {
                header.as_mut_bytes()[157..157 + content.len()].copy_from_slice(content.as_bytes());
            }
            let body = if is_link { "" } else { content };
            header.set_size(body.len() as u64);
            header.set_cksum();
            builder.append(&header, body.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn unpack_in(root: &Path, entries: &[(&str, EntryType, &str)]) -> Result<Unpacked> {
        unpack(raw_tar(entries).as_slice(), root, false, "test")
    }

    const FILE: EntryType = EntryType::Regular;
    const LINK: EntryType = EntryType::Symlink;

    #[test]
    fn no_name_leads_outside() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let outside = outer.path().join("victim");
        std::fs::write(&outside, "safe").unwrap();
        let climbing = unpack_in(&root, &[("../victim", FILE, "bad")]);
        assert!(matches!(climbing, Err(ImageError::Malicious { .. })), "{climbing:?}");
        let climbing = unpack_in(&root, &[("a/../../victim", FILE, "bad")]);
        assert!(matches!(climbing, Err(ImageError::Malicious { .. })));
        let link = unpack_in(&root, &[("stolen", EntryType::Link, "../victim")]);
        assert!(matches!(link, Err(ImageError::Malicious { .. })));
        // Absolute names, and links in the middle of a path, stay inside.
        let absolute = format!("{}", outside.display());
        unpack_in(&root, &[(&absolute, FILE, "inside")]).unwrap();
        let up = format!("up{}", "");
        unpack_in(&root, &[(&up, LINK, "../.."), ("up/victim", FILE, "bad")]).unwrap();
        unpack_in(&root, &[("abs", LINK, outer.path().to_str().unwrap()), ("abs/victim", FILE, "bad")]).unwrap();
        unpack_in(&root, &[("same", LINK, &absolute), ("same", FILE, "own file")]).unwrap();
        assert_eq!(std::fs::read_to_string(&outside).unwrap(), "safe");
        assert_eq!(std::fs::read_to_string(root.join("victim")).unwrap(), "bad");
        assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_hard_link_through_a_link_stays_inside() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("root");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(outer.path().join("secret"), "secret").unwrap();
        let result = unpack_in(&root, &[("out", LINK, ".."), ("copy", EntryType::Link, "out/secret")]);
        assert!(result.is_err());
        assert!(!root.join("copy").exists());
    }

    #[test]
    fn files_links_modes_and_compressions_come_through() {
        let tar = raw_tar(&[
            ("bin/", EntryType::Directory, ""),
            ("bin/tool", FILE, "content"),
            ("bin/same", EntryType::Link, "bin/tool"),
            ("tool", LINK, "bin/tool"),
        ]);
        let gzip = {
            use std::io::Write;
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&tar).unwrap();
            encoder.finish().unwrap()
        };
        let zstd = zstd::stream::encode_all(tar.as_slice(), 1).unwrap();
        for bytes in [&tar, &gzip, &zstd] {
            let root = tempfile::tempdir().unwrap();
            let unpacked = unpack(bytes.as_slice(), root.path(), false, "test").unwrap();
            assert_eq!(unpacked.diff_id, super::super::digest_of(&tar));
            let tool = std::fs::metadata(root.path().join("tool")).unwrap();
            assert_eq!((tool.nlink(), tool.permissions().mode() & 0o777, tool.mtime()), (2, 0o755, 1));
        }
    }

    #[test]
    fn padding_and_end_mark_may_be_missing() {
        let tar = raw_tar(&[("file", FILE, "content")]);
        let bare = &tar[..512 + "content".len()];
        let root = tempfile::tempdir().unwrap();
        let unpacked = unpack(bare, root.path(), false, "test").unwrap();
        assert_eq!(unpacked.diff_id, super::super::digest_of(bare));
        assert_eq!(std::fs::read_to_string(root.path().join("file")).unwrap(), "content");
    }

    #[test]
    fn a_cut_layer_is_an_error() {
        let tar = raw_tar(&[("file", FILE, &"x".repeat(5000))]);
        let root = tempfile::tempdir().unwrap();
        assert!(unpack(&tar[..2000], root.path(), false, "test").is_err());
    }

    #[test]
    fn removal_marks_spare_what_the_same_layer_brings() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("dir/sub")).unwrap();
        for name in ["dir/old", "dir/sub/old", "gone"] {
            std::fs::write(root.path().join(name), "").unwrap();
        }
        symlink("nowhere", root.path().join("dangling")).unwrap();
        let tar = raw_tar(&[
            ("dir/sub/new", FILE, ""),
            ("dir/.wh..wh..opq", FILE, ""),
            (".wh.gone", FILE, ""),
            ("dangling/file", FILE, ""),
        ]);
        unpack(tar.as_slice(), root.path(), true, "test").unwrap();
        for (name, there) in [
            ("dir/old", false),
            ("dir/sub/old", false),
            ("gone", false),
            ("dir/sub/new", true),
            ("dangling/file", true),
        ] {
            assert_eq!(root.path().join(name).symlink_metadata().is_ok(), there, "{name}");
        }
    }
}
