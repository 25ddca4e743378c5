//! Custom objects as of another version of their kind, where a webhook of the definition converts them.
//!
//! Objects stay in the version in which they were written. What is stored is read without asking anybody; between what was
//! read and what a client is shown of it stands [`Api::presented`], which does nothing for all kinds but those. Invariant:
//! nothing is held while a webhook is asked that anybody else may want, and what is asked and answered at once is bounded
//! for each definition ([`TURNS`], [`CHUNK_BYTES`], [`answer_bytes`]).

mod memo;
mod review;

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::timeout;

pub use self::memo::Conversions;
use self::review::Question;
use super::webhook::{self, ClientConfiguration, Limits};
use super::{Api, FieldValidation, Request, form};
use crate::apimachinery::status::{Result, Status};
use crate::base::budget::Budget;
use crate::base::json::{remove, text};
use crate::base::object::{Draft, Object};
use crate::base::task;
use crate::kinds::KindRef;
use crate::kinds::apiextensions::customresourcedefinition as crd;

/// How long a webhook has for one question, with the time for which it waits for its turn.
const QUESTION_SECONDS: u64 = 30;
/// How long the conversions of one request may take in all.
const REQUEST_TIME: Duration = Duration::from_secs(60);
/// Questions to one webhook that are under way at once.
const TURNS: usize = 8;
/// What is asked about at once: so many objects, and no more once they have so many bytes.
const CHUNK_COUNT: usize = 250;
const CHUNK_BYTES: usize = 256 << 10;
/// The longest answer, and how much of it has nothing to do with what was asked.
const ANSWER_BYTES_MAX: usize = 8 << 20;
const ANSWER_BYTES_FREE: usize = 512 << 10;

