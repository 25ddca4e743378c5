//! Priority and fairness: which requests run now, which wait for their turn, which are refused
//! (`k8s.io/apiserver/pkg/util/flowcontrol`, with the configuration that Kubernetes suggests).
//!
//! A request belongs to a flow of a priority level. A level has seats of its own, lends what it does not need, and takes
//! turns among its flows. Invariants: the seats that a level does not lend are there for it whatever the others do; no flow
//! has more than half of its level; what waits is bounded. Beside seats, what request bodies make in memory is bounded, and
//! so is how many long-running requests a user has.

mod schemas;

pub use schemas::Target;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use schemas::{LEVELS, SEATS, classify, guaranteed, is_privileged, nominal};

use super::sending::{Asker, Room, Sending};
use crate::apimachinery::status::{RETRY_AFTER_SECONDS, Result, Status};
use crate::apimachinery::user::User;
use crate::base::signal::{Receiver, Signal};
use crate::base::{budget, metrics};

/// How long a request waits for its turn: a quarter of a request's time, as in Kubernetes.
const QUEUE_WAIT: Duration = Duration::from_secs(15);
/// Requests that wait, of a flow (a hand of six queues of fifty) and of a level.
const FLOW_QUEUE_MAX: usize = 300;
const LEVEL_QUEUE_MAX: usize = 1_000;
/// Watches, execs, proxied requests and the like that one user has open.
const LONG_RUNNING_MAX: usize = 500;
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
/// What one user's bodies make and wait to make.
const BODIES_BYTES_OF_USER: usize = 2 * LARGE_BYTES;
/// Bytes of bodies that are on their way.
const READING_BYTES: usize = 24 << 20;
/// The unit in which they are counted.
const BODY_UNIT_BYTES: usize = 1 << 10;
/// How long a body waits for room.
const BODY_WAIT: Duration = Duration::from_secs(15);

/// The queue of all requests that come over the network; cheap to clone.
#[derive(Clone)]
pub struct FlowControl(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    small: Arc<Semaphore>,
    small_privileged: Arc<Semaphore>,
    large: Arc<Semaphore>,
    /// Told when a request has ended that made much.
    large_ended: Signal,
    sending: Sending,
}

#[derive(Default)]
struct State {
    levels: [Level; LEVELS.len()],
    waiting: usize,
    next_waiter: u64,
    long_running: HashMap<String, usize>,
    /// Bodies that are on their way, by age.
    reading: BTreeMap<u64, Coming>,
    next_reading: u64,
    reading_bytes: usize,
    bodies_bytes: HashMap<String, usize>,
}

#[derive(Default)]
struct Level {
    in_use: usize,
    waiting: usize,
    flows: HashMap<Arc<str>, Flow>,
    /// Flows in which somebody waits; the first is next.
    turn: VecDeque<Arc<str>>,
}

#[derive(Default)]
struct Flow {
    in_use: usize,
    queue: VecDeque<Waiter>,
}

