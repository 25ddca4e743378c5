//! Priority and fairness: which requests run now, which wait for their turn, which are refused
//! (`k8s.io/apiserver/pkg/util/flowcontrol`, with the configuration that Kubernetes suggests).
//!
//! A request belongs to a flow of a priority level. A level has seats of its own, lends what it does not need, and takes
//! turns among the owners of its flows ([`owner`](crate::apimachinery::user::owner)), then among the flows of each.
//! Invariants: the seats that a level does not lend are there for it whatever the others do; no owner has more than half of a
//! level; what waits is bounded. Beside seats, what request bodies make in memory is bounded, and so is how many long-running
//! requests a user has, and an owner.

mod fair_queue;
mod pool;
mod schemas;

pub use schemas::Target;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use fair_queue::{FairQueue, Ticket};
use pool::{Grant, Pool};
use schemas::{LEVELS, SEATS, classify, guaranteed, is_privileged, nominal};

use super::form;
use super::sending::{Asker, Room, Sending};
use super::shares::Shares;
use crate::apimachinery::status::{RETRY_AFTER_SECONDS, Result, Status};
use crate::apimachinery::user::{User, owner};
use crate::base::signal::{Receiver, Signal};
use crate::base::{budget, metrics};

/// How long a request waits for its turn: a quarter of a request's time, as in Kubernetes.
const QUEUE_WAIT: Duration = Duration::from_secs(15);
/// Requests that wait, of a flow (a hand of six queues of fifty), of an owner and of a level.
const FLOW_QUEUE_MAX: usize = 300;
const OWNER_QUEUE_MAX: usize = 500;
const LEVEL_QUEUE_MAX: usize = 1_000;
/// Watches, execs, proxied requests and the like that one user has open, and all users of an owner.
const LONG_RUNNING_MAX: usize = 500;
const LONG_RUNNING_OF_OWNER_MAX: usize = 2_000;
/// What values take at most, in bytes of the body that they are made of (`[],` is three), up to the request's budget.
const BODY_COST: usize = 96;
/// Values up to this size are those of a small request, as nearly all are.
const SMALL_VALUES_BYTES: usize = 1 << 20;
/// How often a small request has its values at once, and any other: as they came, as they are now, as they will be, and sets of
/// paths ([`budget::REQUEST_BYTES_MAX`]).
const SMALL_COPIES: usize = 2;
const COPIES: usize = 4;
/// What all small requests of users make at once, those of nodes and administrators, and all others of everybody.
const SMALL_BYTES: usize = 16 << 20;
const LARGE_BYTES: usize = budget::REQUEST_BYTES_MAX + (4 << 20);
/// What one user's bodies make and wait to make, and those of all users of an owner.
const BODIES_BYTES_OF_USER: usize = 2 * LARGE_BYTES;
const BODIES_BYTES_OF_OWNER: usize = 8 * LARGE_BYTES;
/// Bytes of bodies that are on their way.
const READING_BYTES: usize = 24 << 20;
/// How long a body waits for room.
const BODY_WAIT: Duration = Duration::from_secs(15);

/// The queue of all requests that come over the network; cheap to clone.
#[derive(Clone)]
pub struct FlowControl(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    small: Pool,
    small_privileged: Pool,
    large: Pool,
    /// Told when a request has ended that made much.
    large_ended: Signal,
    sending: Sending,
}

#[derive(Default)]
struct State {
    levels: [Level; LEVELS.len()],
    waiting: usize,
    long_running: Shares,
    /// Bodies that are on their way, by age.
    reading: BTreeMap<u64, Coming>,
    next_reading: u64,
    reading_bytes: usize,
    bodies_bytes: Shares,
}

#[derive(Default)]
struct Level {
    in_use: usize,
    /// By flow.
    seats: Shares,
    /// Those who wait for a seat, by flow.
    queue: FairQueue<oneshot::Sender<Seat>>,
}

/// One request's right to run, until it is dropped.
struct Seat {
    shared: Option<Arc<Shared>>,
    level: usize,
    flow: Arc<str>,
}

