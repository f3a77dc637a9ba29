//! A hub of the test's own on the loopback: it speaks the hub's paths, sends
//! large files from another origin as the real one does, and is told what to do
//! wrong.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Files of a model by path.
pub type Files = BTreeMap<String, Vec<u8>>;

/// The model that every hub here has.
pub const MODEL: &str = "owner/model";

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// Whether it came to the origin of the large files.
    pub is_cdn: bool,
    /// With its query.
    pub path: String,
    /// By name in lower case.
    pub headers: HashMap<String, String>,
}

impl Request {
    /// Start and end of the range that is asked for, in a file of `size` bytes.
    ///
    /// # Panics
    /// It is no such range.
    pub fn range(&self, size: usize) -> Option<(usize, usize)> {
        let range = self.headers.get("range")?.strip_prefix("bytes=")?;
        let (start, last) = range.split_once('-')?;
        let end = last.parse::<usize>().map_or(size, |last| last + 1);
        Some((start.parse().unwrap(), end))
    }
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// `name: value`
    pub headers: Vec<String>,
    /// What is sent, up to `cut`.
    pub body: Vec<u8>,
    /// Bytes of the body after which the connection breaks.
    pub cut: Option<usize>,
    /// Content-Length, where it lies.
    pub length: Option<usize>,
}

impl Reply {
    /// An answer without content.
    pub fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    /// An answer without content, with a header.
    pub fn with(status: u16, header: impl Into<String>) -> Self {
        Self {
            headers: vec![header.into()],
            ..Self::status(status)
        }
    }

    /// An answer with content.
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self {
            body: body.into(),
            ..Self::status(200)
        }
    }

    /// The same, breaking off after `bytes`.
    #[must_use]
    pub fn cut_after(self, bytes: usize) -> Self {
        Self {
            cut: Some(bytes),
            ..self
        }
    }
}

type Faults = dyn Fn(&Request, usize, Reply) -> Reply + Send + Sync;

/// A running hub. It stops with the test's process.
pub struct Hub {
    /// Its address.
    pub endpoint: String,
    state: Arc<State>,
}

struct State {
    commits: Mutex<HashMap<String, Files>>,
    main: Mutex<String>,
    requests: Mutex<Vec<Request>>,
    cdn: String,
    faults: Box<Faults>,
}

impl Hub {
    /// A hub that has `files` in the branch `main` of [`MODEL`]. `faults` makes
    /// of a request, the number of requests for the same path before it, and
    /// the right answer, the one that is given.
    ///
    /// # Panics
    /// No port is free.
    pub fn start(
        files: &Files,
        faults: impl Fn(&Request, usize, Reply) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let [hub, cdn] = ["127.0.0.1:0"; 2].map(|address| TcpListener::bind(address).unwrap());
        let state = Arc::new(State {
            commits: Mutex::default(),
            main: Mutex::default(),
            requests: Mutex::default(),
            cdn: format!("http://{}", cdn.local_addr().unwrap()),
            faults: Box::new(faults),
        });
        let endpoint = format!("http://{}", hub.local_addr().unwrap());
        for (listener, is_cdn) in [(hub, false), (cdn, true)] {
            let state = state.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let state = state.clone();
                    std::thread::spawn(move || state.serve(&stream.unwrap(), is_cdn));
                }
            });
        }
        let hub = Self { endpoint, state };
        hub.push(files);
        hub
    }

    /// A hub that does nothing wrong.
    pub fn of(files: &Files) -> Self {
        Self::start(files, |_, _, reply| reply)
    }

    /// Moves `main` to a new commit with these files; its hash.
    ///
    /// # Panics
    /// Another thread of the hub has panicked.
    pub fn push(&self, files: &Files) -> String {
        let commit = hex(&Sha1::digest(format!("{files:?}")));
        let mut commits = self.state.commits.lock().unwrap();
        commits.insert(commit.clone(), files.clone());
        self.state.main.lock().unwrap().clone_from(&commit);
        commit
    }

    /// Requests so far, of which the path contains `part`.
    ///
    /// # Panics
    /// Another thread of the hub has panicked.
    pub fn asked(&self, part: &str) -> Vec<Request> {
        let requests = self.state.requests.lock().unwrap();
        let found = requests
            .iter()
            .filter(|request| request.path.contains(part));
        found.cloned().collect()
    }
}

