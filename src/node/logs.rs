//! Reading containers' log files: CRI lines, across rotated files, with following woken by the file system.
//!
//! Pods that have the machine's log directory as a volume may write there. So a log is opened below the directory of all
//! pods' logs, follows no link, is a regular file, and no more than a line of it is held at a time.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::api::node_access::LogOptions;
use crate::base::beneath::Root;
use crate::base::directory::DirectoryWatch;

/// Read at once.
const CHUNK: usize = 64 << 10;
/// A longer line is none of ours.
const LINE_MAX: usize = 64 << 10;
/// What is read of a file for a container's last words.
const LAST_BYTES_MAX: u64 = 2 << 20;
/// A log is the container's directory and a file in the pod's directory, which is in that of all pods.
const LEVELS: usize = 3;

/// The log of one attempt of a container.
#[derive(Debug)]
struct Log {
    /// The container's directory.
    directory: Root,
    /// Oldest first: `0.log.<time>` before `0.log`.
    files: Vec<String>,
}

// === impl Log ===

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        let absent = || io::Error::from(io::ErrorKind::NotFound);
        let name = path.file_name().ok_or_else(absent)?.to_string_lossy().into_owned();
        let top = path.ancestors().nth(LEVELS).ok_or_else(absent)?;
        let below = path.strip_prefix(top).ok().and_then(Path::parent).ok_or_else(absent)?;
        let directory = Root::open(top)?.directory(below)?;
        let prefix = format!("{name}.");
        let names = directory.entries()?.into_iter().map(|(name, _)| name);
        let mut files: Vec<String> = names.filter(|n| n.starts_with(&prefix)).collect();
        files.sort();
        files.push(name);
        Ok(Self { directory, files })
    }

    fn file(&self, index: usize) -> io::Result<File> {
        self.directory.file(&self.files[index])
    }

    /// The file that is being written.
    fn newest(&self) -> usize {
        self.files.len() - 1
    }
}

/// One line of a log in CRI format.
struct Line<'a> {
    time: &'a str,
    stream: &'a str,
    partial: bool,
    text: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tags = parts.next()?;
    Some(Line { time, stream, partial: tags == b"P", text: parts.next().unwrap_or_default() })
}

/// Turns raw log lines into what the client asked for.
struct Filter<'o> {
    options: &'o LogOptions,
    left_bytes: Option<u64>,
    /// Inside a line that came in parts: its time was written already.
    within: bool,
}

// === impl Filter ===

impl Filter<'_> {
    fn line(&mut self, raw: &[u8], out: &mut BytesMut) {
        let Some(line) = parse(raw) else { return };
        if !self.wants(&line) {
            return;
        }
        let mut piece = Vec::with_capacity(line.text.len() + 40);
        if self.options.timestamps && !self.within {
            piece.extend_from_slice(line.time.as_bytes());
            piece.push(b' ');
        }
        piece.extend_from_slice(line.text);
        if !line.partial {
            piece.push(b'\n');
        }
        self.within = line.partial;
        if let Some(left) = &mut self.left_bytes {
            piece.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= piece.len() as u64;
        }
        out.extend_from_slice(&piece);
    }

    fn wants(&self, line: &Line<'_>) -> bool {
        let stream = match self.options.stream.as_str() {
            "Stdout" => line.stream == "stdout",
            "Stderr" => line.stream == "stderr",
            _ => true,
        };
        let recent = self.options.since.is_none_or(|since| line.time.parse::<Timestamp>().is_ok_and(|t| t >= since));
        stream && recent
    }

    fn is_full(&self) -> bool {
        self.left_bytes == Some(0)
    }
}

/// Where to begin so that the last `lines` lines follow: a file of the log and an offset in it.
fn tail_start(log: &Log, lines: u64) -> (usize, u64) {
    let mut wanted = lines;
    for i in (0..log.files.len()).rev() {
        match last_lines_start(log.file(i), wanted) {
            Ok(offset) => return (i, offset),
            Err(found) => wanted -= found,
        }
    }
    (0, 0)
}

