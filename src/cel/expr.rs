//! Expressions as they are parsed, with macros expanded.
//!
//! Invariant: no expression is deeper than [`DEPTH_MAX`], so that recursion over it needs no limit of its own, and none has
//! more than [`NODES_MAX`] nodes, those that macros repeat counted as often as they are looked at.

use std::sync::Arc;

/// Levels of an expression.
pub(super) const DEPTH_MAX: u16 = 300;
/// Nodes of an expression.
pub(super) const NODES_MAX: u32 = 100_000;

/// Names a node; its place in the text is known by it. Nodes that a macro repeats share theirs.
pub(super) type Id = u32;

/// A node.
#[derive(Debug)]
pub(super) struct Expr {
    pub id: Id,
    pub kind: Kind,
    depth: u16,
    nodes: u32,
}

#[derive(Debug)]
pub(super) enum Kind {
    Literal(Literal),
    Ident(Box<str>),
    /// `operand.field`; only whether it is there, where `test`.
    Select {
        operand: Arc<Expr>,
        field: Box<str>,
        test: bool,
    },
    Call {
        function: Box<str>,
        target: Option<Arc<Expr>>,
        args: Vec<Arc<Expr>>,
    },
    /// Items, and whether each is left out where it has no value.
    List(Vec<(Arc<Expr>, bool)>),
    Map(Vec<Entry>),
    /// A message, such as what a policy wants an object to become.
    Struct {
        name: Box<str>,
        fields: Vec<Member>,
    },
    Fold(Box<Fold>),
    /// What an error has left.
    Missing,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
}

#[derive(Debug)]
pub(super) struct Entry {
    pub key: Arc<Expr>,
    pub value: Arc<Expr>,
    pub optional: bool,
}

/// A field of a message.
#[derive(Debug)]
pub(super) struct Member {
    pub id: Id,
    pub name: Box<str>,
    pub value: Arc<Expr>,
    pub optional: bool,
}

/// What macros become: `accu` begins as `init`, becomes `step` for each member of `range` as long as `condition` holds, and
/// `result` is computed from it.
#[derive(Debug)]
pub(super) struct Fold {
    pub range: Arc<Expr>,
    pub var: Box<str>,
    pub second: Option<Box<str>>,
    pub accu: Box<str>,
    pub init: Arc<Expr>,
    pub condition: Arc<Expr>,
    pub step: Arc<Expr>,
    pub result: Arc<Expr>,
}

/// An expression beyond [`DEPTH_MAX`] or [`NODES_MAX`].
#[derive(Debug)]
pub(super) struct TooLarge;

// === impl Expr ===

impl Expr {
    pub(super) fn new(id: Id, kind: Kind) -> Result<Arc<Self>, TooLarge> {
        let (mut depth, mut nodes) = (0, 1_u32);
        kind.each(&mut |below| {
            depth = depth.max(below.depth);
            nodes = nodes.saturating_add(below.nodes);
        });
        let depth = depth + 1;
        if depth > DEPTH_MAX || nodes > NODES_MAX {
            return Err(TooLarge);
        }
        Ok(Arc::new(Self { id, kind, depth, nodes }))
    }

    pub(super) fn depth(&self) -> u16 {
        self.depth
    }

    pub(super) fn nodes(&self) -> u32 {
        self.nodes
    }

    pub(super) fn ident(&self) -> Option<&str> {
        match &self.kind {
            Kind::Ident(name) => Some(name),
            _ => None,
        }
    }

    /// The names of `a.b.c`.
    pub(super) fn qualified(&self) -> Option<Vec<&str>> {
        let mut names = Vec::new();
        let mut at = self;
        loop {
            match &at.kind {
                Kind::Select { operand, field, test: false } => {
                    names.push(&**field);
                    at = operand;
                }
                Kind::Ident(name) => {
                    names.push(&**name);
                    names.reverse();
                    return Some(names);
                }
                _ => return None,
            }
        }
    }

    pub(super) fn literal(&self) -> Option<&Literal> {
        match &self.kind {
            Kind::Literal(literal) => Some(literal),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self.literal() {
            Some(Literal::String(text)) => Some(text),
            _ => None,
        }
    }
}

// === impl Kind ===

impl Kind {
    /// What is directly below.
    pub(super) fn each<'e>(&'e self, look: &mut dyn FnMut(&'e Arc<Expr>)) {
        match self {
            Self::Literal(_) | Self::Ident(_) | Self::Missing => {}
            Self::Select { operand, .. } => look(operand),
            Self::Call { target, args, .. } => target.iter().chain(args).for_each(look),
            Self::List(items) => items.iter().for_each(|(item, _)| look(item)),
            Self::Map(entries) => entries.iter().for_each(|e| {
                look(&e.key);
                look(&e.value);
            }),
            Self::Struct { fields, .. } => fields.iter().for_each(|field| look(&field.value)),
            Self::Fold(f) => {
                [&f.range, &f.init, &f.condition, &f.step, &f.result].into_iter().for_each(look);
            }
        }
    }
}

// === impl Fold ===

impl Fold {
    /// Whether it only gives a value a name.
    pub(super) fn is_bind(&self) -> bool {
        matches!(&self.range.kind, Kind::List(items) if items.is_empty())
            && self.condition.literal() == Some(&Literal::Bool(false))
    }
}
