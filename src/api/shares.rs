//! Who has how much of what all users share: counted by owner, and of an owner by user.
//!
//! An owner makes as many service accounts as it likes ([`owner`]), so owners are compared with owners first. Who makes room
//! is the owner who has most, and of its users the one who has most. Two users of one owner are compared with each other.

use std::collections::HashMap;
use std::sync::Arc;

use crate::apimachinery::user::owner;

/// What each user has.
#[derive(Clone, Debug, Default)]
pub struct Shares {
    owners: HashMap<Arc<str>, Share>,
}

#[derive(Clone, Debug, Default)]
struct Share {
    amount: usize,
    users: HashMap<Arc<str>, usize>,
}

// === impl Shares ===

impl Shares {
    /// Counts so much more.
    pub fn add(&mut self, user: &str, amount: usize) {
        if amount == 0 {
            return;
        }
        if !self.owners.contains_key(owner(user)) {
            self.owners.insert(owner(user).into(), Share::default());
        }
        let share = self.owners.get_mut(owner(user)).expect("it is there");
        share.amount += amount;
        match share.users.get_mut(user) {
            Some(of_user) => *of_user += amount,
            None => drop(share.users.insert(user.into(), amount)),
        }
    }

    /// Counts so much less; who has nothing is forgotten.
    pub fn subtract(&mut self, user: &str, amount: usize) {
        let Some(share) = self.owners.get_mut(owner(user)) else { return };
        let Some(of_user) = share.users.get_mut(user) else { return };
        let less = amount.min(*of_user);
        *of_user -= less;
        share.amount -= less;
        if *of_user == 0 {
            share.users.remove(user);
        }
        if share.users.is_empty() {
            self.owners.remove(owner(user));
        }
    }

    /// Forgets what a user has.
    pub fn forget(&mut self, user: &str) {
        self.subtract(user, usize::MAX);
    }

    /// What a user has.
    pub fn of_user(&self, user: &str) -> usize {
        self.owners.get(owner(user)).and_then(|share| share.users.get(user)).copied().unwrap_or(0)
    }

    /// What all users of a user's owner have.
    pub fn of_owner(&self, user: &str) -> usize {
        self.owners.get(owner(user)).map_or(0, |share| share.amount)
    }

    /// The user who has most of the owner who has most.
    pub fn most(&self) -> Option<&Arc<str>> {
        self.owners.values().max_by_key(|share| share.amount)?.most().map(|(user, _)| user)
    }

    /// The user who has to make room for so much more of another one: of an owner who has more than the other's owner would
    /// have; where there is none, of the same owner, if it has more than the other one would have.
    pub fn most_beside(&self, user: &str, amount: usize) -> Option<&Arc<str>> {
        let (own_owner, would_have) = (owner(user), self.of_owner(user) + amount);
        let others = self.owners.iter().filter(|(name, share)| ***name != *own_owner && share.amount > would_have);
        if let Some((_, share)) = others.max_by_key(|(_, share)| share.amount) {
            return share.most().map(|(user, _)| user);
        }
        let would_have = self.of_user(user) + amount;
        let (most, has) = self.owners.get(own_owner)?.most()?;
        (**most != *user && has > would_have).then_some(most)
    }
}

impl Share {
    fn most(&self) -> Option<(&Arc<str>, usize)> {
        self.users.iter().map(|(user, amount)| (user, *amount)).max_by_key(|(_, amount)| *amount)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "system:serviceaccount:web:a";
    const B: &str = "system:serviceaccount:web:b";

    fn shares(of: &[(&str, usize)]) -> Shares {
        let mut shares = Shares::default();
        of.iter().for_each(|(user, amount)| shares.add(user, *amount));
        shares
    }

    #[test]
    fn owners_are_compared_before_their_users() {
        let all = shares(&[(A, 3), (B, 4), ("jane", 5)]);
        assert_eq!((all.of_user(B), all.of_owner(B), all.of_owner("jane")), (4, 7, 5));
        assert_eq!(all.most().map(|m| &**m), Some(B), "of the owner with most");
        let beside = |user: &str, amount| all.most_beside(user, amount).map(|m| m.to_string());
        assert_eq!(beside("joe", 6).as_deref(), Some(B));
        assert_eq!(beside("joe", 7), None, "it would have as much");
        assert_eq!(beside("jane", 1).as_deref(), Some(B));
        assert_eq!(beside("jane", 2), None, "its own is not looked at");
        // Of one owner the accounts are compared with each other.
        assert_eq!(beside("system:serviceaccount:web:c", 1).as_deref(), Some(B));
        assert_eq!(beside(A, 1), None);
        assert_eq!(beside(B, 1), None, "nobody makes room for oneself");
    }

    #[test]
    fn who_has_nothing_is_forgotten() {
        let mut all = shares(&[(A, 3), (B, 4)]);
        all.subtract(A, 5);
        assert_eq!((all.of_user(A), all.of_owner(A)), (0, 4), "no less than nothing, and nothing of others");
        all.subtract("nobody", 1);
        all.forget(B);
        assert!(all.owners.is_empty());
    }
}
