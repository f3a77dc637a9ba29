//! The page that `qbridge serve` has at `/`, driven in Chromium on the demo bundle.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use qbridge_tests::{Server, demo_bundle, repository};
use serde_json::Value;

/// Longest time for all of it in the browser; the script itself gives up before.
const DEADLINE: Duration = Duration::from_secs(270);

/// Chromium: what `QBRIDGE_CHROMIUM` names, or Debian's.
fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("QBRIDGE_CHROMIUM").filter(|path| !path.is_empty());
    let path = path.map_or_else(|| PathBuf::from("/usr/bin/chromium"), PathBuf::from);
    path.exists().then_some(path)
}

/// The page's address.
fn page(server: &Server) -> String {
    server.url.strip_suffix("v1").unwrap().to_owned()
}

#[test]
fn the_page_works_in_a_browser() {
    let modules = std::env::var_os("QBRIDGE_NODE_CLIENT").filter(|dir| !dir.is_empty());
    let (Some(modules), Some(chromium)) = (modules, chromium()) else {
        // Past what captures the output of tests that pass.
        let why = "SKIPPED: the page in a browser, since there is no Chromium (apt-get install chromium, or \
                   QBRIDGE_CHROMIUM), no node or no npm";
        return writeln!(std::io::stderr(), "{why}").unwrap();
    };
    let server = Server::start(&demo_bundle(), &[]);
    let guarded = Server::start_with(&demo_bundle(), &[], &[("QBRIDGE_API_KEYS", "sk-test")]);
    // Packages are looked for beside the script.
    let script = Path::new(&modules).join("page.mjs");
    std::fs::copy(repository().join("tests/node/page.mjs"), &script).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [out, err] = ["out", "err"].map(|name| dir.path().join(name));
    let mut node = Command::new("node")
        .arg(script)
        .arg(chromium)
        .args([page(&server), page(&guarded)])
        .arg(repository().join("demo/pictures"))
        .args(std::env::var_os("QBRIDGE_SCREENSHOTS"))
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&out).unwrap())
        .stderr(std::fs::File::create(&err).unwrap())
        .spawn()
        .unwrap();
    let started = Instant::now();
    let status = loop {
        if let Some(status) = node.try_wait().unwrap() {
            break Some(status);
        }
        if started.elapsed() > DEADLINE {
            node.kill().unwrap();
            node.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let [out, err] = [out, err].map(|path| std::fs::read_to_string(path).unwrap());
    assert!(
        status.is_some_and(|status| status.success()),
        "{status:?}\n{out}{err}"
    );
    let checks = out.lines().filter(|line| line.starts_with("ok ")).count();
    assert_eq!(checks, 22, "{out}");
}

/// Status and body of what is at `path`, of a server called `host`.
fn get(server: &Server, path: &str, host: &str) -> (u16, String) {
    let response = ureq::get(format!("{}{path}", page(server)))
        .config()
        .http_status_as_error(false)
        .build()
        .header("host", host)
        .call()
        .unwrap();
    let status = response.status().as_u16();
    (status, response.into_body().read_to_string().unwrap())
}

#[test]
fn no_ui_leaves_nothing_at_the_root() {
    let server = Server::start(&demo_bundle(), &[]);
    let (status, html) = get(&server, "", "localhost");
    assert_eq!(status, 200);
    assert!(html.starts_with("<!doctype html>"));
    // A page whose name leads here could ask in the user's place.
    let (status, _) = get(&server, "", "evil.example");
    assert_eq!(status, 403);
    let without = Server::start(&demo_bundle(), &["--no-ui"]);
    let (status, body) = get(&without, "", "localhost");
    assert_eq!(status, 404);
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["error"]["code"], "not_found");
}
