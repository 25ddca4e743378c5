//! Who waits for the same thing: owners take turns, and so do the users of each.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::apimachinery::user::owner;

/// What waits, by user.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    owners: Ring<Ring<VecDeque<(u64, T)>>>,
    len: usize,
    next: u64,
}

/// Values that take turns; none of them is empty.
#[derive(Debug)]
struct Ring<V> {
    values: HashMap<Arc<str>, V>,
    /// The first is next.
    turn: VecDeque<Arc<str>>,
}

/// What something waits as, to be taken out again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) user: Arc<str>,
    id: u64,
}

// === impl FairQueue ===

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { owners: Ring::default(), len: 0, next: 0 }
    }
}

impl<T> FairQueue<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many wait of a user, and of all users of its owner.
    pub(super) fn len_of(&self, user: &str) -> (usize, usize) {
        let Some(users) = self.owners.values.get(owner(user)) else { return (0, 0) };
        (users.values.get(user).map_or(0, VecDeque::len), users.values.values().map(VecDeque::len).sum())
    }

    pub(super) fn push(&mut self, user: &Arc<str>, item: T) -> Ticket {
        let id = self.next;
        self.next += 1;
        self.len += 1;
        self.owners.entry(owner(user)).entry(user).push_back((id, item));
        Ticket { user: user.clone(), id }
    }

    /// The next one whose owner may have it, given one of the owner's users.
    pub(super) fn pop(&mut self, may_have: impl Fn(&str) -> bool) -> Option<(Ticket, T)> {
        for _ in 0..self.owners.turn.len() {
            let of_owner = self.owners.next()?;
            let users = self.owners.values.get_mut(&of_owner)?;
            if !users.turn.front().is_some_and(|user| may_have(user)) {
                continue;
            }
            let user = users.next()?;
            let queue = users.values.get_mut(&user)?;
            let (id, item) = queue.pop_front()?;
            self.len -= 1;
            let is_empty = queue.is_empty();
            self.tidy(&user, is_empty);
            return Some((Ticket { user, id }, item));
        }
        None
    }

    /// Takes out what waits; `None` where it does not any more.
    pub(super) fn remove(&mut self, ticket: &Ticket) -> Option<T> {
        let queue = self.owners.values.get_mut(owner(&ticket.user))?.values.get_mut(&ticket.user)?;
        // The ids of a queue ascend.
        let at = queue.binary_search_by_key(&ticket.id, |(id, _)| *id).ok()?;
        let (_, item) = queue.remove(at)?;
        self.len -= 1;
        let is_empty = queue.is_empty();
        self.tidy(&ticket.user, is_empty);
        Some(item)
    }

    fn tidy(&mut self, user: &str, is_empty: bool) {
        let Some(users) = self.owners.values.get_mut(owner(user)).filter(|_| is_empty) else { return };
        users.remove(user);
        if users.turn.is_empty() {
            self.owners.remove(owner(user));
        }
    }
}

// === impl Ring ===

impl<V> Default for Ring<V> {
    fn default() -> Self {
        Self { values: HashMap::new(), turn: VecDeque::new() }
    }
}

impl<V: Default> Ring<V> {
    fn entry(&mut self, name: &str) -> &mut V {
        if !self.values.contains_key(name) {
            let name: Arc<str> = name.into();
            self.turn.push_back(name.clone());
            self.values.insert(name, V::default());
        }
        self.values.get_mut(name).expect("it is there")
    }
}

impl<V> Ring<V> {
    /// Whose turn it is; the next time it is another one's.
    fn next(&mut self) -> Option<Arc<str>> {
        self.turn.rotate_left(usize::from(self.turn.len() > 1));
        self.turn.back().cloned()
    }

    fn remove(&mut self, name: &str) {
        self.values.remove(name);
        self.turn.retain(|other| **other != *name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_take_turns_and_so_do_their_users() {
        let mut queue = FairQueue::default();
        for n in 0..3 {
            for account in ["web:a", "web:b", "db:c"] {
                queue.push(&format!("system:serviceaccount:{account}").into(), format!("{account}{n}"));
            }
        }
        let jane: Arc<str> = "jane".into();
        queue.push(&jane, "jane".to_owned());
        assert_eq!(
            (queue.len(), queue.len_of("system:serviceaccount:web:a"), queue.len_of("joe")),
            (10, (3, 6), (0, 0))
        );
        let order: Vec<String> = std::iter::from_fn(|| queue.pop(|_| true)).map(|(_, item)| item).collect();
        assert_eq!(order[..4], ["web:a0", "db:c0", "jane", "web:b0"]);
        assert_eq!(order[4..], ["db:c1", "web:a1", "db:c2", "web:b1", "web:a2", "web:b2"]);
        assert!(queue.owners.values.is_empty() && queue.owners.turn.is_empty() && queue.len() == 0);
    }

    #[test]
    fn whoever_may_not_have_it_is_passed_over_and_what_is_taken_out_leaves_nothing() {
        let mut queue = FairQueue::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let tickets: Vec<Ticket> = (0..3).map(|n| queue.push(&a, n)).collect();
        queue.push(&b, 9);
        let (ticket, item) = queue.pop(|user| user == "b").unwrap();
        assert_eq!((&*ticket.user, item), ("b", 9));
        assert!(queue.pop(|user| user == "b").is_none());
        assert_eq!((queue.remove(&tickets[1]), queue.remove(&tickets[1])), (Some(1), None));
        assert_eq!(queue.pop(|_| true).map(|(_, item)| item), Some(0));
        assert_eq!(queue.remove(&tickets[2]), Some(2));
        assert!(queue.owners.values.is_empty() && queue.owners.turn.is_empty() && queue.len() == 0);
    }
}
