//! What answers hold until their clients have taken them: bounded, whatever clients do.
//!
//! An answer is counted before it is made, with what it holds while it is sent. Where there is no room, answers make it
//! whose clients have taken nothing for a while, then those of whoever holds most, if that is more than who asks would
//! have ([`Shares`]). Else who asks waits, and is refused in the end. Invariants: no more than [`POOL_BYTES`] are counted for users, and
//! as much for nodes and administrators; an answer that nobody takes keeps nobody out, and lasts [`RESPONSE_TIMEOUT`] at
//! most; watches and the like count what they have ready, and nothing while they wait.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::shares::Shares;
use crate::apimachinery::status::{RETRY_AFTER_SECONDS, Result, Status};
use crate::base::signal::Signal;
use crate::base::{metrics, task};

/// What the answers of all users hold at once; those of nodes and administrators may hold as much beside.
pub const POOL_BYTES: usize = 32 << 20;
/// How long a client may take to read an answer that is no stream.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// What is written of an answer at once, and kept by the connection while its client does not read.
pub const PIECE_BYTES: usize = 64 << 10;
/// What an answer that is made while it is sent holds, with the buffers of its connection.
pub const STREAM_BYTES: usize = 3 * PIECE_BYTES;
/// The least that is counted: an entry here takes memory too.
const BYTES_MIN: usize = 4 << 10;
/// How long an answer waits for room before it is made.
const WAIT: Duration = Duration::from_secs(15);
/// A client that has taken nothing for this long is slow.
const SLOW: Duration = Duration::from_secs(5);
/// A list that has to go is one whose client has taken nothing for this long, if there is one.
const WAITING: Duration = Duration::from_secs(1);
/// What slow clients leave free when they have to make room.
const SPARE_BYTES: usize = POOL_BYTES / 8;

/// All answers on their way; cheap to clone.
#[derive(Clone, Default)]
pub struct Sending(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Told when there is more room.
    left: Signal,
}

#[derive(Default)]
struct State {
    bytes: [usize; 2],
    next: u64,
    /// By age.
    answers: BTreeMap<u64, Answer>,
    /// What lasts as long as its client likes.
    streams: BTreeMap<u64, Answer>,
    is_watched: bool,
}

struct Answer {
    user: Arc<str>,
    pool: usize,
    bytes: usize,
    begun: Instant,
    /// None while it is made.
    held: Option<Weak<dyn Held>>,
}

/// What an answer holds while it is sent. Its [`Room`] is gone before its last reference is: that may be dropped here, under
/// the lock.
pub trait Held: Send + Sync {
    /// Since when its client has not taken what is ready; `None` if nothing is.
    fn stalled_since(&self) -> Option<Instant>;

    /// Lets go of everything, at the latest when whoever reads it now has done so.
    fn let_go(&self);

    /// Whether it keeps objects of the cache, which are not counted as long as the cache has them too.
    fn keeps_objects(&self) -> bool {
        false
    }
}

/// Room for one answer, until it is dropped.
pub struct Room {
    shared: Arc<Shared>,
    id: u64,
    is_stream: bool,
}

/// Who asks for room.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    pub user: &'a str,
    /// A node or an administrator.
    pub is_privileged: bool,
}

/// What has to let go, outside of the lock.
type Victims = Vec<Arc<dyn Held>>;

/// The refusal of an answer for which there is no room.
pub fn no_room() -> Status {
    metrics::REJECTED.add();
    let why = "too many requests, please try again later: answers that are not read take too much memory";
    Status::too_many_requests(why.to_owned(), RETRY_AFTER_SECONDS)
}

// === impl Sending ===

impl Sending {
    /// Room for an answer, if there is some now.
    pub fn try_begin(&self, asker: Asker<'_>, bytes: usize) -> Option<Room> {
        self.begin(asker, bytes, false, false)
    }

    /// Returns when there is room for an answer; 429 where there is none for too long.
    pub async fn wait(&self, asker: Asker<'_>, bytes: usize) -> Result<Room> {
        self.until_begun(bytes, || self.try_begin(asker, bytes)).await
    }

    /// Returns when there is room for a stream that has so much ready at once; 429 where there is none for too long.
    pub async fn wait_for_stream(&self, asker: Asker<'_>, bytes: usize) -> Result<Room> {
        self.until_begun(bytes, || self.begin(asker, bytes, true, false)).await
    }

    async fn until_begun(&self, bytes: usize, begin: impl Fn() -> Option<Room>) -> Result<Room> {
        let mut left = self.0.left.subscribe();
        let end = Instant::now() + WAIT;
        loop {
            left.mark_unchanged();
            if let Some(room) = begin() {
                return Ok(room);
            }
            // Answers become slow without a word.
            let next = (Instant::now() + SLOW).min(end);
            if bytes > POOL_BYTES || Instant::now() >= end {
                return Err(no_room());
            }
            let _ = tokio::time::timeout_at(next, left.changed()).await;
        }
    }