/// Somebody's place in a queue, until it is dropped.
struct QueuedSeat {
    shared: Arc<Shared>,
    level: usize,
    ticket: Ticket,
}

/// One long-running request of a user, until it is dropped.
pub struct LongRunning {
    shared: Arc<Shared>,
    user: String,
}

/// A body that is on its way.
struct Coming {
    user: Arc<str>,
    bytes: usize,
    end: watch::Sender<bool>,
}

/// A body's place among those that are on their way, until it is dropped.
pub struct Reading {
    shared: Arc<Shared>,
    id: u64,
    ended: watch::Receiver<bool>,
}

/// Room for a body with what is made of it, until it is dropped; first a claim to it.
struct BodyRoom {
    shared: Arc<Shared>,
    /// `None` for those who are not counted one by one.
    user: Option<Arc<str>>,
    bytes: usize,
    is_small: bool,
    /// None while it waits.
    grant: Option<Grant>,
}

/// A request that runs: its seat, and the room that its body takes.
pub struct Admission {
    control: FlowControl,
    user: Arc<User>,
    _seat: Option<Seat>,
    room: Mutex<Option<BodyRoom>>,
    /// Bytes of what is stored and is to be changed: reading it makes as much as a body of that length.
    stored_bytes: AtomicUsize,
    answer: Mutex<Option<Arc<Room>>>,
}

/// The memory that a body of this length takes with what is made of it, and whether that is little.
fn body_cost(body_bytes: usize) -> (usize, bool) {
    let values = body_bytes.saturating_mul(BODY_COST).min(budget::BYTES_MAX);
    let is_small = values <= SMALL_VALUES_BYTES;
    (body_bytes + values * if is_small { SMALL_COPIES } else { COPIES }, is_small)
}

fn too_many(why: &str) -> Status {
    metrics::REJECTED.add();
    Status::too_many_requests(format!("too many requests, please try again later: {why}"), RETRY_AFTER_SECONDS)
}

// === impl FlowControl ===

impl Default for FlowControl {
    fn default() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            small: Pool::new(SMALL_BYTES),
            small_privileged: Pool::new(SMALL_BYTES),
            large: Pool::new(LARGE_BYTES),
            large_ended: Signal::default(),
            sending: Sending::default(),
        }))
    }
}

impl FlowControl {
    /// Returns when the request may run; 429 where too many wait already, or for too long.
    pub async fn admit(&self, user: &Arc<User>, target: &Target<'_>) -> Result<Admission> {
        let seat = match classify(user, target) {
            None => None,
            Some((level, flow)) => Some(self.seat(level, flow).await?),
        };
        Ok(self.admission(user, seat))
    }

    /// Wakes when a request has ended that made much: its memory may be given back.
    pub fn large_ended(&self) -> Receiver {
        self.0.large_ended.subscribe()
    }

    /// What answers hold until they are read.
    pub fn sending(&self) -> &Sending {
        &self.0.sending
    }

    /// What has no seat: requests that last as long as a client or a backend likes.
    pub fn unseated(&self, user: &Arc<User>) -> Admission {
        self.admission(user, None)
    }

    fn admission(&self, user: &Arc<User>, seat: Option<Seat>) -> Admission {
        let (room, answer) = (Mutex::default(), Mutex::default());
        let stored_bytes = AtomicUsize::default();
        Admission { control: self.clone(), user: user.clone(), _seat: seat, room, stored_bytes, answer }
    }

    /// Counts a long-running request.
    pub fn begin_long_running(&self, user: &User) -> Result<Option<LongRunning>> {
        if is_privileged(user) {
            return Ok(None);
        }
        let mut state = self.0.lock();
        let (name, running) = (&user.name, &mut state.long_running);
        if running.of_user(name) >= LONG_RUNNING_MAX {
            return Err(too_many(&format!("{name} has {LONG_RUNNING_MAX} long-running ones")));
        }
        if running.of_owner(name) >= LONG_RUNNING_OF_OWNER_MAX {
            return Err(too_many(&format!("{} has {LONG_RUNNING_OF_OWNER_MAX} long-running ones", owner(name))));
        }
        running.add(name, 1);
        Ok(Some(LongRunning { shared: self.0.clone(), user: user.name.clone() }))
    }

