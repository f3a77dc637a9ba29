//! The page at `/`: its files, and what browsers are told to keep it to.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use common::*;
use server::{ApiKeys, ServeOptions};

fn with_page() -> Router {
    router(script(dog), ServeOptions::default())
}

async fn get(path: &str) -> Answer {
    send(with_page(), request("GET", path, Body::empty())).await
}

fn text(answer: &Answer) -> &str {
    std::str::from_utf8(&answer.body).unwrap()
}

/// What stands in `text` between `before` and the next `"`.
fn quoted<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
    text.split(before)
        .skip(1)
        .map(|rest| rest.split_once('"').unwrap().0)
        .collect()
}

/// Paths of the page's files: those that it names, and those that they do.
async fn files() -> Vec<String> {
    let html = get("/").await;
    let named = [r#"href="page/"#, r#"src="page/"#];
    let named = named.iter().flat_map(|of| quoted(text(&html), of));
    let mut files: Vec<String> = named.map(str::to_owned).collect();
    files.sort_unstable();
    files.dedup();
    for file in files.clone() {
        let answer = get(&format!("/page/{file}")).await;
        for import in quoted(text(&answer), r#"from "./"#) {
            assert!(files.iter().any(|file| file == import), "{file}: {import}");
        }
    }
    let paths = files.iter().map(|file| format!("/page/{file}"));
    ["/".to_owned()].into_iter().chain(paths).collect()
}

#[tokio::test]
async fn its_files_are_there_and_nothing_else_may_run_in_it() {
    let files = files().await;
    assert!(files.len() > 8, "{files:?}");
    for path in files {
        let answer = get(&path).await;
        assert_eq!(answer.status, 200, "{path}");
        let kind = match path.rsplit_once('.').map(|(_, kind)| kind) {
            Some("css") => "text/css; charset=utf-8",
            Some("js") => "text/javascript; charset=utf-8",
            Some("svg") => "image/svg+xml",
            _ => "text/html; charset=utf-8",
        };
        assert_eq!(answer.headers["content-type"], kind, "{path}");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        assert_eq!(answer.headers["referrer-policy"], "no-referrer");
        assert_eq!(answer.headers["cross-origin-opener-policy"], "same-origin");
        assert_eq!(
            answer.headers["cross-origin-resource-policy"],
            "same-origin"
        );
        assert_eq!(answer.headers["cache-control"], "no-cache");
        let policy = answer.headers["content-security-policy"].to_str().unwrap();
        let directives: Vec<&str> = policy.split("; ").collect();
        for directive in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        ] {
            assert!(directives.contains(&directive), "{directive}: {policy}");
        }
        for loose in ["unsafe", "*", "http", "data:"] {
            assert!(!policy.contains(loose), "{policy}");
        }
    }
}

/// The policy would keep them from working.
#[tokio::test]
async fn nothing_in_it_is_inline() {
    let html = get("/").await;
    let html = text(&html);
    let scripts = html.split("<script").skip(1);
    for script in scripts {
        assert!(script.contains(" src=\"page/") && script.contains("></script>"));
    }
    for inline in ["<style", " style=", " onclick=", " onload=", "javascript:"] {
        assert!(!html.contains(inline), "{inline}");
    }
}

#[tokio::test]
async fn a_browser_that_has_a_file_is_not_sent_it_again() {
    for path in files().await {
        let asked = |tag: &str| {
            let asked = Request::get(&path).header("if-none-match", tag);
            send(with_page(), asked.body(Body::empty()).unwrap())
        };
        let whole = get(&path).await;
        let tag = whole.headers["etag"].to_str().unwrap();
        for known in [tag, &format!("W/{tag}"), &format!("\"other\", {tag}"), "*"] {
            let answer = asked(known).await;
            assert_eq!(answer.status, 304, "{path} {known}");
            assert!(answer.body.is_empty());
            assert_eq!(answer.headers["etag"], tag);
            assert_eq!(answer.headers["cache-control"], "no-cache");
        }
        let answer = asked("\"other\"").await;
        assert_eq!((answer.status.as_u16(), answer.body), (200, whole.body));
    }
}

#[tokio::test]
async fn its_head_is_told_without_it() {
    let whole = get("/").await;
    let head = send(with_page(), request("HEAD", "/", Body::empty())).await;
    assert_eq!(head.status, 200);
    assert!(head.body.is_empty());
    assert_eq!(head.headers["content-length"], whole.body.len().to_string());
    for name in ["content-type", "etag", "content-security-policy"] {
        assert_eq!(head.headers[name], whole.headers[name]);
    }
    let posted = send(with_page(), request("POST", "/", "{}")).await;
    assert_eq!(posted.status, 405);
    assert_eq!(posted.code(), "method_not_allowed");
    let missing = get("/page/nothing.js").await;
    assert_eq!(
        (missing.status.as_u16(), missing.code().as_str()),
        (404, "not_found")
    );
}

#[tokio::test]
async fn everyone_gets_it_and_nobody_more_by_it() {
    let guarded = || {
        let options = ServeOptions {
            api_keys: Some(ApiKeys::new(["sk-first"]).unwrap()),
            ..ServeOptions::default()
        };
        router(script(dog), options)
    };
    for path in files().await {
        let answer = send(guarded(), request("GET", &path, Body::empty())).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.body, get(&path).await.body, "it holds nothing");
    }
    for path in [
        "/v1/models",
        "/page",
        "/page/",
        "/page/nothing.js",
        "/index.html",
    ] {
        let answer = send(guarded(), request("GET", path, Body::empty())).await;
        assert_eq!(answer.status, 401, "{path}");
    }
}

#[tokio::test]
async fn a_server_without_it_has_nothing_there() {
    for path in files().await {
        let options = ServeOptions {
            page: false,
            ..ServeOptions::default()
        };
        let router = router(script(dog), options);
        let answer = send(router, request("GET", &path, Body::empty())).await;
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.code(), "not_found");
    }
}
