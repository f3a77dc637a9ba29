//! Pictures that are fetched, and all that is not: against servers on loopback, which the tests' own policy allows at
//! 127.0.0.1 and nowhere else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::header::{CONNECTION, LOCATION};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::IntoResponse;
use axum::routing::get;
use common::*;
use serde_json::{Value, json};
use server::fetch::{
    FetchError, FetchOptions, Fetcher, Hosts, Resolver, Resolving, UrlPolicy, is_public,
};
use server::{ApiKeys, MediaDir, ServeOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Stands for the inner network: it can be reached, and must not be.
const INNER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const LIMIT: usize = 1000;

/// Answers each look-up of a name with the next of its lists, and at last with the last.
#[derive(Default)]
struct Names {
    answers: Mutex<HashMap<&'static str, Vec<Vec<IpAddr>>>>,
    asked: AtomicUsize,
}

impl Names {
    fn new(names: impl IntoIterator<Item = (&'static str, Vec<Vec<IpAddr>>)>) -> Arc<Names> {
        Arc::new(Names {
            answers: Mutex::new(names.into_iter().collect()),
            asked: AtomicUsize::new(0),
        })
    }
}

struct Shared(Arc<Names>);

impl Resolver for Shared {
    fn resolve(&self, host: &str) -> Resolving {
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        let mut answers = self.0.answers.lock().unwrap();
        let answer = match answers.get_mut(host) {
            Some(list) if list.len() > 1 => Ok(list.remove(0)),
            Some(list) => Ok(list[0].clone()),
            None => Err(io::Error::other("no such name in 10.1.2.3")),
        };
        if host == "slow.test" {
            return Box::pin(std::future::pending());
        }
        Box::pin(async { answer })
    }
}

fn here_or_public(address: IpAddr) -> bool {
    address == HERE || is_public(address)
}

fn names() -> Arc<Names> {
    Names::new([
        ("pictures.test", vec![vec![HERE]]),
        ("inner.test", vec![vec![INNER]]),
        ("mixed.test", vec![vec![HERE, INNER]]),
        ("rebinding.test", vec![vec![HERE], vec![INNER]]),
        ("nowhere.test", vec![vec![]]),
        ("evil-pictures.test", vec![vec![HERE]]),
        ("a.pictures.test", vec![vec![HERE]]),
    ])
}

fn options(port: u16, names: &Arc<Names>) -> FetchOptions {
    FetchOptions {
        urls: UrlPolicy {
            hosts: Hosts::Any,
            ports: vec![port],
        },
        addresses: here_or_public,
        resolver: Arc::new(Shared(names.clone())),
        timeout: Duration::from_secs(5),
        ..FetchOptions::default()
    }
}

fn fetcher(port: u16) -> Fetcher {
    Fetcher::new(options(port, &names())).unwrap()
}

async fn fetch(fetcher: &Fetcher, url: &str) -> Result<Vec<u8>, FetchError> {
    let url = fetcher.check(url)?;
    fetcher.fetch(&url, LIMIT, fetcher.deadline()).await
}

/// A server on loopback and on the inner address, which tells each request's path; `/to?URL` redirects.
struct Site {
    port: u16,
    hits: Arc<Mutex<Vec<String>>>,
    inner_hits: Arc<AtomicUsize>,
}

async fn site() -> Site {
    let listener = TcpListener::bind((HERE, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let inner = TcpListener::bind((INNER, port)).await.unwrap();
    let hits = Arc::new(Mutex::new(Vec::new()));
    let kept = hits.clone();
    let app = Router::new().fallback(get(move |uri: Uri, headers: HeaderMap| async move {
        let host = headers["host"].to_str().unwrap();
        kept.lock().unwrap().push(format!("{host}{uri}"));
        let close = [(CONNECTION, "close".to_owned())];
        match (uri.path(), uri.query()) {
            ("/to", Some(target)) => {
                let headers = [
                    (CONNECTION, "close".to_owned()),
                    (LOCATION, target.to_owned()),
                ];
                (StatusCode::FOUND, headers, Vec::new()).into_response()
            }
            ("/lost", _) => (StatusCode::SEE_OTHER, close, Vec::new()).into_response(),
            ("/404", _) => (StatusCode::NOT_FOUND, close, b"gone".to_vec()).into_response(),
            ("/large", _) => (close, vec![7; LIMIT + 1]).into_response(),
            ("/fits", _) => (close, vec![7; LIMIT]).into_response(),
            _ => (close, b"\x89PNG picture".to_vec()).into_response(),
        }
    }));
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let inner_hits = Arc::new(AtomicUsize::new(0));
    let counter = inner_hits.clone();
    tokio::spawn(async move {
        loop {
            let _connection = inner.accept().await.unwrap();
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    Site {
        port,
        hits,
        inner_hits,
    }
}

impl Site {
    fn url(&self, host: &str, path: &str) -> String {
        format!("http://{host}:{}{path}", self.port)
    }

    fn inner_hits(&self) -> usize {
        self.inner_hits.load(Ordering::SeqCst)
    }

    fn hits(&self) -> usize {
        self.hits.lock().unwrap().len()
    }
}

/// What a server does after its answer.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Close,
    Wait,
    /// A byte now and then, for ever.
    Drip,
    /// As much as is taken.
    Flood,
}

/// A server that sends `answer` to whoever connects; the bytes sent in all.
async fn raw_site(answer: &'static str, then: Then) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((HERE, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = sent.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let counter = counter.clone();
            tokio::spawn(async move {
                let mut head = [0; 2048];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(answer.as_bytes()).await;
                if then == Then::Close {
                    return;
                }
                loop {
                    let piece: &[u8] = match then {
                        Then::Flood => &[7; 1000],
                        Then::Drip => b"x",
                        _ => b"",
                    };
                    if then != Then::Flood {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    let chunk = format!("{:x}\r\n", piece.len());
                    let chunk = [chunk.as_bytes(), piece, b"\r\n"].concat();
                    if !piece.is_empty() && stream.write_all(&chunk).await.is_err() {
                        break;
                    }
                    counter.fetch_add(piece.len(), Ordering::SeqCst);
                }
            });
        }
    });
    (port, sent)
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

#[tokio::test]
async fn a_picture_is_fetched_and_known_by_its_bytes() {
    let site = site().await;
    let fetcher = fetcher(site.port);
    let bytes = fetch(&fetcher, &site.url("pictures.test", "/dog.png")).await;
    assert_eq!(bytes.unwrap(), b"\x89PNG picture");
    // Neither the type nor the encoding that a server declares is looked at.
    let odd = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nPNG";
    let (port, _) = raw_site(odd, Then::Close).await;
    let url = format!("http://pictures.test:{port}/");
    assert_eq!(fetch(&self::fetcher(port), &url).await.unwrap(), b"PNG");
}

#[tokio::test]
async fn urls_are_refused_by_themselves() {
    let fetcher = Fetcher::new(FetchOptions::default()).unwrap();
    let mut told = Vec::new();
    for url in [
        "http://",
        "http://a b/",
        "gopher://example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "data:image/png;base64,aGk=",
        "http://user@example.com/",
        "https://user:secret@example.com/",
        "https://:secret@example.com/",
        "http://example.com:22/",
        "http://example.com:8080/",
        // Addresses in every spelling that the URL standard knows.
        "http://127.0.0.1/",
        "http://127.0.0.1./",
        "http://127.1/",
        "http://0x7f.0.0.1/",
        "http://0177.0.0.1/",
        "http://2130706433/",
        "http://0/",
        "http://169.254.169.254/latest/meta-data/",
        "http://%31%32%37.0.0.1/",
        "http://\u{ff11}\u{ff12}\u{ff17}.0.0.1/",
        "http://100.100.100.200/",
        "http://[::]/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://[2001:0:7f00:1::]/",
        "http://[fec0::1]/",
        "http://[fd00:ec2::254]/",
        "http://[fe80::1]/",
    ] {
        let error = fetcher.check(url).unwrap_err().to_string();
        assert!(!error.contains("secret"));
        told.push(format!("{url}\n    {error}"));
    }
    insta::assert_snapshot!("refused URLs", told.join("\n"));
    for url in [
        "http://example.com",
        "https://1.1.1.1/a.png",
        "https://example.com:80/",
        "http://[2606:4700::1111]/",
    ] {
        assert!(fetcher.check(url).is_ok(), "{url}");
    }
}

#[tokio::test]
async fn hosts_can_be_listed() {
    let site = site().await;
    let hosts = |list: &[&str]| {
        let mut options = options(site.port, &names());
        options.urls.hosts = list.iter().map(|&host| host.to_owned()).collect();
        Fetcher::new(options).unwrap()
    };
    let allowed = |fetcher: &Fetcher, host: &str| fetcher.check(&site.url(host, "/")).is_ok();
    let one = hosts(&["Pictures.test."]);
    assert!(allowed(&one, "pictures.test") && allowed(&one, "PICTURES.test."));
    for other in [
        "a.pictures.test",
        "evil-pictures.test",
        "pictures.test.evil.test",
        "127.0.0.1",
    ] {
        assert!(!allowed(&one, other), "{other}");
    }
    let below = hosts(&["*.pictures.test"]);
    assert!(allowed(&below, "a.pictures.test") && allowed(&below, "a.b.pictures.test"));
    for other in ["pictures.test", "evil-pictures.test", ".pictures.test"] {
        assert!(!allowed(&below, other), "{other}");
    }
    assert!(allowed(&hosts(&["x", "*"]), "pictures.test"));
    assert!(!allowed(&hosts(&[""]), "pictures.test"));
    // A redirect does not lead off the list.
    let url = site.url(
        "pictures.test",
        &format!("/to?{}", site.url("a.pictures.test", "/")),
    );
    assert!(matches!(
        fetch(&one, &url).await,
        Err(FetchError::Forbidden { .. })
    ));
    assert_eq!(site.hits(), 1);
}

/// vLLM's check and its client read a backslash differently.
#[tokio::test]
async fn cve_2026_24779_what_is_checked_is_what_is_fetched() {
    let site = site().await;
    let mut only = options(site.port, &names());
    only.urls.hosts = Hosts::Only(vec!["pictures.test".to_owned()]);
    let fetcher = Fetcher::new(only).unwrap();
    let port = site.port;
    for url in [
        format!("http://pictures.test:{port}\\@inner.test:{port}/"),
        format!("http:\\\\pictures.test:{port}\\@inner.test:{port}/"),
        format!("http://pictures.test:{port}#@inner.test:{port}/"),
    ] {
        fetch(&fetcher, &url).await.unwrap();
        let seen = site.hits.lock().unwrap().pop().unwrap();
        assert!(
            seen.starts_with(&format!("pictures.test:{port}/")),
            "{url}: {seen}"
        );
    }
    for url in [
        format!("http://inner.test:{port}\\@pictures.test:{port}/"),
        format!("http://pictures.test\t@inner.test:{port}/"),
    ] {
        assert!(fetcher.check(&url).is_err(), "{url}");
    }
    assert_eq!(site.inner_hits(), 0);
}

#[tokio::test]
async fn three_redirects_are_followed() {
    let site = site().await;
    let fetcher = fetcher(site.port);
    let mut url = "/dog.png".to_owned();
    for redirects in 0..=4 {
        let result = fetch(&fetcher, &site.url("pictures.test", &url)).await;
        match redirects {
            4 => assert!(matches!(result, Err(FetchError::TooManyRedirects))),
            _ => assert_eq!(result.unwrap(), b"\x89PNG picture"),
        }
        url = format!("/to?{url}");
    }
    let lost = fetch(&fetcher, &site.url("pictures.test", "/lost")).await;
    assert!(matches!(lost, Err(FetchError::Status(303))));
    let missing = fetch(&fetcher, &site.url("pictures.test", "/404")).await;
    assert!(matches!(missing, Err(FetchError::Status(404))));
}

/// LMDeploy checked the first URL and followed its redirects unchecked.
#[tokio::test]
async fn ghsa_7rf4_7gg3_8vqx_each_redirect_is_checked() {
    let site = site().await;
    let fetcher = fetcher(site.port);
    for target in [
        site.url("127.0.0.2", "/"),
        site.url("inner.test", "/"),
        site.url("mixed.test", "/"),
        site.url("[::ffff:127.0.0.2]", "/"),
        site.url("user:secret@pictures.test", "/"),
        format!("//127.0.0.2:{}/", site.port),
        "http://pictures.test:1/".to_owned(),
        "file:///etc/hostname".to_owned(),
        "data:image/png;base64,aGk=".to_owned(),
    ] {
        // At once, and behind an innocent one.
        for path in [format!("/to?{target}"), format!("/to?/to?{target}")] {
            let result = fetch(&fetcher, &site.url("pictures.test", &path)).await;
            assert!(
                matches!(
                    result,
                    Err(FetchError::Forbidden { .. } | FetchError::Unreachable { .. })
                ),
                "{target}"
            );
        }
    }
    assert_eq!(site.inner_hits(), 0);
}

/// LlamaFactory 10646, vLLM 57157: the name was looked up once to check it and once more to connect.
#[tokio::test]
async fn dns_rebinding_finds_no_second_look_up() {
    let site = site().await;
    let names = names();
    let fetcher = Fetcher::new(options(site.port, &names)).unwrap();
    let url = site.url("rebinding.test", "/");
    assert!(fetch(&fetcher, &url).await.is_ok());
    assert_eq!(names.asked.load(Ordering::SeqCst), 1);
    // The next connection is the next look-up, and that is checked.
    assert!(matches!(
        fetch(&fetcher, &url).await,
        Err(FetchError::Unreachable { .. })
    ));
    assert_eq!(names.asked.load(Ordering::SeqCst), 2);
    // One inner address among others is enough.
    let url = site.url("mixed.test", "/");
    assert!(matches!(
        fetch(&fetcher, &url).await,
        Err(FetchError::Unreachable { .. })
    ));
    assert_eq!((site.hits(), site.inner_hits()), (1, 0));
}

#[tokio::test]
async fn the_deadline_is_one_for_everything() {
    let (dripping, _) = raw_site(CHUNKED, Then::Drip).await;
    let (silent, _) = raw_site("", Then::Wait).await;
    let (half_head, _) = raw_site("HTTP/1.1 200 OK\r\nx: ", Then::Wait).await;
    let urls = [
        (dripping, format!("http://pictures.test:{dripping}/")),
        (silent, format!("http://pictures.test:{silent}/")),
        (half_head, format!("http://pictures.test:{half_head}/")),
        (dripping, format!("http://slow.test:{dripping}/")),
    ];
    for (port, url) in urls {
        let fetcher = Fetcher::new(FetchOptions {
            timeout: Duration::from_millis(200),
            ..options(port, &names())
        });
        let started = Instant::now();
        let result = fetch(&fetcher.unwrap(), &url).await;
        assert!(matches!(result, Err(FetchError::Timeout)), "{url}");
        assert!(started.elapsed() < Duration::from_secs(2), "{url}");
    }
}

#[tokio::test]
async fn bytes_are_counted_and_lengths_not_believed() {
    let site = site().await;
    let fetcher = fetcher(site.port);
    let fits = fetch(&fetcher, &site.url("pictures.test", "/fits")).await;
    assert_eq!(fits.unwrap().len(), LIMIT);
    let large = fetch(&fetcher, &site.url("pictures.test", "/large")).await;
    assert!(matches!(large, Err(FetchError::TooLarge { limit: LIMIT })));

    let of = async |answer, then| {
        let (port, sent) = raw_site(answer, then).await;
        let url = format!("http://pictures.test:{port}/");
        (fetch(&self::fetcher(port), &url).await, sent)
    };
    // No length, no end.
    let (endless, sent) = of(CHUNKED, Then::Flood).await;
    assert!(matches!(endless, Err(FetchError::TooLarge { .. })));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let after = sent.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(sent.load(Ordering::SeqCst), after, "it is still being read");
    // More announced than is allowed: refused before it comes.
    let huge = "HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n";
    assert!(matches!(
        of(huge, Then::Wait).await.0,
        Err(FetchError::TooLarge { .. })
    ));
    // More announced than comes.
    let short = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello";
    assert!(matches!(
        of(short, Then::Close).await.0,
        Err(FetchError::Broken { .. })
    ));
    // More comes than is announced.
    let long = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhello";
    assert_eq!(of(long, Then::Close).await.0.unwrap(), b"he");
    // Two lengths are an attack.
    let two = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhello";
    assert!(of(two, Then::Close).await.0.is_err());
}

#[tokio::test]
async fn few_are_fetched_at_once() {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, peak) = (running.clone(), most.clone());
    let app = Router::new().fallback(get(move || async move {
        peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(30)).await;
        now.fetch_sub(1, Ordering::SeqCst);
        "picture"
    }));
    let listener = TcpListener::bind((HERE, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let fetcher = Fetcher::new(FetchOptions {
        max_concurrent: 2,
        ..options(port, &names())
    })
    .unwrap();
    let url = format!("http://pictures.test:{port}/");
    let all = (0..6).map(|_| fetch(&fetcher, &url));
    let all = futures_util::future::join_all(all).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(
        (most.load(Ordering::SeqCst), running.load(Ordering::SeqCst)),
        (2, 0)
    );
}

fn asks(urls: &[&str]) -> Value {
    let parts: Vec<Value> = urls
        .iter()
        .map(|url| json!({"type": "image_url", "image_url": {"url": url}}))
        .collect();
    chat(json!({"messages": [{"role": "user", "content": parts}]}))
}

fn serving(fetcher: Fetcher) -> ServeOptions {
    ServeOptions {
        fetcher: Some(Arc::new(fetcher)),
        ..ServeOptions::default()
    }
}

#[tokio::test]
async fn requests_may_name_pictures() {
    let site = site().await;
    let (backend, seen) = recorder();
    let router = router(backend, serving(fetcher(site.port)));
    let inline = format!("data:image/png;base64,{PNG}");
    let (dog, fits) = (
        site.url("pictures.test", "/dog"),
        site.url("pictures.test", "/fits"),
    );
    let answer = send(router, post(&asks(&[&dog, &inline, &fits]))).await;
    assert_eq!(answer.status, 200);
    let seen = seen.lock().unwrap();
    let images = &seen[0].images;
    assert_eq!(&images[0][..], b"\x89PNG picture");
    assert_eq!(&images[1][..8], b"\x89PNG\r\n\x1a\n");
    assert_eq!(images[2].len(), LIMIT);
}

/// What a request learns about the inner network: nothing, in so many words.
#[tokio::test]
async fn nobody_learns_what_is_inside() {
    let site = site().await;
    let closed = TcpListener::bind((HERE, 0)).await.unwrap();
    let closed_port = closed.local_addr().unwrap().port();
    drop(closed);
    let mut options = options(site.port, &names());
    options.urls.ports.push(closed_port);
    let router = router(
        fake(|_| panic!("the model was asked")),
        serving(Fetcher::new(options).unwrap()),
    );
    let mut told = Vec::new();
    for url in [
        site.url("inner.test", "/"),
        site.url("mixed.test", "/"),
        site.url("unknown.test", "/"),
        site.url("nowhere.test", "/"),
        format!("http://pictures.test:{closed_port}/"),
        format!("https://pictures.test:{}/", site.port),
    ] {
        let good = site.url("pictures.test", "/dog");
        let answer = send(router.clone(), post(&asks(&[&good, &url]))).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_str()),
            (400, "image_fetch_failed")
        );
        assert_eq!(answer.param(), "messages[0].content[1].image_url.url");
        told.push(answer.error()["message"].clone());
    }
    told.dedup();
    assert_eq!(told.len(), 1, "{told:?}");
    let told = told[0].as_str().unwrap();
    for secret in ["127.", "10.", "refused", "test"] {
        assert!(!told.contains(secret), "{told}");
    }
    assert_eq!(site.inner_hits(), 0);
}

#[tokio::test]
async fn pictures_have_a_limit_each_and_together() {
    let site = site().await;
    let fits = site.url("pictures.test", "/fits");
    let ask = async |max_image_bytes, max_body_bytes| {
        let options = ServeOptions {
            max_image_bytes,
            max_body_bytes,
            ..serving(fetcher(site.port))
        };
        let urls = [fits.as_str(); 3];
        let answer = send(router(script(dog), options), post(&asks(&urls))).await;
        let told = (answer.status != 200).then(|| (answer.code(), answer.param()));
        (answer.status.as_u16(), told)
    };
    assert_eq!(ask(LIMIT, 3 * LIMIT).await, (200, None));
    let too_large = |param: &str| Some(("image_too_large".to_owned(), json!(param)));
    assert_eq!(
        ask(LIMIT - 1, 3 * LIMIT).await,
        (413, too_large("messages[0].content[0].image_url.url"))
    );
    assert_eq!(
        ask(LIMIT, 3 * LIMIT - 1).await,
        (413, too_large("messages"))
    );
}

/// TGI fetched links that stood in a prompt's text, of whoever asked, as much as there was.
#[tokio::test]
async fn cve_2026_0599_nothing_is_fetched_for_text_nor_for_strangers() {
    let site = site().await;
    let url = site.url("pictures.test", "/dog");
    let text = json!({"messages": [{"role": "user", "content": format!("![]({url}) <img src=\"{url}\"> {url}")}]});
    let router = router(script(dog), serving(fetcher(site.port)));
    assert_eq!(send(router.clone(), post(&chat(text))).await.status, 200);
    // Nor for a request that is wrong elsewhere.
    let mut wrong = asks(&[&url]);
    wrong["temperature"] = json!(9);
    assert_eq!(send(router, post(&wrong)).await.status, 400);
    let options = ServeOptions {
        api_keys: Some(ApiKeys::new(["key"]).unwrap()),
        ..serving(fetcher(site.port))
    };
    let guarded = common::router(script(dog), options);
    assert_eq!(send(guarded, post(&asks(&[&url]))).await.status, 401);
    assert_eq!(site.hits(), 0);
}

/// vLLM 58192: refused requests had their pictures prepared first.
#[tokio::test]
async fn vllm_58192_a_full_server_fetches_nothing() {
    let site = site().await;
    let options = ServeOptions {
        max_requests: 0,
        ..serving(fetcher(site.port))
    };
    let url = site.url("pictures.test", "/dog");
    let answer = send(router(script(dog), options), post(&asks(&[&url]))).await;
    assert_eq!(answer.status, 429);
    assert_eq!(site.hits(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_fetch() {
    let (port, sent) = raw_site(CHUNKED, Then::Drip).await;
    let router = router(script(dog), serving(fetcher(port)));
    let body = asks(&[&format!("http://pictures.test:{port}/")]);
    let asked = tokio::spawn(async move { send(router, post(&body)).await });
    until(|| sent.load(Ordering::SeqCst) > 0).await;
    asked.abort();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let after = sent.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(sent.load(Ordering::SeqCst), after);
}

#[cfg(unix)]
#[tokio::test]
async fn files_are_read_below_the_media_path_alone() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("media");
    let outside = dir.path().join("outside.png");
    std::fs::create_dir_all(root.join("sub dir")).unwrap();
    std::fs::create_dir(dir.path().join("media2")).unwrap();
    for file in [
        &root.join("dog.png"),
        &root.join("sub dir/cat.png"),
        &outside,
        &dir.path().join("media2/x.png"),
    ] {
        std::fs::write(file, b"picture").unwrap();
    }
    std::fs::write(root.join("large.png"), [7; LIMIT + 1]).unwrap();
    std::os::unix::fs::symlink(&outside, root.join("out.png")).unwrap();
    std::os::unix::fs::symlink(dir.path(), root.join("up")).unwrap();
    std::os::unix::fs::symlink(root.join("dog.png"), root.join("in.png")).unwrap();
    let options = ServeOptions {
        media: Some(MediaDir::open(&root).unwrap()),
        max_image_bytes: LIMIT,
        ..ServeOptions::default()
    };
    let router = router(script(dog), options);
    let ask = async |path: &str| {
        let url = format!("file://{}{path}", dir.path().display());
        send(router.clone(), post(&asks(&[&url]))).await
    };
    for inside in [
        "/media/dog.png",
        "/media/sub%20dir/cat.png",
        "/media/in.png",
        "/media/sub dir/../dog.png",
    ] {
        assert_eq!(ask(inside).await.status, 200, "{inside}");
    }
    for elsewhere in [
        "/outside.png",
        "/media2/x.png",
        "/media/out.png",
        "/media/up/outside.png",
        "/media/../outside.png",
        "/media/%2e%2e/outside.png",
        "/media/..%2foutside.png",
        "/media/nothing.png",
        "/media/dog.png%00",
        "/media/sub%20dir",
        "/media",
    ] {
        let answer = ask(elsewhere).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_str()),
            (400, "invalid_image")
        );
        // The same whether there is something or not.
        assert_eq!(
            answer.error()["message"],
            "there is no such file below the media path"
        );
    }
    assert_eq!(ask("/media/large.png").await.code(), "image_too_large");
    let path = root.join("dog.png").display().to_string();
    let remote = format!("file://elsewhere.test{path}");
    assert_eq!(
        send(router.clone(), post(&asks(&[&remote]))).await.status,
        400
    );
    assert!(MediaDir::open(&outside).is_err());
    assert!(MediaDir::open(&root.join("nothing")).is_err());
}