    async fn seat(&self, level: usize, flow: Arc<str>) -> Result<Seat> {
        let (place, started) = {
            let mut state = self.0.lock();
            let queue = &state.levels[level].queue;
            let (of_flow, of_owner) = queue.len_of(&flow);
            if of_owner == 0 && state.may_run(level, &flow) {
                state.take(level, &flow);
                return Ok(Seat { shared: Some(self.0.clone()), level, flow });
            }
            if !LEVELS[level].queues || queue.len() >= LEVEL_QUEUE_MAX {
                return Err(too_many(&format!("priority level {}", LEVELS[level].name)));
            }
            if of_flow >= FLOW_QUEUE_MAX || of_owner >= OWNER_QUEUE_MAX {
                return Err(too_many(&format!("flow {flow}")));
            }
            let (start, started) = oneshot::channel();
            let ticket = state.levels[level].queue.push(&flow, start);
            state.waiting += 1;
            (QueuedSeat { shared: self.0.clone(), level, ticket }, started)
        };
        let seat = tokio::time::timeout(QUEUE_WAIT, started).await;
        drop(place);
        match seat {
            Ok(Ok(seat)) => Ok(seat),
            _ => Err(too_many(&format!("priority level {}", LEVELS[level].name))),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }
}

// === impl State ===

impl State {
    fn may_run(&self, level: usize, flow: &str) -> bool {
        let own = &self.levels[level];
        // An owner that is alone leaves half of the level to others, who may come at any time.
        if own.seats.of_owner(flow) >= (nominal(level) / 2).max(1) {
            return false;
        }
        own.in_use < guaranteed(level) || self.spoken_for() < SEATS
    }

    /// Seats that are in use or kept for levels that do not lend them.
    fn spoken_for(&self) -> usize {
        self.levels.iter().enumerate().map(|(i, level)| level.in_use.max(guaranteed(i))).sum()
    }

    fn take(&mut self, level: usize, flow: &Arc<str>) {
        let level = &mut self.levels[level];
        level.in_use += 1;
        level.seats.add(flow, 1);
    }

    fn give_back(&mut self, level: usize, flow: &Arc<str>) {
        let level = &mut self.levels[level];
        level.in_use -= 1;
        level.seats.subtract(flow, 1);
    }

    /// Gives free seats to those who wait: first to levels that have less than their own.
    fn dispatch(&mut self, shared: &Arc<Shared>) {
        for borrowing in [false, true] {
            for level in 0..LEVELS.len() {
                while self.waiting > 0 && (borrowing || self.levels[level].in_use < nominal(level)) {
                    if !self.start_one(shared, level) {
                        break;
                    }
                }
            }
        }
    }

    /// Starts the next request of a level, if one may run.
    fn start_one(&mut self, shared: &Arc<Shared>, level: usize) -> bool {
        let mut queue = std::mem::take(&mut self.levels[level].queue);
        let next = queue.pop(|flow| self.may_run(level, flow));
        self.levels[level].queue = queue;
        let Some((Ticket { user: flow, .. }, start)) = next else { return false };
        self.waiting -= 1;
        self.take(level, &flow);
        let seat = Seat { shared: Some(shared.clone()), level, flow: flow.clone() };
        if let Err(mut unwanted) = start.send(seat) {
            // Nobody waits any more. The lock is held: it is given back here.
            unwanted.shared = None;
            self.give_back(level, &flow);
        }
        true
    }
}

impl State {
    /// Ends the oldest body of whoever makes room for so many bytes more of a user; false where nobody does.
    fn end_reading(&mut self, user: &str, bytes: usize) -> bool {
        let mut shares = Shares::default();
        self.reading.values().for_each(|coming| shares.add(&coming.user, coming.bytes));
        let most = shares.most_beside(user, bytes);
        let oldest = most.and_then(|user| self.reading.iter().find(|(_, c)| c.user == *user)).map(|(id, _)| *id);
        let ended = oldest.and_then(|id| self.end_reading_of(id));
        if let Some(coming) = &ended {
            coming.end.send_replace(true);
        }
        ended.is_some()
    }

