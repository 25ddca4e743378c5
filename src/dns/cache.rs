//! Answers from upstream, kept as long as their TTLs say.
//!
//! Invariant: never more than [`ENTRIES_MAX`] entries, never an answer past its time, and the TTLs handed out count
//! down.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// About 1 MB of usual answers.
const ENTRIES_MAX: usize = 2048;
/// An answer larger than this many records is passed on but not kept.
const RECORDS_MAX: usize = 64;
/// The longest an answer is kept, and the longest a negative one is.
const TTL_MAX: u32 = 3600;
const NEGATIVE_TTL_MAX: u32 = 30;

/// What was asked: lower-case name, type, and whether DNSSEC records were wanted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    name: Name,
    kind: RecordType,
    dnssec: bool,
}

impl Key {
    pub(super) fn new(query: &Query, dnssec: bool) -> Self {
        Self { name: query.name.to_lowercase(), kind: query.query_type, dnssec }
    }
}

/// The parts of an answer that are kept.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
}

impl Found {
    pub(super) fn of(message: Message) -> Self {
        Self { code: message.metadata.response_code, answers: message.answers, authorities: message.authorities }
    }

    /// How long it may be kept: the least TTL, for negative answers what the SOA says (RFC 2308).
    fn seconds(&self) -> u32 {
        let least = |records: &[Record]| records.iter().map(|r| r.ttl).min();
        match self.code {
            ResponseCode::NoError if !self.answers.is_empty() => least(&self.answers).unwrap_or(0).min(TTL_MAX),
            ResponseCode::NoError | ResponseCode::NXDomain => {
                let soa = self.authorities.iter().find_map(|r| match &r.data {
                    RData::SOA(soa) => Some(r.ttl.min(soa.minimum)),
                    _ => None,
                });
                soa.unwrap_or(0).min(NEGATIVE_TTL_MAX).min(least(&self.answers).unwrap_or(u32::MAX))
            }
            _ => 0,
        }
    }
}

struct Entry {
    found: Found,
    since: Instant,
    lives: Duration,
}

/// First in, first out; expired entries go when met.
#[derive(Default)]
pub(super) struct Cache {
    entries: HashMap<Key, Entry>,
    order: VecDeque<Key>,
}

impl Cache {
    /// The answer, its TTLs less the time it was here.
    pub(super) fn get(&mut self, key: &Key, now: Instant) -> Option<Found> {
        let entry = self.entries.get(key)?;
        let age = now.saturating_duration_since(entry.since);
        if age >= entry.lives {
            return None; // replaced by the answer that is fetched now
        }
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        let mut found = entry.found.clone();
        for record in found.answers.iter_mut().chain(&mut found.authorities) {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(found)
    }

    /// How many answers there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn put(&mut self, key: Key, found: &Found, now: Instant) {
        let seconds = found.seconds();
        if seconds == 0 || found.answers.len() + found.authorities.len() > RECORDS_MAX {
            return;
        }
        let entry = Entry { found: found.clone(), since: now, lives: Duration::from_secs(seconds.into()) };
        if self.entries.insert(key.clone(), entry).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > ENTRIES_MAX {
            let oldest = self.order.pop_front();
            oldest.and_then(|key| self.entries.remove(&key));
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::SOA;

    use super::*;

    fn key(text: &str) -> Key {
        Key::new(&Query::query(Name::from_ascii(text).unwrap(), RecordType::A), false)
    }

    fn positive(ttl: u32) -> Found {
        let name = Name::from_ascii("a.example.").unwrap();
        let answers = vec![Record::from_rdata(name, ttl, RData::A(hickory_proto::rr::rdata::A::new(192, 0, 2, 1)))];
        Found { code: ResponseCode::NoError, answers, authorities: Vec::new() }
    }

    #[test]
    fn ttls_count_down_and_end() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.put(key("A.example."), &positive(10), now);
        let at = |cache: &mut Cache, s| {
            cache.get(&key("a.EXAMPLE."), now + Duration::from_secs(s)).map(|f| f.answers[0].ttl)
        };
        assert_eq!(at(&mut cache, 0), Some(10));
        assert_eq!(at(&mut cache, 4), Some(6));
        assert_eq!(at(&mut cache, 10), None);
        cache.put(key("b.example."), &positive(0), now);
        assert!(cache.get(&key("b.example."), now).is_none());
    }

    #[test]
    fn negative_answers_live_as_their_soa_says_but_not_long() {
        let name = Name::from_ascii("example.").unwrap();
        let soa = SOA::new(name.clone(), name.clone(), 1, 1, 1, 1, 7);
        let authorities = vec![Record::from_rdata(name, 600, RData::SOA(soa))];
        let found = Found { code: ResponseCode::NXDomain, answers: Vec::new(), authorities };
        assert_eq!(found.seconds(), 7);
        assert_eq!(Found { authorities: Vec::new(), ..found.clone() }.seconds(), 0);
        assert_eq!(Found { code: ResponseCode::ServFail, ..found }.seconds(), 0);
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for i in 0..ENTRIES_MAX + 500 {
            cache.put(key(&format!("n{i}.example.")), &positive(100), now);
        }
        assert_eq!((cache.entries.len(), cache.order.len()), (ENTRIES_MAX, ENTRIES_MAX));
        assert!(cache.get(&key("n0.example."), now).is_none());
        assert!(cache.get(&key(&format!("n{}.example.", ENTRIES_MAX + 499)), now).is_some());
    }
}
