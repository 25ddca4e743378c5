//! Variables that are expressions themselves (`variables.name`), each evaluated once, when it is asked for first
//! (`k8s.io/apiserver/pkg/admission/plugin/cel/composition.go`).
//!
//! What a variable is made of is evaluated before it and not inside of it, and how deep variables may be made of one another is
//! bounded: a chain of a thousand takes no more stack than two expressions, and its value is no deeper than one may be.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::meter::{CALL_COST_MAX, Failure, Meter};
use super::program::{Expression, Program};
use super::value::{Fields, Map, Value};

/// Levels of an expression and of all those that it is made of. Values may be as deep, and are walked by recursion.
const DEPTH_MAX: u32 = 1_000;

/// Named expressions.
#[derive(Debug, Default)]
pub struct Compositions {
    all: Vec<Composition>,
    /// Of two of one name the later one is meant.
    by_name: HashMap<Box<str>, usize>,
}

#[derive(Debug)]
struct Composition {
    name: Box<str>,
    program: Result<Program, String>,
    /// Those before it that it names.
    uses: Vec<usize>,
    depth: u32,
}

/// Their values for one set of other variables.
pub struct Composed<'a> {
    of: &'a Compositions,
    given: Vec<Option<Value<'a>>>,
    place: usize,
    values: Vec<OnceLock<Result<Value<'a>, Failure>>>,
    /// Itself, as the value of the variable that has all these fields.
    whole: OnceLock<&'a Composed<'a>>,
    evaluating: AtomicBool,
    load: AtomicU64,
}

// === impl Compositions ===

impl Compositions {
    /// Adds one, of which all together are the fields of `variable`; the error says what is wrong with it.
    pub fn add(
        &mut self,
        name: &str,
        variable: &str,
        expression: Result<&Expression, String>,
        plan: impl FnOnce(&Expression) -> Result<Program, String>,
    ) -> Result<(), String> {
        let fields = expression.as_ref().map(|expression| expression.fields_of(variable));
        let uses: Vec<usize> = match fields {
            Ok(Some(fields)) => fields.iter().filter_map(|field| self.by_name.get(field).copied()).collect(),
            // It may use any of them.
            Ok(None) => (0..self.all.len()).collect(),
            Err(_) => Vec::new(),
        };
        let below = uses.iter().map(|used| self.all[*used].depth).max().unwrap_or(0);
        let depth = below + expression.as_ref().map_or(0, |expression| expression.depth());
        let program = match expression {
            Ok(_) if depth > DEPTH_MAX => Err("variables are made of one another too deeply".to_owned()),
            Ok(expression) => plan(expression),
            Err(why) => Err(why),
        };
        let done = program.as_ref().map(drop).map_err(String::clone);
        let depth = if done.is_ok() { depth } else { 0 };
        self.by_name.insert(name.into(), self.all.len());
        self.all.push(Composition { name: name.into(), program, uses, depth });
        done
    }
}

// === impl Composed ===

impl<'a> Composed<'a> {
    /// Beside these values of other variables; the object of these is at `place`.
    pub fn new(of: &'a Compositions, given: Vec<Option<Value<'a>>>, place: usize) -> Self {
        let values = of.all.iter().map(|_| OnceLock::new()).collect();
        let (evaluating, load) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { of, given, place, values, whole: OnceLock::new(), evaluating, load }
    }

    /// All variables, these among them.
    pub fn variables(&'a self) -> Vec<Option<Value<'a>>> {
        self.with_whole(self.whole.get_or_init(|| self))
    }

    /// What has been taken since this was asked last.
    pub fn take_load(&self) -> u64 {
        self.load.swap(0, Ordering::Relaxed)
    }

    fn with_whole(&self, whole: &'a Self) -> Vec<Option<Value<'a>>> {
        let mut all = self.given.clone();
        if let Some(place) = all.get_mut(self.place) {
            *place = Some(Value::Map(Map::Lazy(whole)));
        }
        all
    }

    /// Evaluates one, those that it is made of first.
    fn evaluate(&self, index: usize) {
        let mut needed = BTreeSet::new();
        let mut left = vec![index];
        while let Some(next) = left.pop() {
            if self.values[next].get().is_none() && needed.insert(next) {
                left.extend(&self.of.all[next].uses);
            }
        }
        // Each is made of those before it.
        for next in needed {
            let value = self.evaluated(next);
            let _ = self.values[next].set(value);
        }
    }

    fn evaluated(&self, index: usize) -> Result<Value<'a>, Failure> {
        let Composition { name, program, .. } = &self.of.all[index];
        let failed = |what: &str, why: &dyn fmt::Display| {
            Failure::error(format!("composited variable {name:?} fails to {what}: {why}"))
        };
        let program = program.as_ref().map_err(|why| failed("compile", why))?;
        let Some(whole) = self.whole.get() else { return Err(Failure::no_overload()) };
        let mut meter = Meter::new(CALL_COST_MAX);
        let value = program.eval(&self.with_whole(whole), &mut meter);
        self.load.fetch_add(meter.load(), Ordering::Relaxed);
        value.map_err(|why| failed("evaluate", &why))
    }
}

impl Fields for Composed<'_> {
    fn field<'s>(&'s self, name: &str, _meter: &mut Meter) -> Option<Result<Value<'s>, Failure>> {
        let index = *self.of.by_name.get(name)?;
        // What a variable is made of is there; what is not comes after it.
        if self.values[index].get().is_none() && !self.evaluating.swap(true, Ordering::Relaxed) {
            self.evaluate(index);
            self.evaluating.store(false, Ordering::Relaxed);
        }
        let early = || Err(Failure::error(format!("composited variable {name:?} is not known yet")));
        Some(self.values[index].get().cloned().unwrap_or_else(early))
    }
}

/// A value may contain the whole of them.
impl fmt::Debug for Composed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Composed").field("of", self.of).finish_non_exhaustive()
    }
}
