//! Reading on where an answer came before the end of its request.
//!
//! A refusal (401, 413, 429) comes before the body is read. A connection that is closed while its client still writes is
//! reset, and what came back is lost with it: Node's clients report `EPIPE`, not the refusal. So what is still on its way
//! is read and thrown away before the answer goes out, within limits of bytes and time.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Error;
use axum::body::{Body, BodyDataStream, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::header::EXPECT;
use axum::middleware::Next;
use axum::response::Response;
use futures_util::{Stream, StreamExt};
use tokio::time::{Instant, timeout, timeout_at};

/// A client that sends nothing for so long is not waited for.
const STALLED: Duration = Duration::from_secs(2);

/// How much is read on, and how long.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    /// Most bytes that are thrown away; the connection of a longer request is closed.
    pub bytes: usize,
    /// From the request's head to the end of its body, read or thrown away.
    pub time: Duration,
}

/// Answers when the request has ended, too. One that waits to be told to go on (`Expect: 100-continue`) sends nothing more
/// after its refusal.
pub(crate) async fn linger(
    State(patience): State<Patience>,
    request: Request,
    next: Next,
) -> Response {
    if request.body().is_end_stream() || request.headers().contains_key(EXPECT) {
        return next.run(request).await;
    }
    let deadline = Instant::now() + patience.time;
    let rest = Rest::default();
    let response = next.run(request.map(|body| rest.of(body))).await;
    let rest = rest.lock().take();
    if let Some(body) = rest {
        // Whether it ended in time or not, nothing more can be done for it.
        let _ = timeout_at(deadline, discard(body, patience.bytes)).await;
    }
    response
}

/// Throws away what comes, `bytes` at most.
async fn discard(mut body: BodyDataStream, bytes: usize) {
    let mut left = Some(bytes);
    while let (Some(most), Ok(Some(Ok(chunk)))) = (left, timeout(STALLED, body.next()).await) {
        left = most.checked_sub(chunk.len());
    }
}

/// What a handler left of a body.
#[derive(Clone, Default)]
struct Rest(Arc<Mutex<Option<BodyDataStream>>>);

impl Rest {
    /// `body`, of which what is not read comes back here.
    fn of(&self, body: Body) -> Body {
        Body::from_stream(Watched {
            body: Some(body.into_data_stream()),
            rest: self.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<BodyDataStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body whose rest is kept when it is dropped.
struct Watched {
    /// None where it ended, or failed.
    body: Option<BodyDataStream>,
    rest: Rest,
}

impl Stream for Watched {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let chunk = ready!(body.poll_next_unpin(context));
        if !matches!(chunk, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(chunk)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        *self.rest.lock() = self.body.take();
    }
}
