//! Macros: `has`, those that go through lists and maps with one variable or two, `sortBy`, and those of optional values.

use std::sync::Arc;

use super::expr::{Expr, Fold, Id, Kind, Literal};
use super::nodes::{Nodes, Stop};

/// The accumulator: no name that an expression can have.
pub(super) const ACCU: &str = "@result";
/// The variable of a fold that goes through nothing.
pub(super) const UNUSED: &str = "#unused";
/// The function that a map is extended by.
pub(super) const MAP_INSERT: &str = "cel.@mapInsert";
/// The function that sorts by what was computed for each item.
pub(super) const SORT_BY_KEYS: &str = "@sortByAssociatedKeys";
const SORTED: &str = "@__sortBy_input__";

type Made = Result<Option<Arc<Expr>>, Stop>;

/// What a call of a macro becomes; none where it is none. `id` is that of the call.
pub(super) fn expand(
    nodes: &mut Nodes<'_>,
    id: Id,
    name: &str,
    target: Option<&Arc<Expr>>,
    args: &[Arc<Expr>],
) -> Made {
    let at = nodes.place(id);
    let mut expansion = Expansion { nodes, at };
    let Some(target) = target else {
        return match (name, args) {
            ("has", [arg]) => expansion.has(arg).map(Some),
            _ => Ok(None),
        };
    };
    match (name, args) {
        ("all" | "exists" | "exists_one" | "existsOne", [var, test]) => {
            expansion.quantifier(name, target, &[var], test).map(Some)
        }
        ("all" | "exists" | "exists_one" | "existsOne", [var, second, test]) => {
            expansion.quantifier(name, target, &[var, second], test).map(Some)
        }
        ("map", [var, make]) => expansion.collect(target, &[var], None, make, false).map(Some),
        ("map", [var, test, make]) => expansion.collect(target, &[var], Some(test), make, false).map(Some),
        ("filter", [var, test]) => expansion.collect(target, &[var], Some(test), var, false).map(Some),
        ("transformList", [var, second, make]) => expansion.collect(target, &[var, second], None, make, true).map(Some),
        ("transformList", [var, second, test, make]) => {
            expansion.collect(target, &[var, second], Some(test), make, true).map(Some)
        }
        ("transformMap" | "transformMapEntry", [var, second, make]) => {
            expansion.transform(name, target, [var, second], None, make).map(Some)
        }
        ("transformMap" | "transformMapEntry", [var, second, test, make]) => {
            expansion.transform(name, target, [var, second], Some(test), make).map(Some)
        }
        ("sortBy", [var, key]) => expansion.sort_by(target, var, key).map(Some),
        ("optMap" | "optFlatMap", [var, make]) => expansion.optional(name, target, var, make).map(Some),
        _ => Ok(None),
    }
}

struct Expansion<'n, 't> {
    nodes: &'n mut Nodes<'t>,
    at: u32,
}

// === impl Expansion ===

impl Expansion<'_, '_> {
    fn wrong(&mut self, arg: &Expr, why: &str) -> Result<Arc<Expr>, Stop> {
        let at = self.nodes.place(arg.id);
        self.nodes.wrong(at, why)
    }

    fn accu(&mut self) -> Result<Arc<Expr>, Stop> {
        self.nodes.ident(self.at, ACCU)
    }

    fn literal(&mut self, literal: Literal) -> Result<Arc<Expr>, Stop> {
        self.nodes.literal(self.at, literal)
    }

    fn call(&mut self, function: &str, args: Vec<Arc<Expr>>) -> Result<Arc<Expr>, Stop> {
        self.nodes.call(self.at, function, args)
    }

    fn has(&mut self, arg: &Arc<Expr>) -> Result<Arc<Expr>, Stop> {
        match &arg.kind {
            Kind::Select { operand, field, test: false } => {
                let kind = Kind::Select { operand: operand.clone(), field: field.clone(), test: true };
                self.nodes.add(self.at, kind)
            }
            _ => self.wrong(arg, "invalid argument to has() macro"),
        }
    }

    /// The names of variables, or what is wrong with them.
    fn variables(&mut self, vars: &[&Arc<Expr>], words: &str) -> Result<Result<Vec<Box<str>>, Arc<Expr>>, Stop> {
        let mut names: Vec<Box<str>> = Vec::new();
        for var in vars {
            let Some(name) = var.ident() else { return self.wrong(var, words).map(Err) };
            if names.iter().any(|n| **n == *name) {
                return self.wrong(var, &format!("duplicate variable name: {name}")).map(Err);
            }
            if name == "__result__" {
                return self.wrong(var, "iteration variable overwrites accumulator variable").map(Err);
            }
            names.push(name.into());
        }
        Ok(Ok(names))
    }

    fn fold(
        &mut self,
        target: &Arc<Expr>,
        names: Vec<Box<str>>,
        [init, condition, step, result]: [Arc<Expr>; 4],
    ) -> Result<Arc<Expr>, Stop> {
        let mut names = names.into_iter();
        let (var, second) = (names.next().unwrap_or_default(), names.next());
        let fold = Fold { range: target.clone(), var, second, accu: ACCU.into(), init, condition, step, result };
        self.nodes.fold(self.at, fold)
    }

