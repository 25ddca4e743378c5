//! Events end an hour after they were last said.
//!
//! One key stands for all of them. It is due when the oldest ends, at most once a minute, and not at all while there are
//! no events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use jiff::Timestamp;

use super::{Context, absent_is_fine};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::Result;
use crate::base::clock::parse_time;
use crate::base::json::text;
use crate::base::object::Object;
use crate::kinds::core::event;
use crate::reconcile::{Changed, Controller, Key, Outcome, Reconciler};

/// The shortest time between two rounds.
const ROUND_MIN: Duration = Duration::from_secs(60);
/// Deletions that are under way at once.
const PARALLEL: usize = 64;

struct Events {
    cx: Arc<Context>,
    /// A round is due already, so that new events need not ask for one.
    armed: Arc<AtomicBool>,
}

/// The controller.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let armed = Arc::new(AtomicBool::new(false));
    let asks = armed.clone();
    let wake = move |c: &Changed| match !c.deleted && !asks.swap(true, Ordering::AcqRel) {
        true => vec![Key::new("", "all")],
        false => Vec::new(),
    };
    Controller::new("event-ttl", Arc::new(Events { cx: cx.clone(), armed }), cx.clock.clone())
        .watches(&*cx.client, &event::KIND, Box::new(wake))
        .workers(1)
}

#[async_trait]
impl Reconciler for Events {
    async fn reconcile(&self, _key: &Key) -> Result<Outcome> {
        // Whoever comes after this asks again.
        self.armed.store(false, Ordering::Release);
        let (now, ttl) = (self.cx.clock.now(), self.cx.options.event_ttl);
        let (mut next, mut over) = (None::<Timestamp>, Vec::new());
        for object in self.cx.client.informer(&event::KIND).list("") {
            let end = end(&object, now, ttl);
            if end <= now {
                over.push(object);
            } else {
                next = Some(next.map_or(end, |n| n.min(end)));
            }
        }
        let deletions = over.into_iter().map(|object| async move {
            let uid = Some(object.meta.uid.to_string());
            let options = DeleteOptions { uid, ..DeleteOptions::default() };
            let (namespace, name) = (&object.meta.namespace, &object.meta.name);
            absent_is_fine(self.cx.client.delete(&event::KIND, namespace, name, options).await)
        });
        let results: Vec<Result<()>> = futures::stream::iter(deletions).buffer_unordered(PARALLEL).collect().await;
        results.into_iter().filter(|r| r.as_ref().is_err_and(|e| e.code != 409)).collect::<Result<Vec<()>>>()?;
        let Some(next) = next else { return Ok(Outcome::Done) };
        self.armed.store(true, Ordering::Release);
        Ok(Outcome::At(next.max(now + ROUND_MIN)))
    }
}

/// When an event ends. Young ones are not decoded: they cannot end earlier than their creation tells.
fn end(object: &Object, now: Timestamp, ttl: Duration) -> Timestamp {
    let created = object.meta.created.unwrap_or(Timestamp::UNIX_EPOCH) + ttl;
    if created > now {
        return created;
    }
    let value = object.value();
    let said = ["lastTimestamp", "series.lastObservedTime"].iter().filter_map(|p| parse_time(text(&value, p)));
    said.map(|t| t + ttl).max().unwrap_or(created).max(created)
}