    /// Room for an answer, or a refusal.
    pub fn begin_now(&self, asker: Asker<'_>, bytes: usize) -> Result<Room> {
        self.try_begin(asker, bytes).ok_or_else(no_room)
    }

    /// Counts an answer that has to be given: what it tells has been done.
    pub fn begin_anyway(&self, asker: Asker<'_>, bytes: usize) -> Room {
        self.begin(asker, bytes, false, true).expect("counted anyway")
    }

    /// Counts a stream, of which nothing is ready yet.
    pub fn begin_stream(&self, asker: Asker<'_>) -> Room {
        self.begin(asker, 0, true, true).expect("counted anyway")
    }

    /// Ends the oldest list, of those that are not read if there are any; false where there is no list.
    pub fn end_oldest_list(&self) -> bool {
        let list = {
            let mut state = self.0.lock();
            let now = Instant::now();
            let (mut oldest, mut oldest_unread) = (None, None);
            for (id, answer) in &state.answers {
                let Some(held) = answer.held.as_ref().and_then(Weak::upgrade).filter(|held| held.keeps_objects())
                else {
                    continue;
                };
                oldest.get_or_insert(*id);
                if held.stalled_since().is_some_and(|since| since + WAITING <= now) {
                    oldest_unread = Some(*id);
                    break;
                }
            }
            oldest_unread.or(oldest).and_then(|id| state.take(id, false))
        };
        let Some(list) = list else { return false };
        tracing::debug!("a list was ended: what it shows is long past, and much is written");
        list.let_go();
        self.0.left.tell();
        true
    }

    fn begin(&self, asker: Asker<'_>, bytes: usize, is_stream: bool, anyway: bool) -> Option<Room> {
        let bytes = if is_stream { bytes } else { bytes.max(BYTES_MIN) };
        let pool = usize::from(asker.is_privileged);
        let (room, victims, begins) = {
            let mut state = self.0.lock();
            let (has_room, victims) = state.make_room(pool, asker.user, bytes, anyway);
            let room = (has_room || anyway).then(|| {
                let id = state.next;
                state.next += 1;
                state.bytes[pool] += bytes;
                let answer = Answer { user: asker.user.into(), pool, bytes, begun: Instant::now(), held: None };
                state.of(is_stream).insert(id, answer);
                Room { shared: self.0.clone(), id, is_stream }
            });
            let begins = room.is_some() && !is_stream && !std::mem::replace(&mut state.is_watched, true);
            (room, victims, begins)
        };
        victims.iter().for_each(|held| held.let_go());
        if begins {
            task::spawn("answers that are not read", end_late(self.clone()));
        }
        room
    }
}

/// Ends answers that are not read in time, for as long as there are answers.
async fn end_late(sending: Sending) {
    loop {
        let (next, victims) = {
            let mut state = sending.0.lock();
            let now = Instant::now();
            let late: Vec<u64> = state
                .answers
                .iter()
                .take_while(|(_, a)| a.begun + RESPONSE_TIMEOUT <= now)
                .map(|(id, _)| *id)
                .collect();
            let victims: Victims = late.into_iter().filter_map(|id| state.take(id, false)).collect();
            let next = state.answers.values().find(|a| a.begun + RESPONSE_TIMEOUT > now).map(|a| a.begun);
            state.is_watched = next.is_some();
            (next, victims)
        };
        if !victims.is_empty() {
            tracing::debug!(answers = victims.len(), "answers were not read in time");
            victims.iter().for_each(|held| held.let_go());
            sending.0.left.tell();
        }
        let Some(begun) = next else { return };
        tokio::time::sleep_until(begun + RESPONSE_TIMEOUT).await;
    }
}

impl std::fmt::Debug for Sending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sending")
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }
}

// === impl State ===

impl State {
    fn of(&mut self, is_stream: bool) -> &mut BTreeMap<u64, Answer> {
        if is_stream { &mut self.streams } else { &mut self.answers }
    }

    /// Forgets an answer; what it holds is to be let go. One that is still made stays.
    fn take(&mut self, id: u64, is_stream: bool) -> Option<Arc<dyn Held>> {
        let held = self.of(is_stream).get(&id)?.held.as_ref()?.upgrade()?;
        let answer = self.of(is_stream).remove(&id)?;
        self.bytes[answer.pool] -= answer.bytes;
        Some(held)
    }

