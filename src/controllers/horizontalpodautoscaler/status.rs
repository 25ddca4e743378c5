//! The status of an autoscaler in the making.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::base::clock::seconds_text;
use crate::base::json::{at, int, list, text};

/// What is going to be written.
pub(super) struct Draft {
    pub current: i32,
    pub desired: i32,
    pub metrics: Vec<Value>,
    /// Whether the target was scaled just now.
    pub is_scaled: bool,
    conditions: Vec<Value>,
    last_scale: Option<Value>,
    observed: Option<Value>,
    now: String,
}

// === impl Draft ===

impl Draft {
    /// What it says now.
    pub(super) fn of(hpa: &Value, now: Timestamp) -> Self {
        let count = |path: &str| int(hpa, path).and_then(|n| i32::try_from(n).ok()).unwrap_or(0);
        let kept = |path: &str| at(hpa, path).filter(|v| !v.is_null()).cloned();
        Self {
            current: count("status.currentReplicas"),
            desired: count("status.desiredReplicas"),
            metrics: list(hpa, "status.currentMetrics").to_vec(),
            is_scaled: false,
            conditions: list(hpa, "status.conditions").to_vec(),
            last_scale: kept("status.lastScaleTime"),
            observed: kept("status.observedGeneration"),
            now: seconds_text(now),
        }
    }

    /// Says whether something holds.
    pub(super) fn set(&mut self, of_type: &str, is: bool, reason: &str, message: &str) {
        let status = if is { "True" } else { "False" };
        let there = self.conditions.iter().position(|c| text(c, "type") == of_type);
        let same = there.map(|i| &self.conditions[i]).filter(|c| text(c, "status") == status);
        let since = same.map_or(self.now.as_str(), |c| text(c, "lastTransitionTime")).to_owned();
        let new = json!({
            "type": of_type, "status": status, "lastTransitionTime": since, "reason": reason, "message": message,
        });
        match there {
            Some(i) => self.conditions[i] = new,
            None => self.conditions.push(new),
        }
    }

    pub(super) fn into_status(self) -> Value {
        let mut status = Map::new();
        let last_scale = if self.is_scaled { Some(self.now.into()) } else { self.last_scale };
        status.extend(self.observed.map(|observed| ("observedGeneration".to_owned(), observed)));
        status.extend(last_scale.map(|time| ("lastScaleTime".to_owned(), time)));
        if self.current != 0 {
            status.insert("currentReplicas".into(), self.current.into());
        }
        status.insert("desiredReplicas".into(), self.desired.into());
        if !self.metrics.is_empty() {
            status.insert("currentMetrics".into(), self.metrics.into());
        }
        status.insert("conditions".into(), self.conditions.into());
        status.into()
    }
}
