//! Reads: one object, and lists with selectors, pages and revisions.

use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::{Deserialize, Serialize};

use super::cache;
use super::sending::{POOL_BYTES, no_room};
use super::{Api, Request};
use crate::apimachinery::status::{Result, Status};
use crate::base::labels::{FieldSelector, Selector};
use crate::base::object::Object;
use crate::base::task;
use crate::kinds::KindRef;
use crate::store::Page;

/// Comparisons of a list beyond which others would notice.
const LONG_COMPARISONS: usize = 100_000;

/// What is read of the past at once.
const HISTORY_COUNT: usize = 4096;
const HISTORY_BYTES: usize = 1 << 20;

/// Which objects of a collection are meant.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    pub labels: Selector,
    terms: Vec<Term>,
}

#[derive(Clone, Debug)]
struct Term {
    what: What,
    value: String,
    equal: bool,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Name,
    Namespace,
    /// An index into the kind's fields.
    Field(usize),
}

/// How a list is asked for.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// 0: no limit.
    pub limit: usize,
    pub continue_token: String,
    pub resource_version: String,
    pub version_match: String,
}

/// A list, or a page of one.
#[derive(Clone, Debug)]
pub struct List {
    pub items: Vec<Arc<Object>>,
    pub revision: u64,
    /// The token for the next page; empty at the end.
    pub continue_token: String,
    /// How many follow, where no selector hides it.
    pub remaining: Option<u64>,
    /// What of it nobody else has: the objects as they once were.
    pub own_bytes: usize,
}

#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    rv: i64,
    start: String,
}

// === impl Selection ===

impl Selection {
    /// Checks the selectors against what the kind can select.
    pub fn new(kind: &KindRef, labels: Selector, fields: &FieldSelector) -> Result<Self> {
        let mut terms = Vec::new();
        for t in fields.0.iter().filter(|t| !(t.field.is_empty() && t.value.is_empty())) {
            let what = match t.field.as_str() {
                "metadata.name" => What::Name,
                "metadata.namespace" if kind.namespaced() => What::Namespace,
                name => {
                    let unknown = || Status::bad_request(format!("field label not supported: {name}"));
                    What::Field(kind.field_index(name).ok_or_else(unknown)?)
                }
            };
            terms.push(Term { what, value: t.value.clone(), equal: t.equal });
        }
        Ok(Self { labels, terms })
    }

    /// Whether the object is meant.
    pub fn matches(&self, object: &Object) -> bool {
        self.labels.matches(&object.meta.labels) && self.terms.iter().all(|term| term.holds(object))
    }

    /// What of it can be said of an object in any version.
    fn of_names(&self) -> Self {
        let is_name = |term: &&Term| !matches!(term.what, What::Field(_));
        Self { labels: Selector::default(), terms: self.terms.iter().filter(is_name).cloned().collect() }
    }

    /// Whether an object may be meant, in some version.
    pub fn may_match(&self, object: &Object) -> bool {
        self.terms.iter().filter(|term| !matches!(term.what, What::Field(_))).all(|term| term.holds(object))
    }

    /// Whether everything is meant.
    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.terms.is_empty()
    }

    /// How many values each object is compared with, at most.
    fn terms(&self) -> usize {
        self.terms.len() + self.labels.0.iter().map(|r| r.values.len().max(1)).sum::<usize>()
    }

    /// The one name that can match, if a term fixes it.
    pub fn name(&self) -> Option<&str> {
        self.terms.iter().find(|t| t.equal && matches!(t.what, What::Name)).map(|t| t.value.as_str())
    }
}

// === impl Term ===

impl Term {
    fn holds(&self, object: &Object) -> bool {
        let value: &str = match self.what {
            What::Name => &object.meta.name,
            What::Namespace => &object.meta.namespace,
            What::Field(i) => object.fields.get(i).map_or("", |field| &**field),
        };
        (value == self.value) == self.equal
    }
}

// === impl Api ===

impl Api {
    /// The named object.
    pub fn get(&self, request: &Request) -> Result<Arc<Object>> {
        let object = self.cache.kind(&request.kind).get(&request.key());
        object.ok_or_else(|| Status::not_found(&request.kind, &request.name))
    }

    /// The objects of the collection that are meant.
    pub fn list(&self, request: &Request, selection: &Selection, options: &ListOptions) -> Result<List> {
        let prefix = request.prefix();
        let (mut at, mut after) = (self.list_revision(options)?, String::new());
        if !options.continue_token.is_empty() {
            if !options.resource_version.is_empty() && options.resource_version != "0" {
                return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
            }
            let token = decode_token(&options.continue_token)?;
            (at, after) = (token.rv.max(0) as u64, format!("{prefix}{}", token.start));
            // A negative revision asks for the rest as it is now.
            if token.rv < 0 {
                at = 0;
            }
        }
        let kind_cache = self.cache.kind(&request.kind);
        // What the store has forgotten is past, also where nothing has changed since: tokens end, as in Kubernetes.
        if at > 0 && (at < kind_cache.last() || at < self.store.oldest()) {
            // What is read takes memory that nobody has counted yet: one after the other.
            static TURN: Mutex<()> = Mutex::new(());
            return task::in_place(true, || {
                let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
                let list = self.past_list(&request.kind, selection, &prefix, (at, after.clone()), options.limit);
                list.map_err(|status| ended(status, after.get(prefix.len()..).unwrap_or_default()))
            });
        }
        let revision = if at == 0 { self.cache.head() } else { at };
        let all = kind_cache.list(&prefix, &after);
        let long = all.len().saturating_mul(selection.terms()) > LONG_COMPARISONS;
        Ok(task::in_place(long, || page(all, selection, options.limit, revision, &prefix)))
    }