    /// Whether there is room for so many bytes more of a user, and what lets go for it.
    fn make_room(&mut self, pool: usize, user: &str, bytes: usize, anyway: bool) -> (bool, Victims) {
        let mut victims = Vec::new();
        if self.bytes[pool] + bytes <= POOL_BYTES {
            return (true, victims);
        }
        let now = Instant::now();
        // What is ready and not taken, the slowest first.
        let mut stalled: Vec<(Instant, u64, bool, Arc<str>)> = Vec::new();
        let mut shares = Shares::default();
        for (is_stream, answers) in [(false, &self.answers), (true, &self.streams)] {
            for (id, answer) in answers.iter().filter(|(_, a)| a.pool == pool && a.bytes > 0) {
                shares.add(&answer.user, answer.bytes);
                let since = answer.held.as_ref().and_then(Weak::upgrade).and_then(|held| held.stalled_since());
                stalled.extend(since.map(|since| (since, *id, is_stream, answer.user.clone())));
            }
        }
        stalled.sort_unstable_by_key(|(since, ..)| *since);
        let wanted = POOL_BYTES.saturating_sub(SPARE_BYTES);
        for (_, id, is_stream, _) in stalled.iter().take_while(|(since, ..)| *since + SLOW <= now) {
            if self.bytes[pool] + bytes <= wanted {
                break;
            }
            self.give_way(*id, *is_stream, &mut shares, &mut victims);
        }
        while self.bytes[pool] + bytes > POOL_BYTES {
            let most = if anyway { shares.most() } else { shares.most_beside(user, bytes) };
            let Some(most) = most.cloned() else { break };
            let next = stalled.iter().position(|(.., of)| *of == most);
            let Some((_, id, is_stream, _)) = next.map(|i| stalled.remove(i)) else {
                // All of it is on its way to clients that read.
                shares.forget(&most);
                continue;
            };
            self.give_way(id, is_stream, &mut shares, &mut victims);
        }
        (self.bytes[pool] + bytes <= POOL_BYTES, victims)
    }

    fn give_way(&mut self, id: u64, is_stream: bool, shares: &mut Shares, victims: &mut Victims) {
        let Some((user, bytes)) = self.of(is_stream).get(&id).map(|a| (a.user.clone(), a.bytes)) else { return };
        let Some(held) = self.take(id, is_stream) else { return };
        shares.subtract(&user, bytes);
        victims.push(held);
    }
}

// === impl Room ===

impl Room {
    /// From now on it can be made to let go.
    pub fn attach(&self, held: Weak<dyn Held>) {
        if let Some(answer) = self.shared.lock().of(self.is_stream).get_mut(&self.id) {
            answer.held = Some(held);
        }
    }

    /// The bytes that are counted now.
    pub fn bytes(&self) -> usize {
        self.shared.lock().of(self.is_stream).get(&self.id).map_or(0, |answer| answer.bytes)
    }

    /// Counts so many bytes instead; false where there is no room for more, or where it had to let go.
    pub fn resize(&self, bytes: usize, anyway: bool) -> bool {
        let bytes = if self.is_stream { bytes } else { bytes.max(BYTES_MIN) };
        let (is_resized, shrinks, victims) = {
            let mut state = self.shared.lock();
            let Some(answer) = state.of(self.is_stream).get(&self.id) else { return false };
            let (before, pool, user) = (answer.bytes, answer.pool, answer.user.clone());
            let (mut has_room, mut victims) = (true, Vec::new());
            if bytes > before {
                (has_room, victims) = state.make_room(pool, &user, bytes - before, anyway);
            }
            let is_resized = has_room || anyway;
            if is_resized && let Some(answer) = state.of(self.is_stream).get_mut(&self.id) {
                answer.bytes = bytes;
                state.bytes[pool] = state.bytes[pool] + bytes - before;
            }
            (is_resized, bytes < before, victims)
        };
        victims.iter().for_each(|held| held.let_go());
        if shrinks {
            self.shared.left.tell();
        }
        is_resized
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            let Some(answer) = state.of(self.is_stream).remove(&self.id) else { return };
            state.bytes[answer.pool] -= answer.bytes;
        }
        self.shared.left.tell();
    }
}

