//! Which types fit which, and what is learned of types that are not known yet (cel-go's `checker/types.go`).

use super::types::{Head, Type};

/// What is known of types that stand for others.
#[derive(Debug, Default)]
pub(super) struct Bindings {
    bound: Vec<Option<Type>>,
    /// What to undo: a parameter, and what it was before.
    trail: Vec<(u32, Option<Type>)>,
}

// === impl Bindings ===

impl Bindings {
    /// A type of which nothing is known.
    pub(super) fn fresh(&mut self) -> Type {
        self.bound.push(None);
        Type::Param((self.bound.len() - 1) as u32)
    }

    fn find(&self, param: u32) -> Option<&Type> {
        self.bound.get(param as usize)?.as_ref()
    }

    fn bind(&mut self, param: u32, to: Type) {
        let before = self.bound[param as usize].replace(to);
        self.trail.push((param, before));
    }

    /// Whether all of these fit those; only then is anything learned from it.
    pub(super) fn fit_all<'t>(&mut self, pairs: impl IntoIterator<Item = (&'t Type, &'t Type)>) -> bool {
        let before = self.trail.len();
        for (a, b) in pairs {
            if !self.fit(a, b) {
                while self.trail.len() > before {
                    if let Some((param, was)) = self.trail.pop() {
                        self.bound[param as usize] = was;
                    }
                }
                return false;
            }
        }
        self.trail.truncate(before);
        true
    }

    /// Whether one fits the other.
    pub(super) fn fits(&mut self, a: &Type, b: &Type) -> bool {
        self.fit_all([(a, b)])
    }

    fn fit(&mut self, a: &Type, b: &Type) -> bool {
        if let Type::Param(param) = b {
            let (valid, was_bound) = self.stands_for(a, *param);
            if valid || was_bound {
                return valid;
            }
        }
        if let Type::Param(param) = a {
            return self.stands_for(b, *param).0;
        }
        if a.is_dyn_or_error() || b.is_dyn_or_error() {
            return true;
        }
        match (a, b) {
            (Type::Null, other) | (other, Type::Null) => other.is_nullable(),
            (Type::Compound(x), Type::Compound(y)) => {
                x.head == y.head
                    && (x.head == Head::Type || x.params.iter().zip(&y.params).all(|(x, y)| self.fit(x, y)))
            }
            (a, b) => a == b,
        }
    }

    /// Whether a parameter may stand for a type, and whether it stood for one before.
    fn stands_for(&mut self, of: &Type, param: u32) -> (bool, bool) {
        if *of == Type::Param(param) {
            return (true, true);
        }
        if let Some(known) = self.find(param).cloned() {
            if *of == known {
                return (true, true);
            }
            if !self.fit(of, &known) {
                return (false, true);
            }
            let general = of.clone().most_general(known);
            if self.is_free_of(param, &general) {
                self.bind(param, general);
            }
            return (true, true);
        }
        if self.is_free_of(param, of) {
            self.bind(param, of.clone());
            return (true, false);
        }
        (false, false)
    }

    /// Whether the parameter does not occur in the type.
    fn is_free_of(&self, param: u32, of: &Type) -> bool {
        match of {
            Type::Param(other) if *other == param => false,
            Type::Param(other) => self.find(*other).is_none_or(|known| self.is_free_of(param, known)),
            Type::Compound(c) => c.params.iter().all(|p| self.is_free_of(param, p)),
            _ => true,
        }
    }

    /// A type with everything in it that is known; what is not known is of any type, where `to_dyn`.
    pub(super) fn resolved(&self, of: &Type, to_dyn: bool) -> Type {
        of.replaced(&mut |param| match self.find(param) {
            Some(known) => self.resolved(known, to_dyn),
            None if to_dyn => Type::Dyn,
            None => Type::Param(param),
        })
    }
}
