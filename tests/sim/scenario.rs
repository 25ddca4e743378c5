//! What users and misfortune do in a run, and the way back to rest.

use std::time::Duration;

use amphipod::apimachinery::delete_options::{DeleteOptions, Propagation};
use amphipod::kinds::KindRef;
use amphipod::kinds::apps::deployment;
use amphipod::kinds::batch::job;
use amphipod::kinds::core::{namespace, pod, service};
use amphipod::kinds::scheduling::priorityclass;
use amphipod::reconcile::Patch;
use serde_json::{Value, json};

use crate::rest;
use crate::world::{Outcome, World};

const NAMESPACES: [&str; 2] = ["red", "blue"];
/// Classes of pods that make room for themselves.
const PRIORITIES: [(&str, i64); 3] = [("low", -5), ("middle", 5), ("high", 10)];
const STEPS: u64 = 40;
/// Nothing but heartbeats for so long is rest.
const REST: Duration = Duration::from_secs(120);
const REST_BY: Duration = Duration::from_secs(7200);

pub async fn run(seed: u64) -> Outcome {
    let draw = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let (nodes, conflicts, failures) = (1 + draw % 4, (draw >> 8) % 3 * 20, (draw >> 16) % 3 * 50);
    let mut world = World::new(seed, nodes, conflicts, failures).await;
    for name in NAMESPACES {
        create(&world, &namespace::KIND, "", json!({"metadata": {"name": name}})).await;
    }
    for (name, value) in PRIORITIES {
        create(&world, &priorityclass::KIND, "", json!({"metadata": {"name": name}, "value": value})).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    for _ in 0..STEPS {
        step(&mut world).await;
        tokio::time::sleep(Duration::from_millis(world.random(4000))).await;
    }
    settle(&mut world).await;
    rest::check(&world);
    world.end()
}

async fn step(world: &mut World) {
    let (space, app) = (NAMESPACES[world.random(2) as usize], format!("app-{}", world.random(3)));
    match world.random(28) {
        0..=3 => create(world, &deployment::KIND, space, new_deployment(world, &app)).await,
        4..=6 => {
            let image = format!("image:{}", world.random(5));
            let template = json!({"spec": {"containers": [{"name": "c", "image": image}]}});
            patch(world, &deployment::KIND, space, &app, json!({"spec": {"template": template}})).await;
        }
        7..=8 => patch(world, &deployment::KIND, space, &app, json!({"spec": {"replicas": world.random(9)}})).await,
        9 => patch(world, &deployment::KIND, space, &app, json!({"spec": {"paused": world.random(2) == 0}})).await,
        10 => {
            let policy = [Propagation::Background, Propagation::Foreground, Propagation::Orphan];
            let policy = policy[world.random(3) as usize];
            delete(world, &deployment::KIND, space, &app, Some(policy)).await;
        }
        11..=12 => {
            let spec = json!({"selector": {"app": app}, "ports": [{"port": 80}]});
            create(world, &service::KIND, space, json!({"metadata": {"name": app}, "spec": spec})).await;
        }
        13 => delete(world, &service::KIND, space, &app, None).await,
        14 => doom_a_pod(world, space).await,
        15..=16 => {
            let names = world.node_names();
            let name = names[world.random(names.len() as u64) as usize].clone();
            world.note(&format!("{name} crashes"));
            world.stop_node(&name);
        }
        17 => {
            for name in world.node_names() {
                world.start_node(&name);
            }
        }
        18 => {
            world.note("the server restarts");
            world.restart().await;
        }
        20..=22 => create(world, &job::KIND, space, new_job(world)).await,
        24..=26 => create(world, &pod::KIND, space, new_pod(world)).await,
        27 => delete(world, &pod::KIND, space, &format!("large-{}", world.random(6)), None).await,
        _ => {
            if world.random(3) == 0 {
                delete(world, &namespace::KIND, "", space, None).await;
            } else {
                tokio::time::sleep(Duration::from_secs(world.random(400))).await;
            }
        }
    }
}

/// Users stop, what is broken is mended, and everything comes to rest.
async fn settle(world: &mut World) {
    world.note("everything is mended");
    world.failures = 0;
    for name in world.node_names() {
        world.start_node(&name);
    }
    for object in world.user.informer(&deployment::KIND).list("") {
        let (space, name) = (object.meta.namespace.to_string(), object.meta.name.to_string());
        patch(world, &deployment::KIND, &space, &name, json!({"spec": {"paused": false}})).await;
    }
    // There may not be room for all of them.
    for object in world.user.informer(&pod::KIND).list("").iter().filter(|o| o.meta.labels.contains_key("size")) {
        delete(world, &pod::KIND, &object.meta.namespace, &object.meta.name, None).await;
    }
    let end = world.clock.now() + REST_BY;
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let (moved, now) = (world.checkers.lock().unwrap().moved, world.clock.now());
        if now >= moved + REST {
            return;
        }
        if now > end {
            world.checkers.lock().unwrap().violate("it does not come to rest".into());
            return;
        }
    }
}