    /// As [`Api::list`], with the objects in the form of the kind that is asked for. Where a webhook converts, it may also change
    /// what selectors are about.
    pub async fn list_presented(
        &self,
        request: &Request,
        selection: &Selection,
        options: &ListOptions,
    ) -> Result<List> {
        if !request.kind.is_converted_by_webhook() {
            return self.list(request, selection, options);
        }
        Box::pin(self.list_converted(request, selection, options.clone())).await
    }

    async fn list_converted(&self, request: &Request, selection: &Selection, mut options: ListOptions) -> Result<List> {
        let (kind, names, limit) = (&request.kind, selection.of_names(), options.limit);
        let (mut items, mut own_bytes) = (Vec::new(), 0);
        loop {
            let page = self.list(request, &names, &options)?;
            let is_converted: Vec<bool> = page.items.iter().map(|object| !kind.has_form_of(object)).collect();
            let presented = self.presented_all(kind, page.items).await?;
            for (object, is_converted) in presented.into_iter().zip(is_converted) {
                if selection.matches(&object) {
                    own_bytes += if is_converted { object.weight() } else { 0 };
                    items.push(object);
                }
            }
            own_bytes += page.own_bytes;
            if own_bytes > POOL_BYTES {
                let most = POOL_BYTES >> 20;
                let why =
                    format!("the list has more than {most} MiB of converted objects: ask for pages, with `limit`");
                return Err(Status::too_large(why));
            }
            if limit == 0 || page.continue_token.is_empty() || items.len() >= limit {
                let remaining = page.remaining.filter(|_| selection.is_everything());
                let (revision, continue_token) = (page.revision, page.continue_token);
                return Ok(List { items, revision, continue_token, remaining, own_bytes });
            }
            // What is not meant leaves room for more.
            let left = limit - items.len();
            options = ListOptions { limit: left, continue_token: page.continue_token, ..ListOptions::default() };
        }
    }

    /// What is meant of the collection as it was, decoded from the store's history, a little at a time.
    fn past_list(
        &self,
        kind: &KindRef,
        selection: &Selection,
        prefix: &str,
        (at, mut after): (u64, String),
        limit: usize,
    ) -> Result<List> {
        let mut list =
            List { items: Vec::new(), revision: at, continue_token: String::new(), remaining: None, own_bytes: 0 };
        loop {
            let page = self.history(prefix, at, &after)?;
            let mut rest = page.entries.into_iter();
            while let Some(entry) = rest.next() {
                after = (*entry.key).to_owned();
                let object = cache::decode(kind.stored(), entry.key, entry.value, entry.revision);
                let object = object.map_err(Status::internal)?;
                if !selection.matches(&object) {
                    continue;
                }
                list.own_bytes += object.weight();
                list.items.push(Arc::new(object));
                // There never is room for more.
                if list.own_bytes > POOL_BYTES {
                    return Err(no_room());
                }
                if limit > 0 && list.items.len() == limit {
                    let more = rest.len() as u64 + page.remaining;
                    if more > 0 {
                        list.continue_token = encode_token(at, after[prefix.len()..].to_owned());
                        list.remaining = selection.is_everything().then_some(more);
                    }
                    return Ok(list);
                }
            }
            if page.remaining == 0 {
                return Ok(list);
            }
        }
    }

    /// The next keys of the collection as they were.
    fn history(&self, prefix: &str, at: u64, after: &str) -> Result<Page> {
        self.store.range_within(prefix, at, after, HISTORY_COUNT, HISTORY_BYTES).map_err(|e| match e {
            crate::store::Error::Compacted { .. } => {
                Status::expired("The resourceVersion for the provided list is too old.")
            }
            other => other.into(),
        })
    }

    /// The exact revision that a list must show; 0 for the newest.
    fn list_revision(&self, options: &ListOptions) -> Result<u64> {
        let (version, how) = (options.resource_version.as_str(), options.version_match.as_str());
        let asked = parse_version(version)?;
        let head = self.cache.head();
        if asked > head {
            return Err(Status::too_large_revision(asked, head));
        }
        let exact = how == "Exact" || (how.is_empty() && options.limit > 0 && asked > 0);
        Ok(if exact { asked } else { 0 })
    }
}

