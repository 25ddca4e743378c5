//! Plans of Jobs in many states, and Jobs with pretended pods from their start to their end.

use super::*;
use crate::api::in_memory;
use crate::api::local::Local;
use crate::base::clock::Clock;
use crate::controllers::{MANAGER, Options, start};
use crate::kinds::core::{namespace, resourcequota};
use crate::reconcile::Client;

const NOW: &str = "2026-01-01T01:00:00Z";

/// A Job of this spec and status.
fn job(spec: Value, status: Value) -> Job {
    let mut value = json!({"metadata": {"name": "j", "uid": "u"}, "spec": spec, "status": status});
    crate::base::json::set_default(&mut value, "spec.template", json!({"spec": {"containers": []}}));
    KIND.default(&mut value);
    serde_json::from_value(value).unwrap()
}

/// A pod: name, phase, and more of its metadata and status.
fn pod(name: &str, phase: &str, metadata: Value, status: Value) -> Member {
    let mut value = json!({"metadata": {"name": name, "namespace": "n", "uid": name, "finalizers": [TRACKING_FINALIZER],
        "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"containers": []}, "status": {"phase": phase}});
    for (part, more) in [("metadata", metadata), ("status", status)] {
        value[part].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    }
    let object = Arc::new(Object::new(name.into(), 1, &value, Box::default()));
    Member { pod: object.typed().unwrap(), object }
}

fn plain(name: &str, phase: &str) -> Member {
    pod(name, phase, json!({}), json!({}))
}

/// A pod for an index, with so many failures before it.
fn indexed(name: &str, phase: &str, index: i64, failures: i64) -> Member {
    let annotations = json!({COMPLETION: index.to_string(), view::FAILURES: failures.to_string()});
    let ended = json!({"containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:59:55Z"}}}]});
    let status = if phase == "Failed" { ended } else { json!({}) };
    pod(name, phase, json!({"annotations": annotations}), status)
}

const COMPLETION: &str = crate::kinds::batch::job::COMPLETION_INDEX;

fn exited(name: &str, code: i32) -> Member {
    let container = json!({"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": code, "finishedAt": "2026-01-01T00:59:55Z"}}});
    pod(name, "Failed", json!({}), json!({"containerStatuses": [container]}))
}

/// What is planned, as text: how many are deleted, what is created, and why it ends.
fn planned(job: &Job, members: &[Member]) -> String {
    let spec = job.spec.as_ref().unwrap();
    let view = View::of(job, spec);
    let (status, now) = (view.status(), NOW.parse().unwrap());
    let counts = Counts::of(&view, &status, members);
    let record = Record::of_counted(&view, members).with(&counts.succeeded_pods, &counts.failed_pods);
    let plan = plan::plan(&view, &status, members, &counts, record, now);
    let made: Vec<String> = plan.create.iter().map(|i| i.map_or("+".into(), |i| format!("+{i}"))).collect();
    let gone: Vec<String> = plan.delete.iter().map(|m| format!("-{}", m.object.meta.name)).collect();
    let end = plan.end.and_then(|e| e.reason).into_iter();
    let wake = plan
        .wake
        .map(|t| format!("@{}", t.as_second() - "2026-01-01T01:00:00Z".parse::<Timestamp>().unwrap().as_second()));
    gone.into_iter().chain(made).chain(end).chain(wake).collect::<Vec<_>>().join(" ")
}

