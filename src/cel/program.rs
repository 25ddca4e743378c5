//! From the text of an expression to something that can be evaluated.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::check::{self, Checked, Named, Variables};
use super::estimate;
use super::eval;
use super::expr::{Expr, Id, Kind};
use super::literals;
use super::meter::{Failure, Meter};
use super::parser::{Parsed, parse};
use super::plan::{Node, plan};
use super::source::Issues;
use super::types::{Decl, Field, ObjectType, Type};
use super::value::Value;

/// The variables that expressions may use.
#[derive(Debug, Default)]
pub struct Env {
    variables: Vec<(Box<str>, Type)>,
    has_messages: bool,
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

    fn has_messages(&self) -> bool {
        self.has_messages
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

    /// With the place of a variable that these expressions do not have, so that others keep theirs.
    #[must_use]
    pub fn without_one(self) -> Self {
        self.with("", Type::Dyn)
    }

    /// With messages that say what is to become of an object.
    #[must_use]
    pub fn with_messages(self) -> Self {
        Self { has_messages: true, ..self }
    }

    /// Gives a variable that is an object one more field, or another type to one that it has.
    pub fn add_field(&mut self, variable: &str, field: &str, decl: Decl) {
        let found = self.variables.iter_mut().find(|(name, _)| **name == *variable);
        let Some((_, Type::Object(object))) = found else { return };
        // Nobody else has it once what used it is planned: it is not copied.
        if Arc::get_mut(object).is_none() {
            *object = Arc::new(ObjectType { name: object.name.clone(), fields: object.fields.clone() });
        }
        if let Some(object) = Arc::get_mut(object) {
            object.fields.insert(field.into(), Field { name: field.into(), decl: Arc::new(decl) });
        }
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

    /// How large it is: parts that macros repeat count as often as they are looked at.
    pub fn nodes(&self) -> u32 {
        self.parsed.root.nodes()
    }

    /// How deep it is.
    pub fn depth(&self) -> u32 {
        self.parsed.root.depth().into()
    }

    /// The fields of a variable that it names; none where it uses the variable as a whole.
    pub fn fields_of(&self, variable: &str) -> Option<BTreeSet<Box<str>>> {
        let mut fields = BTreeSet::new();
        let is_whole = self.note_fields(&self.parsed.root, variable, &mut fields, &mut HashSet::new());
        (!is_whole).then_some(fields)
    }

    fn note_fields<'e>(
        &'e self,
        expr: &'e Arc<Expr>,
        variable: &str,
        fields: &mut BTreeSet<Box<str>>,
        seen: &mut HashSet<Id>,
    ) -> bool {
        let is_variable =
            |expr: &Expr| matches!(self.checked.named(expr), Some(Named::Variable(name)) if **name == *variable);
        // What macros repeat is looked at once.
        if !seen.insert(expr.id) {
            return false;
        }
        match &expr.kind {
            Kind::Select { operand, field, .. } if is_variable(operand) => {
                fields.insert(field.clone());
                return false;
            }
            Kind::Call { function, args, .. } if &**function == "_?._" && is_variable(&args[0]) => {
                fields.extend(args[1].text().map(Box::from));
                return false;
            }
            _ if is_variable(expr) => return true,
            _ => {}
        }
        let mut is_whole = false;
        expr.kind.each(&mut |below| is_whole |= self.note_fields(below, variable, fields, seen));
        is_whole
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
