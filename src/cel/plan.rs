//! Checked expressions in the form in which they are evaluated: names are places, functions are found, what is constant is
//! computed.

use std::sync::Arc;

use super::charge::Charge;
use super::check::{Called, Checked, Named};
use super::expr::{Expr, Fold, Kind};
use super::library::{self, Run};
use super::macros::{ACCU, MAP_INSERT};
use super::meter::{CALL_COST_MAX, Failure, Meter};
use super::value::Value;
use crate::base::pattern::Pattern;

/// A part of an expression.
#[derive(Debug)]
pub(super) enum Node {
    Const(Value<'static>),
    /// A variable that was declared, by its number.
    Variable(usize),
    /// A variable of the expression itself, by its place among those that there are then.
    Local(usize),
    Select(Box<Select>),
    Index(Box<[Node; 2]>, bool),
    And(Box<[Node; 2]>),
    Or(Box<[Node; 2]>),
    Conditional(Box<[Node; 3]>),
    NotStrictlyFalse(Box<Node>),
    /// The first of two optional values that there is; the value itself, where `true`.
    OrOptional(Box<[Node; 2]>, bool),
    Call(Box<Invocation>),
    List(Vec<(Node, bool)>),
    Map(Vec<(Node, Node, bool)>),
    Fold(Box<FoldNode>),
    Struct(Box<StructNode>),
    /// A value, and what is computed with a name for it.
    Bind(Box<[Node; 2]>),
}

#[derive(Debug)]
pub(super) struct Select {
    pub operand: Node,
    pub field: Box<str>,
    pub how: How,
    /// It costs a step of its own: it is none of a variable.
    pub costs_more: bool,
}

/// What is wanted of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Value,
    Presence,
    Optional,
}

#[derive(Debug)]
pub(super) struct Invocation {
    pub run: Run,
    pub charge: Charge,
    pub overload: &'static str,
    pub args: Vec<Node>,
}

/// A message: its fields, and whether each is left out where it has no value.
#[derive(Debug)]
pub(super) struct StructNode {
    pub name: Arc<str>,
    pub fields: Vec<(Box<str>, Node, bool)>,
}

#[derive(Debug)]
pub(super) struct FoldNode {
    pub range: Node,
    pub has_second: bool,
    pub init: Node,
    pub condition: Node,
    pub step: Step,
    pub result: Node,
}

/// How a fold's accumulator becomes the next one. What grows it is done in place.
#[derive(Debug)]
pub(super) enum Step {
    Any(Node),
    Append(Option<Node>, Node),
    /// A key and a value, or a map of them.
    Insert(Option<Node>, Node, Option<Node>),
}

struct Planner<'p> {
    checked: &'p Checked,
    variables: &'p dyn Fn(&str) -> usize,
    scope: Vec<Box<str>>,
}

/// The form in which an expression is evaluated; `variables` gives the number of one. An error is what computing a constant
/// gave.
pub(super) fn plan(root: &Expr, checked: &Checked, variables: &dyn Fn(&str) -> usize) -> Result<Node, Failure> {
    Planner { checked, variables, scope: Vec::new() }.node(root)
}

// === impl Planner ===

