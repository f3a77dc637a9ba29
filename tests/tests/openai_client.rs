//! OpenAI's own Python client against a server with the demo bundle: `openai_client.py` says what is checked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;

use qbridge_tests::{Server, demo_bundle};

/// Folder with the pinned client, installed at the first run.
fn client(requirements: &Path) -> PathBuf {
    let cache =
        std::env::var_os("QBRIDGE_CACHE").expect("QBRIDGE_CACHE is not set: run `make e2e`");
    let pinned = std::fs::read_to_string(requirements).unwrap();
    let folder = Path::new(&cache).join(format!("python-{}", pinned.trim()));
    if !folder.exists() {
        // Aside first, so that a broken download is not taken for the client.
        let unfinished = tempfile::tempdir_in(&cache).unwrap();
        let installed = Command::new("python3")
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--target",
            ])
            .arg(unfinished.path())
            .arg("--requirement")
            .arg(requirements)
            .status()
            .expect("python3 is there");
        assert!(
            installed.success(),
            "pip could not install {}",
            requirements.display()
        );
        std::fs::rename(unfinished.keep(), &folder).unwrap();
    }
    folder
}

#[test]
fn openais_client_is_content() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let client = client(&tests.join("requirements.txt"));
    let server = Server::start(&demo_bundle(), &[]);
    let checked = Command::new("python3")
        .arg(tests.join("openai_client.py"))
        .args([server.url.as_str(), "qbridge-demo"])
        .env("PYTHONPATH", client)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    let [out, err] =
        [checked.stdout, checked.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(checked.status.success(), "{out}{err}");
    assert_eq!(
        out.lines().filter(|line| line.starts_with("ok ")).count(),
        7,
        "{out}"
    );
}