impl State {
    fn serve(&self, stream: &TcpStream, is_cdn: bool) {
        let mut lines = BufReader::new(stream).lines();
        let Some(Ok(first)) = lines.next() else {
            return;
        };
        let headers = lines
            .map_while(|line| line.ok().filter(|line| !line.is_empty()))
            .filter_map(|line| {
                let (name, value) = line.split_once(':')?;
                Some((name.to_lowercase(), value.trim().to_owned()))
            })
            .collect();
        let request = Request {
            is_cdn,
            path: first.split(' ').nth(1).unwrap_or_default().to_owned(),
            headers,
        };
        let before = {
            let mut requests = self.requests.lock().unwrap();
            requests.push(request.clone());
            let same = requests
                .iter()
                .filter(|other| (&other.path, other.is_cdn) == (&request.path, request.is_cdn));
            same.count() - 1
        };
        let reply = (self.faults)(&request, before, self.right_answer(&request));
        let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
        for header in &reply.headers {
            head += &format!("{header}\r\n");
        }
        let length = reply.length.unwrap_or(reply.body.len());
        head += &format!("content-length: {length}\r\n\r\n");
        let body = &reply.body[..reply.cut.unwrap_or(reply.body.len()).min(reply.body.len())];
        let mut stream = stream;
        // The other side may have gone away on purpose.
        let _ = stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(body));
    }

    fn right_answer(&self, request: &Request) -> Reply {
        let commits = self.commits.lock().unwrap();
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let find = |place: &str| {
            let (commit, path) = place.split_once('/')?;
            let (path, bytes) = commits.get(commit)?.get_key_value(path)?;
            Some((path.clone(), bytes.clone()))
        };
        if let Some(place) = path.strip_prefix("/blob/").filter(|_| request.is_cdn) {
            return find(place).map_or(Reply::status(404), |(_, bytes)| part(request, &bytes));
        }
        if let Some(revision) = path.strip_prefix(&format!("/api/models/{MODEL}/revision/")) {
            let main = self.main.lock().unwrap().clone();
            let commit = if revision == "main" { &main } else { revision };
            return match commits.get(commit) {
                Some(files) if query == "blobs=true" => {
                    Reply::ok(listing(commit, files).to_string())
                }
                _ => Reply::with(404, "x-error-code: RevisionNotFound"),
            };
        }
        let Some(place) = path.strip_prefix(&format!("/{MODEL}/resolve/")) else {
            return Reply::with(401, "x-error-code: RepoNotFound");
        };
        match find(place) {
            None => Reply::with(404, "x-error-code: EntryNotFound"),
            Some((path, _)) if is_large(&path) => {
                Reply::with(302, format!("location: {}/blob/{place}", self.cdn))
            }
            Some((_, bytes)) => part(request, &bytes),
        }
    }
}

fn is_large(path: &str) -> bool {
    [".safetensors", ".bin", ".model"]
        .iter()
        .any(|end| path.ends_with(end))
}

/// What the hub tells of a model at `commit`.
fn listing(commit: &str, files: &Files) -> Value {
    let siblings = files.iter().map(|(path, bytes)| {
        let size = bytes.len();
        if is_large(path) {
            let sha256 = hex(&Sha256::digest(bytes));
            json!({"rfilename": path, "size": size, "blobId": "0".repeat(40),
                   "lfs": {"sha256": sha256, "size": size, "pointerSize": 134}})
        } else {
            let mut hasher = Sha1::new_with_prefix(format!("blob {size}\0"));
            hasher.update(bytes);
            json!({"rfilename": path, "size": size, "blobId": hex(&hasher.finalize())})
        }
    });
    json!({"id": MODEL, "sha": commit, "siblings": siblings.collect::<Vec<_>>()})
}

/// A file, or the part of it that is asked for.
pub fn part(request: &Request, file: &[u8]) -> Reply {
    let etag = format!("\"{}\"", hex(&Sha256::digest(file)));
    let is_same = request
        .headers
        .get("if-range")
        .is_none_or(|mark| *mark == etag);
    let mut reply = match request.range(file.len()).filter(|_| is_same) {
        None => Reply::ok(file),
        Some((start, _)) if start >= file.len() => Reply::status(416),
        Some((start, end)) => Reply {
            body: file[start..end.min(file.len())].to_vec(),
            ..Reply::with(
                206,
                format!("content-range: bytes {start}-{}/{}", end - 1, file.len()),
            )
        },
    };
    reply.headers.push(format!("etag: {etag}"));
    reply
}

/// The files of a directory, those of its own directories included.
///
/// # Panics
/// One cannot be read.
pub fn files_of(dir: &Path) -> Files {
    let mut files = Files::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            let inner = files_of(&path).into_iter();
            files.extend(inner.map(|(path, bytes)| (format!("{name}/{path}"), bytes)));
        } else {
            files.insert(name, std::fs::read(&path).unwrap());
        }
    }
    files
}

/// A safetensors file of bytes, in the order given.
pub fn safetensors(tensors: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::<u8>::new());
    for (name, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        let info = json!({"dtype": "U8", "shape": [bytes.len()], "data_offsets": offsets});
        header.insert((*name).to_owned(), info);
        data.extend(*bytes);
    }
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
