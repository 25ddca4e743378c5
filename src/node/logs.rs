//! Reading containers' log files: CRI lines, across rotated files, with following woken by the file system.
//!
//! Pods that have the machine's log directory as a volume may write there. So a log is opened below the directory of all
//! pods' logs, follows no link, is a regular file, and no more than a line of it is held at a time.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::apimachinery::node_access::LogOptions;
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

/// Files of one log that are open at a time; a container has no more than a few.
const FILES_MAX: usize = 256;
/// What may wait to be read of files that have been rotated away, and so is kept on the disk by whoever follows.
const BEHIND_BYTES_MAX: u64 = 256 << 20;
/// A rotation may come while a directory is read; then it is read again.
const LOOKS_MAX: usize = 16;

/// The log of one attempt of a container: `0.log.<time>` and at last `0.log`, each held open, so it is the same file whatever it
/// is called later.
#[derive(Debug)]
struct Log {
    /// The container's directory.
    directory: Root,
    name: String,
    /// Oldest first.
    files: VecDeque<File>,
    /// The name of the last file that was seen rotated away.
    latest: String,
}

// === impl Log ===

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        let absent = || io::Error::from(io::ErrorKind::NotFound);
        let name = path.file_name().ok_or_else(absent)?.to_string_lossy().into_owned();
        let top = path.ancestors().nth(LEVELS).ok_or_else(absent)?;
        let below = path.strip_prefix(top).ok().and_then(Path::parent).ok_or_else(absent)?;
        let directory = Root::open(top)?.directory(below)?;
        let mut log = Self { directory, name, files: VecDeque::new(), latest: String::new() };
        log.renew()?;
        Ok(log)
    }

    /// The names of its files, oldest first.
    fn names(&self) -> io::Result<Vec<String>> {
        let prefix = format!("{}.", self.name);
        let is_own = |name: &String| *name == self.name || name.starts_with(&prefix);
        let mut names: Vec<String> = self.directory.entries()?.into_iter().map(|(n, _)| n).filter(is_own).collect();
        // The newest has the shortest name.
        names.sort_by_key(|name| (*name == self.name, name.clone()));
        names.drain(..names.len().saturating_sub(FILES_MAX));
        Ok(names)
    }

    /// All its files as they are now with their names, oldest first.
    fn look(&self) -> io::Result<Vec<(String, File)>> {
        let mut names = self.names()?;
        let mut looks = 0;
        loop {
            let files = names.iter().filter_map(|name| Some((name.clone(), self.directory.file(name).ok()?))).collect();
            let now = self.names()?;
            looks += 1;
            // Each rotation changes the names.
            if now == names || looks == LOOKS_MAX {
                return Ok(files);
            }
            names = now;
        }
    }

    /// Opens what has come after the newest of the files that are held; tells whether there is any. Of what waits, the oldest is
    /// given up where whoever reads lags too far behind.
    fn renew(&mut self) -> io::Result<bool> {
        let newest = self.files.back().and_then(identity);
        let found = self.look()?;
        let known = found.iter().rposition(|(_, file)| newest.is_some() && identity(file) == newest);
        let latest = found.iter().rev().map(|(name, _)| name).find(|name| **name != self.name).cloned();
        let before = self.files.len();
        for (index, (name, file)) in found.into_iter().enumerate() {
            // Where the newest is not there any more, the names tell, which have times in them.
            if known.map_or(name == self.name || name > self.latest, |known| index > known) {
                self.files.push_back(file);
            }
        }
        self.latest = latest.unwrap_or_default().max(std::mem::take(&mut self.latest));
        let has_come = self.files.len() > before;
        // The first is being read, and the last tells what is new.
        while has_come && before > 0 && self.files.len() > 2 && self.bytes() > BEHIND_BYTES_MAX {
            self.files.remove(1);
        }
        Ok(has_come)
    }

    fn bytes(&self) -> u64 {
        self.files.iter().filter_map(|file| file.metadata().ok()).map(|found| found.len()).sum()
    }
}

