//! Tar layers onto a directory, without ever leaving it.
//!
//! Every path is resolved by the kernel with `openat2(RESOLVE_IN_ROOT)`: symbolic links and `..` cannot lead outside.
//! What only an attack would contain (names or hard links that climb above the root) is refused instead of bent.
//! Upper layers are unpacked into an overlay of their parents, as a container would see them, so removal marks become
//! plain removals and the kernel makes the right whiteouts and opaque directories.

use std::cell::Cell;
use std::collections::HashSet;
use std::hash::BuildHasher;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Timestamps, XattrFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use tar::EntryType;

use super::in_root::{PATH_BYTES_MAX, RESOLVE, as_path, list, open_directory, remove_tree, times};
use super::{ImageError, Result};

/// A tar file is made of these.
const BLOCK_BYTES: u64 = 512;

/// A reader keeps the headers of an entry in memory: long names, attributes.
const HEADERS_BYTES_MAX: u64 = 1 << 20;
/// What may follow an archive's end mark.
const TRAILER_BYTES_MAX: u64 = 64 << 20;
/// Entries of a layer, and names that it has to be remembered for.
const ENTRIES_MAX: u64 = 1_500_000;
/// The names of a layer's directories in all: they are kept until the end.
const DIRECTORY_NAMES_BYTES_MAX: usize = 32 << 20;
/// A decompressor keeps that much (64 MiB); only the most extreme levels of compression ask for more.
const ZSTD_WINDOW_LOG_MAX: u32 = 26;

/// What came out of a layer.
#[derive(Debug)]
pub(crate) struct Unpacked {
    /// Digest of the uncompressed tar.
    pub diff_id: String,
    pub size_bytes: u64,
}

/// What a layer may take of the disk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub bytes: u64,
    pub entries: u64,
}

/// Unpacks a layer (plain, gzip or zstd) into `root`. With `merged` there are lower layers below it. It may take what is
/// usable of the disk, and names of files, headers and windows of decompression are bounded.
pub(crate) fn unpack(reader: impl Read, root: &Path, merged: bool, layer: &str) -> Result<Unpacked> {
    let (bytes, files) = usable_space(root)?;
    unpack_within(reader, root, merged, layer, Limits { bytes, entries: files.min(ENTRIES_MAX) })
}

pub(super) fn unpack_within(
    reader: impl Read,
    root: &Path,
    merged: bool,
    layer: &str,
    limits: Limits,
) -> Result<Unpacked> {
    let directory = fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(super::error::io("opening", root))?;
    let broken = |error: io::Error| ImageError::invalid(format!("layer {layer}"), error);
    let allowance = Rc::new(Allowance::default());
    let inner = decompress(reader).map_err(broken)?;
    let mut hashing = Hashing { inner, hasher: Sha256::new(), allowance: allowance.clone() };
    let mut target = Target::new(directory, merged, layer, limits);
    // Some tools leave out the last entry's padding and the end mark, and Go's reader takes that. Where more is missing
    // than what nobody needs, the digest says so.
    let padded = (&mut hashing).chain(io::repeat(0).take(2 * BLOCK_BYTES));
    let mut archive = tar::Archive::new(padded);
    let mut entries = archive.entries().map_err(broken)?;
    loop {
        allowance.set(HEADERS_BYTES_MAX, "what describes one entry");
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(broken)?;
        // What an entry contains is bounded where it goes.
        allowance.set(u64::MAX, "");
        target.add(&mut entry)?;
        target.drain(&mut entry)?;
    }
    target.finish()?;
    let size_bytes = target.size_bytes;
    // What follows the end mark belongs to the digest.
    allowance.set(TRAILER_BYTES_MAX, "what follows the end of the archive");
    io::copy(&mut hashing, &mut io::sink()).map_err(broken)?;
    Ok(Unpacked { diff_id: format!("sha256:{}", hex::encode(hashing.hasher.finalize())), size_bytes })
}

/// Bytes and files that an unprivileged writer could still have on the file system of `path`, less a tenth: images may not
/// fill a disk.
pub(super) fn usable_space(path: &Path) -> Result<(u64, u64)> {
    let space = fs::statvfs(path).map_err(super::error::io("reading the free space of", path))?;
    // Some file systems make inodes as they need them and count none.
    let files = if space.f_files == 0 { u64::MAX } else { space.f_favail };
    Ok((space.f_bavail.saturating_mul(space.f_frsize) / 10 * 9, files / 10 * 9))
}

