//! Rules of custom kinds (`x-kubernetes-validations`), one by one: compiled, and what one of them says of a value
//! (`k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel`).

use serde_json::Value;

use crate::base::json::{flag, map, text};
use crate::cel::{CALL_COST_MAX, Decl, Env, Failure, Issues, Meter, Program, Type, Value as Cel};

/// What all rules of an object may cost together (`RuntimeCELCostBudget`).
pub const OBJECT_COST_MAX: u64 = 10_000_000;
/// The longest message that an expression makes.
const MESSAGE_BYTES_MAX: usize = 5 * 1024;
const SELF: &str = "self";
const OLD_SELF: &str = "oldSelf";

/// A rule, ready to be evaluated.
#[derive(Debug)]
pub struct Rule {
    /// What is said of it: its message, or itself.
    shown: String,
    message: String,
    pub reason: Option<String>,
    /// The field that its errors name, below where it stands.
    pub field_path: Option<String>,
    /// It is about a change.
    pub uses_old: bool,
    /// It is evaluated without what there was too.
    pub has_optional_old: bool,
    program: Program,
    message_program: Option<Program>,
}

/// What compiling a rule gives.
#[derive(Debug)]
pub struct Compiled {
    /// The rule, or what is wrong with it.
    pub rule: Result<Rule, String>,
    /// What is wrong with the expression for its message.
    pub message_error: Option<String>,
    /// What it can cost at most for one value.
    pub cost_max: u64,
    pub message_cost_max: Option<u64>,
}

/// What a rule says of a value.
#[derive(Debug)]
pub enum Verdict {
    Holds,
    /// It does not hold: the message, and what finding it has cost.
    Fails(Result<String, &'static str>),
    /// It could not be evaluated.
    Error(String),
    /// Nothing more can be evaluated.
    Exhausted(String),
}

/// Compiles a rule of a place; none where it is empty.
pub fn compile(rule: &Value, schema: &Value, decl: &Decl) -> Option<Compiled> {
    let source = text(rule, "rule");
    if source.trim().is_empty() {
        return None;
    }
    let has_optional_old = flag(rule, "optionalOldSelf");
    let of = decl.type_of();
    let old = if has_optional_old { Type::optional(of.clone()) } else { of.clone() };
    let env = Env::new().with(SELF, of).with(OLD_SELF, old);
    let mut out = Compiled { rule: Err(String::new()), message_error: None, cost_max: 0, message_cost_max: None };
    let (expression, program) =
        match expression(&env, source, &Type::Bool, ["", "cel expression must evaluate to a bool"]) {
            Ok(done) => done,
            Err(why) => return Some(Compiled { rule: Err(why), ..out }),
        };
    out.cost_max = expression.cost_max(Some(decl));
    let message_source = text(rule, "messageExpression");
    let mut message_program = None;
    if !message_source.is_empty() {
        let words = ["messageExpression ", "messageExpression must evaluate to a string"];
        match self::expression(&env, message_source, &Type::String, words) {
            Ok((expression, program)) => {
                out.message_cost_max = Some(expression.cost_max(Some(decl)));
                message_program = Some(program);
            }
            Err(why) => out.message_error = Some(why),
        }
    }
    let message = text(rule, "message").trim().to_owned();
    out.rule = Ok(Rule {
        shown: if message.is_empty() { source.trim().to_owned() } else { message.clone() },
        message,
        reason: rule.get("reason").and_then(Value::as_str).map(str::to_owned),
        field_path: Some(text(rule, "fieldPath")).filter(|p| !p.is_empty()).and_then(|p| field_path(p, schema)),
        uses_old: expression.uses(OLD_SELF),
        has_optional_old,
        program,
        message_program,
    });
    Some(out)
}

fn expression(
    env: &Env,
    source: &str,
    wanted: &Type,
    [what, wrong_type]: [&str; 2],
) -> Result<(crate::cel::Expression, Program), String> {
    let expression = env.compile(source).map_err(|issues: Issues| format!("{what}compilation failed: {issues}"))?;
    if expression.output() != wanted {
        return Err(wrong_type.to_owned());
    }
    let what = if what.is_empty() { "program " } else { what };
    let program = expression.program(env).map_err(|e| format!("{what}instantiation failed: {e}"))?;
    Ok((expression, program))
}

// === impl Rule ===

impl Rule {
    /// What it says of a value and what that was; what it costs is taken from `budget`.
    pub fn judge<'a>(&self, new: &Cel<'a>, old: Option<&Cel<'a>>, budget: &mut u64) -> Verdict {
        let old = match self.has_optional_old {
            true => Some(Cel::optional(old.cloned())),
            false => old.cloned(),
        };
        let variables = [Some(new.clone()), old];
        let mut meter = Meter::new(CALL_COST_MAX);
        let result = self.program.eval(&variables, &mut meter);
        let shown = &self.shown;
        if !spend(budget, &meter) {
            return exhausted();
        }
        match result {
            Ok(Cel::Bool(true)) => Verdict::Holds,
            Ok(_) => self.failed(&variables, budget),
            Err(error @ Failure::Cancelled) => Verdict::Exhausted(format!(
                "'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {shown}"
            )),
            Err(error) if error.is_no_overload() => Verdict::Error(format!(
                "'{error}': call arguments did not match a supported operator, function or macro signature for rule: \
                 {shown}"
            )),
            Err(error) => Verdict::Error(format!("{error} evaluating rule: {shown}")),
        }
    }