#[test]
fn as_many_pods_run_as_are_left_to_succeed_and_no_more_than_at_once() {
    let three = json!({"completions": 3, "parallelism": 2});
    let run = |name| plain(name, "Running");
    let done = |name| plain(name, "Succeeded");
    assert_eq!(planned(&job(three.clone(), json!({})), &[]), "+ +");
    assert_eq!(planned(&job(three.clone(), json!({})), &[run("a"), done("b")]), "+");
    assert_eq!(planned(&job(three.clone(), json!({"succeeded": 2})), &[run("a")]), "");
    assert_eq!(planned(&job(three.clone(), json!({"succeeded": 2})), &[run("a"), run("b")]).len(), 2);
    assert_eq!(planned(&job(three, json!({"succeeded": 2})), &[done("a")]), "CompletionsReached");
    // Without a number of completions one pod says that all is done.
    let queue = json!({"parallelism": 3});
    assert_eq!(planned(&job(queue.clone(), json!({})), &[]), "+ + +");
    assert_eq!(planned(&job(queue.clone(), json!({})), &[done("a"), run("b")]), "");
    assert_eq!(planned(&job(queue, json!({})), &[done("a"), done("b")]), "CompletionsReached");
    assert_eq!(planned(&job(json!({"parallelism": 0}), json!({})), &[]), "");
    assert_eq!(planned(&job(json!({"completions": 0}), json!({})), &[]), "CompletionsReached");
    // One run makes a bounded number.
    assert_eq!(planned(&job(json!({"parallelism": 1_000_000_000}), json!({})), &[]).len(), 500 * 2 - 1);
    // A suspended Job has none.
    assert_eq!(planned(&job(json!({"suspend": true}), json!({})), &[run("a")]), "-a");
}

#[test]
fn failures_are_waited_after_and_counted_to_the_limit() {
    let failed = |name: &str| exited(name, 1);
    assert_eq!(planned(&job(json!({}), json!({})), &[failed("a")]), "@5", "ten seconds after it ended");
    assert_eq!(planned(&job(json!({}), json!({})), &[failed("a"), failed("b")]), "@15");
    assert_eq!(
        planned(&job(json!({"backoffLimit": 1}), json!({})), &[failed("a"), failed("b")]),
        "BackoffLimitExceeded"
    );
    assert_eq!(
        planned(&job(json!({"backoffLimit": 0}), json!({"failed": 1})), &[plain("a", "Running")]),
        "-a BackoffLimitExceeded"
    );
    // Restarts count where pods restart their containers.
    let template = json!({"spec": {"restartPolicy": "OnFailure", "containers": []}});
    let again = |count: i32| {
        let container = json!({"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": count});
        pod("a", "Running", json!({}), json!({"containerStatuses": [container]}))
    };
    let spec = json!({"backoffLimit": 2, "template": template});
    assert_eq!(planned(&job(spec.clone(), json!({})), &[again(1)]), "");
    assert_eq!(planned(&job(spec, json!({})), &[again(2)]), "-a BackoffLimitExceeded");
}

#[test]
fn a_deadline_ends_a_job_that_runs_and_none_that_waits() {
    let spec = |seconds: i64| json!({"activeDeadlineSeconds": seconds});
    let started = json!({"startTime": "2026-01-01T00:59:00Z"});
    assert_eq!(planned(&job(spec(100), started.clone()), &[plain("a", "Running")]), "@40");
    assert_eq!(planned(&job(spec(60), started.clone()), &[plain("a", "Running")]), "-a DeadlineExceeded");
    assert_eq!(planned(&job(spec(i64::MAX), started.clone()), &[plain("a", "Running")]), "");
    let waits = json!({"activeDeadlineSeconds": 60, "suspend": true});
    assert_eq!(planned(&job(waits, started), &[]), "");
}

#[test]
fn pods_that_end_are_replaced_at_once_or_when_they_have_ended() {
    let ending = || pod("a", "Running", json!({"deletionTimestamp": "2026-01-01T00:30:00Z"}), json!({}));
    let at_once = job(json!({"backoffLimit": 6}), json!({}));
    assert_eq!(planned(&at_once, &[ending()]), "+");
    let later = job(json!({"podReplacementPolicy": "Failed"}), json!({}));
    assert_eq!(planned(&later, &[ending()]), "");
    let view = View::of(&later, later.spec.as_ref().unwrap());
    let mut status = view.status();
    track::begin(&mut status, &view, &[ending()], None);
    assert_eq!((status.terminating, status.active), (Some(1), None));
    assert_eq!(status.uncounted_terminated_pods.unwrap().failed, None, "it has not ended");
}