/// What a definition says of conversion.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Definition {
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    conversion: Conversion,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Conversion {
    webhook: Option<Webhook>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Webhook {
    client_config: ClientConfiguration,
    conversion_review_versions: Vec<String>,
    #[serde(skip)]
    turns: Turns,
}

#[derive(Debug)]
struct Turns(Semaphore);

impl Default for Turns {
    fn default() -> Self {
        Self(Semaphore::new(TURNS))
    }
}

// === impl Api ===

impl Api {
    /// An object in the form of the kind that is asked for.
    pub async fn presented(&self, kind: &KindRef, object: &Arc<Object>) -> Result<Arc<Object>> {
        if kind.is_kept() && !kind.has_form_of(object) {
            // Somebody has written it in another version meanwhile.
            return Err(Status::modified(kind, &object.meta.name));
        }
        if is_presentable(kind, object) {
            return Ok(object.clone());
        }
        let mut converted = Box::pin(self.presented_all(kind, vec![object.clone()])).await?;
        converted.pop().ok_or_else(|| Status::internal("nothing was converted"))
    }

    /// The named object, in the form of the kind that is asked for.
    pub async fn get_presented(&self, request: &Request) -> Result<Arc<Object>> {
        self.presented(&request.kind, &self.get(request)?).await
    }

    /// Refuses to go on where the named object could not be shown afterwards.
    pub async fn check_presentable(&self, request: &Request) -> Result<()> {
        if !request.kind.is_converted_by_webhook() {
            return Ok(());
        }
        self.get_presented(request).await.map(drop)
    }

    /// Objects in the form of the kind that is asked for, in their order.
    pub async fn presented_all(&self, kind: &KindRef, mut objects: Vec<Arc<Object>>) -> Result<Vec<Arc<Object>>> {
        let foreign: Vec<usize> = (0..objects.len()).filter(|i| !is_presentable(kind, &objects[*i])).collect();
        if foreign.is_empty() {
            return Ok(objects);
        }
        let converting = async {
            for chunk in chunks(&foreign, &objects) {
                let values: Result<Vec<Value>> = chunk.iter().map(|i| own(kind, &objects[*i])).collect();
                for (i, value) in chunk.iter().zip(self.convert(kind, values?).await?) {
                    let before = &objects[*i];
                    let draft = Draft::new(before.key.clone(), &value, kind.field_values(&value));
                    objects[*i] = Arc::new(draft.at(before.revision));
                }
            }
            Ok(())
        };
        timeout(REQUEST_TIME, converting).await.unwrap_or_else(|_| Err(late(kind)))?;
        Ok(objects)
    }

    /// An object of the request's kind in the form that is stored.
    pub(super) async fn converted_to_stored(&self, kind: &KindRef, value: &Value) -> Result<Value> {
        let mut value = value.clone();
        // It will have another one.
        remove(&mut value, "metadata.resourceVersion");
        self.converted(kind.stored(), value).await
    }

    /// An object as of another version of its kind.
    pub(super) async fn converted(&self, to: &KindRef, value: Value) -> Result<Value> {
        if text(&value, "apiVersion") == to.api_version() {
            return pruned(to, value);
        }
        let mut converted = self.convert(to, vec![value]).await?;
        converted.pop().ok_or_else(|| Status::internal("nothing was converted"))
    }

    /// Asks for what a computation of a request has missed; false where that was nothing.
    pub(super) async fn learn(&self, request: &Request) -> Result<bool> {
        let missing = request.conversions.take_missing();
        if missing.is_empty() {
            return Ok(false);
        }
        Box::pin(self.learn_all(request, missing)).await.map(|()| true)
    }

    async fn learn_all(&self, request: &Request, mut missing: Vec<(Value, KindRef)>) -> Result<()> {
        while let Some((_, to)) = missing.last().cloned() {
            let (here, others): (Vec<_>, Vec<_>) = missing.into_iter().partition(|(_, other)| *other == to);
            missing = others;
            let objects: Vec<Value> = here.into_iter().map(|(object, _)| object).collect();
            for (object, converted) in objects.iter().zip(self.convert(&to, objects.clone()).await?) {
                request.conversions.keep(object, &to, converted).map_err(Status::exceeded)?;
            }
        }
        Ok(())
    }

    /// Asks for objects as of another version, of which none is.
    async fn convert(&self, to: &KindRef, values: Vec<Value>) -> Result<Vec<Value>> {
        let name = format!("{}.{}", to.plural(), to.group());
        let definition = self.cache.kind(&crd::KIND).get(&crd::KIND.key("", &name));
        let definition = definition.ok_or_else(|| Status::not_found(&crd::KIND, &name))?;
        let definition = definition.typed::<Definition>().map_err(Status::internal)?;
        let webhook = definition.spec.conversion.webhook.as_ref();
        let webhook = webhook.ok_or_else(|| failure(format!("{name} names no conversion webhook")))?;
        let converted = webhook.convert(self, to, &values).await.map_err(failure)?;
        converted.into_iter().map(|value| pruned(to, value)).collect()
    }
}

// === impl Webhook ===

impl Webhook {
    async fn convert(&self, api: &Api, to: &KindRef, values: &[Value]) -> Result<Vec<Value>, String> {
        let question = Question::new(api.clock.uuid(), &self.conversion_review_versions, to, values)?;
        let body = question.body();
        let limits = Limits { seconds: QUESTION_SECONDS, answer_bytes: answer_bytes(&body) };
        let asking = async {
            let _turn = self.turns.0.acquire().await.map_err(|error| error.to_string())?;
            webhook::ask(api, &self.client_config, &body, limits).await
        };
        let answer = timeout(Duration::from_secs(QUESTION_SECONDS), asking).await;
        let answer = answer.unwrap_or_else(|_| Err(self.client_config.late(limits)));
        let answer = answer.map_err(|why| format!("conversion webhook for {} failed: {why}", question.subject()))?;
        task::in_place(values.len() > 1, || question.read(answer))
    }
}

/// Whether an object can be shown as of a kind as it is, or be made so by the server itself.
fn is_presentable(kind: &KindRef, object: &Object) -> bool {
    !kind.is_converted_by_webhook() || kind.has_form_of(object)
}

/// An object as it was written, as far as its definition still has that version.
fn own(kind: &KindRef, object: &Object) -> Result<Value> {
    let written = kind.version_of(object);
    if kind.in_version(written).is_none() {
        let why = format!("request to convert CR from an invalid group/version: {}/{written}", kind.group());
        return Err(failure(why));
    }
    Ok(form::own(kind, object).1)
}

/// What a webhook has made of an object, as far as its definition describes it.
fn pruned(kind: &KindRef, mut value: Value) -> Result<Value> {
    let checked = form::check(
        FieldValidation::Ignore,
        &mut value,
        &kind.type_ref(),
        form::Duplicates::none(),
        &mut Budget::new(),
    );
    checked.map_err(|status| failure(status.message))?;
    Ok(value)
}

/// Indexes in groups that are asked about at once.
fn chunks(indexes: &[usize], objects: &[Arc<Object>]) -> Vec<Vec<usize>> {
    let (mut all, mut bytes) = (Vec::<Vec<usize>>::new(), 0);
    for i in indexes {
        let of_object = objects[*i].body().len();
        match all.last_mut().filter(|last| last.len() < CHUNK_COUNT && bytes + of_object <= CHUNK_BYTES) {
            Some(last) => last.push(*i),
            None => {
                all.push(vec![*i]);
                bytes = 0;
            }
        }
        bytes += of_object;
    }
    all
}

/// How long the answer to a question may be.
fn answer_bytes(question: &Value) -> usize {
    let asked = crate::base::budget::size_of(question).json;
    (ANSWER_BYTES_FREE + 4 * asked).min(ANSWER_BYTES_MAX)
}

/// As Kubernetes tells of what is no refusal: without a reason.
fn failure(why: String) -> Status {
    Status::new(500, "", why)
}

fn late(kind: &KindRef) -> Status {
    let (version, kind) = (kind.api_version(), kind.list_kind());
    failure(format!("conversion webhook for {version}, Kind={kind} failed: context deadline exceeded"))
}
