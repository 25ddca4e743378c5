//! `/containerLogs/...` and `/logs/`: the logs of containers, and the files of the machine's log directory as Go's file
//! server gives them.
//!
//! Invariant: no path and no link leads out of the log directory. A path is resolved first, compared, and then opened below
//! the directory without following any link, so that one which is changed meanwhile is refused as well.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::Path;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, Response};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::apimachinery::http::{Body, answer};
use crate::base::task;

/// Pieces of a file that may wait for the client.
const PIECES: usize = 4;
const PIECE_BYTES: usize = 64 << 10;
/// What is looked at to tell text from everything else.
const SNIFFED_BYTES: usize = 512;
/// What Go leaves as it is in the link to a file.
const IN_LINK: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// What is asked for.
#[derive(Debug)]
enum Found {
    Directory(File),
    File(File),
}

/// Answers for a path below `/logs/`.
pub(super) async fn respond(root: &Path, path: &str, method: &Method, headers: &HeaderMap) -> Response<Body> {
    let (root, path, headers) = (root.to_owned(), path.to_owned(), headers.clone());
    let head = *method == Method::HEAD;
    let answered = task::blocking(move || match open(&root, &path) {
        Ok(Found::Directory(directory)) if path.is_empty() || path.ends_with('/') => listing(directory),
        Ok(Found::Directory(_)) => moved(&format!("{}/", last(&path))),
        Ok(Found::File(_)) if path.ends_with('/') => moved(&format!("../{}", last(&path))),
        Ok(Found::File(file)) => content(file, last(&path), &headers, head),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => answer::text(404, "404 page not found\n"),
        Err(_) => answer::text(403, "403 Forbidden\n"),
    });
    answered.await.unwrap_or_else(|_| answer::text(500, "500 Internal Server Error\n"))
}

fn last(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
}