#[test]
fn every_index_has_one_pod() {
    let spec = json!({"completionMode": "Indexed", "completions": 4, "parallelism": 3});
    let run = |name: &str, index| indexed(name, "Running", index, 0);
    assert_eq!(planned(&job(spec.clone(), json!({})), &[]), "+0 +1 +2");
    assert_eq!(planned(&job(spec.clone(), json!({"completedIndexes": "1"})), &[run("a", 0)]), "+2 +3");
    // One too many of an index, one of none and one beyond the last.
    let crowd = [run("a", 0), run("b", 0), run("c", 9), plain("d", "Running")];
    let plan = planned(&job(spec.clone(), json!({})), &crowd);
    let mut gone: Vec<&str> = plan.split(' ').collect();
    gone.sort_unstable();
    assert!(gone.len() == 3 && gone.contains(&"-c") && gone.contains(&"-d"), "{plan}");
    assert_eq!(
        planned(&job(spec, json!({"completedIndexes": "0,2,3"})), &[indexed("a", "Succeeded", 1, 0)]),
        "CompletionsReached"
    );
    // A Job made smaller forgets what it has no place for.
    let smaller = json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2});
    assert_eq!(planned(&job(smaller.clone(), json!({"completedIndexes": "0,3", "succeeded": 2})), &[run("a", 1)]), "");
    assert_eq!(planned(&job(smaller, json!({"completedIndexes": "0,3"})), &[run("a", 1), run("b", 2)]), "-b");
    let huge = json!({"completionMode": "Indexed", "completions": 1_000_000_000, "parallelism": 2});
    assert_eq!(planned(&job(huge, json!({"completedIndexes": "0-999999990"})), &[]), "+999999991 +999999992");
}

#[test]
fn indexes_fail_by_themselves_where_they_have_a_limit() {
    let spec = json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2, "backoffLimitPerIndex": 1});
    let view_of = |job: &Job, members: &[Member]| {
        let view = View::of(job, job.spec.as_ref().unwrap());
        let mut status = view.status();
        let released = track::begin(&mut status, &view, members, None);
        let names: Vec<String> = released.members.iter().map(|m| m.object.meta.name.to_string()).collect();
        (status.failed_indexes, names.join(" "))
    };
    let first = [indexed("a", "Failed", 0, 0), indexed("b", "Running", 1, 0)];
    let fresh = job(spec.clone(), json!({}));
    assert_eq!(planned(&fresh, &first), "@5", "index 0 waits");
    assert_eq!(view_of(&fresh, &first), (Some(String::new()), String::new()), "it is kept until it is replaced");
    let second = [indexed("a", "Failed", 0, 0), indexed("c", "Running", 0, 1), indexed("b", "Running", 1, 0)];
    assert_eq!(view_of(&fresh, &second).1, "a");
    let third = [indexed("c", "Failed", 0, 1), indexed("b", "Running", 1, 0)];
    assert_eq!(view_of(&fresh, &third), (Some("0".into()), "c".into()));
    assert_eq!(planned(&fresh, &third), "");
    assert_eq!(planned(&fresh, &[indexed("c", "Failed", 0, 1), indexed("b", "Succeeded", 1, 0)]), "FailedIndexes");
    let mut most = spec;
    most["maxFailedIndexes"] = 0.into();
    assert_eq!(planned(&job(most, json!({})), &third), "-b MaxFailedIndexesExceeded");
}

