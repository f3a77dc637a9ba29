//! What the end-to-end tests share: the built program, golden files, the demo
//! bundle, and a server that stops with the test.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

pub mod golden_model;
pub mod hub;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Folder of the golden files.
pub fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(path)
}

/// What transformers saved as `golden/layouts/NAME`, in `dir/NAME`, with its language
/// model's tokenizer, one of `golden/convert_llm/tokenizers`.
///
/// # Panics
/// A file cannot be copied.
pub fn saved(dir: &Path, name: &str, tokenizer: &str) -> PathBuf {
    let checkpoint = dir.join(name);
    std::fs::create_dir(&checkpoint).expect("a new directory");
    copy_files(
        &golden(&format!("convert_llm/tokenizers/{tokenizer}")),
        &checkpoint,
    );
    copy_files(&golden(&format!("layouts/{name}")), &checkpoint);
    checkpoint
}

fn copy_files(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("a golden directory") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            std::fs::create_dir(&target).expect("a new directory");
            copy_files(&path, &target);
        } else {
            std::fs::copy(path, target).expect("a copy");
        }
    }
}

/// Folder of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The built program: `QBRIDGE_BIN`, or the one beside the test's own binary.
///
/// # Panics
/// There is none.
pub fn qbridge_path() -> PathBuf {
    let path = std::env::var_os("QBRIDGE_BIN").map_or_else(
        || {
            let test = std::env::current_exe().expect("path of this test");
            test.with_file_name("../qbridge")
        },
        PathBuf::from,
    );
    assert!(
        path.exists(),
        "{} is not there: run `make test`, which builds it first",
        path.display()
    );
    path
}

/// The program with arguments, its logs silent, whatever settings the user has.
pub fn qbridge<A: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(qbridge_path());
    command
        .args(args)
        .env("QBRIDGE_LOG", "error")
        .env("QBRIDGE_CONFIG", "/dev/null")
        .stdin(Stdio::null());
    command
}

/// Runs a command that must succeed; its standard output.
///
/// # Panics
/// It fails, or its output is not UTF-8.
pub fn stdout(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    assert!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A bundle of the golden checkpoint, made once for all tests of a program.
///
/// # Panics
/// It cannot be made.
pub fn tiny_bundle() -> &'static Path {
    static BUNDLE: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let out = dir.path().join("tiny");
        stdout(
            qbridge(["bundle"])
                .arg(golden("llm/checkpoint"))
                .arg("--llm")
                .arg(golden("llm/llm.gguf"))
                .arg("--out")
                .arg(&out),
        );
        (dir, out)
    });
    &BUNDLE.1
}

/// `qbridge caption` of [`tiny_bundle`] in `dir`, with captions of a few tokens.
///
/// # Panics
/// As [`tiny_bundle`].
pub fn caption<'a>(dir: &Path, args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = qbridge(["caption", "--max-tokens", "6", "--cache-type", "f32"]);
    command.current_dir(dir).arg(tiny_bundle()).args(args);
    command
}

/// Runs a command that must fail as bad input does: exit code 1, nothing on
/// standard output, one line on standard error, which is returned.
///
/// # Panics
/// It does anything else.
pub fn one_line_error(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the program starts");
    let stderr = String::from_utf8(stderr).expect("UTF-8");
    assert_eq!(status.code(), Some(1), "{command:?}: {stderr}");
    assert!(stdout.is_empty(), "{command:?} wrote to standard output");
    assert_eq!(
        stderr.trim_end().lines().count(),
        1,
        "{command:?}: {stderr}"
    );
    stderr.trim_end().to_owned()
}

/// The demo bundle, as `make test` makes it.
///
/// # Panics
/// `QBRIDGE_DEMO_BUNDLE` does not name it.
pub fn demo_bundle() -> PathBuf {
    std::env::var_os("QBRIDGE_DEMO_BUNDLE")
        .map(PathBuf::from)
        .expect(
            "QBRIDGE_DEMO_BUNDLE is not set: run `make test`, which makes the demo bundle first",
        )
}

/// The demo bundle with a chat template of `golden/chat_templates` in place of its own,
/// in `dir`.
///
/// # Panics
/// It cannot be put together.
pub fn demo_bundle_with_template(dir: &Path, template: &str) -> PathBuf {
    let (demo, bundle) = (demo_bundle(), dir.join("qbridge-demo"));
    std::fs::create_dir(&bundle).expect("a new directory");
    for entry in std::fs::read_dir(&demo).expect("the demo bundle") {
        let path = entry.expect("an entry").path();
        let target = bundle.join(path.file_name().expect("a name"));
        // The weights are large, and the same.
        std::os::unix::fs::symlink(&path, target).expect("a link");
    }
    let manifest = bundle.join("bundle.toml");
    let text = std::fs::read_to_string(&manifest).expect("a manifest");
    let source = std::fs::read_to_string(golden(&format!("chat_templates/{template}")));
    let layout = "layout = \"chat-template\"\n";
    let source = serde_json::Value::from(source.expect("a template"));
    let changed = text.replacen(layout, &format!("{layout}template = {source}\n"), 1);
    assert_ne!(changed, text, "the demo's layout is another");
    std::fs::remove_file(&manifest).expect("a link");
    std::fs::write(&manifest, changed).expect("a manifest");
    bundle
}