fn page(all: Vec<Arc<Object>>, selection: &Selection, limit: usize, revision: u64, prefix: &str) -> List {
    let everything = selection.is_everything();
    let mut items: Vec<Arc<Object>> = Vec::new();
    let mut rest = all.into_iter();
    if limit == 0 {
        items = if everything { rest.collect() } else { rest.filter(|o| selection.matches(o)).collect() };
        return List { items, revision, continue_token: String::new(), remaining: None, own_bytes: 0 };
    }
    while items.len() < limit {
        match rest.next() {
            Some(o) if everything || selection.matches(&o) => items.push(o),
            Some(_) => {}
            None => return List { items, revision, continue_token: String::new(), remaining: None, own_bytes: 0 },
        }
    }
    // As in Kubernetes, another page is promised where objects remain, whether they match or not.
    let more = rest.len();
    if more == 0 {
        return List { items, revision, continue_token: String::new(), remaining: None, own_bytes: 0 };
    }
    let start = items.last().map(|o| o.key[prefix.len()..].to_owned()).unwrap_or_default();
    List {
        items,
        revision,
        continue_token: encode_token(revision, start),
        remaining: everything.then_some(more as u64),
        own_bytes: 0,
    }
}

fn encode_token(revision: u64, start: String) -> String {
    // The token names the first key of the next page; ours sorts right behind the last key of this one.
    encoded(revision as i64, format!("{start}\u{0}"))
}

fn encoded(rv: i64, start: String) -> String {
    BASE64.encode(serde_json::to_vec(&Token { v: "meta.k8s.io/v1".into(), rv, start }).expect("plain struct"))
}

/// A list whose past was forgotten between two of its pages may go on from `start` with what there is now.
fn ended(mut status: Status, start: &str) -> Status {
    if status.code == 410 && !start.is_empty() {
        status.message =
            "The provided continue parameter is too old to display a consistent list result. You can start \
                          a new list without the continue parameter, or use the continue token in this response to \
                          retrieve the remainder of the results. Continuing with the provided token results in an \
                          inconsistent list - objects that were created, modified, or deleted between the time the \
                          first chunk was returned and now may show up in the list."
                .to_owned();
        status.details.continue_token = encoded(-1, start.to_owned());
    }
    status
}

fn decode_token(text: &str) -> Result<Token> {
    let bad = || Status::bad_request("continue key is not valid");
    let token: Token =
        BASE64.decode(text.trim_end_matches('=')).ok().and_then(|b| serde_json::from_slice(&b).ok()).ok_or_else(bad)?;
    if token.v != "meta.k8s.io/v1" || token.rv == 0 || token.start.is_empty() || token.start.contains("..") {
        return Err(bad());
    }
    Ok(token)
}

/// A resource version parameter; empty and 0 are 0.
pub fn parse_version(text: &str) -> Result<u64> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| {
        Status::bad_request(format!("resourceVersion: Invalid value: {text:?}: must be an unsigned integer"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::in_memory;
    use crate::kinds::core::{configmap, namespace};

    fn all(limit: usize, continue_token: String) -> ListOptions {
        ListOptions { limit, continue_token, ..ListOptions::default() }
    }

    #[tokio::test]
    async fn a_list_whose_past_is_forgotten_says_with_what_it_goes_on() {
        let api = in_memory::api();
        let request = |kind: &KindRef, namespace: &str| Request::internal("test", kind, namespace, "");
        for name in ["n", "default"] {
            api.create(&request(&namespace::KIND, ""), json!({"metadata": {"name": name}})).await.unwrap();
        }
        let maps = request(&configmap::KIND, "n");
        for name in ["a", "b", "c", "d"] {
            api.create(&maps, json!({"metadata": {"name": name}})).await.unwrap();
        }
        let everything = Selection::new(&configmap::KIND, Selector::default(), &FieldSelector::default()).unwrap();
        let names = |list: &List| list.items.iter().map(|o| o.meta.name.to_string()).collect::<Vec<_>>();
        let first = api.list(&maps, &everything, &all(2, String::new())).unwrap();
        assert_eq!((names(&first), first.remaining), (vec!["a".to_owned(), "b".to_owned()], Some(2)));

        // Nothing has changed in the collection, and yet the revision is forgotten.
        api.create(&request(&configmap::KIND, "default"), json!({"metadata": {"name": "x"}})).await.unwrap();
        api.store.compact(api.store.head());
        let over = api.list(&maps, &everything, &all(1, first.continue_token.clone())).unwrap_err();
        assert_eq!((over.code, over.reason), (410, "Expired"));
        assert!(over.message.contains("use the continue token in this response"), "{}", over.message);
        let token = over.to_json()["metadata"]["continue"].as_str().unwrap().to_owned();
        let rest = api.list(&maps, &everything, &all(1, token)).unwrap();
        assert_eq!((names(&rest), rest.remaining), (vec!["c".to_owned()], Some(1)));
        assert!(rest.revision > first.revision);
        let last = api.list(&maps, &everything, &all(5, rest.continue_token)).unwrap();
        assert_eq!(names(&last), ["d"]);

        let exact = ListOptions { resource_version: first.revision.to_string(), ..all(1, String::new()) };
        let over = api.list(&maps, &everything, &exact).unwrap_err();
        assert_eq!((over.code, over.message.as_str()), (410, "The resourceVersion for the provided list is too old."));
    }
}
