//! What an evaluation may take, and how it fails.
//!
//! Cost is counted as Kubernetes counts it, so that the same expressions are stopped. It says little of memory and of some
//! functions' time: work and bytes are counted beside it, and stop an evaluation in the same words.

use std::borrow::Cow;
use std::sync::Arc;

/// Cost of one evaluation at most (`PerCallLimit`).
pub const CALL_COST_MAX: u64 = 1_000_000;
/// Bytes that one evaluation may make, those that it let go of counted.
const BYTES_MAX: u64 = 32 << 20;
/// Steps of some ten nanoseconds.
const WORK_MAX: u64 = 20_000_000;

/// Steps that a unit of cost stands for at most.
const STEPS_OF_COST: u64 = 4;

/// A value in a list.
const ITEM_BYTES: usize = 48;

const CANCELLED: &str = "operation cancelled: actual cost limit exceeded";
const NO_OVERLOAD: &str = "no such overload";

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// An error in the expression, which `||` and `&&` may pass over.
    Error(Arc<str>),
    /// It has cost too much.
    Cancelled,
}

/// What an evaluation has taken so far.
#[derive(Debug)]
pub struct Meter {
    cost: u64,
    cost_max: u64,
    work: u64,
    bytes: u64,
}

// === impl Failure ===

impl Failure {
    pub(super) fn error(message: impl Into<Cow<'static, str>>) -> Self {
        let message: Cow<'static, str> = message.into();
        Self::Error(message.as_ref().into())
    }

    pub(super) fn no_overload() -> Self {
        Self::error(NO_OVERLOAD)
    }

    /// Whether a function was called with what it does not take.
    pub fn is_no_overload(&self) -> bool {
        matches!(self, Self::Error(message) if message.starts_with(NO_OVERLOAD))
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Error(message) => f.write_str(message),
            Self::Cancelled => f.write_str(CANCELLED),
        }
    }
}

impl std::error::Error for Failure {}

// === impl Meter ===

impl Meter {
    /// For one evaluation that may cost so much.
    pub fn new(cost_max: u64) -> Self {
        Self { cost: 0, cost_max, work: 0, bytes: 0 }
    }

    /// What it has cost.
    pub fn cost(&self) -> u64 {
        self.cost
    }

    /// What is to be taken from a budget for many evaluations: its cost, or its steps where the cost says little of them.
    pub fn load(&self) -> u64 {
        self.cost.max(self.work / STEPS_OF_COST)
    }

    #[inline]
    pub(super) fn charge(&mut self, cost: u64) -> Result<(), Failure> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.cost_max { Err(Failure::Cancelled) } else { Ok(()) }
    }

    #[inline]
    pub(super) fn work(&mut self, steps: usize) -> Result<(), Failure> {
        self.work = self.work.saturating_add(steps as u64);
        if self.work > WORK_MAX { Err(Failure::Cancelled) } else { Ok(()) }
    }

    /// Before something of so many bytes is made.
    pub(super) fn make(&mut self, bytes: usize) -> Result<(), Failure> {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if self.bytes > BYTES_MAX { Err(Failure::Cancelled) } else { self.work(bytes / 64) }
    }

    /// Before a list of so many items is made.
    pub(super) fn make_items(&mut self, count: usize) -> Result<(), Failure> {
        self.make(count.saturating_mul(ITEM_BYTES))
    }
}
