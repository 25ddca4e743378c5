//! How far the one long piece of work of a command is, in bytes. Whoever does it counts, whoever has a terminal looks.
//!
//! One for the process: a command does one thing. In a server the numbers add up and nobody looks.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};

static EXPECTED: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);

/// So many bytes more will have to be moved.
pub fn expect(bytes: u64) {
    EXPECTED.fetch_add(bytes, Ordering::Relaxed);
}

/// So many of them were moved.
pub fn advance(bytes: u64) {
    DONE.fetch_add(bytes, Ordering::Relaxed);
}

/// How many were moved, and of how many.
pub fn so_far() -> (u64, u64) {
    (DONE.load(Ordering::Relaxed), EXPECTED.load(Ordering::Relaxed))
}

/// Counts what is read.
#[derive(Debug)]
pub struct Counted<R>(R);

impl<R: Read> Counted<R> {
    /// Of a source that has so many bytes.
    pub fn new(source: R, bytes: u64) -> Self {
        expect(bytes);
        Self(source)
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.0.read(buffer)?;
        advance(length as u64);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_counted() {
        let before = so_far();
        io::copy(&mut Counted::new(&b"0123456789"[..], 10), &mut io::sink()).unwrap();
        let now = so_far();
        // Other tests of this process count as well.
        assert!(now.0 >= before.0 + 10 && now.1 >= before.1 + 10, "{before:?} {now:?}");
    }
}