#[test]
fn the_replacement_of_a_pod_takes_its_failures_on() {
    let spec = json!({"completionMode": "Indexed", "completions": 2, "backoffLimitPerIndex": 3,
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "i",
            "env": [{"name": "JOB_COMPLETION_INDEX", "value": "mine"}]}]}},
        "podFailurePolicy": {"rules": [{"action": "Ignore", "onExitCodes": {"operator": "In", "values": [7]}}]}});
    let typed = job(spec.clone(), json!({}));
    let view = View::of(&typed, typed.spec.as_ref().unwrap());
    let name = "j".repeat(60);
    let value = json!({"metadata": {"name": name, "uid": "u"}, "spec": spec});
    let object = Object::new("j".into(), 1, &value, Box::default());
    let made = make::pod(&object, &value, &view, Some(12), Some(&indexed("a", "Failed", 12, 2).pod));
    let metadata = &made["metadata"];
    assert_eq!(metadata["annotations"], json!({COMPLETION: "12", view::FAILURES: "3"}));
    assert_eq!(metadata["labels"], json!({COMPLETION: "12", "a": "b"}));
    assert_eq!(metadata["generateName"], format!("{}-12-", "j".repeat(54)));
    assert_eq!(
        (&made["spec"]["hostname"], &metadata["finalizers"]),
        (&json!(format!("{name}-12")), &json!([TRACKING_FINALIZER]))
    );
    let path = &made["spec"]["containers"][0]["env"][0]["valueFrom"]["fieldRef"]["fieldPath"];
    assert_eq!(*path, format!("metadata.labels['{COMPLETION}']"));
    assert_eq!(made["spec"]["initContainers"][0]["env"].as_array().unwrap().len(), 1, "whoever sets it keeps it");
    let ignored = make::pod(&object, &value, &view, Some(1), Some(&exited("a", 7).pod));
    let annotations = json!({COMPLETION: "1", view::FAILURES: "0", view::IGNORED_FAILURES: "1"});
    assert_eq!(ignored["metadata"]["annotations"], annotations);
}

#[test]
fn a_failure_policy_ignores_counts_or_ends() {
    let policy = |action: &str, codes: Value| {
        json!({"podFailurePolicy": {"rules": [{"action": action, "onExitCodes": codes}]},
        "backoffLimit": 0})
    };
    let codes = json!({"operator": "In", "values": [3, 42]});
    assert_eq!(planned(&job(policy("FailJob", codes.clone()), json!({})), &[exited("a", 42)]), "PodFailurePolicy");
    assert_eq!(planned(&job(policy("FailJob", codes.clone()), json!({})), &[exited("a", 1)]), "BackoffLimitExceeded");
    assert_eq!(planned(&job(policy("Ignore", codes.clone()), json!({})), &[exited("a", 42)]), "@5");
    assert_eq!(planned(&job(policy("Count", codes), json!({})), &[exited("a", 42)]), "BackoffLimitExceeded");
    let others = json!({"operator": "NotIn", "values": [1], "containerName": "c"});
    assert_eq!(planned(&job(policy("FailJob", others.clone()), json!({})), &[exited("a", 2)]), "PodFailurePolicy");
    assert_eq!(planned(&job(policy("Ignore", others), json!({})), &[exited("a", 1)]), "BackoffLimitExceeded");
    let disrupted = json!({"podFailurePolicy": {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]},
        "backoffLimit": 0});
    let evicted =
        pod("a", "Failed", json!({}), json!({"conditions": [{"type": "DisruptionTarget", "status": "True"}]}));
    assert_eq!(planned(&job(disrupted.clone(), json!({})), &[evicted.clone()]), "+");
    let typed = job(disrupted, json!({}));
    let view = View::of(&typed, typed.spec.as_ref().unwrap());
    let mut status = view.status();
    let released = track::begin(&mut status, &view, &[evicted], None);
    assert_eq!(
        (released.members.len(), status.uncounted_terminated_pods.unwrap().failed),
        (1, None),
        "it does not count"
    );
    let why = policy::on_failure(
        &View::of(
            &job(policy("FailJob", json!({"operator": "In", "values": [42]})), json!({})),
            job(policy("FailJob", json!({"operator": "In", "values": [42]})), json!({})).spec.as_ref().unwrap(),
        ),
        &exited("a", 42).pod,
    );
    let text = "Container c for pod n/a failed with exit code 42 matching FailJob rule at index 0";
    assert_eq!(why, policy::Action::FailJob(text.into()));
}

