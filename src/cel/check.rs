//! Types of every part of an expression (cel-go's `checker`).

use std::collections::HashMap;
use std::sync::Arc;

use super::bindings::Bindings;
use super::expr::{Entry, Expr, Fold, Id, Kind, Literal, Member};
use super::functions::{ESCAPE_KEY, Function, Overload, function, named_type};
use super::parser::Parsed;
use super::source::Issues;
use super::types::{Head, JSON_PATCH, ObjectType, Type, has_any_field};

/// What checking has found out about the nodes of an expression.
#[derive(Debug, Default)]
pub(super) struct Checked {
    types: Vec<Option<Type>>,
    /// What calls call.
    calls: HashMap<Id, Called>,
    /// What names stand for, other than variables of the expression itself.
    names: HashMap<Id, Named>,
}

/// What a call calls: a function, and those of its overloads that fit.
#[derive(Clone, Debug)]
pub(super) struct Called {
    pub function: &'static Function,
    pub overloads: Vec<&'static Overload>,
    /// The target is a part of the function's name.
    pub is_qualified: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Named {
    Variable(Box<str>),
    Type(Type),
}

/// Whoever knows the variables that an expression may use.
pub(super) trait Variables {
    fn type_of(&self, name: &str) -> Option<&Type>;

    /// Whether expressions may make messages and use what helps with them.
    fn has_messages(&self) -> bool;
}

struct Checker<'c> {
    variables: &'c dyn Variables,
    issues: &'c mut Issues,
    places: &'c [u32],
    out: Checked,
    bindings: Bindings,
    /// Variables of the expression itself, the innermost last.
    scope: Vec<(Box<str>, Type)>,
}

/// Checks an expression; what is wrong with it is noted.
pub(super) fn check(parsed: &Parsed, variables: &dyn Variables, issues: &mut Issues) -> Checked {
    let out = Checked { types: vec![None; parsed.places.len()], ..Checked::default() };
    let (places, bindings) = (parsed.places.as_slice(), Bindings::default());
    let mut checker = Checker { variables, issues, places, out, bindings, scope: Vec::new() };
    checker.check(&parsed.root);
    let Checker { mut out, bindings, .. } = checker;
    for of in out.types.iter_mut().flatten() {
        *of = bindings.resolved(of, true);
    }
    out
}

// === impl Checked ===

impl Checked {
    /// The type of a node.
    pub(super) fn type_of(&self, expr: &Expr) -> &Type {
        self.types[expr.id as usize].as_ref().unwrap_or(&Type::Dyn)
    }

    pub(super) fn called(&self, expr: &Expr) -> Option<&Called> {
        self.calls.get(&expr.id)
    }

    pub(super) fn named(&self, expr: &Expr) -> Option<&Named> {
        self.names.get(&expr.id)
    }

    /// Whether a variable is used.
    pub(super) fn uses(&self, variable: &str) -> bool {
        self.names.values().any(|n| matches!(n, Named::Variable(name) if **name == *variable))
    }
}

// === impl Checker ===

