//! Plays one recorded case: its requests in a namespace of its own, each answer compared with the recorded one.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};

use super::compare::{differences, drop_path, normal};
use super::server::{Asked, Server};

/// Names that steps may write in braces.
type Names = Vec<(String, String)>;

/// The differences of all steps.
pub async fn play(server: &mut Server, case: &Value, ns: &str) -> Vec<String> {
    let namespaced = case["steps"].to_string().contains("namespaces/{ns}");
    if namespaced {
        let body = format!(r#"{{"metadata":{{"name":"{ns}"}}}}"#);
        server.ask(plain("POST", "/api/v1/namespaces", Some(body))).await;
    }
    let mut names: Names = vec![("ns".into(), ns.into())];
    let mut found = Vec::new();
    for (i, step) in case["steps"].as_array().unwrap().iter().enumerate() {
        let (status, answer, warnings) = take(server, step, &names).await;
        for (name, path) in step["save"].as_object().into_iter().flatten() {
            let value = match at(&answer, path.as_str().unwrap()) {
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
                None => String::new(),
            };
            names.push((name.clone(), value));
        }
        let mut answer = normal(&answer, ns, "");
        for path in step["ignore"].as_array().into_iter().flatten() {
            drop_path(&mut answer, path.as_str().unwrap());
        }
        let want = &case["expect"][i];
        let mut differs = Vec::new();
        if want["http"] != status {
            differs.push(format!("HTTP {status}, want {}", want["http"]));
        }
        if want["warnings"].as_u64().unwrap_or(0) != warnings as u64 {
            differs.push(format!("{warnings} warnings, want {}", want["warnings"]));
        }
        differences(&want["answer"], &answer, "", &mut differs);
        let what = format!("step {} {} {}", i + 1, step["do"], step["path"]);
        found.extend(differs.into_iter().map(|d| format!("{what}: {d}")));
    }
    if namespaced {
        server.ask(plain("DELETE", &format!("/api/v1/namespaces/{ns}"), None)).await;
    }
    found
}

fn plain<'a>(method: &'a str, path: &'a str, body: Option<String>) -> Asked<'a> {
    let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
    Asked { method, path, headers, body: body.map(String::into_bytes) }
}

/// What a dotted path with indexes leads to.
fn at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(value, |v, key| match v {
        Value::Array(items) => items.get(key.parse::<usize>().ok()?),
        other => other.get(key),
    })
}

fn fill(text: &str, names: &Names) -> String {
    names.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
}

async fn take(server: &mut Server, step: &Value, names: &Names) -> (u16, Value, usize) {
    let path = fill(step["path"].as_str().unwrap(), names);
    let text = |key: &str| step[key].as_str().map(|t| fill(t, names));
    let body = match (text("raw64"), text("raw"), step.get("body")) {
        (Some(coded), ..) => Some(BASE64.decode(coded).unwrap()),
        (_, Some(raw), _) => Some(raw.into_bytes()),
        (_, _, Some(body)) => Some(fill(&body.to_string(), names).into_bytes()),
        _ => None,
    };
    let mut headers = vec![("accept".to_owned(), text("accept").unwrap_or_else(|| "application/json".into()))];
    headers.extend(text("as").map(|user| ("impersonate-user".to_owned(), user)));
    for (name, value) in step["headers"].as_object().into_iter().flatten() {
        headers.push((name.clone(), fill(value.as_str().unwrap(), names)));
    }
    if body.is_some() {
        headers.push(("content-type".to_owned(), text("type").unwrap_or_else(|| "application/json".into())));
    }
    let method = step["do"].as_str().unwrap();
    if method == "WATCH" {
        let asked = Asked { method: "GET", path: &path, headers, body };
        let most = step["max"].as_u64().unwrap_or(1) as usize;
        let (status, events) = watch(server, asked, most).await;
        return (status, events, 0);
    }
    let wait = &step["wait"];
    let end = Instant::now() + Duration::from_secs_f64(wait["seconds"].as_f64().unwrap_or(5.0));
    loop {
        let asked = Asked { method, path: &path, headers: headers.clone(), body: body.clone() };
        let (status, warnings, bytes) = server.ask(asked).await;
        let answer = match serde_json::from_slice(&bytes) {
            Ok(value) => value,
            Err(_) if bytes.is_empty() => Value::Null,
            Err(_) => serde_json::json!({"text": String::from_utf8_lossy(&bytes)}),
        };
        let until = &wait["until"];
        let holds =
            until["status"] == status || until["path"].as_str().is_some_and(|p| at(&answer, p) == until.get("equals"));
        if wait.is_null() || holds || Instant::now() > end {
            return (status, answer, warnings);
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn watch(server: &Server, asked: Asked<'_>, most: usize) -> (u16, Value) {
    let end = Instant::now() + Duration::from_secs(3);
    let response = server.open(asked).await;
    let status = response.status().as_u16();
    let mut body = response.into_body();
    let (mut text, mut events) = (Vec::new(), Vec::<Value>::new());
    while events.len() < most
        && let Ok(Some(Ok(frame))) = timeout_at(end, body.frame()).await
    {
        text.extend_from_slice(frame.data_ref().map_or(&[][..], |d| d));
        events = text.split_inclusive(|b| *b == b'\n').filter_map(|l| serde_json::from_slice(l).ok()).collect();
    }
    events.truncate(most);
    (status, events.into())
}
