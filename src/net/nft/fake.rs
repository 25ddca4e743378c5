//! A data plane without a kernel: remembers the ruleset it was asked for.
//!
//! It plans and diffs like the real one, so a simulation also notices what those would do wrong.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;

use super::diff;
use super::plan::plan_with_skipped;
use super::ruleset::Ruleset;
use super::table::ServiceTable;
use crate::net::{Config, Dataplane, Error, Unpublished};

/// Rules in memory only.
#[derive(Debug)]
pub struct FakeDataplane {
    config: Config,
    state: Mutex<(ServiceTable, Ruleset, usize)>,
}

impl FakeDataplane {
    pub fn new(config: Config) -> Self {
        Self { config, state: Mutex::default() }
    }

    /// The table applied last, and how many applies changed something.
    pub fn applied(&self) -> (ServiceTable, usize) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.0.clone(), state.2)
    }
}

#[async_trait]
impl Dataplane for FakeDataplane {
    async fn apply(&self, table: &ServiceTable) -> Result<Vec<Unpublished>, Error> {
        let (ruleset, skipped) = plan_with_skipped(&self.config, table);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = usize::from(!diff(&state.1, &ruleset).is_empty());
        *state = (table.clone(), ruleset, state.2 + changed);
        Ok(skipped.host_ports)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_fake_passes_the_suite() {
        let fake = FakeDataplane::new(Config::new("/fake", vec!["10.42.0.0/24".parse().unwrap()]));
        super::super::suite::run(&fake).await;
        assert!(fake.applied().1 > 5);
    }
}