impl Checker<'_> {
    fn issue(&mut self, expr: &Expr, message: String) {
        self.issues.push(Some(self.places[expr.id as usize]), message);
    }

    fn undeclared(&mut self, expr: &Expr, name: &str) {
        self.issue(expr, format!("undeclared reference to '{name}' (in container '')"));
    }

    fn mismatch(&mut self, expr: &Expr, expected: &Type, found: &Type) {
        let (expected, found) = (self.bindings.resolved(expected, true), self.bindings.resolved(found, true));
        self.issue(expr, format!("expected type '{expected}' but found '{found}'"));
    }

    fn set(&mut self, expr: &Expr, of: Type) -> Type {
        self.out.types[expr.id as usize] = Some(of.clone());
        of
    }

    fn check(&mut self, expr: &Arc<Expr>) -> Type {
        let of = match &expr.kind {
            Kind::Literal(literal) => literal.type_of(),
            Kind::Ident(name) => self.ident(expr, name),
            Kind::Select { operand, field, test } => self.select(expr, operand, field, *test),
            Kind::Call { .. } => self.call(expr),
            Kind::List(items) => self.list(items),
            Kind::Map(entries) => self.map(entries),
            Kind::Struct { name, fields } => self.message(expr, name.strip_prefix('.').unwrap_or(name), fields),
            Kind::Fold(fold) => self.fold(fold),
            Kind::Missing => Type::Error,
        };
        self.set(expr, of)
    }

    fn local(&self, name: &str) -> Option<&Type> {
        self.scope.iter().rev().find(|(n, _)| **n == *name).map(|(_, of)| of)
    }

    /// What a name stands for that is no variable of the expression itself.
    fn global(&mut self, expr: &Expr, name: &str) -> Option<Type> {
        let (named, of) = match self.variables.type_of(name) {
            Some(of) => (Named::Variable(name.into()), of.clone()),
            None => {
                let of = named_type(name)?;
                (Named::Type(of.clone()), Type::type_of(of))
            }
        };
        self.out.names.insert(expr.id, named);
        Some(of)
    }

    fn ident(&mut self, expr: &Expr, name: &str) -> Type {
        if let Some(of) = self.local(name) {
            return of.clone();
        }
        let name = name.strip_prefix('.').unwrap_or(name);
        self.global(expr, name).unwrap_or_else(|| {
            self.undeclared(expr, name);
            Type::Error
        })
    }

    fn select(&mut self, expr: &Expr, operand: &Arc<Expr>, field: &str, test: bool) -> Type {
        if !test
            && let Some(names) = expr.qualified()
            && self.local(names[0]).is_none()
        {
            let name = names.join(".");
            if let Some(of) = self.global(expr, name.strip_prefix('.').unwrap_or(&name)) {
                return of;
            }
        }
        let of = self.selected(expr, operand, field, false);
        if test { Type::Bool } else { of }
    }

    fn selected(&mut self, expr: &Expr, operand: &Arc<Expr>, field: &str, optional: bool) -> Type {
        let operand = self.check(operand);
        let operand = self.bindings.resolved(&operand, false);
        let (target, is_optional) = operand.unwrapped();
        let of = match target {
            Type::Compound(c) if c.head == Head::Map => c.params[1].clone(),
            Type::Object(object) => self.field(expr, object, field),
            Type::Named(_) => {
                self.issue(expr, format!("undefined field '{field}'"));
                Type::Error
            }
            Type::Param(_) => {
                self.bindings.fits(&Type::Dyn, target);
                Type::Dyn
            }
            Type::Dyn | Type::Error => Type::Dyn,
            other => {
                self.issue(expr, format!("type '{other}' does not support field selection"));
                Type::Dyn
            }
        };
        let of = self.bindings.resolved(&of, false);
        if is_optional || optional { Type::optional(of) } else { of }
    }

    fn field(&mut self, expr: &Expr, object: &ObjectType, field: &str) -> Type {
        match object.fields.get(field) {
            Some(field) => field.decl.type_of(),
            None if has_any_field(&object.name) => Type::Dyn,
            None => {
                self.issue(expr, format!("undefined field '{field}'"));
                Type::Error
            }
        }
    }

    fn message(&mut self, expr: &Expr, name: &str, fields: &[Member]) -> Type {
        let is_known = self.variables.has_messages() && (name == JSON_PATCH || has_any_field(name));
        if !is_known {
            self.undeclared(expr, name);
        }
        for field in fields {
            let of = self.check(&field.value);
            let of = self.element(&field.value, of, field.optional);
            let wanted = match (name, &*field.name) {
                _ if !is_known => continue,
                (JSON_PATCH, "op" | "path" | "from") => Type::String,
                (JSON_PATCH, "value") => Type::Dyn,
                (JSON_PATCH, other) => {
                    self.issues.push(Some(self.places[field.id as usize]), format!("undefined field '{other}'"));
                    continue;
                }
                _ => Type::Dyn,
            };
            if !self.bindings.fits(&wanted, &of) {
                let of = self.bindings.resolved(&of, true);
                let why = format!("expected type of field '{}' is '{wanted}' but provided type is '{of}'", field.name);
                self.issues.push(Some(self.places[field.id as usize]), why);
            }
        }
        if is_known { Type::message(name) } else { Type::Error }
    }

    /// The function of this name, as far as these expressions have it.
    fn function(&self, name: &str) -> Option<&'static Function> {
        function(name).filter(|_| name != ESCAPE_KEY || self.variables.has_messages())
    }

    fn call(&mut self, expr: &Arc<Expr>) -> Type {
        let Kind::Call { function: name, target, args } = &expr.kind else { return Type::Error };
        if &**name == "_?._" {
            let field = args.get(1).and_then(|f| f.text()).unwrap_or("");
            return self.selected(expr, &args[0], field, true);
        }
        let mut types: Vec<Type> = args.iter().map(|arg| self.check(arg)).collect();
        let Some(target) = target else {
            let plain = name.strip_prefix('.').unwrap_or(name);
            return match self.function(plain) {
                Some(function) => self.overload(expr, function, false, false, args, &types),
                None => {
                    self.undeclared(expr, plain);
                    Type::Error
                }
            };
        };
        let qualified = target.qualified().map(|names| format!("{}.{name}", names.join(".")));
        if let Some(function) = qualified.and_then(|q| self.function(q.strip_prefix('.').unwrap_or(&q))) {
            return self.overload(expr, function, false, true, args, &types);
        }
        let target = self.check(target);
        types.insert(0, target);
        match self.function(name) {
            Some(function) => self.overload(expr, function, true, false, args, &types),
            None => {
                self.undeclared(expr, name);
                Type::Error
            }
        }
    }

    /// The type of a call whose arguments are of these types.
    fn overload(
        &mut self,
        expr: &Arc<Expr>,
        function: &'static Function,
        is_member: bool,
        is_qualified: bool,
        args: &[Arc<Expr>],
        types: &[Type],
    ) -> Type {
        let mut fitting = Vec::new();
        let mut result: Option<Type> = None;
        if matches!(function.name, "_&&_" | "_||_") {
            for (arg, of) in args.iter().zip(types) {
                if !self.bindings.fits(of, &Type::Bool) {
                    self.mismatch(arg, &Type::Bool, of);
                    result = Some(Type::Error);
                }
            }
            fitting.push(&function.overloads[0]);
            result = result.or(Some(Type::Bool));
        } else {
            for overload in function.overloads.iter().filter(|o| o.is_member == is_member) {
                let Some(of) = self.fitting(overload, types) else { continue };
                fitting.push(overload);
                result = Some(match result {
                    Some(known) if known != Type::Dyn && known != of => Type::Dyn,
                    Some(known) => known,
                    None => of,
                });
            }
        }
        let Some(result) = result else {
            let types: Vec<Type> = types.iter().map(|of| self.bindings.resolved(of, true)).collect();
            let (target, args) =
                if is_member { (format!("{}.", types[0]), &types[1..]) } else { (String::new(), &*types) };
            let args = args.iter().map(Type::to_string).collect::<Vec<_>>().join(", ");
            let why = format!("found no matching overload for '{}' applied to '{target}({args})'", function.name);
            self.issue(expr, why);
            return Type::Error;
        };
        self.out.calls.insert(expr.id, Called { function, overloads: fitting, is_qualified });
        result
    }

    /// What an overload gives for arguments of these types, if they fit.
    fn fitting(&mut self, overload: &'static Overload, types: &[Type]) -> Option<Type> {
        if overload.params.len() != types.len() {
            return None;
        }
        let fresh: Vec<Type> = (0..overload.type_params).map(|_| self.bindings.fresh()).collect();
        let own = |of: &Type| of.replaced(&mut |n| fresh[n as usize].clone());
        let params: Vec<Type> = overload.params.iter().map(own).collect();
        self.bindings.fit_all(types.iter().zip(&params)).then(|| self.bindings.resolved(&own(&overload.result), false))
    }

    fn list(&mut self, items: &[(Arc<Expr>, bool)]) -> Type {
        let mut joined = None;
        for (item, optional) in items {
            let of = self.check(item);
            let of = self.element(item, of, *optional);
            joined = Some(self.join(item, joined, of));
        }
        Type::list(joined.unwrap_or_else(|| self.bindings.fresh()))
    }

    /// The type of a member that may be left out.
    fn element(&mut self, expr: &Expr, of: Type, optional: bool) -> Type {
        if !optional {
            return of;
        }
        let (inner, is_optional) = of.unwrapped();
        if !is_optional && of != Type::Dyn {
            self.mismatch(expr, &Type::optional(of.clone()), &of);
        }
        inner.clone()
    }

    fn map(&mut self, entries: &[Entry]) -> Type {
        let (mut keys, mut values) = (None, None);
        for Entry { key, value, optional } in entries {
            let of = self.check(key);
            keys = Some(self.join(key, keys, of));
            let of = self.check(value);
            let of = self.element(value, of, *optional);
            values = Some(self.join(value, values, of));
        }
        let key = keys.unwrap_or_else(|| self.bindings.fresh());
        Type::map(key, values.unwrap_or_else(|| self.bindings.fresh()))
    }

    /// The type of what is of both; members of a literal are all of one.
    fn join(&mut self, expr: &Expr, before: Option<Type>, of: Type) -> Type {
        let Some(before) = before else { return of };
        if self.bindings.fits(&before, &of) {
            return before.most_general(of);
        }
        self.mismatch(expr, &before, &of);
        Type::Error
    }

    fn fold(&mut self, fold: &Fold) -> Type {
        let range = self.check(&fold.range);
        let accu = self.check(&fold.init);
        let range = self.bindings.resolved(&range, false);
        let (var, second) = match &range {
            Type::Compound(c) if c.head == Head::List && fold.second.is_some() => (Type::Int, c.params[0].clone()),
            Type::Compound(c) if c.head == Head::List => (c.params[0].clone(), Type::Dyn),
            Type::Compound(c) if c.head == Head::Map => (c.params[0].clone(), c.params[1].clone()),
            Type::Dyn | Type::Error | Type::Param(_) => {
                self.bindings.fits(&Type::Dyn, &range);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let why = "cannot be range of a comprehension (must be list, map, or dynamic)";
                self.issue(&fold.range, format!("expression of type '{other}' {why}"));
                (Type::Error, Type::Error)
            }
        };
        self.scope.push((fold.accu.clone(), accu.clone()));
        let outer = self.scope.len();
        self.scope.push((fold.var.clone(), var));
        if let Some(name) = &fold.second {
            self.scope.push((name.clone(), second));
        }
        self.expect(&fold.condition, &Type::Bool);
        self.expect(&fold.step, &accu);
        self.scope.truncate(outer);
        let result = self.check(&fold.result);
        self.scope.pop();
        self.bindings.resolved(&result, false)
    }

    fn expect(&mut self, expr: &Arc<Expr>, wanted: &Type) {
        let of = self.check(expr);
        if !self.bindings.fits(wanted, &of) {
            self.mismatch(expr, wanted, &of);
        }
    }
}

// === impl Literal ===

impl Literal {
    fn type_of(&self) -> Type {
        match self {
            Self::Null => Type::Null,
            Self::Bool(_) => Type::Bool,
            Self::Int(_) => Type::Int,
            Self::Uint(_) => Type::Uint,
            Self::Double(_) => Type::Double,
            Self::String(_) => Type::String,
            Self::Bytes(_) => Type::Bytes,
        }
    }
}
