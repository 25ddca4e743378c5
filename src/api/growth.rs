//! How the work for a request grows with what can stand in it many times: eight times as much of it takes about eight times
//! the steps. Steps are what budgets and look-ups in objects count, so nothing here depends on the machine.

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::api::form::{self, Encoding};
    use crate::api::in_memory;
    use crate::api::read::{ListOptions, Selection};
    use crate::api::write::Change;
    use crate::api::{Api, FieldValidation, Request};
    use crate::apimachinery::user::User;
    use crate::base::budget::{Budget, steps_so_far};
    use crate::base::labels::{FieldSelector, Selector};
    use crate::kinds::{KindRef, Subresource, core, discovery, rbac};
    use crate::schema;

    const FEW: usize = 100;
    const MANY: usize = 8 * FEW;
    /// For an eightfold input, sorting included.
    const RATIO_MAX: f64 = 10.0;

    fn items(n: usize, item: impl Fn(usize) -> Value) -> Value {
        (0..n).map(item).collect()
    }

    fn members(n: usize, value: impl Fn(usize) -> Value) -> Value {
        Value::Object((0..n).map(|i| (format!("k{i}"), value(i))).collect())
    }

    fn request(kind: &KindRef, name: &str) -> Request {
        let namespace = if kind.namespaced() { "default" } else { "" };
        let mut request = Request::internal("growth", kind, namespace, name);
        request.validation = FieldValidation::Warn;
        request
    }

    async fn cluster() -> Api {
        let api = in_memory::api();
        let named = |name: &str| json!({"metadata": {"name": name}});
        api.create(&request(&core::namespace::KIND, ""), named("default")).await.unwrap();
        api.create(&request(&core::serviceaccount::KIND, ""), named("default")).await.unwrap();
        api
    }

    /// Sends a body that creates; what is answered does not matter here.
    async fn post(api: &Api, kind: &KindRef, body: &str, encoding: Encoding) {
        let request = request(kind, "");
        if let Ok((value, _)) = form::decode(&request, kind, body.as_bytes(), encoding, &mut Budget::new()) {
            let _ = api.create(&request, value).await;
        }
    }

    async fn put(api: &Api, kind: &KindRef, name: &str, subresource: Option<Subresource>, object: &Value) {
        let mut request = request(kind, name);
        request.subresource = subresource;
        let body = object.to_string();
        if let Ok((value, _)) = form::decode(&request, kind, body.as_bytes(), Encoding::Json, &mut Budget::new()) {
            let _ = api.update(&request, Change::Replace(value)).await;
        }
    }

    enum Patch {
        Json,
        Merge,
        Strategic,
        Apply,
    }

    async fn patch(api: &Api, kind: &KindRef, how: Patch, patch: &Value) {
        let shape = kind.type_ref();
        let mut request = request(kind, "x");
        request.manager = "patcher".into();
        let mut budget = Budget::new();
        let mut change = |live: &Value| {
            let mut new = live.clone();
            let done = match how {
                Patch::Json => schema::patch::json::apply(&mut new, patch, &mut budget),
                Patch::Merge => schema::patch::merge::apply(&mut new, patch, &mut budget),
                Patch::Strategic | Patch::Apply => {
                    schema::patch::strategic::apply(&mut new, patch, &shape, &mut budget)
                }
            };
            done.map_err(|e| crate::apimachinery::status::Status::bad_request(e.to_string()))?;
            form::check(FieldValidation::Warn, &mut new, &shape, form::Duplicates::none(), &mut budget)?;
            Ok(new)
        };
        let _ = match how {
            Patch::Apply => {
                let budget = &mut Budget::new();
                let mut merge =
                    |live: Option<&Value>| crate::api::write::applied(api, &request, live, patch, &shape, true, budget);
                api.update(&request, Change::Apply(&mut merge)).await
            }
            _ => api.update(&request, Change::Patch(&mut change)).await,
        };
    }

    /// Creates an object, changes all of it, applies it as somebody else, patches it and deletes it.
    async fn live(api: &Api, kind: &KindRef, object: Value) {
        let mut object = object;
        object["metadata"]["name"] = "x".into();
        post(api, kind, &object.to_string(), Encoding::Json).await;
        let mut changed = object.clone();
        changed["metadata"]["annotations"] = json!({"changed": "yes"});
        put(api, kind, "x", None, &changed).await;
        object["apiVersion"] = kind.api_version().into();
        object["kind"] = kind.kind().into();
        patch(api, kind, Patch::Apply, &object).await;
        patch(api, kind, Patch::Strategic, &object).await;
        patch(api, kind, Patch::Merge, &object).await;
        let _ = api.delete(&request(kind, "x"), &crate::apimachinery::delete_options::DeleteOptions::default()).await;
    }

    fn container(name: &str) -> Value {
        json!({"name": name, "image": "i"})
    }

    fn pod(spec: Value) -> Value {
        let mut spec = spec;
        if spec.get("containers").is_none() {
            spec["containers"] = json!([container("c")]);
        }
        json!({"metadata": {}, "spec": spec})
    }

    fn pod_of_one(key: &str, list: Value) -> Value {
        let mut one = container("c");
        one[key] = list;
        pod(json!({"containers": [one]}))
    }

    /// Everything that can be repeated in an object, `n` times.
    #[allow(clippy::too_many_lines)] // A table.
    fn objects(n: usize) -> Vec<(&'static str, &'static KindRef, Value)> {
        let map = |metadata: Value| json!({"metadata": metadata});
        let name = |i: usize| format!("n{i}");
        let owner = |i| json!({"apiVersion": "v1", "kind": "Pod", "name": "n", "uid": name(i)});
        let manager = |i| {
            let fields = json!({"f:data": {"f:a": {}}});
            json!({"manager": name(i), "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields})
        };
        let subject = |i| json!({"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name(i)});
        let rule = |i| json!({"verbs": [name(i)], "apiGroups": [""], "resources": [name(i)]});
        let volume = |i| json!({"name": name(i), "emptyDir": {}});
        let mount = |i| json!({"name": name(i), "mountPath": format!("/{i}")});
        let term = |i| json!({"matchExpressions": [{"key": name(i), "operator": "Exists"}]});
        let spread = |i| json!({"maxSkew": 1, "topologyKey": name(i), "whenUnsatisfiable": "DoNotSchedule"});
        let mounts = {
            let mut one = container("c");
            one["volumeMounts"] = items(n, mount);
            pod(json!({"containers": [one], "volumes": items(n, volume)}))
        };
        let projected = items(n, |i| json!({"configMap": {"name": "m", "items": [{"key": "k", "path": name(i)}]}}));
        let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": items(n, term)}}});
        let address = |i: usize| json!({"ip": format!("10.{}.{}.1", i / 200, i % 200)});
        let port = |i: usize| json!({"name": name(i), "port": i + 1, "targetPort": 1});
        let maps = &core::configmap::KIND;
        let pods = &core::pod::KIND;
        vec![
            ("data", maps, json!({"metadata": {}, "data": members(n, |_| json!("v"))})),
            ("labels", maps, map(json!({"labels": members(n, |_| json!("v"))}))),
            ("annotations", maps, map(json!({"annotations": members(n, |_| json!("v"))}))),
            ("finalizers", maps, map(json!({"finalizers": items(n, |i| format!("a/n{i}").into())}))),
            ("one finalizer many times", maps, map(json!({"finalizers": items(n, |_| "a/b".into())}))),
            ("owners", maps, map(json!({"ownerReferences": items(n, owner)}))),
            ("one owner many times", maps, map(json!({"ownerReferences": items(n, |_| owner(0))}))),
            ("managers", maps, json!({"metadata": {"managedFields": items(n, manager)}, "data": {"a": "b"}})),
            ("unknown fields", maps, json!({"metadata": {}, "x": 1, "data": {}, "y": members(n, |_| json!(1))})),
            ("unknown members", pods, pod(members(n, |_| json!(1)))),
            ("containers", pods, pod(json!({"containers": items(n, |i| container(&name(i)))}))),
            ("init containers", pods, pod(json!({"initContainers": items(n, |i| container(&name(i)))}))),
            ("containers of one name", pods, pod(json!({"containers": items(n, |_| container("c"))}))),
            ("variables", pods, pod_of_one("env", items(n, |i| json!({"name": name(i), "value": "v"})))),
            ("one variable many times", pods, pod_of_one("env", items(n, |_| json!({"name": "a", "value": "v"})))),
            (
                "sources of variables",
                pods,
                pod_of_one("envFrom", items(n, |i| json!({"secretRef": {"name": name(i)}}))),
            ),
            (
                "ports of a container",
                pods,
                pod_of_one("ports", items(n, |i| json!({"name": name(i), "containerPort": i + 1}))),
            ),
            (
                "one port many times",
                pods,
                pod_of_one("ports", items(n, |_| json!({"containerPort": 80, "hostPort": 80}))),
            ),
            (
                "resize policies",
                pods,
                pod_of_one(
                    "resizePolicy",
                    items(n, |i| json!({"resourceName": name(i), "restartPolicy": "NotRequired"})),
                ),
            ),
            (
                "devices",
                pods,
                pod_of_one("volumeDevices", items(n, |i| json!({"name": name(i), "devicePath": format!("/{i}")}))),
            ),
            (
                "capabilities",
                pods,
                pod_of_one("securityContext", json!({"capabilities": {"add": items(n, |i| name(i).into())}})),
            ),
            ("mounts of volumes", pods, mounts),
            ("projected sources", pods, pod(json!({"volumes": [{"name": "v", "projected": {"sources": projected}}]}))),
            (
                "tolerations",
                pods,
                pod(json!({"tolerations": items(n, |i| json!({"key": name(i), "operator": "Exists"}))})),
            ),
            ("gates", pods, pod(json!({"schedulingGates": items(n, |i| json!({"name": name(i)}))}))),
            ("secrets for pulls", pods, pod(json!({"imagePullSecrets": items(n, |i| json!({"name": name(i)}))}))),
            (
                "aliases of hosts",
                pods,
                pod(
                    json!({"hostAliases": items(n, |i| json!({"ip": format!("10.0.{}.{}", i / 200, i % 200), "hostnames": ["h"]}))}),
                ),
            ),
            (
                "sysctls",
                pods,
                pod(json!({"securityContext": {"sysctls": items(n, |i| json!({"name": name(i), "value": "1"}))}})),
            ),
            (
                "claims",
                pods,
                pod(json!({"resourceClaims": items(n, |i| json!({"name": name(i), "resourceClaimName": "c"}))})),
            ),
            ("spread constraints", pods, pod(json!({"topologySpreadConstraints": items(n, spread)}))),
            ("terms of affinity", pods, pod(json!({"affinity": affinity}))),
            ("selectors of nodes", pods, pod(json!({"nodeSelector": members(n, |_| json!("v"))}))),
            (
                "ports of a Service",
                &core::service::KIND,
                json!({"metadata": {}, "spec": {"ports": items(n, port), "selector": {"a": "b"}}}),
            ),
            (
                "families",
                &core::service::KIND,
                json!({"metadata": {}, "spec": {"ports": [port(0)], "ipFamilies": items(n, |_| "IPv4".into())}}),
            ),
            (
                "taints",
                &core::node::KIND,
                json!({"metadata": {}, "spec": {"taints": items(n, |i| json!({"key": name(i), "effect": "NoSchedule"}))}}),
            ),
            (
                "addresses",
                &core::endpoints::KIND,
                json!({"metadata": {}, "subsets": [{"addresses": items(n, address), "ports": [port(0)]}]}),
            ),
            (
                "ports of a slice",
                &discovery::endpointslice::KIND,
                json!({"metadata": {}, "addressType": "IPv4", "endpoints": [], "ports": items(n.min(20_000), port)}),
            ),
            (
                "subjects",
                &rbac::clusterrolebinding::KIND,
                json!({"metadata": {}, "subjects": items(n, subject), "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "r"}}),
            ),
            ("rules", &rbac::clusterrole::KIND, json!({"metadata": {}, "rules": items(n, rule)})),
            (
                "verbs",
                &rbac::clusterrole::KIND,
                json!({"metadata": {}, "rules": [{"verbs": items(n, |i| name(i).into()), "apiGroups": [""], "resources": ["pods"]}]}),
            ),
        ]
    }

    /// Bodies and queries whose form is what is repeated.
    async fn form_of(what: usize, n: usize) -> Option<(&'static str, u64)> {
        let api = cluster().await;
        let maps = &core::configmap::KIND;
        let list = |text: String| format!("{{\"metadata\":{{\"name\":\"x\"}},\"data\":{{{text}}}}}");
        let joined = |item: &dyn Fn(usize) -> String| (0..n).map(item).collect::<Vec<_>>().join(",");
        post(&api, maps, r#"{"metadata":{"name":"x"},"data":{"a":"b"}}"#, Encoding::Json).await;
        let begun = steps_so_far();
        let name = match what {
            0 => {
                post(&api, maps, &list(joined(&|_| "\"a\":\"b\"".into())), Encoding::Json).await;
                "one key many times"
            }
            1 => {
                post(&api, maps, &list(joined(&|i| format!("\"a{i}\":\"b\",\"a{i}\":\"c\""))), Encoding::Json).await;
                "keys that stand twice"
            }
            2 => {
                let yaml = format!("a: &a [b, c]\nmetadata: {{name: y}}\nx: [{}]\n", joined(&|_| "*a".into()));
                post(&api, maps, &yaml, Encoding::Yaml).await;
                "aliases"
            }
            3 => {
                let operations = items(n, |i| json!({"op": "add", "path": format!("/data/k{i}"), "value": "v"}));
                patch(&api, maps, Patch::Json, &operations).await;
                "operations of a patch"
            }
            4 => {
                let order = items(n, |i| format!("a/n{i}").into());
                let change = json!({"metadata": {"finalizers": order, "$setElementOrder/finalizers": order}});
                patch(&api, maps, Patch::Strategic, &change).await;
                let gone = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": order}});
                patch(&api, maps, Patch::Strategic, &gone).await;
                "directives of a patch"
            }
            5 => {
                let terms = Selector::parse(&joined(&|i| format!("k{i}!=v"))).unwrap();
                let fields = FieldSelector::parse(&joined(&|i| format!("metadata.name!=n{i}"))).unwrap();
                let selection = Selection::new(maps, terms, &fields).unwrap();
                api.list(&request(maps, ""), &selection, &ListOptions::default()).unwrap();
                "terms of selectors"
            }
            6 => {
                let groups = (0..n).map(|i| format!("g{i}")).collect();
                let user = User { name: "u".into(), groups, ..User::default() };
                let attributes = crate::api::identity::attributes::Attributes::of_request(&request(maps, "x"), "get");
                crate::api::identity::authorize::authorize(&api, &user, &attributes);
                "groups of a user"
            }
            _ => return None,
        };
        Some((name, steps_so_far() - begun))
    }

    fn on_one_thread<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    fn check(what: &str, few: u64, many: u64) {
        let ratio = many as f64 / few.max(1) as f64;
        assert!(ratio < RATIO_MAX, "{what}: {few} steps for {FEW}, {many} for {MANY}: {ratio:.1} times as many");
    }

    #[test]
    fn no_part_of_an_object_costs_more_than_its_share() {
        on_one_thread(async {
            for (few, many) in objects(FEW).into_iter().zip(objects(MANY)) {
                let mut steps = Vec::new();
                for (_, kind, object) in [&few, &many] {
                    let api = cluster().await;
                    let begun = steps_so_far();
                    live(&api, kind, object.clone()).await;
                    steps.push(steps_so_far() - begun);
                }
                check(few.0, steps[0], steps[1]);
            }
        });
    }

    #[test]
    fn no_form_of_a_request_costs_more_than_its_share() {
        on_one_thread(async {
            let mut what = 0;
            while let (Some((name, few)), Some((_, many))) = (form_of(what, FEW).await, form_of(what, MANY).await) {
                check(name, few, many);
                what += 1;
            }
            assert_eq!(what, 7);
        });
    }
}
