//! From a routed request to the verb of the API that does it.

use std::sync::Arc;

use http::{HeaderMap, Response};
use serde_json::Value;

use super::context::RequestContext;
use super::list_options::ListParameters;
use super::lists::Written as WrittenList;
use super::negotiate::{self, MediaType, Offer};
use super::patch::{Patch, check_configuration, check_kept, no_force, unfit};
use super::route::{Resource, Route, Target};
use super::table::Include;
use super::{Body, access, answer, body_of, proxy, stream, watching};
use crate::api::admission::Review;
use crate::api::conversion::Conversions;
use crate::api::flowcontrol::Admission;
use crate::api::form::{self, Duplicates};
use crate::api::identity::attributes::Attributes;
use crate::api::read::{ListOptions, Selection};
use crate::api::sending::no_room;
use crate::api::subresource::{scale, token};
use crate::api::write::{Change, Written};
use crate::api::{Api, FieldValidation, Request};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::query::Query;
use crate::apimachinery::status::{Result, Status};
use crate::apimachinery::user::User;
use crate::base::budget::Budget;
use crate::base::json::text;
use crate::base::labels::{FieldSelector, Selector};
use crate::base::task;
use crate::kinds::{Creation, KindRef, Subresource, field, registry};
use crate::schema;

/// Field managers may be this long.
const MANAGER_BYTES: usize = 128;

/// Runs the verb of a routed request.
pub async fn respond(api: &Api, user: Arc<User>, route: Route, http: http::Request<Body>) -> Result<Response<Body>> {
    let Target::Resource(resource) = route.target else { return Err(Status::no_such_path()) };
    let kinds = api.kinds.snapshot();
    if !kinds.iter().any(|k| k.group() == resource.group) {
        return Ok(answer::unknown());
    }
    let Some(kind) = kinds.by_plural(&resource.group, &resource.version, &resource.plural) else {
        let is_ours = registry::builtin().iter().any(|k| k.group() == resource.group);
        return if is_ours { Err(Status::no_such_path()) } else { Ok(answer::unknown()) };
    };
    if kind.as_custom().is_some()
        && kind.namespaced() == resource.namespace.is_empty()
        && !(kind.namespaced() && matches!(route.verb, "list" | "watch"))
    {
        return Ok(answer::unknown());
    }
    if !kind.namespaced() && !resource.namespace.is_empty() && resource.plural != "namespaces" {
        return Err(Status::no_such_path());
    }
    let subresource = subresource(kind, &resource)?;
    // A path below `/watch` asks for another right than what it would do to the backend.
    let is_proxied = subresource == Some(Subresource::Proxy) && !resource.name.is_empty() && route.verb != "watch";
    if is_proxied && (!kind.namespaced() || !resource.namespace.is_empty()) {
        // The query is the backend's.
        let request = request(user, kind, &resource, subresource, route.verb, &Query::default(), http.headers())?;
        let context = RequestContext { api: api.clone(), request, query: Query::default(), headers: HeaderMap::new() };
        context.connect(&resource.rest).await?;
        return proxy::respond(context, &resource.rest, http).await;
    }
    let answered = match request(user, kind, &resource, subresource, route.verb, &route.query, http.headers()) {
        Ok(request) => {
            let context =
                RequestContext { api: api.clone(), request, query: route.query, headers: http.headers().clone() };
            routed(context, route.verb, http).await
        }
        Err(status) => Err(status),
    };
    match (kind.deprecation(), answered) {
        (None, answered) => answered,
        (Some(text), Ok(response)) => Ok(answer::warn(response, &[text.to_owned()])),
        (Some(text), Err(status)) => Err(status.warned(&[text.to_owned()])),
    }
}