/// Runs `command` again and again, kills it with -9 each time that `path` has grown by some of
/// its `n` rows, and lets it finish after `kills` times.
///
/// # Panics
/// It does not start, or writes nothing for minutes.
pub fn run_killed(
    mut command: impl FnMut() -> Command,
    path: &Path,
    n: usize,
    kills: usize,
) -> Output {
    let n_rows = || std::fs::read(path).map_or(0, |bytes| count_lines(&bytes));
    let mut random = Instant::now();
    for kill in 0..kills {
        // Anywhere in the next stretch of the whole, at any moment of a row.
        let seed = u64::from(random.elapsed().subsec_nanos());
        random = Instant::now();
        let until = n_rows().max(kill * n / (kills + 1)) + 1 + seed as usize % (n / (kills + 2));
        let mut command = command();
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the program starts");
        let started = Instant::now();
        while n_rows() < until && child.try_wait().expect("a state").is_none() {
            assert!(started.elapsed() < Duration::from_secs(300), "no progress");
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_micros(seed % 3000));
        child.kill().expect("a process to kill");
        child.wait().expect("its end");
    }
    command().output().expect("the program starts")
}

/// Line breaks.
pub fn count_lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

/// A running `qbridge serve`, stopped when dropped.
pub struct Server {
    process: Stopped,
    log: JoinHandle<String>,
    /// `http://127.0.0.1:PORT/v1`
    pub url: String,
}

impl Server {
    /// Starts a server on a free port and waits until it listens.
    ///
    /// # Panics
    /// It does not come up.
    pub fn start(bundle: &Path, args: &[&str]) -> Self {
        Self::start_with(bundle, args, &[])
    }

    /// The same, with variables in its environment.
    ///
    /// # Panics
    /// It does not come up.
    pub fn start_with(bundle: &Path, args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut process = qbridge(["serve", "--port", "0"])
            .arg(bundle)
            .args(args)
            .envs(env.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut lines = BufReader::new(process.stderr.take().expect("stderr")).lines();
        let url = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line[line.find("http://")?..].trim().to_owned()))
            .expect("the server says where it listens");
        // Keeps the pipe drained, so that the server never blocks on its logs.
        let log = std::thread::spawn(move || {
            let mut log = String::new();
            for line in lines.map_while(Result::ok) {
                log.extend([line.as_str(), "\n"]);
            }
            log
        });
        Self {
            process: Stopped(process),
            log,
            url,
        }
    }

    /// Asks it to stop, as service managers do, and waits until it has; what it logged.
    ///
    /// # Panics
    /// It has not stopped after a minute, or failed.
    pub fn stop(mut self) -> String {
        let process = &mut self.process.0;
        let pid = process.id().to_string();
        let asked = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(asked.expect("kill").success());
        let deadline = Instant::now() + Duration::from_secs(60);
        let status = loop {
            match process.try_wait().expect("a child") {
                Some(status) => break status,
                None => assert!(Instant::now() < deadline, "the server does not stop"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let log = self.log.join().expect("a log");
        assert!(status.success(), "{status}: {log}");
        log
    }

    /// The id of the process.
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Posts JSON to `path` under the API's root; status and body.
    ///
    /// # Panics
    /// There is no answer.
    pub fn post(&self, path: &str, body: &serde_json::Value) -> (u16, serde_json::Value) {
        let (status, text) = self.post_text(path, &body.to_string());
        let body = serde_json::from_str(&text).unwrap_or_else(|_| panic!("not JSON: {text}"));
        (status, body)
    }

    /// Posts a body as it is; status and body.
    ///
    /// # Panics
    /// There is no answer.
    pub fn post_text(&self, path: &str, body: &str) -> (u16, String) {
        let response = ureq::post(format!("{}{path}", self.url))
            .config()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(300)))
            .build()
            .header("content-type", "application/json")
            .send(body)
            .expect("an answer");
        let status = response.status().as_u16();
        let mut text = String::new();
        response
            .into_body()
            .into_reader()
            .read_to_string(&mut text)
            .expect("a body");
        (status, text)
    }
}

/// A process that ends with the test.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs an example of the library's documentation on the demo bundle and the directory
/// of the demo's pictures, where `QBRIDGE_DEMO_BUNDLE` names that bundle.
///
/// # Panics
/// The example fails.
pub fn on_the_demo(
    example: impl AsyncFnOnce(PathBuf, PathBuf) -> Result<(), Box<dyn std::error::Error>>,
) {
    if std::env::var_os("QBRIDGE_DEMO_BUNDLE").is_none() {
        println!("SKIPPED: QBRIDGE_DEMO_BUNDLE is not set");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let pictures = repository().join("demo/pictures");
    runtime
        .expect("a runtime")
        .block_on(example(demo_bundle(), pictures))
        .expect("an example that works");
}

/// A chat request with one picture as a data URI.
pub fn chat(picture: &[u8], question: &str) -> serde_json::Value {
    use base64::Engine;
    let data = base64::engine::general_purpose::STANDARD.encode(picture);
    serde_json::json!({
        "model": "qbridge-demo",
        "temperature": 0,
        "messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{data}")}},
            {"type": "text", "text": question},
        ]}],
    })
}
