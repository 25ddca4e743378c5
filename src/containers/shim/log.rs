//! Container output as log files in the format that kubelets write and `kubectl logs` reads:
//! `<RFC 3339 time> stdout|stderr F|P <text>`, `P` for a piece of a line that goes on.
//!
//! Invariant: a write error loses output but never blocks or ends the container.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// A line longer than this is cut into pieces.
pub(super) const LINE_MAX: usize = 16 * 1024;

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

/// The current log file of a container; rotated by renaming.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: Option<fs::File>,
    size_bytes: u64,
    max_bytes: u64,
    max_files: u32,
}

impl LogFile {
    pub(super) fn open(path: &Path, max_bytes: u64, max_files: u32) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut log = Self { path: path.to_owned(), file: None, size_bytes: 0, max_bytes, max_files };
        log.reopen()?;
        Ok(log)
    }

    fn reopen(&mut self) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = fs::OpenOptions::new().create(true).append(true).mode(0o640).open(&self.path)?;
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
        let mut name = self.path.as_os_str().to_owned();
        name.push(now.strftime(".%Y%m%d-%H%M%S-%f").to_string());
        fs::rename(&self.path, &name)?;
        self.reopen()?;
        for old in surplus(rotated(&self.path)?, self.max_files.saturating_sub(1) as usize) {
            fs::remove_file(old)?;
        }
        Ok(())
    }
}

/// The rotated files beside `path`, oldest first.
fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Vec::new()) };
    let mut prefix = name.to_os_string();
    prefix.push(".");
    let mut found = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes()) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn surplus(mut oldest_first: Vec<PathBuf>, keep: usize) -> Vec<PathBuf> {
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
        assert_eq!(rotated(&path).unwrap().len(), 2);
        assert!(fs::metadata(&path).unwrap().len() <= 100);
    }
}