fn new_deployment(world: &World, app: &str) -> Value {
    let strategy = match world.random(5) {
        0 => json!({"type": "Recreate"}),
        1 => json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1 + world.random(3)}}),
        2 => json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1 + world.random(3), "maxUnavailable": 0}}),
        _ => json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}),
    };
    let container = json!({"name": "c", "image": "image:0", "resources": {"requests": {"cpu": "50m"}}});
    let template = json!({"metadata": {"labels": {"app": app}}, "spec": {"containers": [container]}});
    json!({"metadata": {"name": app}, "spec": {
        "replicas": world.random(9), "revisionHistoryLimit": world.random(4), "strategy": strategy,
        "selector": {"matchLabels": {"app": app}}, "template": template,
    }})
}

/// A pod that fills much of a node and is made by no controller.
fn new_pod(world: &World) -> Value {
    let cpu = format!("{}m", 500 * (1 + world.random(7)));
    let container = json!({"name": "c", "image": "image:0", "resources": {"requests": {"cpu": cpu}}});
    let class = PRIORITIES[world.random(3) as usize].0;
    json!({"metadata": {"name": format!("large-{}", world.random(6)), "labels": {"size": "large"}},
        "spec": {"priorityClassName": class, "containers": [container]}})
}

fn new_job(world: &World) -> Value {
    let container = json!({"name": "c", "image": "image:0", "resources": {"requests": {"cpu": "50m"}}});
    let template = json!({"spec": {"restartPolicy": "Never", "containers": [container]}});
    // Few failures are allowed, so that no wait after one is taken for rest.
    json!({"metadata": {"name": format!("job-{}", world.random(9))}, "spec": {"completions": 1 + world.random(6),
        "parallelism": 1 + world.random(4), "backoffLimit": world.random(4), "template": template}})
}

async fn doom_a_pod(world: &World, space: &str) {
    let pods = world.user.informer(&pod::KIND).list(space);
    if pods.is_empty() {
        return;
    }
    let name = pods[world.random(pods.len() as u64) as usize].meta.name.to_string();
    patch(world, &pod::KIND, space, &name, json!({"metadata": {"labels": {"doomed": "yes"}}})).await;
    delete(world, &pod::KIND, space, &name, None).await;
}

async fn create(world: &World, kind: &KindRef, space: &str, value: Value) {
    world.note(&format!("user: create {} {space}/{}", kind.plural(), value["metadata"]["name"]));
    if let Err(status) = world.user.create(kind, space, value).await {
        world.note(&format!("user: refused: {status}"));
    }
}

async fn patch(world: &World, kind: &KindRef, space: &str, name: &str, patch: Value) {
    world.note(&format!("user: patch {} {space}/{name} {patch}", kind.plural()));
    if let Err(status) = world.user.patch(kind, space, name, None, Patch::Strategic(patch)).await {
        world.note(&format!("user: refused: {status}"));
    }
}

async fn delete(world: &World, kind: &KindRef, space: &str, name: &str, policy: Option<Propagation>) {
    world.note(&format!("user: delete {} {space}/{name} {policy:?}", kind.plural()));
    let options = DeleteOptions { propagation: policy, ..DeleteOptions::default() };
    if let Err(status) = world.user.delete(kind, space, name, options).await {
        world.note(&format!("user: refused: {status}"));
    }
}