struct Waiter {
    id: u64,
    start: oneshot::Sender<Seat>,
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
    flow: Arc<str>,
    id: u64,
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

/// Room for a body with what is made of it, until it is dropped.
struct BodyRoom {
    shared: Arc<Shared>,
    /// `None` for those who are not counted one by one.
    user: Option<String>,
    bytes: usize,
    is_small: bool,
    _permit: OwnedSemaphorePermit,
}

/// A request that runs: its seat, and the room that its body takes.
pub struct Admission {
    control: FlowControl,
    user: Arc<User>,
    _seat: Option<Seat>,
    room: Mutex<Option<BodyRoom>>,
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
        let units = |bytes: usize| Arc::new(Semaphore::new(bytes / BODY_UNIT_BYTES));
        Self(Arc::new(Shared {
            state: Mutex::default(),
            small: units(SMALL_BYTES),
            small_privileged: units(SMALL_BYTES),
            large: units(LARGE_BYTES),
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
        Admission { control: self.clone(), user: user.clone(), _seat: seat, room, answer }
    }

    /// Counts a long-running request.
    pub fn begin_long_running(&self, user: &User) -> Result<Option<LongRunning>> {
        if is_privileged(user) {
            return Ok(None);
        }
        let mut state = self.0.lock();
        let count = state.long_running.entry(user.name.clone()).or_default();
        if *count >= LONG_RUNNING_MAX {
            return Err(too_many(&format!("{} has {LONG_RUNNING_MAX} long-running ones", user.name)));
        }
        *count += 1;
        Ok(Some(LongRunning { shared: self.0.clone(), user: user.name.clone() }))
    }

    async fn seat(&self, level: usize, flow: Arc<str>) -> Result<Seat> {
        let (place, started) = {
            let mut state = self.0.lock();
            if state.may_run(level, &flow) && state.levels[level].flows.get(&flow).is_none_or(|f| f.queue.is_empty()) {
                state.take(level, &flow);
                return Ok(Seat { shared: Some(self.0.clone()), level, flow });
            }
            if !LEVELS[level].queues || state.levels[level].waiting >= LEVEL_QUEUE_MAX {
                return Err(too_many(&format!("priority level {}", LEVELS[level].name)));
            }
            let (start, started) = oneshot::channel();
            let id = state.next_waiter;
            if !state.levels[level].wait(&flow, Waiter { id, start }) {
                return Err(too_many(&format!("flow {flow}")));
            }
            state.next_waiter += 1;
            state.waiting += 1;
            (QueuedSeat { shared: self.0.clone(), level, flow, id }, started)
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
        let of_flow = own.flows.get(flow).map_or(0, |f| f.in_use);
        // A flow that is alone leaves half of the level to others, who may come at any time.
        if of_flow >= (nominal(level) / 2).max(1) {
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
        level.flows.entry(flow.clone()).or_default().in_use += 1;
    }

    fn give_back(&mut self, level: usize, flow: &Arc<str>) {
        let level = &mut self.levels[level];
        level.in_use -= 1;
        if let Some(of_flow) = level.flows.get_mut(flow) {
            of_flow.in_use -= 1;
        }
        level.tidy(flow);
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
        for _ in 0..self.levels[level].turn.len() {
            let Some(flow) = self.levels[level].turn.pop_front() else { return false };
            self.levels[level].turn.push_back(flow.clone());
            if !self.may_run(level, &flow) {
                continue;
            }
            let next = self.levels[level].flows.get_mut(&flow).and_then(|f| f.queue.pop_front());
            let Some(waiter) = next else { continue };
            self.waiting -= 1;
            self.levels[level].waiting -= 1;
            self.take(level, &flow);
            let seat = Seat { shared: Some(shared.clone()), level, flow: flow.clone() };
            if let Err(mut unwanted) = waiter.start.send(seat) {
                // Nobody waits any more. The lock is held: it is given back here.
                unwanted.shared = None;
                self.give_back(level, &flow);
            }
            self.levels[level].tidy(&flow);
            return true;
        }
        false
    }
}

impl State {
    /// Ends the oldest body of the user who has most on the way, if that is more than `than` bytes.
    fn end_reading(&mut self, than: usize) -> bool {
        let mut of_user: HashMap<&str, usize> = HashMap::new();
        for coming in self.reading.values() {
            *of_user.entry(&coming.user).or_default() += coming.bytes;
        }
        let most = of_user.into_iter().max_by_key(|(_, bytes)| *bytes).filter(|(_, bytes)| *bytes > than);
        let oldest = most.and_then(|(user, _)| self.reading.iter().find(|(_, c)| &*c.user == user)).map(|(id, _)| *id);
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

// === impl Level ===

impl Level {
    /// Puts a request into its flow's queue, if there is room.
    fn wait(&mut self, flow: &Arc<str>, waiter: Waiter) -> bool {
        let of_flow = self.flows.entry(flow.clone()).or_default();
        if of_flow.queue.len() >= FLOW_QUEUE_MAX {
            return false;
        }
        if of_flow.queue.is_empty() {
            self.turn.push_back(flow.clone());
        }
        of_flow.queue.push_back(waiter);
        self.waiting += 1;
        true
    }

    /// Forgets a flow in which nothing is.
    fn tidy(&mut self, flow: &Arc<str>) {
        let Some(of_flow) = self.flows.get(flow) else { return };
        if of_flow.queue.is_empty() {
            self.turn.retain(|other| other != flow);
            if of_flow.in_use == 0 {
                self.flows.remove(flow);
            }
        }
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
        let level = &mut state.levels[self.level];
        let Some(flow) = level.flows.get_mut(&self.flow) else { return };
        let before = flow.queue.len();
        flow.queue.retain(|waiter| waiter.id != self.id);
        let left = before - flow.queue.len();
        level.waiting -= left;
        level.tidy(&self.flow);
        state.waiting -= left;
    }
}

// === impl LongRunning ===

impl Drop for LongRunning {
    fn drop(&mut self) {
        subtract(&mut self.shared.lock().long_running, &self.user, 1);
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
            subtract(&mut self.shared.lock().bodies_bytes, user, self.bytes);
        }
        if !self.is_small {
            self.shared.large_ended.tell();
        }
    }
}

fn subtract(counts: &mut HashMap<String, usize>, user: &str, amount: usize) {
    if let Some(count) = counts.get_mut(user) {
        *count = count.saturating_sub(amount);
        if *count == 0 {
            counts.remove(user);
        }
    }
}

// === impl Admission ===

impl Admission {
    /// Counts a body of so many bytes as on its way. Where there are too many, those of the user with most make room: bodies that
    /// come slowly keep nobody out.
    pub fn begin_reading(&self, body_bytes: usize) -> Result<Reading> {
        let shared = &self.control.0;
        let mut state = shared.lock();
        let own = |state: &State| {
            let own = state.reading.values().filter(|coming| *coming.user == *self.user.name);
            own.map(|coming| coming.bytes).sum::<usize>() + body_bytes
        };
        while state.reading_bytes + body_bytes > READING_BYTES {
            let own = own(&state);
            if !state.end_reading(own) {
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

    /// Returns when there is room for a body of so many bytes with what is made of it. The room lasts as long as the request.
    pub async fn reserve_body(&self, body_bytes: usize) -> Result<()> {
        let (bytes, is_small) = body_cost(body_bytes);
        let shared = &self.control.0;
        let privileged = is_privileged(&self.user);
        let user = (!privileged).then(|| self.user.name.clone());
        if let Some(user) = &user {
            let mut state = shared.lock();
            let of_user = state.bodies_bytes.entry(user.clone()).or_default();
            if *of_user > 0 && *of_user + bytes > BODIES_BYTES_OF_USER {
                return Err(too_many(&format!("the bodies of {user} take too much memory")));
            }
            *of_user += bytes;
        }
        let pool = match (is_small, privileged) {
            (true, false) => &shared.small,
            (true, true) => &shared.small_privileged,
            (false, _) => &shared.large,
        };
        let units = u32::try_from(bytes.div_ceil(BODY_UNIT_BYTES)).unwrap_or(u32::MAX);
        let permit = tokio::time::timeout(BODY_WAIT, pool.clone().acquire_many_owned(units)).await;
        let Ok(Ok(permit)) = permit else {
            if let Some(user) = &user {
                subtract(&mut shared.lock().bodies_bytes, user, bytes);
            }
            return Err(too_many("the bodies of all requests take too much memory"));
        };
        let room = BodyRoom { shared: shared.clone(), user, bytes, is_small, _permit: permit };
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
            while let Some(admission) = futures::FutureExt::now_or_never(control.admit(&user, &PODS)) {
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
        let all = fill(&control, (0..100).map(|n| account(&format!("web:{n}"))));
        assert!(one.len() + all.len() > nominal(4), "seats that others lend");
        assert!(one.len() + all.len() < SEATS);
        let node = user("system:node:a", &[NODES]);
        assert!(futures::FutureExt::now_or_never(control.admit(&node, &PODS)).is_some(), "a node runs at once");
        let jane = user("jane", &[]);
        assert!(futures::FutureExt::now_or_never(control.admit(&jane, &PODS)).is_some(), "and so does a user");
        let masters = user("admin", &[MASTERS]);
        assert!(futures::FutureExt::now_or_never(control.admit(&masters, &PODS)).is_some());
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
        assert!(control.0.lock().levels.iter().all(|l| l.in_use == 0 && l.flows.is_empty() && l.turn.is_empty()));
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
        assert!(control.0.lock().bodies_bytes.is_empty());

        let jane = user("jane", &[]);
        let long: Vec<_> = (0..LONG_RUNNING_MAX).map(|_| control.begin_long_running(&jane).unwrap()).collect();
        assert!(control.begin_long_running(&jane).is_err());
        assert!(control.begin_long_running(&user("other", &[])).unwrap().is_some());
        drop(long);
        assert!(control.begin_long_running(&jane).is_ok() && control.0.lock().long_running.is_empty());
    }
}