/// How much more may be read of an archive until the next decision.
#[derive(Default)]
struct Allowance {
    left_bytes: Cell<u64>,
    limit_bytes: Cell<u64>,
    what: Cell<&'static str>,
}

impl Allowance {
    fn set(&self, limit_bytes: u64, what: &'static str) {
        self.left_bytes.set(limit_bytes);
        self.limit_bytes.set(limit_bytes);
        self.what.set(what);
    }

    /// How many of `wanted` bytes may be read now.
    fn of(&self, wanted: usize) -> io::Result<usize> {
        let left = usize::try_from(self.left_bytes.get()).unwrap_or(usize::MAX);
        match wanted.min(left) {
            0 if wanted > 0 => {
                let (what, limit_bytes) = (self.what.get(), self.limit_bytes.get());
                Err(io::Error::other(format!("{what} takes more than {limit_bytes} bytes")))
            }
            granted => Ok(granted),
        }
    }

    fn take(&self, count: usize) {
        self.left_bytes.set(self.left_bytes.get().saturating_sub(count as u64));
    }
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
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let mut decoder = zstd::stream::read::Decoder::new(whole)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
        _ => Box::new(whole),
    })
}

struct Hashing<R> {
    inner: R,
    hasher: Sha256,
    allowance: Rc<Allowance>,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let granted = self.allowance.of(buffer.len())?;
        let count = self.inner.read(&mut buffer[..granted])?;
        self.allowance.take(count);
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

struct Target<'a> {
    root: OwnedFd,
    merged: bool,
    layer: &'a str,
    /// Hashes of this layer's paths, with their ancestors: removal marks speak of lower layers only.
    seen: HashSet<u64>,
    hashes: std::hash::RandomState,
    /// Times of directories are set last, because filling them changes them.
    directories: Vec<(PathBuf, Timestamps)>,
    directory_names_bytes: usize,
    size_bytes: u64,
    /// What has been read of contents, whether they were written or not.
    contents_bytes: u64,
    entries: u64,
    limits: Limits,
}

impl<'a> Target<'a> {
    fn new(root: OwnedFd, merged: bool, layer: &'a str, limits: Limits) -> Self {
        Self {
            root,
            merged,
            layer,
            seen: HashSet::new(),
            hashes: std::hash::RandomState::new(),
            directories: Vec::new(),
            directory_names_bytes: 0,
            size_bytes: 0,
            contents_bytes: 0,
            entries: 0,
            limits,
        }
    }

    fn malicious(&self, path: &[u8], reason: &str) -> ImageError {
        let path = super::error::shortened(&String::from_utf8_lossy(path));
        ImageError::Malicious { layer: self.layer.to_owned(), path, reason: reason.to_owned() }
    }

    fn too_much(&self, what: &str) -> ImageError {
        ImageError::invalid(format!("layer {}", self.layer), what)
    }