#[test]
fn a_success_policy_ends_a_job_before_all_have_succeeded() {
    let spec = |rule: Value| {
        json!({"completionMode": "Indexed", "completions": 5, "parallelism": 5,
        "successPolicy": {"rules": [{"succeededIndexes": "4"}, rule]}})
    };
    let all = [indexed("a", "Succeeded", 0, 0), indexed("b", "Succeeded", 1, 0), indexed("c", "Running", 2, 0)];
    let ends = |rule: Value| planned(&job(spec(rule), json!({})), &all);
    assert_eq!(ends(json!({"succeededIndexes": "0-1"})), "-c SuccessPolicy");
    assert_eq!(ends(json!({"succeededIndexes": "0,2", "succeededCount": 1})), "-c SuccessPolicy");
    assert_eq!(ends(json!({"succeededCount": 2})), "-c SuccessPolicy");
    assert_eq!(ends(json!({"succeededIndexes": "0,2"})), "+3 +4");
    assert_eq!(ends(json!({"succeededCount": 3})), "+3 +4");
}

#[test]
fn a_pod_is_counted_once_wherever_the_process_is_killed() {
    let typed = job(json!({"completions": 2}), json!({"succeeded": 1}));
    let view = View::of(&typed, typed.spec.as_ref().unwrap());
    let tracked = [plain("a", "Succeeded"), plain("b", "Failed")];
    let untracked = [
        pod("a", "Succeeded", json!({"finalizers": []}), json!({})),
        pod("b", "Failed", json!({"finalizers": []}), json!({})),
    ];
    let numbers = |s: &JobStatus| (s.succeeded.unwrap_or(0), s.failed.unwrap_or(0));
    // Killed before the status was written: nothing has happened. Killed after it, any number of times:
    let mut named = view.status();
    for _ in 0..3 {
        let released = track::begin(&mut named, &view, &tracked, None);
        assert_eq!((released.members.len(), numbers(&named)), (2, (1, 0)));
        let lists = named.uncounted_terminated_pods.clone().unwrap();
        assert_eq!((lists.succeeded.unwrap(), lists.failed.unwrap()), (vec!["a".to_owned()], vec!["b".to_owned()]));
        let counts = Counts::of(&view, &named, &tracked);
        assert_eq!((counts.succeeded, counts.failed), (2, 1), "named or not, it is one");
    }
    // Killed with one finalizer gone, and with all gone.
    let mut half = named.clone();
    track::begin(&mut half, &view, &[untracked[0].clone(), tracked[1].clone()], None);
    assert_eq!(numbers(&half), (2, 0));
    for mut status in [half, named] {
        track::settle(&mut status, &untracked, None, false, NOW.parse().unwrap());
        assert_eq!(numbers(&status), (2, 1));
        let again = track::begin(&mut status, &view, &untracked, None);
        assert_eq!((again.members.len(), numbers(&status)), (0, (2, 1)));
        let gone = &[][..];
        track::begin(&mut status, &view, gone, None);
        assert_eq!(numbers(&status), (2, 1), "the pods may go");
    }
}