    fn failed(&self, variables: &[Option<Cel<'_>>], budget: &mut u64) -> Verdict {
        let plain = || match self.message.as_str() {
            "" => format!("failed rule: {}", self.shown),
            message => message.to_owned(),
        };
        let Some(program) = &self.message_program else { return Verdict::Fails(Ok(plain())) };
        let mut meter = Meter::new(CALL_COST_MAX);
        let result = program.eval(variables, &mut meter);
        if !spend(budget, &meter) {
            let why = "messageExpression evaluation failed due to running out of cost budget, no further validation \
                       rules will be run";
            return Verdict::Fails(Err(why));
        }
        let made = match result {
            Ok(Cel::String(text)) => text.trim().to_owned(),
            Err(Failure::Cancelled) => {
                return Verdict::Fails(Err(
                    "no further validation rules will be run due to call cost exceeds limit for \
                                           messageExpression",
                ));
            }
            Ok(_) | Err(Failure::Error(_)) => String::new(),
        };
        let fits = !made.is_empty() && made.len() <= MESSAGE_BYTES_MAX && !made.contains('\n');
        Verdict::Fails(Ok(if fits { made } else { plain() }))
    }
}

fn spend(budget: &mut u64, meter: &Meter) -> bool {
    match budget.checked_sub(meter.cost()) {
        Some(left) => {
            *budget = left;
            true
        }
        None => false,
    }
}

/// What is said once nothing is left of the budget.
pub fn exhausted() -> Verdict {
    let why = "validation failed due to running out of cost budget, no further validation rules will be run";
    Verdict::Exhausted(why.to_owned())
}

/// A path such as `.a.b` or `['a.b']` through the fields and maps of a schema, as errors show it.
pub fn field_path(path: &str, schema: &Value) -> Option<String> {
    let mut shown = String::new();
    let mut at = schema;
    let mut rest = path;
    while !rest.is_empty() {
        let name = if let Some(behind) = rest.strip_prefix('.') {
            let end = behind.find(['.', '[', ']']).unwrap_or(behind.len());
            rest = &behind[end..];
            behind[..end].to_owned()
        } else {
            let (name, behind) = quoted(rest.strip_prefix("['")?)?;
            rest = behind.strip_prefix(']')?;
            name
        };
        if name.is_empty() {
            return None;
        }
        if map(at, "properties").is_some() {
            at = map(at, "properties")?.get(&name)?;
            if !shown.is_empty() {
                shown.push('.');
            }
            shown.push_str(&name);
        } else {
            at = at.get("additionalProperties").filter(|a| a.is_object())?;
            shown.push_str(&format!("[{name}]"));
        }
    }
    Some(shown).filter(|s| !s.is_empty())
}

/// A text in single quotes, the first of which is gone, and what is behind it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut letters = text.char_indices();
    while let Some((i, c)) = letters.next() {
        match c {
            '\'' => return Some((out, &text[i + 1..])),
            '\\' => out.push(match letters.next()?.1 {
                'a' => '\u{7}',
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'v' => '\u{b}',
                c @ ('\'' | '\\') => c,
                _ => return None,
            }),
            c => out.push(c),
        }
    }
    None
}
