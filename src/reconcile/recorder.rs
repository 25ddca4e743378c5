//! Events: what parts of the cluster tell people about an object.
//!
//! Recording never waits and never fails: a bounded queue is written by one task; what does not fit is dropped. The same
//! thing said again only counts up.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::{Client, Patch};
use crate::base::clock::Clock;
use crate::base::object::Object;
use crate::base::task;
use crate::kinds::KindRef;
use crate::kinds::core::event;

/// Events that may wait to be written.
const QUEUE: usize = 512;
/// Different things said that are remembered for counting.
const REMEMBERED: usize = 1024;
/// Names are no longer.
const NAME_BYTES_MAX: usize = 253;
/// Times in a name that are tried.
const NAMES_TRIED: usize = 8;
/// Messages are cut at this length, as the API would refuse longer ones.
const MESSAGE_BYTES: usize = 1024;

/// Whether it is good news.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

/// Records events of one component; cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder {
    send: mpsc::Sender<Entry>,
}

#[derive(Debug)]
enum Entry {
    Said(Said),
    /// Whoever waits until what came before is written.
    Waiting(oneshot::Sender<()>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Said {
    kind: String,
    api_version: String,
    namespace: String,
    name: String,
    uid: String,
    /// `spec.containers{name}` where it is about a part.
    field_path: String,
    event_type: EventType,
    reason: String,
    message: String,
}

struct Writer {
    client: Arc<dyn Client>,
    clock: Clock,
    component: String,
    host: String,
    /// What was said, under which event name, and how often.
    known: HashMap<Said, (String, u64)>,
    order: VecDeque<Said>,
    /// The last time that went into a name.
    named_at: i128,
}

// === impl Recorder ===

impl Recorder {
    /// A recorder for `component` on `host` (empty where it runs on no node). Must be called inside a runtime.
    pub fn new(client: Arc<dyn Client>, clock: Clock, component: &str, host: &str) -> Self {
        let (send, mut queue) = mpsc::channel(QUEUE);
        let mut writer = Writer {
            client,
            clock,
            component: component.into(),
            host: host.into(),
            known: HashMap::new(),
            order: VecDeque::new(),
            named_at: 0,
        };
        task::spawn("events", async move {
            while let Some(entry) = queue.recv().await {
                match entry {
                    Entry::Said(said) => writer.write(said).await,
                    Entry::Waiting(told) => drop(told.send(())),
                }
            }
        });
        Self { send }
    }

    /// Says something about an object.
    pub fn event(&self, kind: &KindRef, about: &Object, event_type: EventType, reason: &str, message: &str) {
        self.event_at(kind, about, "", event_type, reason, message);
    }

    /// Says something about a part of an object, such as `spec.containers{web}`.
    pub fn event_at(
        &self,
        kind: &KindRef,
        about: &Object,
        field_path: &str,
        event_type: EventType,
        reason: &str,
        message: &str,
    ) {
        let said = Said {
            kind: kind.kind().to_owned(),
            api_version: kind.api_version(),
            namespace: about.meta.namespace.to_string(),
            name: about.meta.name.to_string(),
            uid: about.meta.uid.to_string(),
            field_path: field_path.into(),
            event_type,
            reason: reason.into(),
            message: cut(message),
        };
        if self.send.try_send(Entry::Said(said)).is_err() {
            tracing::debug!(reason, "an event was dropped: too many at once");
        }
    }

    /// Waits until everything that was said is written or given up: for a process that is about to end.
    pub async fn written(&self) {
        let (told, waiting) = oneshot::channel();
        if self.send.send(Entry::Waiting(told)).await.is_ok() {
            let _ = waiting.await;
        }
    }
}

fn cut(message: &str) -> String {
    let mut end = message.len().min(MESSAGE_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_owned()
}

// === impl Writer ===

impl Writer {
    async fn write(&mut self, said: Said) {
        let namespace = if said.namespace.is_empty() { "default" } else { &said.namespace }.to_owned();
        if let Some((name, count)) = self.known.get_mut(&said) {
            *count += 1;
            let patch = json!({"count": *count, "lastTimestamp": self.clock.now_text()});
            let (name, client) = (name.clone(), self.client.clone());
            if client.patch(&event::KIND, &namespace, &name, None, Patch::Merge(patch)).await.is_ok() {
                return;
            }
            // It has expired or was deleted: said anew.
            self.known.remove(&said);
        }
        for _ in 0..NAMES_TRIED {
            let name = self.next_name(&said.name);
            match self.client.create(&event::KIND, &namespace, self.object(&said, &namespace, &name)).await {
                Ok(_) => return self.remember(said, name),
                // Somebody else has said something of the same object in the same nanosecond.
                Err(status) if status.reason == "AlreadyExists" => {}
                Err(error) => return tracing::debug!(%error, "an event was not written"),
            }
        }
    }

    /// The object's name and the time in nanoseconds, as in Kubernetes, so that events sort by name as they came; an id of
    /// its own where that would be no name.
    fn next_name(&mut self, about: &str) -> String {
        self.named_at = self.clock.now().as_nanosecond().max(self.named_at + 1);
        let name = format!("{about}.{:x}", self.named_at);
        if name.len() > NAME_BYTES_MAX { self.clock.uuid() } else { name }
    }

    fn object(&self, said: &Said, namespace: &str, name: &str) -> Value {
        let now = self.clock.now_text();
        let mut about = json!({"kind": said.kind, "apiVersion": said.api_version, "name": said.name, "uid": said.uid});
        if !said.namespace.is_empty() {
            about["namespace"] = said.namespace.as_str().into();
        }
        if !said.field_path.is_empty() {
            about["fieldPath"] = said.field_path.as_str().into();
        }
        let mut source = json!({"component": self.component});
        if !self.host.is_empty() {
            source["host"] = self.host.as_str().into();
        }
        json!({
            "metadata": {"name": name, "namespace": namespace}, "involvedObject": about, "source": source,
            "type": match said.event_type { EventType::Normal => "Normal", EventType::Warning => "Warning" },
            "reason": said.reason, "message": said.message, "count": 1, "firstTimestamp": now, "lastTimestamp": now,
            "reportingComponent": self.component, "reportingInstance": self.host,
        })
    }

    fn remember(&mut self, said: Said, name: String) {
        self.known.insert(said.clone(), (name, 1));
        self.order.push_back(said);
        while self.order.len() > REMEMBERED {
            if let Some(old) = self.order.pop_front() {
                self.known.remove(&old);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::api::in_memory;
    use crate::kinds::core::{configmap, namespace};

    #[tokio::test(start_paused = true)]
    async fn events_are_named_after_their_object_and_the_time_so_that_they_sort() {
        let client = in_memory::client();
        client.create(&namespace::KIND, "", json!({"metadata": {"name": "n"}})).await.unwrap();
        let clock = Clock::system();
        // Two parts of one process, which may speak of one object at the same time.
        let recorders = ["a", "b"].map(|c| Recorder::new(client.clone(), clock.clone(), c, ""));
        let long = "x".repeat(253);
        for name in ["m", long.as_str()] {
            let about = client.create(&configmap::KIND, "n", json!({"metadata": {"name": name}})).await.unwrap();
            for i in 0..20 {
                let recorder = &recorders[i % 2];
                recorder.event(&configmap::KIND, &about, EventType::Normal, &format!("R{i}"), "m");
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let all = client.informer(&event::KIND).list("n");
        assert_eq!(all.len(), 40, "none is lost");
        let mut stamps = Vec::new();
        for e in all.iter().filter(|e| e.value()["involvedObject"]["name"] == "m") {
            let stamp = i128::from_str_radix(e.meta.name.strip_prefix("m.").unwrap(), 16).unwrap();
            assert!((clock.now().as_nanosecond() - stamp).abs() < 3_600_000_000_000, "nanoseconds since 1970");
            if e.value()["source"]["component"] == "a" {
                let reason = e.value()["reason"].as_str().unwrap()[1..].parse::<u32>().unwrap();
                stamps.push((stamp, reason));
            }
        }
        let mut sorted = stamps.clone();
        sorted.sort_by_key(|(stamp, _)| *stamp);
        assert!(stamps.len() == 10 && sorted.is_sorted_by_key(|(_, reason)| *reason), "{sorted:?}");
    }
}