#[test]
fn a_job_that_has_ended_goes_when_its_time_is_over() {
    let ended = |ttl: Value| {
        json!({"spec": {"ttlSecondsAfterFinished": ttl},
        "status": {"conditions": [{"type": "Failed", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
    };
    let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
    assert_eq!(expires_at(&ended(json!(60))), at("2026-01-01T00:01:00Z"));
    assert_eq!(expires_at(&ended(json!(null))), None);
    assert_eq!(expires_at(&ended(json!(i32::MAX))), at("2094-01-19T03:14:07Z"));
    assert_eq!(expires_at(&ended(json!(i64::MAX))), None, "it never comes");
}

// === with the API and all controllers ===

struct Cluster {
    client: Arc<dyn Client>,
    controllers: Vec<tokio::task::JoinHandle<Option<()>>>,
}

impl Cluster {
    async fn new() -> Self {
        let client: Arc<dyn Client> = Arc::new(Local::new(in_memory::api(), MANAGER));
        let controllers = start(client.clone(), Clock::system(), Options::default());
        client.create(&namespace::KIND, "", json!({"metadata": {"name": "n"}})).await.unwrap();
        Self { client, controllers }
    }

    async fn make(&self, spec: Value) {
        let mut job = json!({"metadata": {"name": "j"}, "spec": spec});
        let template = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}});
        crate::base::json::set_default(&mut job, "spec.template", template);
        self.client.create(&KIND, "n", job).await.unwrap();
    }

    async fn status(&self) -> Value {
        let mut status = self.client.get(&KIND, "n", "j").await.unwrap().value()["status"].clone();
        for key in ["startTime", "completionTime"] {
            status.as_object_mut().unwrap().remove(key);
        }
        status
    }

    fn pods(&self) -> Vec<Arc<Object>> {
        self.client.informer(&pod::KIND).list("n")
    }

    async fn until(&self, what: &str, look: impl AsyncFn() -> bool) {
        for _ in 0..500 {
            if look().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let job = self.client.get(&KIND, "n", "j").await.map(|j| j.value());
        let pods: Vec<String> = self.pods().iter().map(|p| p.value().to_string()).collect();
        panic!("{what}: {job:?} {pods:?}");
    }

    async fn end_pod(&self, pod: &Object, phase: &str) {
        let patch = Patch::Merge(json!({"status": {"phase": phase}}));
        self.client.patch(&pod::KIND, "n", &pod.meta.name, Some(Subresource::Status), patch).await.unwrap();
    }

    async fn until_pods(&self, count: usize) -> Vec<Arc<Object>> {
        let active =
            || self.pods().into_iter().filter(|p| pods::is_active(&p.typed::<Pod>().unwrap())).collect::<Vec<_>>();
        self.until(&format!("{count} pods"), async || active().len() == count).await;
        active()
    }

    async fn until_condition(&self, of_type: &str) {
        let told = async || job::condition(&json!({"status": self.status().await}), of_type).is_some();
        self.until(of_type, told).await;
    }

    fn end(self) {
        self.controllers.iter().for_each(|task| task.abort());
    }
}

fn reasons(status: &Value) -> Vec<(String, String)> {
    let all = status["conditions"].as_array().unwrap();
    all.iter().map(|c| (text(c, "type").to_owned(), text(c, "reason").to_owned())).collect()
}

#[tokio::test]
async fn a_job_runs_its_pods_counts_them_and_completes() {
    let cluster = Cluster::new().await;
    cluster.make(json!({"completions": 3, "parallelism": 2})).await;
    let first = cluster.until_pods(2).await;
    assert!(first.iter().all(|p| pods::is_tracked(p)));
    let running = json!({"active": 2, "ready": 0, "terminating": 0, "uncountedTerminatedPods": {}});
    cluster.until("it tells", async || cluster.status().await == running).await;
    cluster.end_pod(&first[0], "Succeeded").await;
    cluster.end_pod(&first[1], "Succeeded").await;
    let last = cluster.until_pods(1).await;
    cluster.end_pod(&last[0], "Succeeded").await;
    cluster.until_condition("Complete").await;
    let status = cluster.status().await;
    let why = "CompletionsReached".to_owned();
    assert_eq!(reasons(&status), [("SuccessCriteriaMet".to_owned(), why.clone()), ("Complete".to_owned(), why)]);
    assert_eq!((&status["succeeded"], &status["uncountedTerminatedPods"]), (&json!(3), &json!({})));
    cluster.until("all are let go", async || cluster.pods().iter().all(|p| !pods::is_tracked(p))).await;
    assert_eq!(cluster.pods().len(), 3, "they stay to be looked at");
    cluster.end();
}

#[tokio::test]
async fn a_job_that_fails_ends_its_other_pods_and_is_not_over_before_they_are() {
    let cluster = Cluster::new().await;
    cluster.make(json!({"completions": 2, "parallelism": 2, "backoffLimit": 0})).await;
    let both = cluster.until_pods(2).await;
    // On a node, so that it takes its time to end.
    cluster.client.bind("n", &both[1].meta.name, "", "m").await.unwrap();
    cluster.end_pod(&both[1], "Running").await;
    cluster.end_pod(&both[0], "Failed").await;
    cluster.until("it waits", async || cluster.status().await["terminating"] == 1).await;
    cluster.until_condition("FailureTarget").await;
    cluster.until("both are counted", async || cluster.status().await["failed"] == 2).await;
    assert_eq!(reasons(&cluster.status().await), [("FailureTarget".to_owned(), "BackoffLimitExceeded".to_owned())]);
    let now = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
    cluster.client.delete(&pod::KIND, "n", &both[1].meta.name, now).await.unwrap();
    cluster.until_condition("Failed").await;
    let status = cluster.status().await;
    assert_eq!((&status["failed"], &status["active"], &status["terminating"]), (&json!(2), &Value::Null, &json!(0)));
    cluster.end();
}

#[tokio::test]
async fn a_job_is_suspended_and_goes_on() {
    let cluster = Cluster::new().await;
    cluster.make(json!({"suspend": true, "parallelism": 2})).await;
    cluster.until_condition("Suspended").await;
    assert!(cluster.pods().is_empty());
    let started = async || cluster.client.get(&KIND, "n", "j").await.unwrap().value()["status"]["startTime"].clone();
    assert_eq!(started().await, Value::Null);
    let set = async |suspend: bool| {
        let patch = Patch::Merge(json!({"spec": {"suspend": suspend}}));
        cluster.client.patch(&KIND, "n", "j", None, patch).await.unwrap();
    };
    set(false).await;
    cluster.until_pods(2).await;
    cluster.until("it tells", async || cluster.status().await["conditions"][0]["reason"] == "JobResumed").await;
    assert!(started().await.is_string());
    set(true).await;
    cluster.until("its pods are gone", async || cluster.pods().is_empty()).await;
    cluster.until_condition("Suspended").await;
    let status = cluster.status().await;
    assert_eq!((&status["active"], &status["failed"]), (&Value::Null, &Value::Null), "they do not count");
    assert_eq!(started().await, Value::Null, "it may be told to run elsewhere");
    cluster.end();
}

#[tokio::test]
async fn pods_are_adopted_and_released_and_go_free_when_their_job_goes() {
    let cluster = Cluster::new().await;
    cluster.make(json!({"parallelism": 2})).await;
    let both = cluster.until_pods(2).await;
    let name = both[0].meta.name.to_string();
    let patch = async |patch: Value| {
        cluster.client.patch(&pod::KIND, "n", &name, None, Patch::Merge(patch)).await.unwrap();
    };
    let get = async || cluster.client.get(&pod::KIND, "n", &name).await.unwrap();
    patch(json!({"metadata": {"ownerReferences": []}})).await;
    cluster.until("it is adopted", async || get().await.controller().is_some()).await;
    let labels: serde_json::Map<String, Value> =
        both[0].meta.labels.keys().map(|key| (key.to_string(), Value::Null)).collect();
    patch(json!({"metadata": {"labels": labels}})).await;
    cluster
        .until("it is released", async || {
            let pod = get().await;
            pod.controller().is_none() && !pods::is_tracked(&pod)
        })
        .await;
    cluster.until("another is made", async || cluster.pods().len() == 3).await;
    // Who deletes the Job without saying more keeps the pods.
    cluster.client.delete(&KIND, "n", "j", DeleteOptions::default()).await.unwrap();
    cluster.until("it is gone", async || cluster.client.get(&KIND, "n", "j").await.is_err()).await;
    cluster.until("nobody holds them", async || cluster.pods().iter().all(|p| !pods::is_tracked(p))).await;
    assert_eq!(cluster.pods().len(), 3);
    cluster.end();
}

#[tokio::test]
async fn a_deleted_job_takes_its_pods_along() {
    for propagation in [Propagation::Background, Propagation::Foreground] {
        let cluster = Cluster::new().await;
        cluster.make(json!({"parallelism": 2})).await;
        cluster.until_pods(2).await;
        let options = DeleteOptions { propagation: Some(propagation), ..DeleteOptions::default() };
        cluster.client.delete(&KIND, "n", "j", options).await.unwrap();
        cluster
            .until("all are gone", async || {
                cluster.pods().is_empty() && cluster.client.get(&KIND, "n", "j").await.is_err()
            })
            .await;
        cluster.end();
    }
}

#[tokio::test]
async fn a_job_with_a_time_to_live_goes_with_its_pods_and_one_of_another_manager_has_none() {
    let cluster = Cluster::new().await;
    cluster.make(json!({"ttlSecondsAfterFinished": 0})).await;
    let pods = cluster.until_pods(1).await;
    cluster.end_pod(&pods[0], "Succeeded").await;
    cluster.until("it is gone", async || cluster.client.get(&KIND, "n", "j").await.is_err()).await;
    cluster.until("its pod too", async || cluster.pods().is_empty()).await;
    cluster.make(json!({"managedBy": "example.com/other"})).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(cluster.pods().is_empty() && cluster.status().await == json!({}));
    cluster.end();
}

#[tokio::test]
async fn an_indexed_job_fails_indexes_and_finishes_the_others() {
    let cluster = Cluster::new().await;
    cluster
        .make(json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3, "backoffLimitPerIndex": 0}))
        .await;
    let all = cluster.until_pods(3).await;
    for pod in &all {
        let index = view::index(&pod.typed::<Pod>().unwrap()).unwrap();
        assert_eq!(pod.value()["spec"]["hostname"], format!("j-{index}"));
        cluster.end_pod(pod, if index == 1 { "Failed" } else { "Succeeded" }).await;
    }
    cluster.until_condition("Failed").await;
    let status = cluster.status().await;
    assert_eq!((&status["completedIndexes"], &status["failedIndexes"]), (&json!("0,2"), &json!("1")));
    assert_eq!((&status["succeeded"], &status["failed"]), (&json!(2), &json!(1)));
    assert_eq!(reasons(&status)[1], ("Failed".to_owned(), "FailedIndexes".to_owned()));
    cluster.end();
}

#[tokio::test]
async fn a_namespace_whose_quota_is_used_up_gets_its_pods_later() {
    let cluster = Cluster::new().await;
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "1", "count/jobs.batch": "1"}}});
    cluster.client.create(&resourcequota::KIND, "n", quota).await.unwrap();
    let counted = async || {
        let quota = cluster.client.get(&resourcequota::KIND, "n", "q").await.unwrap().value();
        quota["status"]["used"]["pods"] == "0"
    };
    cluster.until("the quota is counted", counted).await;
    cluster.make(json!({"completions": 2, "parallelism": 2})).await;
    let first = cluster.until_pods(1).await;
    cluster.end_pod(&first[0], "Succeeded").await;
    let second = cluster.until_pods(1).await;
    cluster.end_pod(&second[0], "Succeeded").await;
    cluster.until_condition("Complete").await;
    let template = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}});
    let another = json!({"metadata": {"name": "k"}, "spec": {"template": template}});
    let refused = cluster.client.create(&KIND, "n", another).await.unwrap_err();
    assert!(refused.message.contains("count/jobs.batch"), "{refused}");
    cluster.end();
}