    fn end_reading_of(&mut self, id: u64) -> Option<Coming> {
        let coming = self.reading.remove(&id)?;
        self.reading_bytes -= coming.bytes;
        Some(coming)
    }
}

// === impl Seat ===

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(shared) = self.shared.take() else { return };
        let mut state = shared.lock();
        state.give_back(self.level, &self.flow);
        if state.waiting > 0 {
            state.dispatch(&shared);
        }
    }
}

// === impl QueuedSeat ===

impl Drop for QueuedSeat {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let left = state.levels[self.level].queue.remove(&self.ticket);
        state.waiting -= usize::from(left.is_some());
    }
}

// === impl LongRunning ===

impl Drop for LongRunning {
    fn drop(&mut self) {
        self.shared.lock().long_running.subtract(&self.user, 1);
    }
}

// === impl Reading ===

impl Reading {
    /// Returns when the body has to make room for others.
    pub async fn ended(&self) -> Status {
        let mut ended = self.ended.clone();
        let _ = ended.wait_for(|ended| *ended).await;
        too_many("a request body that came slowly had to make room for others")
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.shared.lock().end_reading_of(self.id);
    }
}

// === impl BodyRoom ===

impl Drop for BodyRoom {
    fn drop(&mut self) {
        if let Some(user) = &self.user {
            self.shared.lock().bodies_bytes.subtract(user, self.bytes);
        }
        if !self.is_small && self.grant.take().is_some() {
            self.shared.large_ended.tell();
        }
    }
}

// === impl Admission ===

impl Admission {
    /// Counts a body of so many bytes as on its way. Where there are too many, those of whoever has most make room: bodies that
    /// come slowly keep nobody out.
    pub fn begin_reading(&self, body_bytes: usize) -> Result<Reading> {
        let shared = &self.control.0;
        let mut state = shared.lock();
        while state.reading_bytes + body_bytes > READING_BYTES {
            if !state.end_reading(&self.user.name, body_bytes) {
                return Err(too_many("too many request bodies are on their way"));
            }
        }
        let (end, ended) = watch::channel(false);
        let id = state.next_reading;
        state.next_reading += 1;
        state.reading_bytes += body_bytes;
        state.reading.insert(id, Coming { user: self.user.name.as_str().into(), bytes: body_bytes, end });
        Ok(Reading { shared: shared.clone(), id, ended })
    }

    /// Notes that a stored object of so many bytes is to be changed, before the body is read that says how.
    pub fn will_change(&self, stored_bytes: usize) {
        // What is small is made beside others without anybody noticing.
        if stored_bytes > form::LONG_BYTES {
            self.stored_bytes.store(stored_bytes, Ordering::Relaxed);
        }
    }

    /// Returns when there is room for a body of so many bytes, and for what it changes, with what is made of them. The room
    /// lasts as long as the request.
    pub async fn reserve_body(&self, body_bytes: usize) -> Result<()> {
        let (bytes, is_small) = body_cost(body_bytes + self.stored_bytes.load(Ordering::Relaxed));
        let shared = &self.control.0;
        let privileged = is_privileged(&self.user);
        let name: Arc<str> = self.user.name.as_str().into();
        let mut room = BodyRoom { shared: shared.clone(), user: None, bytes, is_small, grant: None };
        if !privileged {
            let bodies = &mut shared.lock().bodies_bytes;
            if bodies.of_user(&name) > 0 && bodies.of_user(&name) + bytes > BODIES_BYTES_OF_USER
                || bodies.of_owner(&name) > 0 && bodies.of_owner(&name) + bytes > BODIES_BYTES_OF_OWNER
            {
                return Err(too_many(&format!("the bodies of {name} take too much memory")));
            }
            bodies.add(&name, bytes);
            room.user = Some(name.clone());
        }
        let pool = match (is_small, privileged) {
            (true, false) => &shared.small,
            (true, true) => &shared.small_privileged,
            (false, _) => &shared.large,
        };
        let grant = tokio::time::timeout(BODY_WAIT, pool.take(&name, bytes)).await;
        room.grant = Some(grant.map_err(|_| too_many("the bodies of all requests take too much memory"))?);
        *self.room.lock().expect("no panic while held") = Some(room);
        Ok(())
    }