impl std::fmt::Debug for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Room({} bytes)", self.bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures::FutureExt;

    use super::*;

    /// An answer that nobody takes.
    struct Unread(Instant, AtomicBool);

    impl Held for Unread {
        fn stalled_since(&self) -> Option<Instant> {
            Some(self.0)
        }

        fn let_go(&self) {
            self.1.store(true, Ordering::SeqCst);
        }
    }

    fn asker(user: &str) -> Asker<'_> {
        Asker { user, is_privileged: false }
    }

    fn unread(sending: &Sending, user: &str, bytes: usize) -> Option<(Arc<Unread>, Room)> {
        let room = sending.try_begin(asker(user), bytes)?;
        let held = Arc::new(Unread(Instant::now(), AtomicBool::new(false)));
        let weak: Weak<dyn Held> = Arc::<Unread>::downgrade(&held);
        room.attach(weak);
        Some((held, room))
    }

    fn let_go(answers: &[(Arc<Unread>, Room)]) -> usize {
        answers.iter().filter(|(held, _)| held.1.load(Ordering::SeqCst)).count()
    }

    const MIB: usize = 1 << 20;

    #[tokio::test(start_paused = true)]
    async fn whoever_holds_most_makes_room_and_holds_no_more_than_there_is() {
        let sending = Sending::default();
        let greedy: Vec<_> = std::iter::from_fn(|| unread(&sending, "greedy", MIB)).collect();
        assert_eq!(greedy.len(), POOL_BYTES / MIB, "alone it has everything");
        assert!(sending.wait(asker("greedy"), MIB).now_or_never().is_none(), "more of it waits");
        let modest: Vec<_> = (0..10).map(|_| unread(&sending, "modest", MIB).unwrap()).collect();
        assert_eq!((let_go(&greedy), let_go(&modest)), (10, 0));
        assert!(sending.0.lock().bytes[0] <= POOL_BYTES);
        let privileged = Asker { user: "system:node:a", is_privileged: true };
        assert!(sending.try_begin(privileged, POOL_BYTES).is_some(), "nodes have a pool of their own");
        drop((greedy, modest));
        assert_eq!(sending.0.lock().bytes, [0, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn many_users_who_do_not_read_keep_nobody_out() {
        let sending = Sending::default();
        let many: Vec<_> = (0..POOL_BYTES / MIB).filter_map(|n| unread(&sending, &format!("u{n}"), MIB)).collect();
        assert!(unread(&sending, "other", MIB).is_none(), "each has as much as it would have");
        let begun = Instant::now();
        let room = sending.wait(asker("other"), MIB).await.unwrap();
        assert!(begun.elapsed() <= SLOW + Duration::from_secs(1));
        assert!(let_go(&many) > 0);
        drop(room);
        assert_eq!(sending.wait(asker("other"), POOL_BYTES + 1).await.unwrap_err().code, 429);
    }

    #[tokio::test(start_paused = true)]
    async fn many_accounts_of_one_namespace_make_room_at_once() {
        let sending = Sending::default();
        let account = |n: usize| format!("system:serviceaccount:web:{n}");
        let many: Vec<_> = (0..POOL_BYTES / MIB).filter_map(|n| unread(&sending, &account(n), MIB)).collect();
        assert_eq!(many.len(), POOL_BYTES / MIB);
        let begun = Instant::now();
        let other = sending.wait(asker("other"), MIB).await.unwrap();
        assert_eq!((begun.elapsed(), let_go(&many)), (Duration::ZERO, 1));
        assert!(unread(&sending, &account(99), MIB).is_none(), "the accounts have as much each");
        drop((many, other));
    }

    #[tokio::test(start_paused = true)]
    async fn who_gets_no_room_is_refused_and_told_when_to_ask_again() {
        let sending = Sending::default();
        let whole = sending.try_begin(asker("a"), POOL_BYTES).unwrap();
        let status = sending.wait(asker("b"), MIB).await.unwrap_err();
        assert_eq!((status.code, status.details.retry_after_seconds), (429, Some(RETRY_AFTER_SECONDS)));
        let done = sending.begin_anyway(asker("b"), MIB);
        assert!(!done.resize(2 * MIB, false) && done.resize(2 * MIB, true));
        drop(whole);
        assert!(done.resize(4 * MIB, false));
        assert_eq!(done.bytes(), 4 * MIB);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_read_ends_without_anybody_looking() {
        let sending = Sending::default();
        let answers: Vec<_> = (0..3).map(|_| unread(&sending, "a", MIB).unwrap()).collect();
        let made = sending.try_begin(asker("a"), MIB).unwrap();
        tokio::time::sleep(RESPONSE_TIMEOUT - Duration::from_secs(1)).await;
        assert_eq!(let_go(&answers), 0);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(let_go(&answers), 3);
        assert_eq!(made.bytes(), MIB, "one that is still made is not known to be slow");
        let later = unread(&sending, "a", MIB).unwrap();
        tokio::time::sleep(RESPONSE_TIMEOUT + Duration::from_secs(1)).await;
        assert!(later.0.1.load(Ordering::SeqCst), "also the next one");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_counts_what_it_has_ready() {
        let sending = Sending::default();
        let stream = sending.begin_stream(asker("a"));
        assert_eq!(stream.bytes(), 0);
        assert!(stream.resize(MIB, false));
        tokio::time::sleep(2 * RESPONSE_TIMEOUT).await;
        assert!(stream.resize(0, false), "it may last");
        assert_eq!(sending.0.lock().bytes, [0, 0]);
    }
}