fn open(root: &Path, path: &str) -> std::io::Result<Found> {
    let root = root.canonicalize()?;
    let wanted = root.join(path.trim_matches('/')).canonicalize()?;
    let below = wanted.strip_prefix(&root).map_err(|_| std::io::Error::from(std::io::ErrorKind::PermissionDenied))?;
    let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    let directory = rustix::fs::open(&root, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // Without waiting: what is no file might never open.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let opened: OwnedFd = rustix::fs::openat2(&directory, below, flags, Mode::empty(), resolve)?;
    let file = File::from(opened);
    let kind = file.metadata()?.file_type();
    match (kind.is_dir(), kind.is_file()) {
        (true, _) => Ok(Found::Directory(file)),
        (_, true) => Ok(Found::File(file)),
        _ => Err(std::io::ErrorKind::PermissionDenied.into()),
    }
}

pub(super) fn moved(to: &str) -> Response<Body> {
    let mut response = answer::empty(301);
    if let Ok(to) = HeaderValue::from_str(&utf8_percent_encode(to, IN_LINK).to_string()) {
        response.headers_mut().insert(header::LOCATION, to);
    }
    response
}

/// A page with a link for each entry.
fn listing(directory: File) -> Response<Body> {
    // What was opened is read, whatever its path leads to by now.
    let Ok(entries) = rustix::fs::Dir::new(directory) else { return answer::text(500, "Error reading directory\n") };
    let name = |e: rustix::fs::DirEntry| {
        let slash = if e.file_type() == rustix::fs::FileType::Directory { "/" } else { "" };
        format!("{}{slash}", e.file_name().to_string_lossy())
    };
    let entries = entries.flatten().filter(|e| !matches!(e.file_name().to_bytes(), b"." | b".."));
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    let mut page = "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n".to_owned();
    for name in names {
        // A colon before the first slash would be a scheme.
        let dot = if name.contains(':') { "./" } else { "" };
        let link = utf8_percent_encode(&name, IN_LINK);
        page.push_str(&format!("<a href=\"{dot}{link}\">{}</a>\n", shown(&name)));
    }
    page.push_str("</pre>\n");
    answer::typed(200, "text/html; charset=utf-8", answer::full(page))
}

fn shown(name: &str) -> String {
    name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;").replace('\'', "&#39;")
}

fn content(mut file: File, name: &str, headers: &HeaderMap, head: bool) -> Response<Body> {
    let Ok(metadata) = file.metadata() else { return answer::text(500, "500 Internal Server Error\n") };
    let length = metadata.len();
    let media = media(&mut file, name);
    let range = headers.get(header::RANGE).and_then(|r| r.to_str().ok()).map(|r| range(r, length));
    let (code, begin, end) = match range {
        None => (200, 0, length),
        Some(Some((begin, end))) => (206, begin, end),
        Some(None) => {
            let mut refused = answer::text(416, "invalid range: failed to overlap\n");
            set(&mut refused, header::CONTENT_RANGE, &format!("bytes */{length}"));
            return refused;
        }
    };
    let body = if head { answer::full(Bytes::new()) } else { sent(file, begin, end) };
    let mut response = answer::typed(code, media, body);
    set(&mut response, header::ACCEPT_RANGES, "bytes");
    set(&mut response, header::CONTENT_LENGTH, &(end - begin).to_string());
    if code == 206 {
        set(&mut response, header::CONTENT_RANGE, &format!("bytes {begin}-{}/{length}", end.saturating_sub(1)));
    }
    if let Ok(modified) = metadata.modified().map_err(drop).and_then(|t| jiff::Timestamp::try_from(t).map_err(drop)) {
        let text = modified.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        set(&mut response, header::LAST_MODIFIED, &text);
    }
    response
}

fn set(response: &mut Response<Body>, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// Sends a part of a file. One that shrinks meanwhile ends early, which the client sees.
fn sent(mut file: File, begin: u64, end: u64) -> Body {
    let (send, queue) = mpsc::channel::<Bytes>(PIECES);
    let reading = move || {
        if file.seek(SeekFrom::Start(begin)).is_err() {
            return;
        }
        let mut left = end - begin;
        let mut buffer = vec![0; PIECE_BYTES];
        while left > 0 {
            let most = usize::try_from(left).map_or(PIECE_BYTES, |l| l.min(PIECE_BYTES));
            let Ok(n @ 1..) = file.read(&mut buffer[..most]) else { return };
            left -= n as u64;
            if send.blocking_send(Bytes::copy_from_slice(&buffer[..n])).is_err() {
                return;
            }
        }
    };
    task::spawn("log file", async move { drop(task::blocking(reading).await) });
    answer::streamed(ReceiverStream::new(queue))
}

/// The one range that is asked for, if the file has it; of several the first.
fn range(text: &str, length: u64) -> Option<(u64, u64)> {
    let first = text.strip_prefix("bytes=")?.split(',').next()?.trim();
    let (begin, end) = first.split_once('-')?;
    match (begin.parse::<u64>(), end.parse::<u64>()) {
        (Ok(begin), Ok(end)) if begin <= end && begin < length => Some((begin, length.min(end.saturating_add(1)))),
        (Ok(begin), Err(_)) if end.is_empty() && begin < length => Some((begin, length)),
        (Err(_), Ok(last)) if begin.is_empty() && last > 0 => Some((length.saturating_sub(last), length)),
        _ => None,
    }
}

fn media(file: &mut File, name: &str) -> &'static str {
    let known = [(".html", "text/html; charset=utf-8"), (".json", "application/json"), (".gz", "application/gzip")];
    if let Some((_, media)) = known.iter().find(|(end, _)| name.ends_with(end)) {
        return media;
    }
    let mut first = [0; SNIFFED_BYTES];
    let n = file.read(&mut first).unwrap_or(0);
    let is_binary = |b: &u8| matches!(b, 0..=8 | 11 | 14..=26 | 28..=31);
    match (first[..n].starts_with(&[0x1f, 0x8b]), first[..n].iter().any(is_binary)) {
        (true, _) => "application/x-gzip",
        (_, true) => "application/octet-stream",
        _ => "text/plain; charset=utf-8",
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn ask(root: &Path, path: &str, headers: &[(&'static str, &'static str)]) -> (u16, HeaderMap, String) {
        let headers = headers.iter().map(|(k, v)| ((*k).parse().unwrap(), HeaderValue::from_static(v))).collect();
        let response = respond(root, path, &Method::GET, &headers).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        (parts.status.as_u16(), parts.headers, String::from_utf8_lossy(&bytes).into_owned())
    }

    #[tokio::test]
    async fn files_and_directories_are_given_as_go_gives_them() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        std::fs::create_dir(root.join("pods")).unwrap();
        std::fs::write(root.join("a&b.log"), "hello\n").unwrap();
        std::fs::write(root.join("raw"), [0, 1, 2]).unwrap();
        let (code, headers, page) = ask(root, "", &[]).await;
        assert_eq!((code, headers["content-type"].to_str().unwrap()), (200, "text/html; charset=utf-8"));
        let expected = "<pre>\n<a href=\"a%26b.log\">a&amp;b.log</a>\n<a href=\"pods/\">pods/</a>\n<a href=\"raw\">raw</a>\n</pre>\n";
        assert!(page.ends_with(expected), "{page}");
        let (code, headers, text) = ask(root, "a&b.log", &[]).await;
        assert_eq!(
            (code, &*text, headers["content-type"].to_str().unwrap()),
            (200, "hello\n", "text/plain; charset=utf-8")
        );
        assert_eq!(ask(root, "raw", &[]).await.1["content-type"], "application/octet-stream");
        let (code, headers, text) = ask(root, "a&b.log", &[("range", "bytes=1-2")]).await;
        assert_eq!((code, &*text, headers["content-range"].to_str().unwrap()), (206, "el", "bytes 1-2/6"));
        assert_eq!(ask(root, "a&b.log", &[("range", "bytes=-3")]).await.2, "lo\n");
        assert_eq!(ask(root, "a&b.log", &[("range", "bytes=1-18446744073709551615")]).await.2, "ello\n");
        assert_eq!(ask(root, "a&b.log", &[("range", "bytes=9-")]).await.0, 416);
        let (code, headers, _) = ask(root, "pods", &[]).await;
        assert_eq!((code, headers["location"].to_str().unwrap()), (301, "pods/"));
        let (code, headers, _) = ask(root, "raw/", &[]).await;
        assert_eq!((code, headers["location"].to_str().unwrap()), (301, "../raw"));
        assert_eq!(ask(root, "absent", &[]).await.0, 404);
    }

    #[tokio::test]
    async fn nothing_leads_out_of_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let (root, secret) = (directory.path().join("log"), directory.path().join("secret"));
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(&secret, "secret").unwrap();
        std::fs::write(root.join("own"), "own").unwrap();
        let link = |to: &Path, name: &str| std::os::unix::fs::symlink(to, root.join(name)).unwrap();
        link(&secret, "absolute");
        link(Path::new("../secret"), "relative");
        link(directory.path(), "up");
        link(Path::new("/proc/self/root"), "magic");
        link(&root.join("own"), "inside");
        link(Path::new("loop"), "loop");
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [
            "../secret",
            "sub/../../secret",
            "/../secret",
            "absolute",
            "relative",
            "up/secret",
            "up/",
            "magic/",
            "pipe",
        ] {
            let (code, _, text) = ask(&root, path, &[]).await;
            assert!(code == 403 || code == 404, "{path}: {code} {text}");
            assert!(!text.contains("secret"), "{path}");
        }
        assert!(ask(&root, "loop", &[]).await.0 >= 400);
        assert_eq!(ask(&root, "inside", &[]).await.2, "own", "links inside are fine, also absolute ones");
    }
}