impl Planner<'_> {
    fn node(&mut self, expr: &Expr) -> Result<Node, Failure> {
        Ok(match &expr.kind {
            Kind::Literal(literal) => Node::Const(Value::literal(literal)),
            Kind::Ident(name) => self.ident(expr, name),
            Kind::Select { operand, field, test } => match self.checked.named(expr) {
                Some(_) => self.ident(expr, ""),
                None => {
                    let how = if *test { How::Presence } else { How::Value };
                    self.select(operand, field, how)?
                }
            },
            Kind::Call { .. } => self.call(expr)?,
            Kind::List(items) => {
                let items = items.iter().map(|(item, optional)| Ok((self.node(item)?, *optional)));
                folded(Node::List(items.collect::<Result<_, Failure>>()?))?
            }
            Kind::Map(entries) => {
                let entries = entries.iter().map(|e| Ok((self.node(&e.key)?, self.node(&e.value)?, e.optional)));
                folded(Node::Map(entries.collect::<Result<_, Failure>>()?))?
            }
            Kind::Fold(fold) => self.fold(fold)?,
            Kind::Struct { name, fields } => {
                let fields = fields.iter().map(|f| Ok((f.name.clone(), self.node(&f.value)?, f.optional)));
                let name = name.strip_prefix('.').unwrap_or(name).into();
                Node::Struct(Box::new(StructNode { name, fields: fields.collect::<Result<_, Failure>>()? }))
            }
            Kind::Missing => return Err(Failure::error("not an expression")),
        })
    }

    fn ident(&mut self, expr: &Expr, name: &str) -> Node {
        match self.checked.named(expr) {
            Some(Named::Type(of)) if !self.is_local(name) => Node::Const(Value::Type(of.clone())),
            Some(Named::Variable(full)) if !self.is_local(name) => Node::Variable((self.variables)(full)),
            _ => Node::Local(self.scope.iter().rposition(|n| **n == *name).unwrap_or(usize::MAX)),
        }
    }

    fn is_local(&self, name: &str) -> bool {
        self.scope.iter().any(|n| **n == *name)
    }

    fn select(&mut self, operand: &Expr, field: &str, how: How) -> Result<Node, Failure> {
        let operand = self.node(operand)?;
        let is_attribute = matches!(
            operand,
            Node::Variable(_) | Node::Local(_) | Node::Select(_) | Node::Index(..) | Node::Conditional(_)
        );
        let costs_more = !is_attribute && how != How::Presence;
        Ok(Node::Select(Box::new(Select { operand, field: field.into(), how, costs_more })))
    }

    fn call(&mut self, expr: &Expr) -> Result<Node, Failure> {
        let Kind::Call { function, target, args } = &expr.kind else { return Err(Failure::no_overload()) };
        if &**function == "_?._" {
            return self.select(&args[0], args[1].text().unwrap_or(""), How::Optional);
        }
        let Some(called) = self.checked.called(expr).cloned() else { return Err(Failure::no_overload()) };
        let target = target.iter().filter(|_| !called.is_qualified);
        let mut nodes: Vec<Node> = target.chain(args).map(|arg| self.node(arg)).collect::<Result<_, _>>()?;
        let mut pair = || -> Option<Box<[Node; 2]>> { std::mem::take(&mut nodes).try_into().ok().map(Box::new) };
        let wrong = Failure::no_overload;
        Ok(match called.function.name {
            "_&&_" => Node::And(pair().ok_or_else(wrong)?),
            "_||_" => Node::Or(pair().ok_or_else(wrong)?),
            "_[_]" => Node::Index(pair().ok_or_else(wrong)?, false),
            "_[?_]" => Node::Index(pair().ok_or_else(wrong)?, true),
            "or" => Node::OrOptional(pair().ok_or_else(wrong)?, false),
            "orValue" => Node::OrOptional(pair().ok_or_else(wrong)?, true),
            "_?_:_" => Node::Conditional(nodes.try_into().map(Box::new).map_err(|_| wrong())?),
            "@not_strictly_false" => Node::NotStrictlyFalse(Box::new(nodes.pop().ok_or_else(wrong)?)),
            name => called_node(name, &called, nodes)?,
        })
    }

    fn fold(&mut self, fold: &Fold) -> Result<Node, Failure> {
        if fold.is_bind() {
            let init = self.node(&fold.init)?;
            self.scope.push(fold.accu.clone());
            let result = self.node(&fold.result)?;
            self.scope.pop();
            return Ok(Node::Bind(Box::new([init, result])));
        }
        let range = self.node(&fold.range)?;
        let init = self.node(&fold.init)?;
        self.scope.push(fold.accu.clone());
        let outer = self.scope.len();
        self.scope.push(fold.var.clone());
        self.scope.extend(fold.second.clone());
        let condition = self.node(&fold.condition)?;
        let step = self.step(&fold.step)?;
        self.scope.truncate(outer);
        let result = self.node(&fold.result)?;
        self.scope.pop();
        let has_second = fold.second.is_some();
        Ok(Node::Fold(Box::new(FoldNode { range, has_second, init, condition, step, result })))
    }

    fn step(&mut self, step: &Arc<Expr>) -> Result<Step, Failure> {
        let is_accu = |expr: &Expr| expr.ident() == Some(ACCU);
        let args = |expr: &Arc<Expr>, name: &str| match &expr.kind {
            Kind::Call { function, args, target: None } if &**function == name => Some(args.clone()),
            _ => None,
        };
        let (test, grown) = match args(step, "_?_:_") {
            Some(parts) if is_accu(&parts[2]) => (Some(parts[0].clone()), parts[1].clone()),
            _ => (None, step.clone()),
        };
        if let Some(parts) = args(&grown, "_+_")
            && is_accu(&parts[0])
            && let Kind::List(items) = &parts[1].kind
            && let [(item, false)] = &items[..]
        {
            let test = test.map(|test| self.node(&test)).transpose()?;
            return Ok(Step::Append(test, self.node(item)?));
        }
        if let Some(parts) = args(&grown, MAP_INSERT) {
            let test = test.map(|test| self.node(&test)).transpose()?;
            let value = parts.get(2).map(|value| self.node(value)).transpose()?;
            return Ok(Step::Insert(test, self.node(&parts[1])?, value));
        }
        Ok(Step::Any(self.node(step)?))
    }
}

/// A call of a function that is given values; conversions of constants are computed.
fn called_node(name: &str, called: &Called, args: Vec<Node>) -> Result<Node, Failure> {
    let overload = match &called.overloads[..] {
        [one] => one.id,
        _ => "",
    };
    let run = library::run(library::variant(name, overload)).ok_or_else(Failure::no_overload)?;
    if library::CONVERSIONS.contains(&name)
        && let [Node::Const(value)] = &args[..]
    {
        let mut meter = Meter::new(CALL_COST_MAX);
        return run(&mut meter, std::slice::from_ref(value)).map(Node::Const);
    }
    if matches!(name, "matches" | "find" | "findAll")
        && let Some(Node::Const(Value::String(pattern))) = args.get(1)
    {
        Pattern::check(pattern).map_err(|e| Failure::error(e.to_string()))?;
    }
    Ok(Node::Call(Box::new(Invocation { run, charge: Charge::of(name), overload, args })))
}

/// A list or a map of constants is one.
fn folded(node: Node) -> Result<Node, Failure> {
    let is_const = |node: &Node| matches!(node, Node::Const(_));
    let constant = match &node {
        Node::List(items) => items.iter().all(|(item, optional)| is_const(item) && !optional),
        Node::Map(entries) => {
            entries.iter().all(|(key, value, optional)| is_const(key) && is_const(value) && !optional)
        }
        _ => false,
    };
    if !constant {
        return Ok(node);
    }
    let value = |node: Node| match node {
        Node::Const(value) => value,
        _ => Value::Null,
    };
    match node {
        Node::List(items) => Ok(Node::Const(Value::list(items.into_iter().map(|(item, _)| value(item)).collect()))),
        Node::Map(entries) => {
            library::map_of(entries.into_iter().map(|(k, v, _)| (value(k), value(v)))).map(Node::Const)
        }
        other => Ok(other),
    }
}
