//! Makes the nodes of expressions, each with its place.

use std::sync::Arc;

use super::expr::{Expr, Fold, Id, Kind, Literal};
use super::source::Issues;

/// Parsing cannot go on; what is wrong was noted.
pub(super) struct Stop;

type Outcome<T> = Result<T, Stop>;

/// Makes nodes.
pub(super) struct Nodes<'t> {
    places: Vec<u32>,
    issues: &'t mut Issues,
}

// === impl Nodes ===

impl<'t> Nodes<'t> {
    pub(super) fn new(issues: &'t mut Issues) -> Self {
        Self { places: Vec::new(), issues }
    }

    /// Where the nodes are.
    pub(super) fn done(self) -> (Vec<u32>, &'t mut Issues) {
        (self.places, self.issues)
    }

    pub(super) fn issue(&mut self, at: Option<u32>, message: impl Into<String>) {
        self.issues.push(at, message);
    }

    /// A name for a node at a place.
    pub(super) fn id(&mut self, at: u32) -> Id {
        self.places.push(at);
        (self.places.len() - 1) as Id
    }

    pub(super) fn place(&self, id: Id) -> u32 {
        self.places[id as usize]
    }

    pub(super) fn node(&mut self, id: Id, kind: Kind) -> Outcome<Arc<Expr>> {
        Expr::new(id, kind).map_err(|_| {
            self.issues.push(None, "max recursion depth exceeded");
            Stop
        })
    }

    pub(super) fn add(&mut self, at: u32, kind: Kind) -> Outcome<Arc<Expr>> {
        let id = self.id(at);
        self.node(id, kind)
    }

    pub(super) fn call(&mut self, at: u32, function: &str, args: Vec<Arc<Expr>>) -> Outcome<Arc<Expr>> {
        self.add(at, Kind::Call { function: function.into(), target: None, args })
    }

    pub(super) fn member_call(
        &mut self,
        at: u32,
        function: &str,
        target: Arc<Expr>,
        args: Vec<Arc<Expr>>,
    ) -> Outcome<Arc<Expr>> {
        self.add(at, Kind::Call { function: function.into(), target: Some(target), args })
    }

    pub(super) fn literal(&mut self, at: u32, literal: Literal) -> Outcome<Arc<Expr>> {
        self.add(at, Kind::Literal(literal))
    }

    pub(super) fn ident(&mut self, at: u32, name: &str) -> Outcome<Arc<Expr>> {
        self.add(at, Kind::Ident(name.into()))
    }

    pub(super) fn fold(&mut self, at: u32, fold: Fold) -> Outcome<Arc<Expr>> {
        self.add(at, Kind::Fold(Box::new(fold)))
    }

    /// What stands for an expression that is wrong.
    pub(super) fn wrong(&mut self, at: u32, message: impl Into<String>) -> Outcome<Arc<Expr>> {
        self.issues.push(Some(at), message);
        self.add(at, Kind::Missing)
    }
}