    /// Copies what an entry contains, as far as there is room for it.
    fn copy<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, to: &mut impl io::Write, path: &Path) -> Result<u64> {
        let left = self.limits.bytes.saturating_sub(self.contents_bytes);
        let copied = io::copy(&mut entry.take(left.saturating_add(1)), to).map_err(|error| ImageError::Io {
            what: format!("unpacking layer {}: writing", self.layer),
            path: path.display().to_string(),
            reason: error.to_string(),
        })?;
        self.contents_bytes = self.contents_bytes.saturating_add(copied);
        if copied > left { Err(self.too_large()) } else { Ok(copied) }
    }

    fn too_large(&self) -> ImageError {
        self.too_much(&format!("it takes more than the {} bytes that may still be used on the disk", self.limits.bytes))
    }

    /// Reads what nobody wanted of an entry, so that what is read next are headers.
    fn drain<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<()> {
        self.copy(entry, &mut io::sink(), Path::new("nothing")).map(drop)
    }

    fn failed(&self, what: &str, path: &Path) -> impl FnOnce(Errno) -> ImageError {
        let (what, path) = (format!("unpacking layer {}: {what}", self.layer), path.display().to_string());
        move |error| ImageError::Io { what, path, reason: io::Error::from(error).to_string() }
    }

    /// A name of the archive as a path below the root.
    fn inside(&self, name: &[u8]) -> Result<PathBuf> {
        use std::os::unix::ffi::OsStrExt;
        if name.len() > PATH_BYTES_MAX {
            return Err(self.malicious(name, "is longer than any path"));
        }
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
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(self.too_much(&format!("it has more than {} entries", self.limits.entries)));
        }
        // Also a sparse file, which takes as much as it claims.
        if entry.size() > self.limits.bytes.saturating_sub(self.contents_bytes) {
            return Err(self.too_large());
        }
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
        self.remember(&path)
    }

    fn remember(&mut self, path: &Path) -> Result<()> {
        if !self.merged {
            return Ok(());
        }
        for ancestor in path.ancestors() {
            if ancestor.as_os_str().is_empty() || !self.seen.insert(self.hashes.hash_one(ancestor)) {
                break;
            }
        }
        match self.seen.len() as u64 > ENTRIES_MAX {
            true => Err(self.too_much(&format!("it names more than {ENTRIES_MAX} files and directories"))),
            false => Ok(()),
        }
    }

    fn has_seen(&self, path: &Path) -> bool {
        self.seen.contains(&self.hashes.hash_one(path))
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
                self.size_bytes += self.copy(entry, &mut file, path)?;
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
            self.directory_names_bytes += path.as_os_str().len() + size_of::<(PathBuf, Timestamps)>();
            if self.directory_names_bytes > DIRECTORY_NAMES_BYTES_MAX {
                return Err(
                    self.too_much(&format!("its directories' names are more than {DIRECTORY_NAMES_BYTES_MAX} bytes"))
                );
            }
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
        match self.has_seen(&path) {
            true => Ok(()),
            false => remove_tree(parent, name).map_err(self.failed("removing", &path)),
        }
    }

    fn clear(&mut self, parent: &OwnedFd, directory: &Path) -> Result<()> {
        for (name, is_directory) in list(parent).map_err(self.failed("reading", directory))? {
            let path = directory.join(&name);
            if !self.has_seen(&path) {
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

    fn refusal(bytes: &[u8], limits: Limits) -> String {
        let root = tempfile::tempdir().unwrap();
        unpack_within(bytes, root.path(), true, "test", limits).unwrap_err().to_string()
    }

    const ROOM: Limits = Limits { bytes: 1 << 20, entries: 10 };

    /// One entry whose header promises `size` zeros, and as many of them as the compression makes cheap.
    fn zeros(kind: u8, size: u64) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.set_path("././@LongLink").unwrap();
        header.set_entry_type(EntryType::new(kind));
        header.set_size(size);
        header.set_cksum();
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        io::copy(&mut header.as_bytes().chain(io::repeat(0).take(size)), &mut encoder).unwrap();
        io::copy(&mut raw_tar(&[("f", FILE, "")]).as_slice(), &mut encoder).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn long_headers_are_refused_before_they_are_kept() {
        for kind in [b'L', b'K', b'x'] {
            let refused = refusal(&zeros(kind, 64 << 20), ROOM);
            assert!(refused.contains("what describes one entry takes more than 1048576 bytes"), "{refused}");
        }
        // Global headers are entries of their own, which nobody keeps.
        let refused = refusal(&zeros(b'g', 64 << 20), ROOM);
        assert!(refused.contains("more than the 1048576 bytes that may still be used"), "{refused}");
        let name = "n".repeat(5000);
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        builder.append_data(&mut header, &name, io::empty()).unwrap();
        let refused = refusal(&builder.into_inner().unwrap(), ROOM);
        assert!(refused.contains("is longer than any path") && refused.len() < 1000, "{refused}");
    }

    #[test]
    fn a_layer_takes_no_more_than_may_be_used() {
        let content = "x".repeat(600 << 10);
        let two = raw_tar(&[("a", FILE, &content), ("b", FILE, &content)]);
        let room = "more than the 1048576 bytes that may still be used on the disk";
        assert!(refusal(&two, ROOM).contains(room));
        assert!(unpack(two.as_slice(), tempfile::tempdir().unwrap().path(), false, "test").is_ok());
        // What a directory is said to contain is not written, and yet read.
        let refused = refusal(&raw_tar(&[("a/", EntryType::Directory, &content), ("b", FILE, &content)]), ROOM);
        assert!(refused.contains(room), "{refused}");
        let names: Vec<String> = (0..11).map(|n| format!("f{n}")).collect();
        let many: Vec<(&str, EntryType, &str)> = names.iter().map(|name| (name.as_str(), FILE, "")).collect();
        assert!(refusal(&raw_tar(&many), ROOM).contains("more than 10 entries"));
        assert!(unpack_in(tempfile::tempdir().unwrap().path(), &many).is_ok());
    }

    #[test]
    fn a_sparse_file_counts_with_its_holes() {
        let mut header = tar::Header::new_gnu();
        header.set_path("sparse").unwrap();
        header.set_entry_type(EntryType::GNUSparse);
        header.set_size(0);
        let gnu = header.as_gnu_mut().unwrap();
        let claimed = 1u64 << 32;
        gnu.realsize.copy_from_slice(format!("{claimed:011o}\0").as_bytes());
        gnu.sparse[0].offset.copy_from_slice(format!("{claimed:011o}\0").as_bytes());
        gnu.sparse[0].numbytes.copy_from_slice(b"00000000000\0");
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend([0; 1024]);
        let refused = refusal(&bytes, ROOM);
        assert!(refused.contains("more than the 1048576 bytes"), "{refused}");
    }

    #[test]
    fn what_follows_the_end_is_bounded() {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        let end = TRAILER_BYTES_MAX + 4096;
        io::copy(&mut raw_tar(&[("f", FILE, "")]).as_slice().chain(io::repeat(0).take(end)), &mut encoder).unwrap();
        let refused = refusal(&encoder.finish().unwrap(), ROOM);
        assert!(refused.contains("what follows the end of the archive takes more than"), "{refused}");
    }

    #[test]
    fn a_compression_that_wants_too_large_a_window_is_refused() {
        let compressed = |window_log: u32| {
            let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(window_log).unwrap();
            io::copy(&mut raw_tar(&[("f", FILE, "content")]).as_slice(), &mut encoder).unwrap();
            encoder.finish().unwrap()
        };
        let refused = refusal(&compressed(ZSTD_WINDOW_LOG_MAX + 1), ROOM);
        assert!(refused.contains("too much memory"), "{refused}");
        let root = tempfile::tempdir().unwrap();
        unpack(compressed(ZSTD_WINDOW_LOG_MAX).as_slice(), root.path(), false, "test").unwrap();
    }

    /// As `/var/run`, which many images have as a link to a directory that comes with another layer, or never.
    #[test]
    fn where_a_link_leads_is_made_and_the_link_stays() {
        let root = tempfile::tempdir().unwrap();
        let links = [
            ("var/run", "/run"),
            ("var/relative", "../data/here"),
            ("var/chain", "relative/deeper"),
            ("var/climbs", "../../../../../outside"),
            ("var/loop", "loop"),
        ];
        std::fs::create_dir(root.path().join("var")).unwrap();
        for (name, target) in links {
            symlink(target, root.path().join(name)).unwrap();
        }
        let directories =
            ["var/run/app/", "var/chain/x/", "var/climbs/in/"].map(|name| (name, EntryType::Directory, ""));
        unpack_in(root.path(), &directories).unwrap();
        for (name, target) in links {
            assert_eq!(std::fs::read_link(root.path().join(name)).unwrap(), Path::new(target), "{name}");
        }
        for made in ["run/app", "data/here/deeper/x", "outside/in"] {
            assert!(root.path().join(made).symlink_metadata().unwrap().is_dir(), "{made}");
        }
        assert!(unpack_in(root.path(), &[("var/loop/x/", EntryType::Directory, "")]).is_err());
        // A directory of the layer itself replaces the link.
        unpack_in(root.path(), &[("var/run/", EntryType::Directory, "")]).unwrap();
        assert!(root.path().join("var/run").symlink_metadata().unwrap().is_dir());
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