/// Where the last `lines` lines of a file begin; or how many lines it has, which are fewer.
fn last_lines_start(file: io::Result<File>, lines: u64) -> Result<u64, u64> {
    let Ok(mut file) = file else { return Err(0) };
    let mut end = file.metadata().map_or(0, |m| m.len());
    if lines == 0 {
        return Ok(end);
    }
    let mut found: u64 = 0;
    let mut buffer = vec![0; CHUNK];
    while end > 0 {
        let begin = end.saturating_sub(CHUNK as u64);
        let piece = &mut buffer[..(end - begin) as usize];
        if file.seek(SeekFrom::Start(begin)).is_err() || file.read_exact(piece).is_err() {
            return Err(found);
        }
        for (k, _) in piece.iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
            // The newline that ends the line before the first wanted one.
            if found == lines {
                return Ok(begin + k as u64 + 1);
            }
            found += 1;
        }
        end = begin;
    }
    if found == lines { Ok(0) } else { Err(found) }
}

/// Sends the log; with `follow` goes on until `over` resolves (the container has ended) and all is read.
pub async fn send(
    path: PathBuf,
    options: LogOptions,
    out: mpsc::Sender<Bytes>,
    mut over: tokio::sync::watch::Receiver<bool>,
) {
    let Ok(log) = Log::open(&path) else { return };
    let (first, mut offset) = options.tail_lines.map_or((0, 0), |n| tail_start(&log, n));
    let mut filter = Filter { options: &options, left_bytes: options.limit_bytes, within: false };
    for old in first..log.newest() {
        let mut rest = BytesMut::new();
        if copy(log.file(old), offset, &mut rest, &mut filter, &out).await.is_none() {
            return;
        }
        offset = 0;
    }
    let mut watcher = path.parent().filter(|_| options.follow).and_then(|d| DirectoryWatch::writes(d).ok());
    let (mut rest, mut position) = (BytesMut::new(), offset);
    loop {
        let ended = *over.borrow();
        match copy(log.file(log.newest()), position, &mut rest, &mut filter, &out).await {
            Some(end) => position = end,
            None => return,
        }
        if !options.follow || ended {
            return;
        }
        tokio::select! {
            () = wait(&mut watcher) => {}
            changed = over.changed() => if changed.is_err() { return },
            () = out.closed() => return,
        }
        // A rotated file begins anew.
        if log.file(log.newest()).and_then(|f| f.metadata()).map_or(0, |m| m.len()) < position {
            (position, rest) = (0, BytesMut::new());
        }
    }
}

async fn wait(watcher: &mut Option<DirectoryWatch>) {
    match watcher {
        Some(w) => drop(w.changed().await),
        None => std::future::pending().await,
    }
}

/// Sends what a file holds after `offset`; answers the new offset, or `None` when nobody listens or all is sent.
async fn copy(
    file: io::Result<File>,
    offset: u64,
    rest: &mut BytesMut,
    filter: &mut Filter<'_>,
    out: &mpsc::Sender<Bytes>,
) -> Option<u64> {
    let Ok(mut file) = file else { return Some(offset) };
    if file.seek(SeekFrom::Start(offset)).is_err() {
        return Some(offset);
    }
    let (mut position, mut buffer) = (offset, vec![0; CHUNK]);
    loop {
        let n = file.read(&mut buffer).unwrap_or(0);
        if n == 0 {
            return Some(position);
        }
        position += n as u64;
        rest.extend_from_slice(&buffer[..n]);
        let mut piece = BytesMut::new();
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            let line = rest.split_to(end + 1);
            filter.line(&line[..end], &mut piece);
            if filter.is_full() {
                break;
            }
        }
        if rest.len() > LINE_MAX {
            rest.clear();
        }
        if !piece.is_empty() && out.send(piece.freeze()).await.is_err() {
            return None;
        }
        if filter.is_full() {
            return None;
        }
    }
}

