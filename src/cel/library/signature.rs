//! What every function is.

use super::super::meter::{Failure, Meter};
use super::super::value::Value;

/// What a call gives.
pub(in super::super) type Outcome<'a> = Result<Value<'a>, Failure>;

/// Does what a function does.
pub(in super::super) type Run = for<'a> fn(&mut Meter, &[Value<'a>]) -> Outcome<'a>;
