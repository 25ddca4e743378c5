//! The Common Expression Language, as Kubernetes 1.37's API server has it: its dialect, its libraries, its costs and its words.
//!
//! A text is parsed ([`parser`]), macros become folds ([`macros`]), types are checked ([`check`]), what it can cost is estimated
//! ([`estimate`]), and what is left is evaluated ([`eval`]) under limits ([`meter`]). Places and messages of errors are those of
//! cel-go, which clients see.
//!
//! Expressions come from whoever may define a kind, and values from whoever may make an object: both are hostile. Expressions
//! are bounded in depth and nodes ([`expr`]), evaluation in cost, steps and bytes.

mod authorizer;
mod bindings;
mod charge;
mod check;
mod composed;
mod equal;
mod escape;
mod estimate;
mod eval;
mod expr;
mod format;
mod functions;
mod json;
mod lexer;
mod library;
mod library_cost;
mod literals;
mod macros;
mod meter;
mod nodes;
mod parser;
mod plan;
mod program;
mod range;
mod semver;
mod source;
mod time;
mod types;
mod unescape;
mod url;
mod value;

#[cfg(test)]
mod tests;

pub use authorizer::{About, Authorizer, Decision, Query, ResourceQuery};
pub use composed::{Composed, Compositions};
pub use escape::{escape, is_identifier};
pub use meter::{CALL_COST_MAX, Failure, Meter};
pub use program::{Env, Expression, Program};
pub use source::Issues;
pub use types::{Decl, DeclKind, Field, JSON_PATCH, OBJECT, ObjectType, Order, REQUEST_BYTES_MAX, Type};
pub use value::{Fields, Value};