/// The last lines of a log, for a container's last words.
pub fn last_lines(path: &Path, lines: u64, bytes: usize) -> String {
    let Ok(log) = Log::open(path) else { return String::new() };
    let (first, offset) = tail_start(&log, lines);
    let options = LogOptions::default();
    let mut filter = Filter { options: &options, left_bytes: None, within: false };
    let mut out = BytesMut::new();
    for i in first..log.files.len() {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = log.file(i)?;
            let end = file.metadata()?.len();
            let from = if i == first { offset } else { 0 };
            file.seek(SeekFrom::Start(from.max(end.saturating_sub(LAST_BYTES_MAX))))?;
            let mut raw = Vec::new();
            file.take(LAST_BYTES_MAX).read_to_end(&mut raw)?;
            Ok(raw)
        };
        read().unwrap_or_default().split(|b| *b == b'\n').for_each(|l| filter.line(l, &mut out));
        let surplus = out.len().saturating_sub(bytes);
        let _ = out.split_to(surplus);
    }
    let from = out.len().saturating_sub(bytes);
    String::from_utf8_lossy(&out[from..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(dir: &Path, name: &str, lines: &[&str]) {
        let text: String = lines.iter().map(|l| format!("2026-01-01T00:00:00Z stdout F {l}\n")).collect();
        std::fs::write(dir.join(name), text).unwrap();
    }

    async fn read(path: PathBuf, options: LogOptions) -> String {
        let (send_end, mut queue) = mpsc::channel(8);
        let (_over, over) = tokio::sync::watch::channel(true);
        send(path, options, send_end, over).await;
        let mut all = Vec::new();
        while let Some(piece) = queue.recv().await {
            all.extend_from_slice(&piece);
        }
        String::from_utf8(all).unwrap()
    }

    #[tokio::test]
    async fn a_log_that_a_pod_made_shows_nothing_of_the_machine_and_keeps_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let container = dir.path().join("pods/ns_pod_uid/c");
        std::fs::create_dir_all(&container).unwrap();
        log(dir.path(), "secret", &["of the machine"]);
        let path = container.join("0.log");
        let all = async || {
            let tailed = LogOptions { tail_lines: Some(5), ..LogOptions::default() };
            let read = async |options| {
                tokio::time::timeout(std::time::Duration::from_secs(5), read(path.clone(), options)).await.unwrap()
            };
            [read(LogOptions::default()).await, read(tailed).await, last_lines(&path, 80, 2048)].concat()
        };
        std::os::unix::fs::symlink(dir.path().join("secret"), &path).unwrap();
        assert_eq!(all().await, "", "a link");
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(all().await, "", "a pipe");
        std::fs::remove_file(&path).unwrap();
        // Gigabytes without an end of line.
        std::fs::File::create(&path).unwrap().set_len(1 << 28).unwrap();
        std::fs::rename(&path, container.join("0.log.1")).unwrap();
        log(&container, "0.log", &["mine"]);
        assert!(last_lines(&path, 80, 2048).ends_with("mine\n"));
        // The pod's directory is a link to another one.
        log(dir.path(), "0.log", &["of the machine"]);
        std::fs::remove_dir_all(&container).unwrap();
        std::os::unix::fs::symlink(dir.path(), &container).unwrap();
        assert_eq!(all().await, "", "a link on the way");
    }

    #[tokio::test]
    async fn tails_reach_into_rotated_files() {
        let dir = tempfile::tempdir().unwrap();
        log(dir.path(), "0.log.20260101-000000", &["a", "b"]);
        log(dir.path(), "0.log", &["c", "d"]);
        let path = dir.path().join("0.log");
        assert_eq!(read(path.clone(), LogOptions::default()).await, "a\nb\nc\nd\n");
        for (n, want) in [(0, ""), (1, "d\n"), (2, "c\nd\n"), (3, "b\nc\nd\n"), (9, "a\nb\nc\nd\n")] {
            assert_eq!(
                read(path.clone(), LogOptions { tail_lines: Some(n), ..LogOptions::default() }).await,
                want,
                "{n}"
            );
        }
        let cut = LogOptions { limit_bytes: Some(3), ..LogOptions::default() };
        assert_eq!(read(path.clone(), cut).await, "a\nb");
        let stamped = LogOptions { timestamps: true, tail_lines: Some(1), ..LogOptions::default() };
        assert_eq!(read(path.clone(), stamped).await, "2026-01-01T00:00:00Z d\n");
        assert_eq!(last_lines(&path, 2, 100), "c\nd\n");
    }
}