async fn routed(context: RequestContext, verb: &'static str, http: http::Request<Body>) -> Result<Response<Body>> {
    let (kind, subresource) = (&context.request.kind, context.request.subresource);
    if kind.namespaced() && context.request.namespace.is_empty() && !matches!(verb, "list" | "watch") {
        let named = !context.request.name.is_empty();
        return Err(if named { Status::no_such_path() } else { Status::method_not_allowed() });
    }
    let created_by_name = verb == "create" && subresource.is_none() && !context.request.name.is_empty();
    if created_by_name
        || context.request.name.is_empty() && matches!(verb, "update" | "patch")
        || http.method() == http::Method::HEAD
        || verb == "watch" && http.method() != http::Method::GET
    {
        return Err(Status::method_not_allowed());
    }
    if matches!(verb, "update" | "patch") && kind.is_stored() {
        let stored = context.api.cache.kind(kind).get(&context.request.key());
        if let (Some(stored), Some(admission)) = (stored, http.extensions().get::<Arc<Admission>>()) {
            admission.will_change(stored.body().len());
        }
    }
    match (verb, subresource) {
        ("get" | "create", Some(Subresource::Log)) => stream::respond(context, http).await,
        ("get" | "create", Some(Subresource::Exec | Subresource::Attach | Subresource::PortForward)) => {
            // A websocket begins with a GET, which is `get`; what it does is no less than what a POST over SPDY does
            // (AuthorizePodWebsocketUpgradeCreatePermission, on since Kubernetes 1.35).
            access::require(&context.api, &context.request.user, &Attributes::of_request(&context.request, "create"))?;
            context.connect("").await?;
            stream::respond(context, http).await
        }
        (verb, Some(sub)) => {
            if !sub.verbs().contains(&verb) {
                let refused = Status::method_not_allowed();
                return Err(if kind.as_custom().is_some() { refused.about(kind, "") } else { refused });
            }
            context.on_subresource(verb, sub, http).await
        }
        (verb, None) => {
            if !kind.verbs().contains(&verb) {
                return Err(Status::method_not_allowed());
            }
            context.on_object(verb, http).await
        }
    }
}

fn subresource(kind: &KindRef, resource: &Resource) -> Result<Option<Subresource>> {
    if resource.subresource.is_empty() {
        return Ok(None);
    }
    let found = kind.subresources().iter().find(|s| s.name() == resource.subresource);
    // Kubernetes finds out about those of a custom kind only once it has found the kind.
    let is_custom = kind.as_custom().is_some();
    let absent = || if is_custom { Status::not_found(kind, &resource.name) } else { Status::no_such_path() };
    found.copied().map(Some).ok_or_else(absent)
}