/// Device and inode: no other file has them as long as this one is open.
fn identity(file: &File) -> Option<(u64, u64)> {
    file.metadata().ok().map(|found| (found.dev(), found.ino()))
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

/// Where to begin so that the last `lines` lines follow: how many files are not wanted, and an offset in the next one.
fn tail_start(log: &Log, lines: u64) -> (usize, u64) {
    let mut wanted = lines;
    for (i, file) in log.files.iter().enumerate().rev() {
        match last_lines_start(file, wanted) {
            Ok(offset) => return (i, offset),
            Err(found) => wanted -= found,
        }
    }
    (0, 0)
}

/// Where the last `lines` lines of a file begin; or how many lines it has, which are fewer.
fn last_lines_start(file: &File, lines: u64) -> Result<u64, u64> {
    let mut end = file.metadata().map_or(0, |m| m.len());
    if lines == 0 {
        return Ok(end);
    }
    let mut found: u64 = 0;
    let mut buffer = vec![0; CHUNK];
    while end > 0 {
        let begin = end.saturating_sub(CHUNK as u64);
        let piece = &mut buffer[..(end - begin) as usize];
        if file.read_exact_at(piece, begin).is_err() {
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
    // Before the first look, so that nothing comes in between.
    let watch = path.parent().filter(|_| options.follow).and_then(|directory| DirectoryWatch::writes(directory).ok());
    let Ok(log) = Log::open(&path) else { return };
    let (first, position) = options.tail_lines.map_or((0, 0), |n| tail_start(&log, n));
    let mut reader = Reader {
        log,
        position,
        rest: BytesMut::new(),
        buffer: vec![0; CHUNK],
        filter: Filter { options: &options, left_bytes: options.limit_bytes, within: false },
        out: &out,
        watch,
    };
    reader.log.files.drain(..first);
    loop {
        let ended = *over.borrow();
        if reader.read_all(options.follow).await.is_none() || !options.follow || ended {
            return;
        }
        tokio::select! {
            _ = wait(&mut reader.watch) => {}
            changed = over.changed() => if changed.is_err() { return },
            () = out.closed() => return,
        }
    }
}

/// True after more than writes.
async fn wait(watch: &mut Option<DirectoryWatch>) -> bool {
    match watch {
        Some(watch) => watch.changed().await.unwrap_or(true),
        None => std::future::pending().await,
    }
}

/// Where one who reads a log is.
struct Reader<'a> {
    log: Log,
    /// In the oldest of the files that are left.
    position: u64,
    /// The beginning of a line.
    rest: BytesMut,
    buffer: Vec<u8>,
    filter: Filter<'a>,
    out: &'a mpsc::Sender<Bytes>,
    watch: Option<DirectoryWatch>,
}

// === impl Reader ===

impl Reader<'_> {
    /// Sends all that there is now; `None` when nobody listens or all is sent that was wanted.
    async fn read_all(&mut self, follow: bool) -> Option<()> {
        loop {
            self.read_file().await?;
            // Nobody writes into a file after the next one has come: what was written before that is read now.
            if self.log.files.len() < 2 && !(follow && self.log.renew().unwrap_or(false)) {
                return Some(());
            }
            if self.log.files.len() > 1 {
                self.read_file().await?;
                self.log.files.pop_front();
                (self.position, self.rest) = (0, BytesMut::new());
            }
        }
    }

    /// Sends what the oldest file holds after the position.
    async fn read_file(&mut self) -> Option<()> {
        loop {
            let Some(file) = self.log.files.front() else { return Some(()) };
            let n = file.read_at(&mut self.buffer, self.position).unwrap_or(0);
            if n == 0 {
                if file.metadata().map_or(0, |found| found.len()) >= self.position {
                    return Some(());
                }
                // Somebody has emptied it.
                (self.position, self.rest) = (0, BytesMut::new());
                continue;
            }
            self.position += n as u64;
            self.rest.extend_from_slice(&self.buffer[..n]);
            let mut piece = BytesMut::new();
            while let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line = self.rest.split_to(end + 1);
                self.filter.line(&line[..end], &mut piece);
                if self.filter.is_full() {
                    break;
                }
            }
            if self.rest.len() > LINE_MAX {
                self.rest.clear();
            }
            if !piece.is_empty() {
                self.give(piece.freeze()).await?;
            }
            if self.filter.is_full() {
                return None;
            }
        }
    }

    /// Sends a piece when there is room. Files that come meanwhile are opened, so that none is removed unseen.
    async fn give(&mut self, piece: Bytes) -> Option<()> {
        loop {
            tokio::select! {
                biased;
                room = self.out.reserve() => {
                    room.ok()?.send(piece);
                    return Some(());
                }
                rotated = wait(&mut self.watch) => if rotated {
                    // What cannot be looked at now is looked at again at the end of the file.
                    let _ = self.log.renew();
                },
            }
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
    for (i, file) in log.files.iter().enumerate().skip(first) {
        let read = || -> io::Result<Vec<u8>> {
            let end = file.metadata()?.len();
            let from = if i == first { offset } else { 0 };
            let from = from.max(end.saturating_sub(LAST_BYTES_MAX));
            let mut raw = vec![0; end.saturating_sub(from) as usize];
            file.read_exact_at(&mut raw, from)?;
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

    /// As the shim writes: whole records, and a new file in the place of one that got another name.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_follows_a_log_misses_nothing_however_often_it_is_rotated() {
        const LINES: u64 = 100_000;
        const LENGTH: usize = 1000;
        let dir = tempfile::tempdir().unwrap();
        let container = dir.path().join("pods/ns_pod_uid/c");
        std::fs::create_dir_all(&container).unwrap();
        let path = container.join("0.log");
        log(&container, "0.log.20250101-000000", &["before"]);
        std::fs::write(&path, "").unwrap();
        let (send_end, mut queue) = mpsc::channel(2);
        let (over, is_over) = tokio::sync::watch::channel(false);
        let options = LogOptions { follow: true, tail_lines: Some(0), ..LogOptions::default() };
        let (started, starting) = tokio::sync::oneshot::channel::<()>();
        let writer = std::thread::spawn({
            let path = path.clone();
            move || {
                let _ = starting.blocking_recv();
                let open = || std::fs::File::options().append(true).create(true).open(&path).unwrap();
                let (mut file, mut rotated, mut rotations, mut old) =
                    (open(), std::time::Instant::now(), 0, Vec::new());
                let (filling, mut records) = ("x".repeat(LENGTH - 8), String::new());
                for n in 0..LINES {
                    records += &format!("2026-01-01T00:00:00Z stdout F {n:07} {filling}\n");
                    if n % 10 == 9 {
                        std::io::Write::write_all(&mut file, records.as_bytes()).unwrap();
                        records.clear();
                        if rotated.elapsed() >= std::time::Duration::from_millis(50) || n % 20_000 < 50 {
                            rotations += 1;
                            rotated = std::time::Instant::now();
                            let to = path.with_file_name(format!("0.log.20260101-{rotations:09}"));
                            std::fs::rename(&path, &to).unwrap();
                            file = open();
                            old.push(to);
                            // A second's worth: for less, whoever follows may be kept from a processor.
                            if old.len() > 20 {
                                std::fs::remove_file(old.remove(0)).unwrap();
                            }
                        }
                    }
                }
                over.send(true).unwrap();
                rotations
            }
        });
        let sending = crate::base::task::spawn("log", send(path, options, send_end, is_over));
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        started.send(()).unwrap();
        let (mut all, mut next) = (Vec::new(), 0);
        while let Some(piece) = queue.recv().await {
            all.extend_from_slice(&piece);
            let whole = all.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
            for line in all.drain(..whole).collect::<Vec<_>>().split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
                assert_eq!(std::str::from_utf8(&line[..7]).unwrap().parse(), Ok(next), "after {next} lines");
                next += 1;
            }
        }
        sending.await.unwrap();
        assert_eq!(next, LINES);
        assert!(writer.join().unwrap() > 20);
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
