//! Container output as log files in the format that kubelets write and `kubectl logs` reads:
//! `<RFC 3339 time> stdout|stderr F|P <text>`, `P` for a piece of a line that goes on.
//!
//! Invariant: a write error loses output but never blocks or ends the container.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use jiff::Timestamp;

use crate::base::beneath::Root;
use crate::base::file::make_public_dir;

/// A line longer than this is cut into pieces.
pub(super) const LINE_MAX: usize = 16 * 1024;
/// A log is the container's directory and a file in the pod's directory, which is in that of all pods.
const LEVELS: usize = 3;
/// As the kubelet and its runtimes have them: whoever collects logs need not be root.
const DIRECTORY_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o640;

/// Cuts a stream of bytes into log records.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    /// Appends the records that `bytes` complete to `out`.
    pub(super) fn push(&mut self, bytes: &[u8], stream: &str, now: Timestamp, out: &mut Vec<u8>) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.extend(&rest[..end], stream, now, out);
            record(out, now, stream, "F", &self.pending);
            self.pending.clear();
            rest = &rest[end + 1..];
        }
        self.extend(rest, stream, now, out);
        if self.pending.is_empty() {
            self.pending = Vec::new();
        }
    }

    fn extend(&mut self, mut bytes: &[u8], stream: &str, now: Timestamp, out: &mut Vec<u8>) {
        while self.pending.len() + bytes.len() > LINE_MAX {
            let (head, tail) = bytes.split_at(LINE_MAX - self.pending.len());
            self.pending.extend_from_slice(head);
            record(out, now, stream, "P", &self.pending);
            self.pending.clear();
            bytes = tail;
        }
        self.pending.extend_from_slice(bytes);
    }

    /// The stream has ended: what has no newline yet becomes a last piece.
    pub(super) fn finish(&mut self, stream: &str, now: Timestamp, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            record(out, now, stream, "P", &self.pending);
            self.pending = Vec::new();
        }
    }
}

