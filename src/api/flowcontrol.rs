//! Priority and fairness: which requests run now, which wait for their turn, which are refused
//! (`k8s.io/apiserver/pkg/util/flowcontrol`).
//!
//! A request belongs to a flow of a priority level, as objects say (`configuration`, kept by `objects`). A level has seats of
//! its own, lends what it does not need, and takes turns among the owners of its flows
//! ([`owner`](crate::apimachinery::user::owner)), then among the flows of each.
//! Invariants, whatever the objects say: no more requests run than there are seats; the seats that a level does not lend are
//! there for it whatever the others do; no owner has more than half of a level that tells users apart; what waits is bounded;
//! nodes have seats beside all levels. Beside seats, what request bodies make in memory is bounded, and so is how many
//! long-running requests a user has, and an owner.

mod configuration;
mod fair_queue;
pub mod objects;
mod pool;
mod seats;

pub use configuration::{Classified, Target};

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{oneshot, watch};

use configuration::{Configuration, LevelSpec, WAITING_MAX, is_privileged};
use fair_queue::Ticket;
use pool::{Grant, Pool};
use seats::Seats;

use super::form;
use super::sending::{Asker, Room, Sending};
use super::shares::Shares;
use crate::apimachinery::status::{RETRY_AFTER_SECONDS, Result, Status};
use crate::apimachinery::user::{NODES, User, owner};
use crate::base::signal::{Receiver, Signal};
use crate::base::{budget, metrics};

/// How long a request waits for its turn: a quarter of a request's time, as in Kubernetes.
const QUEUE_WAIT: Duration = Duration::from_secs(15);
/// Requests that wait, of an owner in a level.
const OWNER_QUEUE_MAX: usize = 500;
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
    configuration: RwLock<Arc<Configuration>>,
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
    seats: Seats<oneshot::Sender<Seat>>,
    long_running: Shares,
    /// Bodies that are on their way, by age.
    reading: BTreeMap<u64, Coming>,
    next_reading: u64,
    reading_bytes: usize,
    bodies_bytes: Shares,
}

/// One request's right to run, until it is dropped.
struct Seat {
    shared: Option<Arc<Shared>>,
    /// The slot of its level; none for a seat of [`seats::NODE_SEATS`].
    slot: Option<usize>,
    /// Its flow, or its node.
    flow: Arc<str>,
}

/// Somebody's place in a queue, until it is dropped.
struct QueuedSeat {
    shared: Arc<Shared>,
    slot: usize,
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
        let mut state = State::default();
        let configuration = state.seats.configure(Configuration::suggested());
        Self(Arc::new(Shared {
            configuration: RwLock::new(configuration),
            state: Mutex::new(state),
            small: Pool::new(SMALL_BYTES),
            small_privileged: Pool::new(SMALL_BYTES),
            large: Pool::new(LARGE_BYTES),
            large_ended: Signal::default(),
            sending: Sending::default(),
        }))
    }
}

impl FlowControl {
    /// Does from now on what these FlowSchemas and PriorityLevelConfigurations say. What runs keeps its seat.
    pub fn configure(&self, schemas: Vec<Value>, levels: Vec<Value>) {
        let configuration = Configuration::new(schemas, levels);
        let mut state = self.0.lock();
        let configuration = state.seats.configure(configuration);
        *self.0.configuration.write().unwrap_or_else(PoisonError::into_inner) = configuration;
        state.dispatch(&self.0);
    }

    /// Of which schema and level a request is.
    pub fn place(&self, user: &User, target: &Target<'_>) -> Classified {
        self.0.configuration().place(user, target)
    }

    /// Returns when the request may run; 429 where too many wait already, or for too long.
    pub async fn enter(&self, user: &Arc<User>, place: &Classified) -> Result<Admission> {
        let seat = match &place.flow {
            None => None,
            Some(flow) => Some(self.seat(user, place.level(), flow).await?),
        };
        Ok(self.admission(user, seat))
    }

    #[cfg(test)]
    pub async fn admit(&self, user: &Arc<User>, target: &Target<'_>) -> Result<Admission> {
        self.enter(user, &self.place(user, target)).await
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

    async fn seat(&self, user: &User, level: &LevelSpec, flow: &Arc<str>) -> Result<Seat> {
        let seat = |slot, flow: &Arc<str>| Seat { shared: Some(self.0.clone()), slot, flow: flow.clone() };
        let (place, started) = {
            let mut state = self.0.lock();
            let seats = &mut state.seats;
            // The level may have ended since the request was placed.
            let slot = seats.slot_of(level).unwrap_or_else(|| self.0.configuration().catch_all().slot);
            let (of_flow, of_owner) = seats.levels[slot].queue.len_of(flow);
            if of_owner == 0 && seats.may_run(slot, flow) {
                seats.take(slot, flow);
                return Ok(seat(Some(slot), flow));
            }
            if user.is_in(NODES) && seats.has_node_seat(&user.name) {
                seats.take_node_seat(&user.name);
                return Ok(seat(None, &user.name.as_str().into()));
            }
            let of = &seats.levels[slot];
            if of.queue.len() >= of.spec.waiting_max || seats.waiting >= WAITING_MAX {
                return Err(too_many(&format!("priority level {}", of.spec.name)));
            }
            if of_flow >= of.spec.flow_waiting_max || of_owner >= OWNER_QUEUE_MAX {
                return Err(too_many(&format!("flow {flow}")));
            }
            let (start, started) = oneshot::channel();
            let ticket = seats.levels[slot].queue.push(flow, start);
            seats.waiting += 1;
            (QueuedSeat { shared: self.0.clone(), slot, ticket }, started)
        };
        let seat = tokio::time::timeout(QUEUE_WAIT, started).await;
        drop(place);
        match seat {
            Ok(Ok(seat)) => Ok(seat),
            _ => Err(too_many(&format!("priority level {}", level.name))),
        }
    }
}

impl Shared {
    fn configuration(&self) -> Arc<Configuration> {
        self.configuration.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }
}

// === impl State ===

impl State {
    /// Gives free seats to those who wait.
    fn dispatch(&mut self, shared: &Arc<Shared>) {
        while let Some((slot, flow, start)) = self.seats.next() {
            let seat = Seat { shared: Some(shared.clone()), slot: Some(slot), flow: flow.clone() };
            if let Err(mut unwanted) = start.send(seat) {
                // Nobody waits any more. The lock is held: it is given back here.
                unwanted.shared = None;
                self.seats.give_back(Some(slot), &flow);
            }
        }
    }

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
        state.seats.give_back(self.slot, &self.flow);
        if state.seats.waiting > 0 {
            state.dispatch(&shared);
        }
    }
}

// === impl QueuedSeat ===

impl Drop for QueuedSeat {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let left = state.seats.levels[self.slot].queue.remove(&self.ticket);
        state.seats.waiting -= usize::from(left.is_some());
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
mod tests;
