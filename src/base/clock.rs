//! The door to time and randomness.
//!
//! Everything that reads the wall clock or draws a random number does it through a [`Clock`], so that a simulation can
//! run the same code on a paused tokio clock and one seed. Wall time in a simulation is the start time plus what the
//! tokio clock says has passed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// Time and randomness; cheap to clone.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Source>);

#[derive(Debug)]
enum Source {
    System,
    Simulated { start: Timestamp, origin: Instant, state: Mutex<u64> },
}

/// The letters of generated name suffixes: no vowels and no look-alikes, so that no words appear
/// (`k8s.io/apimachinery/pkg/util/rand`).
const SUFFIX_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

// === impl Clock ===

impl Clock {
    /// The machine's clock and the kernel's random numbers.
    pub fn system() -> Self {
        Self(Arc::new(Source::System))
    }

    /// A clock that starts at `start` and moves with tokio's (paused) clock; random numbers follow from `seed`.
    /// Must be called inside a tokio runtime.
    pub fn simulated(start: Timestamp, seed: u64) -> Self {
        let state = Mutex::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        Self(Arc::new(Source::Simulated { start, origin: Instant::now(), state }))
    }

    /// The wall time.
    #[allow(clippy::disallowed_methods)]
    pub fn now(&self) -> Timestamp {
        match &*self.0 {
            Source::System => Timestamp::now(),
            Source::Simulated { start, origin, .. } => *start + origin.elapsed(),
        }
    }

    /// The wall time as Kubernetes writes it in `metav1.Time`: whole seconds, UTC.
    pub fn now_text(&self) -> String {
        seconds_text(self.now())
    }

    /// The wall time as Kubernetes writes it in `metav1.MicroTime`.
    pub fn now_micro_text(&self) -> String {
        micro_text(self.now())
    }

    /// Fills `buffer` with random bytes: from the kernel, or from the seed in a simulation.
    pub fn random(&self, buffer: &mut [u8]) {
        match &*self.0 {
            Source::System => ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), buffer)
                .expect("the kernel always has random bytes after boot"),
            Source::Simulated { state, .. } => {
                let mut state = state.lock().expect("no panic while held");
                for byte in buffer {
                    *state ^= *state << 13;
                    *state ^= *state >> 7;
                    *state ^= *state << 17;
                    *byte = (*state >> 32) as u8;
                }
            }
        }
    }

    /// A random number.
    pub fn random_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.random(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A random version 4 UUID in lower-case text, as in `metadata.uid`.
    pub fn uuid(&self) -> String {
        let mut b = [0u8; 16];
        self.random(&mut b);
        b[6] = (b[6] & 0x0f) | 0x40;
        b[8] = (b[8] & 0x3f) | 0x80;
        let h = hex::encode(b);
        format!("{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
    }

    /// Five letters for the end of a generated name.
    pub fn name_suffix(&self) -> String {
        let mut b = [0u8; 5];
        self.random(&mut b);
        b.iter().map(|x| SUFFIX_LETTERS[*x as usize % SUFFIX_LETTERS.len()] as char).collect()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

/// `t` as `2006-01-02T15:04:05Z`.
pub fn seconds_text(t: Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `t` as `2006-01-02T15:04:05.000000Z`.
pub fn micro_text(t: Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Reads an RFC 3339 time.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// The time from `earlier` to `later`, zero when negative.
pub fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

/// A duration as kubectl prints ages (`k8s.io/apimachinery/pkg/util/duration.HumanDuration`).
pub fn human_duration(d: Duration) -> String {
    let s = d.as_secs();
    let (m, h, days) = (s / 60, s / 3600, s / 86400);
    let pair = |a: u64, ua: &str, b: u64, ub: &str| if b == 0 { format!("{a}{ua}") } else { format!("{a}{ua}{b}{ub}") };
    match s {
        0..120 => format!("{s}s"),
        _ if m < 10 => pair(m, "m", s % 60, "s"),
        _ if m < 180 => format!("{m}m"),
        _ if h < 8 => pair(h, "h", m % 60, "m"),
        _ if h < 48 => format!("{h}h"),
        _ if days < 8 => pair(days, "d", h % 24, "h"),
        _ if days < 365 * 2 => format!("{days}d"),
        _ if days < 365 * 8 => pair(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_like_kubectl() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (11_400, "3h10m"),
            (8 * 3600, "8h"),
            (48 * 3600, "2d"),
            (49 * 3600, "2d1h"),
            (9 * 86400, "9d"),
            (800 * 86400, "2y70d"),
        ] {
            assert_eq!(human_duration(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn times_are_written_as_kubernetes_writes_them() {
        let t: Timestamp = "2026-01-02T03:04:05.67Z".parse().unwrap();
        assert_eq!(seconds_text(t), "2026-01-02T03:04:05Z");
        assert_eq!(micro_text(t), "2026-01-02T03:04:05.670000Z");
    }

    #[tokio::test(start_paused = true)]
    async fn a_simulated_clock_moves_with_tokio_and_repeats_by_seed() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let (a, b) = (Clock::simulated(start, 7), Clock::simulated(start, 7));
        tokio::time::sleep(Duration::from_secs(90)).await;
        assert_eq!(a.now_text(), "2026-01-01T00:01:30Z");
        assert_eq!(a.uuid(), b.uuid());
    }
}