    fn quantifier(
        &mut self,
        name: &str,
        target: &Arc<Expr>,
        vars: &[&Arc<Expr>],
        test: &Arc<Expr>,
    ) -> Result<Arc<Expr>, Stop> {
        let names = match self.variables(vars, "argument must be a simple name")? {
            Ok(names) => names,
            Err(wrong) => return Ok(wrong),
        };
        let accu = self.accu()?;
        let parts = match name {
            "all" => {
                let init = self.literal(Literal::Bool(true))?;
                let condition = self.call("@not_strictly_false", vec![accu.clone()])?;
                let step = self.call("_&&_", vec![accu.clone(), test.clone()])?;
                [init, condition, step, accu]
            }
            "exists" => {
                let init = self.literal(Literal::Bool(false))?;
                let not = self.call("!_", vec![accu.clone()])?;
                let condition = self.call("@not_strictly_false", vec![not])?;
                let step = self.call("_||_", vec![accu.clone(), test.clone()])?;
                [init, condition, step, accu]
            }
            _ => {
                let init = self.literal(Literal::Int(0))?;
                let condition = self.literal(Literal::Bool(true))?;
                let one = self.literal(Literal::Int(1))?;
                let more = self.call("_+_", vec![accu.clone(), one.clone()])?;
                let step = self.call("_?_:_", vec![test.clone(), more, accu.clone()])?;
                let result = self.call("_==_", vec![accu, one])?;
                [init, condition, step, result]
            }
        };
        self.fold(target, names, parts)
    }

    fn collect(
        &mut self,
        target: &Arc<Expr>,
        vars: &[&Arc<Expr>],
        test: Option<&Arc<Expr>>,
        make: &Arc<Expr>,
        two: bool,
    ) -> Result<Arc<Expr>, Stop> {
        let words = if two { "argument must be a simple name" } else { "argument is not an identifier" };
        let names = match self.variables(vars, words)? {
            Ok(names) => names,
            Err(wrong) => return Ok(wrong),
        };
        let accu = self.accu()?;
        let init = self.nodes.add(self.at, Kind::List(Vec::new()))?;
        let item = self.nodes.add(self.at, Kind::List(vec![(make.clone(), false)]))?;
        let condition = self.literal(Literal::Bool(true))?;
        let step = self.call("_+_", vec![accu.clone(), item])?;
        let step = self.only(test, step, &accu)?;
        self.fold(target, names, [init, condition, step, accu])
    }

    /// A step that is only taken where a test holds.
    fn only(&mut self, test: Option<&Arc<Expr>>, step: Arc<Expr>, accu: &Arc<Expr>) -> Result<Arc<Expr>, Stop> {
        match test {
            Some(test) => self.call("_?_:_", vec![test.clone(), step, accu.clone()]),
            None => Ok(step),
        }
    }

    fn transform(
        &mut self,
        name: &str,
        target: &Arc<Expr>,
        vars: [&Arc<Expr>; 2],
        test: Option<&Arc<Expr>>,
        make: &Arc<Expr>,
    ) -> Result<Arc<Expr>, Stop> {
        let names = match self.variables(&vars, "argument must be a simple name")? {
            Ok(names) => names,
            Err(wrong) => return Ok(wrong),
        };
        let accu = self.accu()?;
        let init = self.nodes.add(self.at, Kind::Map(Vec::new()))?;
        let condition = self.literal(Literal::Bool(true))?;
        let args = match name {
            "transformMap" => vec![accu.clone(), self.nodes.ident(self.at, &names[0])?, make.clone()],
            _ => vec![accu.clone(), make.clone()],
        };
        let step = self.call(MAP_INSERT, args)?;
        let step = self.only(test, step, &accu)?;
        self.fold(target, names, [init, condition, step, accu])
    }

    /// A name for a value in an expression.
    fn bind(&mut self, name: &str, value: Arc<Expr>, result: Arc<Expr>) -> Result<Arc<Expr>, Stop> {
        let range = self.nodes.add(self.at, Kind::List(Vec::new()))?;
        let condition = self.literal(Literal::Bool(false))?;
        let step = self.nodes.ident(self.at, name)?;
        let fold =
            Fold { range, var: UNUSED.into(), second: None, accu: name.into(), init: value, condition, step, result };
        self.nodes.fold(self.at, fold)
    }

    fn sort_by(&mut self, target: &Arc<Expr>, var: &Arc<Expr>, key: &Arc<Expr>) -> Result<Arc<Expr>, Stop> {
        if matches!(target.kind, Kind::Literal(_) | Kind::Map(_) | Kind::Struct { .. }) {
            let why = "sortBy can only be applied to a list, identifier, comprehension, call or select expression";
            return self.wrong(target, why);
        }
        let input = self.nodes.ident(self.at, SORTED)?;
        let keys = self.collect(&input, &[var], None, key, false)?;
        if matches!(keys.kind, Kind::Missing) {
            return Ok(keys);
        }
        let sorted = self.nodes.member_call(self.at, SORT_BY_KEYS, input, vec![keys])?;
        self.bind(SORTED, target.clone(), sorted)
    }

    fn optional(
        &mut self,
        name: &str,
        target: &Arc<Expr>,
        var: &Arc<Expr>,
        make: &Arc<Expr>,
    ) -> Result<Arc<Expr>, Stop> {
        let Some(var_name) = var.ident() else {
            return self.wrong(var, &format!("{name}() variable name must be a simple identifier"));
        };
        let has = self.nodes.member_call(self.at, "hasValue", target.clone(), Vec::new())?;
        let value = self.nodes.member_call(self.at, "value", target.clone(), Vec::new())?;
        let bound = self.bind(var_name, value, make.clone())?;
        let some = if name == "optMap" { self.call("optional.of", vec![bound])? } else { bound };
        let none = self.call("optional.none", Vec::new())?;
        self.call("_?_:_", vec![has, some, none])
    }
}
