//! `amphipod hello`: the web server inside the built-in image. Answers every request with who and where it is.
//!
//! One thread and the standard library, because it is there to show that the platform works, at no cost.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a process of its own")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

/// Entry of the sub-command: serves port 8080 until SIGTERM.
pub fn hello_main() -> ExitCode {
    // Process 1 of a namespace ignores signals whose action is the default: it needs a handler to be stopped.
    extern "C" fn stop(_: libc::c_int) {
        // SAFETY: `_exit` may be called in a signal handler.
        unsafe { libc::_exit(0) }
    }
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: the handler only calls an async-signal-safe function.
        unsafe { libc::signal(signal, stop as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
    let listener = TcpListener::bind("[::]:8080").or_else(|_| TcpListener::bind("0.0.0.0:8080"));
    match listener {
        Ok(listener) => {
            println!("hello: listening on port 8080");
            for stream in listener.incoming().flatten() {
                // A client that goes away spoils only its own answer.
                let _ = answer(stream);
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("hello: cannot listen on port 8080: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The longest request head that is read.
const HEAD_MAX: usize = 16 * 1024;

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let mut head = Vec::new();
    let mut chunk = [0; 2048];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") && head.len() < HEAD_MAX {
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            break;
        }
        head.extend_from_slice(&chunk[..count]);
    }
    let pod = std::env::var("HOSTNAME").unwrap_or_default();
    let node = std::env::var("NODE_NAME").ok();
    stream.write_all(response(&head, &pod, node.as_deref()).as_bytes())
}

fn response(head: &[u8], pod: &str, node: Option<&str>) -> String {
    let head = String::from_utf8_lossy(head);
    let head = head.split("\r\n\r\n").next().unwrap_or("");
    let (request, headers) = head.split_once("\r\n").unwrap_or((head, ""));
    let mut body = format!("Hello from pod {pod}\n");
    if let Some(node) = node {
        body.push_str(&format!("node: {node}\n"));
    }
    body.push_str(&format!("request: {request}\n"));
    for header in headers.lines() {
        body.push_str(header);
        body.push('\n');
    }
    let content = if request.starts_with("HEAD ") { "" } else { &body };
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{content}",
        body.len(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_says_pod_node_and_request() {
        let text = response(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", "web-1", Some("n1"));
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"));
        for part in ["Hello from pod web-1\n", "node: n1\n", "request: GET /x HTTP/1.1\n", "Host: a\n"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(response(b"HEAD / HTTP/1.1\r\n\r\n", "p", None).ends_with("\r\n\r\n"));
    }
}