fn request(
    user: Arc<User>,
    kind: &KindRef,
    resource: &Resource,
    subresource: Option<Subresource>,
    verb: &str,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Request> {
    let bad_option = |field: &str, value: &str, supported: &[&str]| bad_option(verb, field, value, supported);
    let dry_run = match query.all("dryRun") {
        [] => false,
        values if values.iter().all(|v| v == "All") => true,
        values => return Err(bad_option("dryRun", &values.join(","), &["All"])),
    };
    let validation = match query.get("fieldValidation") {
        "" | "Warn" => FieldValidation::Warn,
        "Ignore" => FieldValidation::Ignore,
        "Strict" => FieldValidation::Strict,
        other => return Err(bad_option("fieldValidation", other, &["", "Ignore", "Strict", "Warn"])),
    };
    let manager = query.get("fieldManager");
    if manager.len() > MANAGER_BYTES || manager.chars().any(char::is_control) {
        let mut status = bad_option("fieldManager", manager, &[]);
        status.details.causes[0].reason =
            if manager.len() > MANAGER_BYTES { "FieldValueTooLong" } else { "FieldValueInvalid" }.into();
        return Err(status);
    }
    Ok(Request {
        user,
        kind: kind.clone(),
        namespace: if kind.namespaced() { resource.namespace.clone() } else { String::new() },
        name: resource.name.clone(),
        subresource,
        dry_run,
        manager: if manager.is_empty() { agent(headers) } else { manager.to_owned() },
        validation,
        heavy: false,
        conversions: Conversions::default(),
    })
}

/// The manager that a user agent stands for: what is before the first slash.
fn agent(headers: &HeaderMap) -> String {
    let agent = headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("");
    let name = agent.split('/').next().unwrap_or("");
    name.chars().filter(|c| !c.is_control()).take(MANAGER_BYTES).collect()
}

fn bad_option(verb: &str, option: &str, value: &str, supported: &[&str]) -> Status {
    let kind = match verb {
        "update" => "UpdateOptions",
        "patch" => "PatchOptions",
        "delete" | "deletecollection" => "DeleteOptions",
        _ => "CreateOptions",
    };
    Status::invalid_options("meta.k8s.io", kind, "", &[field::not_supported(option, value, supported)])
}

// === impl RequestContext ===

impl RequestContext {
    pub(super) fn selection(&self) -> Result<Selection> {
        let bad = |e: crate::base::labels::SelectorError| Status::bad_request(e.to_string());
        let labels = Selector::parse(self.query.get("labelSelector")).map_err(bad)?;
        let mut fields = FieldSelector::parse(self.query.get("fieldSelector")).map_err(bad)?;
        if !self.request.name.is_empty() {
            let value = self.request.name.clone();
            fields.0.push(crate::base::labels::FieldTerm { field: "metadata.name".into(), value, equal: true });
        }
        Selection::new(&self.request.kind, labels, &fields)
    }

    /// The parameters of a list or watch that exclude one another.
    pub(super) fn list_parameters(&self, watch: bool) -> ListParameters<'_> {
        ListParameters {
            watch,
            resource_version: self.query.get("resourceVersion"),
            how: self.query.get("resourceVersionMatch"),
            continued: !self.query.get("continue").is_empty(),
            initial_events: self.query.has("sendInitialEvents"),
        }
    }

    fn form(&self) -> Result<MediaType> {
        negotiate::accept(&self.headers, Offer::Transformed)
    }

    /// The form of an answer that is no stored object, and so has neither rows nor metadata.
    fn plain_form(&self) -> Result<MediaType> {
        negotiate::accept(&self.headers, Offer::Plain)
    }

    fn include(&self) -> Result<Include> {
        Include::parse(self.query.get("includeObject"))
    }

    async fn written(&self, code: u16, written: Written, mut warnings: Vec<String>) -> Result<Response<Body>> {
        let object = self.api.presented(&self.request.kind, &written.object).await?;
        warnings.extend(written.warnings);
        let now = self.api.clock.now();
        let form = self.form()?;
        if self.request.dry_run && written.created && form.shape == negotiate::Shape::Object {
            // What is not stored has no version.
            let mut value = form::served(&self.request.kind, &object);
            crate::base::json::remove(&mut value, "metadata.resourceVersion");
            return Ok(answer::warn(answer::value(code, form, &value), &warnings));
        }
        let response = answer::object(code, form, &self.request.kind, &object, self.include()?, now)?;
        Ok(answer::warn(response, &warnings))
    }

    /// Lets admission look at what a stream, or a request through the proxy, is asked for.
    async fn connect(&self, path: &str) -> Result<()> {
        let request = &self.request;
        let Some((_, version, kind)) = request.subresource.and_then(|s| s.gvk(request.kind.kind())) else {
            return Ok(());
        };
        let mut options = serde_json::json!({"kind": kind, "apiVersion": version});
        match request.subresource {
            Some(Subresource::Proxy) => options["path"] = path.into(),
            Some(Subresource::PortForward) => {
                options["ports"] = self.query.all("ports").iter().filter_map(|p| p.parse::<i32>().ok()).collect();
            }
            _ => {
                for flag in ["stdin", "stdout", "stderr", "tty"].into_iter().filter(|flag| self.query.has(flag)) {
                    options[flag] = self.query.flag(flag).into();
                }
                options["container"] = self.query.get("container").into();
                options["command"] = self.query.all("command").into();
            }
        }
        let review = Review::connect(&self.api, request);
        review.mutate(&mut options).await?;
        review.validate(&options).await.map(drop)
    }

    async fn on_object(self, verb: &str, http: http::Request<Body>) -> Result<Response<Body>> {
        // What cannot be answered is refused before anything is done.
        let (form, kind) = (self.form()?, &self.request.kind);
        let admission = http.extensions().get::<Arc<Admission>>().cloned();
        match verb {
            "get" => {
                crate::api::read::parse_version(self.query.get("resourceVersion"))?;
                let object = self.api.get_presented(&self.request).await?;
                let held_bytes = answer::held_bytes(form, kind, &object);
                if let Some(admission) = admission.filter(|_| held_bytes > 0) {
                    admission.reserve_answer(held_bytes).await?;
                }
                answer::object(200, form, kind, &object, self.include()?, self.api.clock.now())
            }
            "list" => self.list(form, admission).await,
            "watch" => watching::respond(&self, form, http),
            "create" => self.create(http).await,
            "update" => self.update(http).await,
            "patch" => self.patch(http).await,
            "delete" => self.delete(http).await,
            "deletecollection" => self.delete_collection(http).await,
            _ => Err(Status::method_not_allowed()),
        }
    }

    async fn list(&self, form: MediaType, admission: Option<Arc<Admission>>) -> Result<Response<Body>> {
        let limit = self.query.int("limit")?.unwrap_or(0);
        let options = ListOptions {
            limit: usize::try_from(limit).unwrap_or(0),
            continue_token: self.query.get("continue").to_owned(),
            resource_version: self.query.get("resourceVersion").to_owned(),
            version_match: self.query.get("resourceVersionMatch").to_owned(),
        };
        self.query.int("timeoutSeconds")?;
        self.list_parameters(false).check()?;
        let (selection, kind) = (self.selection()?, &self.request.kind);
        let written = WrittenList { form, include: self.include()?, now: self.api.clock.now() };
        let mut list = self.api.list_presented(&self.request, &selection, &options).await?;
        let mut held_bytes = written.held_bytes(kind, &list);
        let Some(admission) = admission.filter(|_| held_bytes > 0) else {
            return written.answer(kind, list, held_bytes, None);
        };
        if !admission.try_reserve_answer(held_bytes) {
            // What waits holds nothing.
            drop(list);
            admission.reserve_answer(held_bytes).await?;
            list = self.api.list_presented(&self.request, &selection, &options).await?;
            held_bytes = written.held_bytes(kind, &list);
        }
        let room = admission.answer_room().filter(|room| room.bytes() >= held_bytes || room.resize(held_bytes, false));
        let room = room.ok_or_else(no_room)?;
        written.answer(kind, list, held_bytes, Some(room))
    }

    /// The request's body as an object of its kind, and what the client is warned of.
    async fn decoded(&mut self, http: http::Request<Body>) -> Result<(Value, Vec<String>)> {
        let encoding = negotiate::body_encoding(http.headers())?;
        let body = body_of(http).await?;
        let mut budget = Budget::new();
        let decoded = form::decode(&self.request, &self.request.kind, &body, encoding, &mut budget)?;
        self.request.heavy = budget.is_heavy();
        Ok(decoded)
    }

    async fn create(mut self, http: http::Request<Body>) -> Result<Response<Body>> {
        let (value, warnings) = self.decoded(http).await?;
        match self.request.kind.creation() {
            Creation::Binding => self.bind(value).await,
            Creation::Answered => {
                let form = self.plain_form()?;
                let answered = task::in_place(self.request.heavy, || self.api.review(&self.request, value))?;
                Ok(answer::warn(answer::value(201, form, &answered), &warnings))
            }
            Creation::Stored => {
                let written = self.api.create(&self.request, value).await.map_err(|s| s.warned(&warnings))?;
                self.written(201, written, warnings).await
            }
        }
    }

    async fn bind(&self, binding: Value) -> Result<Response<Body>> {
        let mut request = self.request.clone();
        if request.name.is_empty() {
            request.name = text(&binding, "metadata.name").to_owned();
        }
        self.api.bind(&request, &binding).await?;
        let done =
            serde_json::json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        Ok(answer::value(201, MediaType::default(), &done))
    }

    async fn update(mut self, http: http::Request<Body>) -> Result<Response<Body>> {
        let (value, warnings) = self.decoded(http).await?;
        let change = Change::Replace(value);
        let written = self.api.update(&self.request, change).await.map_err(|s| s.warned(&warnings))?;
        self.written(if written.created { 201 } else { 200 }, written, warnings).await
    }

    async fn patch(mut self, http: http::Request<Body>) -> Result<Response<Body>> {
        let mut budget = Budget::new();
        let (patch, duplicates) = Patch::read(&self, http, &mut budget).await?;
        self.request.heavy = budget.is_heavy();
        let mut warnings = Vec::new();
        let kind = self.request.kind.clone();
        let shape = kind.type_ref();
        let written = if let Patch::Apply { config, force } = &patch {
            let kind = &self.request.kind;
            check_configuration(config, &kind.api_version(), kind.kind())?;
            warnings = duplicates.clone().warnings(self.request.validation);
            // Each attempt begins with what reading the patch has left.
            let mut apply = |live: Option<&Value>| {
                let applied = self.applied(live, config, &shape, *force, &mut budget.clone())?;
                duplicates.refuse(self.request.validation).map(|()| applied)
            };
            self.api.update(&self.request, Change::Apply(&mut apply)).await?
        } else {
            let kind = &self.request.kind;
            if self.query.has("force") {
                return Err(no_force());
            }
            let mut change = |live: &Value| {
                let (mut new, mut budget) = (live.clone(), budget.clone());
                patch.apply(&mut new, &shape, &mut budget)?;
                let (version, name) = (text(&new, "apiVersion"), text(&new, "kind"));
                if kind.as_custom().is_some() {
                    let (version, name) = (version.to_owned(), name.to_owned());
                    warnings = form::check(self.request.validation, &mut new, &shape, duplicates.clone(), &mut budget)
                        .map_err(|s| if s.code == 413 { s } else { unfit(&s.message) })?;
                    check_kept(kind, &self.request.name, &version, &name)?;
                    return Ok(new);
                }
                if (!name.is_empty() && name != kind.kind()) || (!version.is_empty() && version != kind.api_version()) {
                    return Err(unfit("the patch names another kind"));
                }
                let checked = form::check(self.request.validation, &mut new, &shape, duplicates.clone(), &mut budget);
                warnings = checked.map_err(|s| if s.code == 413 { s } else { unfit(&s.message) })?;
                Ok(new)
            };
            let written = self.api.update(&self.request, Change::Patch(&mut change)).await;
            written.map_err(|s| s.warned(&warnings))?
        };
        self.written(if written.created { 201 } else { 200 }, written, warnings).await
    }

    /// Server-side apply of `config` to the live object.
    fn applied(
        &self,
        live: Option<&Value>,
        config: &Value,
        shape: &schema::TypeRef<'_>,
        force: bool,
        budget: &mut Budget,
    ) -> Result<Value> {
        crate::api::write::applied(&self.api, &self.request, live, config, shape, force, budget)
    }

    async fn options(&self, http: http::Request<Body>) -> Result<DeleteOptions> {
        let encoding = negotiate::body_encoding(http.headers())?;
        let body = body_of(http).await?;
        let mut value = serde_json::json!({});
        if !body.is_empty() {
            const SCHEMA: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
            let mut budget = Budget::new();
            let (given, _) = form::parse(&body, encoding, &mut budget)?;
            let named = text(&given, "kind");
            if !matches!(named, "" | "DeleteOptions") {
                return Err(Status::bad_request(format!(
                    "the object provided is unrecognized: {named:?} is not DeleteOptions"
                )));
            }
            value = given;
            form::check(FieldValidation::Ignore, &mut value, &definition(SCHEMA)?, Duplicates::none(), &mut budget)?;
        } else {
            if let Some(seconds) = self.query.int("gracePeriodSeconds")? {
                value["gracePeriodSeconds"] = seconds.into();
            }
            if self.query.has("propagationPolicy") {
                value["propagationPolicy"] = self.query.get("propagationPolicy").into();
            }
            if self.query.has("orphanDependents") {
                value["orphanDependents"] = self.query.flag("orphanDependents").into();
            }
        }
        let mut options = DeleteOptions::from_value(&value)?;
        options.dry_run |= self.request.dry_run;
        Ok(options)
    }

    async fn delete(self, http: http::Request<Body>) -> Result<Response<Body>> {
        let options = self.options(http).await?;
        let (kind, form) = (&self.request.kind, self.form()?);
        let mut warnings = deletion_warnings(kind, &options);
        self.api.check_presentable(&self.request).await?;
        let mut deleted = self.api.delete(&self.request, &options).await.map_err(|s| s.warned(&warnings))?;
        warnings.append(&mut deleted.warnings);
        let response = if !deleted.gone || kind.delete_answers_object() {
            let object = self.api.presented(kind, &deleted.object).await?;
            answer::object(200, form, kind, &object, self.include()?, self.api.clock.now())?
        } else {
            answer::value(200, form, &Status::deleted(kind, &self.request.name, &deleted.object.meta.uid))
        };
        Ok(answer::warn(response, &warnings))
    }

    async fn delete_collection(self, http: http::Request<Body>) -> Result<Response<Body>> {
        let options = self.options(http).await?;
        let (selection, form) = (self.selection()?, self.form()?);
        let limit = self.query.int("limit")?.and_then(|l| usize::try_from(l).ok()).unwrap_or(0);
        self.list_parameters(false).check()?;
        let page = ListOptions {
            limit,
            continue_token: self.query.get("continue").to_owned(),
            resource_version: self.query.get("resourceVersion").to_owned(),
            version_match: self.query.get("resourceVersionMatch").to_owned(),
        };
        let mut list = self.api.list_presented(&self.request, &selection, &page).await?;
        let warnings = deletion_warnings(&self.request.kind, &options);
        let deleted = self.api.delete_collection(&self.request, list.items, &options).await;
        list.items = deleted.map_err(|s| s.warned(&warnings))?;
        list.revision = self.api.cache.head();
        // Nobody else has them any more.
        list.own_bytes = list.items.iter().map(|object| object.weight()).sum();
        let written = WrittenList { form, include: self.include()?, now: self.api.clock.now() };
        let held_bytes = written.held_bytes(&self.request.kind, &list);
        Ok(answer::warn(written.answer(&self.request.kind, list, held_bytes, None)?, &warnings))
    }

    async fn on_subresource(self, verb: &str, sub: Subresource, http: http::Request<Body>) -> Result<Response<Body>> {
        match (sub, verb) {
            (Subresource::Scale, _) => self.scale(verb, http).await,
            (Subresource::Binding | Subresource::Eviction | Subresource::Token, _) => {
                let (name, version, kind) = match sub {
                    Subresource::Token => (token::SCHEMA, "authentication.k8s.io/v1", "TokenRequest"),
                    Subresource::Eviction => ("io.k8s.api.policy.v1.Eviction", "policy/v1", "Eviction"),
                    _ => ("io.k8s.api.core.v1.Binding", "v1", "Binding"),
                };
                let encoding = negotiate::body_encoding(http.headers())?;
                let body = body_of(http).await?;
                // An Eviction of the older version looks the same.
                let mut budget = Budget::new();
                let (mut value, _) = form::parse(&body, encoding, &mut budget)?;
                if value["apiVersion"] == "policy/v1beta1" && sub == Subresource::Eviction {
                    value["apiVersion"] = version.into();
                }
                let (shape, once) = (definition(name)?, Duplicates::none());
                let (value, _) = form::shaped(&self.request, &shape, version, kind, value, once, &mut budget)?;
                let form = self.plain_form()?;
                match sub {
                    Subresource::Binding => self.bind(value).await,
                    Subresource::Eviction => {
                        Ok(answer::value(201, form, &self.api.evict(&self.request, &value).await?))
                    }
                    _ => Ok(answer::value(201, form, &self.api.request_token(&self.request, value).await?)),
                }
            }
            (_, "get") => {
                let object = self.api.get_presented(&self.request).await?;
                answer::object(200, self.form()?, &self.request.kind, &object, self.include()?, self.api.clock.now())
            }
            (_, "update") => self.update(http).await,
            (_, "patch") => self.patch(http).await,
            _ => Err(Status::method_not_allowed()),
        }
    }

    async fn scale(self, verb: &str, http: http::Request<Body>) -> Result<Response<Body>> {
        let (kind, form) = (&self.request.kind, self.form()?);
        if verb == "get" {
            let object = self.api.get_presented(&self.request).await?;
            let scale = scale::of(kind, &object)?;
            if form.shape == negotiate::Shape::Table {
                return Ok(answer::value(200, form, &super::table::of_scale(&scale, self.api.clock.now())));
            }
            return Ok(answer::value(200, form, &scale));
        }
        let shape = definition(scale::SCHEMA)?;
        let written = if verb == "patch" {
            let mut budget = Budget::new();
            let (patch, _) = Patch::read(&self, http, &mut budget).await?;
            if let Patch::Apply { config, .. } = &patch {
                check_configuration(config, "autoscaling/v1", "Scale")?;
            }
            let mut change = |live: &Value| {
                if let Patch::Apply { config, force } = &patch {
                    return self.api.apply_scale(&self.request, live, config, &shape, *force);
                }
                let (mut new, mut budget) = (live.clone(), budget.clone());
                patch.apply(&mut new, &shape, &mut budget)?;
                form::check(self.request.validation, &mut new, &shape, Duplicates::none(), &mut budget)
                    .map_err(|s| if s.code == 413 { s } else { unfit(&s.message) })?;
                Ok(new)
            };
            let applied = matches!(patch, Patch::Apply { .. });
            self.api.rescale(&self.request, applied, &mut change).await?
        } else {
            let encoding = negotiate::body_encoding(http.headers())?;
            let body = body_of(http).await?;
            let (value, _) =
                form::decode_as(&self.request, &shape, "autoscaling/v1", "Scale", &body, encoding, &mut Budget::new())?;
            let name = text(&value, "metadata.name");
            if !name.is_empty() && name != self.request.name {
                return Err(Status::bad_request(format!(
                    "the name of the object ({name}) does not match the name on the URL ({})",
                    self.request.name
                )));
            }
            self.api.rescale(&self.request, false, &mut |_| Ok(value.clone())).await?
        };
        let object = self.api.presented(kind, &written.object).await?;
        Ok(answer::value(200, form, &scale::of(kind, &object)?))
    }
}

/// What a client is told that does not say what becomes of dependents.
fn deletion_warnings(kind: &KindRef, options: &DeleteOptions) -> Vec<String> {
    let told = kind.deletion_warning().filter(|_| options.propagation.is_none());
    told.into_iter().map(str::to_owned).collect()
}

/// What is no kind of its own.
fn definition(name: &str) -> Result<schema::TypeRef<'static>> {
    schema::type_of(name).ok_or_else(|| Status::internal(format!("no schema for {name}")))
}