fn record(out: &mut Vec<u8>, now: Timestamp, stream: &str, tag: &str, text: &[u8]) {
    // The precision is fixed, so the file can be searched by time.
    let _ = write!(out, "{now:.9} {stream} {tag} ");
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// The current log file of a container; rotated by renaming. Everything is done below the directory that was opened first, so
/// a pod that can write the machine's log directory leads none of it elsewhere.
#[derive(Debug)]
pub(super) struct LogFile {
    /// The container's.
    directory: Root,
    name: String,
    file: Option<fs::File>,
    size_bytes: u64,
    max_bytes: u64,
    max_files: u32,
}

impl LogFile {
    pub(super) fn open(path: &Path, max_bytes: u64, max_files: u32) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let top = path.ancestors().nth(LEVELS).ok_or_else(invalid)?;
        make_public_dir(top)?;
        let below = path.strip_prefix(top).ok().and_then(Path::parent).ok_or_else(invalid)?;
        let directory = Root::open(top)?.make_directory(below, DIRECTORY_MODE)?;
        let name = path.file_name().ok_or_else(invalid)?.to_string_lossy().into_owned();
        let mut log = Self { directory, name, file: None, size_bytes: 0, max_bytes, max_files };
        log.reopen()?;
        Ok(log)
    }

    fn reopen(&mut self) -> io::Result<()> {
        let file = self.directory.append(&self.name, FILE_MODE).or_else(|_| {
            // A link or a pipe in its place.
            self.directory.remove(&self.name)?;
            self.directory.append(&self.name, FILE_MODE)
        })?;
        self.size_bytes = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Appends whole records.
    pub(super) fn append(&mut self, records: &[u8], now: Timestamp) {
        if records.is_empty() {
            return;
        }
        if self.size_bytes > 0 && self.size_bytes + records.len() as u64 > self.max_bytes {
            // A failing rename (directory removed, read-only) must not stop the output: go on in the old file.
            let _ = self.rotate(now);
        }
        if let Some(file) = &mut self.file
            && file.write_all(records).is_ok()
        {
            self.size_bytes += records.len() as u64;
        }
    }

    fn rotate(&mut self, now: Timestamp) -> io::Result<()> {
        let old = format!("{}{}", self.name, now.strftime(".%Y%m%d-%H%M%S-%f"));
        self.directory.rename(&self.name, &old)?;
        self.reopen()?;
        for old in surplus(self.rotated()?, self.max_files.saturating_sub(1) as usize) {
            self.directory.remove(&old)?;
        }
        Ok(())
    }

    /// The rotated files beside it, oldest first.
    fn rotated(&self) -> io::Result<Vec<String>> {
        let prefix = format!("{}.", self.name);
        let names = self.directory.entries()?.into_iter().map(|(name, _)| name);
        let mut found: Vec<String> = names.filter(|name| name.starts_with(&prefix)).collect();
        found.sort();
        Ok(found)
    }
}

fn surplus(mut oldest_first: Vec<String>, keep: usize) -> Vec<String> {
    oldest_first.truncate(oldest_first.len().saturating_sub(keep));
    oldest_first
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> Timestamp {
        "2024-05-06T07:08:09.5Z".parse().unwrap()
    }

    fn texts(pieces: &[&[u8]]) -> String {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        for piece in pieces {
            lines.push(piece, "stdout", at(), &mut out);
        }
        lines.finish("stdout", at(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_whole_wherever_the_reads_cut_them() {
        let expected = "2024-05-06T07:08:09.500000000Z stdout F hello\n2024-05-06T07:08:09.500000000Z stdout F \n\
                        2024-05-06T07:08:09.500000000Z stdout P end\n";
        assert_eq!(texts(&[b"hello\n\nend"]), expected);
        assert_eq!(texts(&[b"hel", b"lo\n", b"\ne", b"nd"]), expected);
    }

    #[test]
    fn long_lines_are_cut_into_pieces_that_join_to_the_whole() {
        let long = vec![b'x'; LINE_MAX * 2 + 5];
        let text = texts(&[&long, b"\n"]);
        let tags: Vec<_> = text.lines().map(|line| line.split(' ').nth(2).unwrap()).collect();
        assert_eq!(tags, ["P", "P", "F"]);
        let joined: usize = text.lines().map(|line| line.rsplit(' ').next().unwrap().len()).sum();
        assert_eq!(joined, long.len());
    }

    #[test]
    fn rotation_keeps_the_newest_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut log = LogFile::open(&path, 100, 3).unwrap();
        for second in 0..10 {
            let now = at().checked_add(jiff::SignedDuration::from_secs(second)).unwrap();
            log.append(&[b'a'; 60], now);
        }
        assert_eq!(log.rotated().unwrap().len(), 2);
        assert!(fs::metadata(&path).unwrap().len() <= 100);
    }

    #[test]
    fn a_link_in_the_place_of_a_log_leads_no_output_elsewhere() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let directory = tempfile::tempdir().unwrap();
        let outside = directory.path().join("outside");
        fs::write(&outside, "").unwrap();
        let path = directory.path().join("pods/pod/c/0.log");
        let mut log = LogFile::open(&path, 100, 3).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!([mode(path.parent().unwrap()), mode(&path)], [0o755, 0o640]);
        fs::remove_file(&path).unwrap();
        symlink(&outside, &path).unwrap();
        drop(LogFile::open(&path, 100, 3).unwrap());
        for _ in 0..3 {
            log.append(&[b'a'; 60], at());
        }
        let elsewhere = directory.path().join("pods/pod");
        fs::rename(elsewhere.join("c"), directory.path().join("moved")).unwrap();
        symlink(directory.path(), elsewhere.join("c")).unwrap();
        assert!(LogFile::open(&path, 100, 3).is_err());
        assert_eq!(fs::read_to_string(&outside).unwrap(), "");
    }
}
