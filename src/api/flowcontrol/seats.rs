//! The seats of all levels: which are in use, which are kept, and who waits for one.
//!
//! Invariants: no more requests run than there are seats; a level's own seats are there for it; nodes have seats beside all
//! levels. A change of the configuration takes nobody's seat.

use std::sync::Arc;

use super::configuration::{Configuration, LevelSpec, SEATS};
use super::fair_queue::{FairQueue, Ticket};
use crate::api::shares::Shares;

/// Seats beside those of all levels, for nodes that get none there: no object takes them away.
pub(super) const NODE_SEATS: usize = 50;

pub(super) struct Seats<T> {
    /// By slot, which a level keeps for as long as something of it runs or waits.
    pub(super) levels: Vec<Level<T>>,
    /// The slots, in the order in which free seats are offered.
    order: Vec<usize>,
    /// Seats that are in use, beside those of exempt requests and of [`NODE_SEATS`].
    pub(super) running: usize,
    /// Seats that are in use or kept for levels that do not lend them.
    pub(super) spoken_for: usize,
    /// Seats of [`NODE_SEATS`] that are in use, by node.
    node_seats: Shares,
    node_seats_in_use: usize,
    pub(super) waiting: usize,
}

/// What runs and waits of a level.
pub(super) struct Level<T> {
    pub(super) spec: LevelSpec,
    /// There is such an object; else it ends with what still runs and waits.
    is_wanted: bool,
    pub(super) in_use: usize,
    /// By flow.
    pub(super) seats: Shares,
    /// Those who wait for a seat, by flow.
    pub(super) queue: FairQueue<T>,
}

// === impl Seats ===

impl<T> Seats<T> {
    /// The slot of a level, if it has not ended.
    pub(super) fn slot_of(&self, level: &LevelSpec) -> Option<usize> {
        let is_there = self.levels.get(level.slot).is_some_and(|of| Arc::ptr_eq(&of.spec.name, &level.name));
        is_there.then_some(level.slot)
    }

    /// Gives every level its slot. Levels that are no more keep theirs until nothing of them is left, and no seats of their own.
    pub(super) fn configure(&mut self, mut configuration: Configuration) -> Arc<Configuration> {
        self.levels.iter_mut().for_each(|level| level.is_wanted = false);
        for spec in &mut configuration.levels {
            let same = self.levels.iter().position(|level| level.spec.name == spec.name);
            if let Some(slot) = same {
                spec.name = self.levels[slot].spec.name.clone();
                spec.slot = slot;
                self.levels[slot].is_wanted = true;
            }
        }
        for spec in &mut configuration.levels {
            let has_slot = self.levels.get(spec.slot).is_some_and(|level| Arc::ptr_eq(&level.spec.name, &spec.name));
            if has_slot {
                self.levels[spec.slot].spec = spec.clone();
                continue;
            }
            spec.slot = self.levels.iter().position(Level::is_over).unwrap_or(self.levels.len());
            let new = Level::new(spec.clone());
            match self.levels.get_mut(spec.slot) {
                Some(level) => *level = new,
                None => self.levels.push(new),
            }
        }
        for level in self.levels.iter_mut().filter(|level| !level.is_wanted) {
            level.spec.guaranteed = 0;
        }
        self.order = (0..self.levels.len()).collect();
        self.order.sort_by_key(|slot| (!self.levels[*slot].is_wanted, self.levels[*slot].spec.rank, *slot));
        self.spoken_for = self.levels.iter().map(Level::spoken_for).sum();
        Arc::new(configuration)
    }

    pub(super) fn may_run(&self, slot: usize, flow: &str) -> bool {
        let (level, spec) = (&self.levels[slot], &self.levels[slot].spec);
        spec.is_exempt
            || level.seats.of_owner(flow) < spec.owner_seats_max(flow)
                && level.in_use < spec.seats_max
                && self.running < SEATS
                && (level.in_use < spec.guaranteed || self.spoken_for < SEATS)
    }

    /// Whether a node may have a seat beside its level's: no node has more than half of these.
    pub(super) fn has_node_seat(&self, node: &str) -> bool {
        self.node_seats_in_use < NODE_SEATS && self.node_seats.of_owner(node) < NODE_SEATS / 2
    }

    pub(super) fn take_node_seat(&mut self, node: &str) {
        self.node_seats.add(node, 1);
        self.node_seats_in_use += 1;
    }

    pub(super) fn take(&mut self, slot: usize, flow: &Arc<str>) {
        let level = &mut self.levels[slot];
        self.spoken_for -= level.spoken_for();
        level.in_use += 1;
        self.spoken_for += level.spoken_for();
        self.running += usize::from(!level.spec.is_exempt);
        level.seats.add(flow, 1);
    }

    pub(super) fn give_back(&mut self, slot: Option<usize>, flow: &Arc<str>) {
        let Some(slot) = slot else {
            self.node_seats_in_use -= 1;
            self.node_seats.subtract(flow, 1);
            return;
        };
        let level = &mut self.levels[slot];
        self.spoken_for -= level.spoken_for();
        level.in_use -= 1;
        self.spoken_for += level.spoken_for();
        self.running -= usize::from(!level.spec.is_exempt);
        level.seats.subtract(flow, 1);
    }

    /// Whose turn it is, in which slot: the seat is taken. Levels that have less than their own come first.
    pub(super) fn next(&mut self) -> Option<(usize, Arc<str>, T)> {
        for borrowing in [false, true] {
            for i in 0..self.order.len() {
                let slot = self.order[i];
                let level = &self.levels[slot];
                if self.waiting == 0 {
                    return None;
                }
                if level.queue.len() == 0 || !borrowing && level.in_use >= level.spec.nominal {
                    continue;
                }
                if let Some((flow, waiter)) = self.pop(slot) {
                    return Some((slot, flow, waiter));
                }
            }
        }
        None
    }

    /// The next one of a level, if one may run.
    fn pop(&mut self, slot: usize) -> Option<(Arc<str>, T)> {
        let mut queue = std::mem::take(&mut self.levels[slot].queue);
        let next = queue.pop(|flow| self.may_run(slot, flow));
        self.levels[slot].queue = queue;
        let (Ticket { user: flow, .. }, waiter) = next?;
        self.waiting -= 1;
        self.take(slot, &flow);
        Some((flow, waiter))
    }
}

impl<T> Default for Seats<T> {
    fn default() -> Self {
        Self {
            levels: Vec::new(),
            order: Vec::new(),
            running: 0,
            spoken_for: 0,
            node_seats: Shares::default(),
            node_seats_in_use: 0,
            waiting: 0,
        }
    }
}

// === impl Level ===

impl<T> Level<T> {
    fn new(spec: LevelSpec) -> Self {
        Self { spec, is_wanted: true, in_use: 0, seats: Shares::default(), queue: FairQueue::default() }
    }

    /// Whether it has ended, and nothing of it is left.
    fn is_over(&self) -> bool {
        !self.is_wanted && self.in_use == 0 && self.queue.len() == 0
    }

    /// Seats that are in use, or kept. Exempt requests take from others no more than the level's part.
    fn spoken_for(&self) -> usize {
        let in_use = if self.spec.is_exempt { self.in_use.min(self.spec.nominal) } else { self.in_use };
        in_use.max(self.spec.guaranteed)
    }
}