    /// Room for an answer that is to be made, if there is some now.
    pub fn try_reserve_answer(&self, bytes: usize) -> bool {
        self.control.0.sending.try_begin(self.asker(), bytes).map(|room| self.keep_answer(room)).is_some()
    }

    /// Returns when there is room for an answer that is to be made and holds so many bytes until it is sent; 429 where there is
    /// none for too long.
    pub async fn reserve_answer(&self, bytes: usize) -> Result<()> {
        let room = self.control.0.sending.wait(self.asker(), bytes).await?;
        self.keep_answer(room);
        Ok(())
    }

    /// The room that was reserved for the answer.
    pub fn answer_room(&self) -> Option<Arc<Room>> {
        self.answer.lock().expect("no panic while held").clone()
    }

    /// Where answers on their way are counted, and for whom this one is.
    pub fn sending(&self) -> (&Sending, Asker<'_>) {
        (&self.control.0.sending, self.asker())
    }

    fn asker(&self) -> Asker<'_> {
        Asker { user: &self.user.name, is_privileged: is_privileged(&self.user) }
    }

    fn keep_answer(&self, room: Room) {
        *self.answer.lock().expect("no panic while held") = Some(Arc::new(room));
    }
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Admission({})", self.user.name)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::apimachinery::user::{MASTERS, NODES};

    fn user(name: &str, groups: &[&str]) -> Arc<User> {
        Arc::new(User {
            name: name.into(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            ..User::default()
        })
    }

    fn account(name: &str) -> Arc<User> {
        user(&format!("system:serviceaccount:{name}"), &["system:serviceaccounts", "system:authenticated"])
    }

    const PODS: Target<'static> =
        Target { verb: "list", resource: "pods", namespace: "default", group: "", subresource: "", path: "" };

    fn level_of(user: &User, target: &Target<'_>) -> Option<&'static str> {
        classify(user, target).map(|(level, _)| LEVELS[level].name)
    }

    #[test]
    fn requests_are_of_the_levels_that_kubernetes_suggests() {
        let lease = Target { verb: "update", group: "coordination.k8s.io", resource: "leases", ..PODS };
        let status = Target { verb: "patch", resource: "nodes", subresource: "status", ..PODS };
        let node = user("system:node:a", &[NODES]);
        assert_eq!(level_of(&user("admin", &[MASTERS]), &PODS), None);
        assert_eq!(level_of(&user("x", &[]), &Target { verb: "get", path: "/readyz", ..Target::default() }), None);
        for (who, what, expected) in [
            (&node, &lease, "node-high"),
            (&node, &status, "node-high"),
            (&node, &PODS, "system"),
            (&account("kube-system:a"), &lease, "leader-election"),
            (&account("kube-system:a"), &PODS, "workload-high"),
            (&account("web:a"), &lease, "workload-low"),
            (&user("system:kube-scheduler", &[]), &PODS, "workload-high"),
            (&user("jane", &["system:authenticated"]), &PODS, "global-default"),
        ] {
            assert_eq!(level_of(who, what), Some(expected), "{who:?} {what:?}");
        }
    }

    #[test]
    fn guaranteed_seats_are_no_more_than_there_are() {
        assert!((0..LEVELS.len()).map(guaranteed).sum::<usize>() < SEATS);
        assert_eq!((0..LEVELS.len()).map(nominal).collect::<Vec<_>>(), [74, 98, 25, 98, 245, 49, 13]);
    }

    /// Takes seats until one would have to wait.
    fn fill(control: &FlowControl, users: impl Iterator<Item = Arc<User>>) -> Vec<Admission> {
        let mut held = Vec::new();
        for user in users {
            while let Some(admission) = control.admit(&user, &PODS).now_or_never() {
                held.push(admission.unwrap());
            }
        }
        held
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_for_everything_leaves_the_others_their_seats() {
        let control = FlowControl::default();
        let one = fill(&control, [account("web:a")].into_iter());
        assert_eq!(one.len(), nominal(4) / 2, "half of the level");
        assert!(fill(&control, (0..100).map(|n| account(&format!("web:{n}")))).is_empty(), "for all of its namespace");
        let all = fill(&control, (0..100).map(|n| account(&format!("web{n}:a"))));
        assert!(one.len() + all.len() > nominal(4), "seats that others lend");
        assert!(one.len() + all.len() < SEATS);
        let node = user("system:node:a", &[NODES]);
        assert!(control.admit(&node, &PODS).now_or_never().is_some(), "a node runs at once");
        let jane = user("jane", &[]);
        assert!(control.admit(&jane, &PODS).now_or_never().is_some(), "and so does a user");
        let masters = user("admin", &[MASTERS]);
        assert!(control.admit(&masters, &PODS).now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn flows_take_turns_and_a_queue_ends() {
        let control = FlowControl::default();
        let users: Vec<_> = (0..20).map(|n| user(&format!("u{n}"), &[])).collect();
        let mut held = fill(&control, users.iter().cloned());
        let order = Arc::new(Mutex::new(Vec::new()));
        let ask = |user: Arc<User>| {
            let (control, order) = (control.clone(), order.clone());
            crate::base::task::spawn("test", async move {
                let admission = control.admit(&user, &PODS).await.unwrap();
                order.lock().unwrap().push(user.name.clone());
                drop(admission);
            })
        };
        // One asks ten times before another asks once.
        let (greedy, modest) = (user("greedy", &[]), user("modest", &[]));
        let asked: Vec<_> = (0..10).map(|_| ask(greedy.clone())).collect();
        tokio::task::yield_now().await;
        let last = ask(modest);
        tokio::task::yield_now().await;
        held.pop();
        last.await.unwrap();
        assert!(order.lock().unwrap().iter().position(|name| name == "modest").unwrap() <= 1, "{order:?}");
        drop(held);
        for task in asked {
            task.await.unwrap();
        }
        assert_eq!(control.0.lock().waiting, 0);
        // Too many of one flow are refused at once; those who wait too long, and those who go away, leave nothing.
        let held = fill(&control, users.iter().cloned());
        let waiting: Vec<_> = (0..FLOW_QUEUE_MAX)
            .map(|_| {
                let (control, greedy) = (control.clone(), greedy.clone());
                crate::base::task::spawn("test", async move { control.admit(&greedy, &PODS).await.map(drop) })
            })
            .collect();
        tokio::task::yield_now().await;
        let refused = control.admit(&greedy, &PODS).await.unwrap_err();
        assert_eq!((refused.code, refused.details.retry_after_seconds), (429, Some(1)));
        waiting[0].abort();
        for task in waiting.into_iter().skip(1) {
            assert_eq!(task.await.unwrap().unwrap().unwrap_err().code, 429);
        }
        assert_eq!(control.0.lock().waiting, 0);
        drop(held);
        let state = control.0.lock();
        assert!(state.levels.iter().all(|l| l.in_use == 0 && l.seats.most().is_none() && l.queue.len() == 0));
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_that_come_slowly_make_room_for_others() {
        let control = FlowControl::default();
        let admit = async |name: &str| control.admit(&user(name, &[]), &PODS).await.unwrap();
        let (slow, other) = (admit("slow").await, admit("other").await);
        let body = 3 << 20;
        let held: Vec<_> = (0..READING_BYTES / body).map(|_| slow.begin_reading(body).unwrap()).collect();
        assert!(slow.begin_reading(body).is_err(), "nobody makes room for oneself");
        let small = other.begin_reading(1000).unwrap();
        assert_eq!(held[0].ended().await.code, 429);
        let has_ended = |reading: &Reading| *reading.ended.borrow();
        assert!(!has_ended(&small) && !held[1..].iter().any(has_ended), "one is enough");
        drop((held, small));
        assert!(control.0.lock().reading.is_empty());
        assert_eq!(control.0.lock().reading_bytes, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn accounts_of_one_namespace_are_one_in_bodies_and_long_running_requests() {
        let control = FlowControl::default();
        let admit = async |user: Arc<User>| control.admit(&user, &PODS).await.unwrap();
        let body = 3 << 20;
        let running = admit(account("web:0")).await;
        running.reserve_body(body).await.unwrap();
        let mut held = Vec::new();
        for n in 1..100 {
            held.push(admit(account(&format!("web:{n}"))).await);
        }
        let mut waiting: Vec<_> = held.iter().map(|admission| Box::pin(admission.reserve_body(body))).collect();
        waiting.retain_mut(|wait| wait.now_or_never().is_none());
        let of_owner = control.0.lock().bodies_bytes.of_owner("system:serviceaccount:web:0");
        assert_eq!(of_owner / body_cost(body).0, waiting.len() + 1, "the others were refused at once");
        assert!(of_owner <= BODIES_BYTES_OF_OWNER);
        let other = admit(account("db:0")).await;
        let mut other = Box::pin(other.reserve_body(body));
        assert!((&mut other).now_or_never().is_none());
        drop(running);
        let begun = waiting.iter_mut().filter_map(|wait| wait.now_or_never()).filter(Result::is_ok).count();
        assert_eq!(begun, 1, "it was the next one when the other came");
        drop(waiting);
        drop(held);
        other.now_or_never().unwrap().unwrap();
        let left = control.0.lock().bodies_bytes.of_owner("system:serviceaccount:web:0");
        assert_eq!(left, 0, "those who stopped waiting are not counted any more");

        let long: Vec<_> = (0..5)
            .flat_map(|n| std::iter::repeat_with(move || account(&format!("web:{n}"))).take(LONG_RUNNING_MAX))
            .filter_map(|user| control.begin_long_running(&user).ok())
            .collect();
        assert_eq!(long.len(), LONG_RUNNING_OF_OWNER_MAX);
        assert!(control.begin_long_running(&account("db:0")).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_and_long_running_requests_are_bounded_by_user_and_in_all() {
        let control = FlowControl::default();
        let admit = async |name: &str, groups: &[&str]| control.admit(&user(name, groups), &PODS).await.unwrap();
        let body = 3 << 20;
        let held = admit("a", &[]).await;
        held.reserve_body(body).await.unwrap();
        // One at a time that makes much, whoever asks; what is small passes.
        assert_eq!(admit("system:node:a", &[NODES]).await.reserve_body(body).await.unwrap_err().code, 429);
        let small = admit("b", &[]).await;
        small.reserve_body(2000).await.unwrap();
        // One who asks for more while enough waits is told at once.
        let shared = control.clone();
        let waits = crate::base::task::spawn("test", async move {
            let admission = shared.admit(&user("a", &[]), &PODS).await.unwrap();
            admission.reserve_body(3 << 20).await
        });
        tokio::task::yield_now().await;
        let begun = tokio::time::Instant::now();
        assert_eq!(admit("a", &[]).await.reserve_body(body).await.unwrap_err().code, 429);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let mut ended = control.large_ended();
        drop(held);
        ended.changed().await.unwrap();
        waits.await.unwrap().unwrap().unwrap();
        admit("c", &[]).await.reserve_body(body).await.unwrap();
        drop(small);
        assert!(control.0.lock().bodies_bytes.most().is_none());

        let jane = user("jane", &[]);
        let long: Vec<_> = (0..LONG_RUNNING_MAX).map(|_| control.begin_long_running(&jane).unwrap()).collect();
        assert!(control.begin_long_running(&jane).is_err());
        assert!(control.begin_long_running(&user("other", &[])).unwrap().is_some());
        drop(long);
        assert!(control.begin_long_running(&jane).is_ok() && control.0.lock().long_running.most().is_none());
    }
}
