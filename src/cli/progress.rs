//! A line that says how far a command is, on a terminal; what is no terminal gets nothing but the lines of the outcome.

use std::io::{IsTerminal, Write};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::base::progress::so_far;

/// How often the line is written anew, and how long a command may take without one.
const PERIOD: Duration = Duration::from_millis(200);
/// Back to the line's begin, and nothing in it.
const CLEAR: &str = "\r\x1b[K";

/// Shows the line while it lives.
pub struct Progress(Option<(Sender<()>, JoinHandle<()>)>);

// === impl Progress ===

impl Progress {
    /// Begins to say what is done.
    pub fn of(what: &str) -> Self {
        let mut terminal = std::io::stderr();
        if !terminal.is_terminal() {
            return Self(None);
        }
        let (end, ended) = channel();
        let what = what.to_owned();
        let thread = std::thread::Builder::new().name("progress".into()).spawn(move || {
            let mut shown = false;
            while ended.recv_timeout(PERIOD).is_err_and(|e| e == std::sync::mpsc::RecvTimeoutError::Timeout) {
                let _ = write!(terminal, "{CLEAR}{}", line(&what, so_far()));
                let _ = terminal.flush();
                shown = true;
            }
            if shown {
                let _ = write!(terminal, "{CLEAR}");
            }
        });
        Self(thread.ok().map(|thread| (end, thread)))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.0.take() {
            drop(end);
            let _ = thread.join();
        }
    }
}

fn line(what: &str, (done, expected): (u64, u64)) -> String {
    match expected {
        0 => format!("{what} ..."),
        expected => {
            let percent = u128::from(done.min(expected)) * 100 / u128::from(expected);
            format!("{what}: {percent} % ({} of {})", size(done.min(expected)), size(expected))
        }
    }
}

/// A number of bytes, short.
pub fn size(bytes: u64) -> String {
    let steps = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    match steps.into_iter().find(|(step, _)| bytes >= *step) {
        Some((step, unit)) => format!("{}.{} {unit}", bytes / step, bytes % step * 10 / step),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_how_much_of_what_is_done() {
        assert_eq!(line("pulling nginx", (0, 0)), "pulling nginx ...");
        assert_eq!(line("pulling nginx", (1_000_000, 4_000_000)), "pulling nginx: 25 % (1.0 MB of 4.0 MB)");
        assert_eq!(line("a", (9, 8)), "a: 100 % (8 B of 8 B)", "what is begun anew");
    }

    #[test]
    fn sizes_are_short() {
        let shown = [0, 999, 1_000, 1_250_000, 2_990_000_000].map(size);
        assert_eq!(shown, ["0 B", "999 B", "1.0 kB", "1.2 MB", "2.9 GB"]);
    }
}
