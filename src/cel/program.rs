//! From the text of an expression to something that can be evaluated.

use super::check::{self, Checked, Variables};
use super::estimate;
use super::eval;
use super::literals;
use super::meter::{Failure, Meter};
use super::parser::{Parsed, parse};
use super::plan::{Node, plan};
use super::source::Issues;
use super::types::{Decl, Type};
use super::value::Value;

/// The variables that expressions may use.
#[derive(Debug, Default)]
pub struct Env {
    variables: Vec<(Box<str>, Type)>,
}

/// A checked expression.
#[derive(Debug)]
pub struct Expression {
    parsed: Parsed,
    checked: Checked,
}

/// An expression that can be evaluated.
#[derive(Debug)]
pub struct Program {
    node: Node,
}

impl Variables for Env {
    fn type_of(&self, name: &str) -> Option<&Type> {
        self.variables.iter().find(|(n, _)| **n == *name).map(|(_, of)| of)
    }
}

// === impl Env ===

impl Env {
    /// No variables yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a variable; values are given in the order in which they are declared.
    #[must_use]
    pub fn with(mut self, name: &str, of: Type) -> Self {
        self.variables.push((name.into(), of));
        self
    }

    /// Parses and checks an expression.
    pub fn compile(&self, text: &str) -> Result<Expression, Issues> {
        let mut issues = Issues::of(text);
        let Some(parsed) = parse(text, &mut issues) else { return Err(issues) };
        let checked = check::check(&parsed, self, &mut issues);
        if issues.is_empty() {
            literals::validate(&parsed, &checked, &mut issues);
        }
        if issues.is_empty() { Ok(Expression { parsed, checked }) } else { Err(issues) }
    }

    fn number(&self, name: &str) -> usize {
        self.variables.iter().position(|(n, _)| **n == *name).unwrap_or(usize::MAX)
    }
}

// === impl Expression ===

impl Expression {
    /// What it gives.
    pub fn output(&self) -> &Type {
        self.checked.type_of(&self.parsed.root)
    }

    /// Whether it uses a variable.
    pub fn uses(&self, variable: &str) -> bool {
        self.checked.uses(variable)
    }

    /// What it can cost at most, where every variable is as `root` says.
    pub fn cost_max(&self, root: Option<&Decl>) -> u64 {
        estimate::cost_max(&self.parsed.root, &self.checked, root)
    }

    /// Makes it ready to be evaluated; computing what is constant in it may fail.
    pub fn program(&self, env: &Env) -> Result<Program, Failure> {
        let node = plan(&self.parsed.root, &self.checked, &|name| env.number(name))?;
        Ok(Program { node })
    }
}

// === impl Program ===

impl Program {
    /// Its value, where variables have these values, in the order in which they were declared.
    pub fn eval<'a>(&self, variables: &[Option<Value<'a>>], meter: &mut Meter) -> Result<Value<'a>, Failure> {
        eval::eval(&self.node, variables, meter)
    }
}
