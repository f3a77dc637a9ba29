//! Why a picture was not fetched.

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a picture was not fetched, in one line that is safe to send to whoever named the URL: a name that does not exist, one
/// with an address that is not public, and a server that does not answer look the same.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// No URL.
    #[error("this is not a URL that can be fetched")]
    InvalidUrl,
    /// A URL, or one that it redirects to, that may not be fetched whatever is there.
    #[error("this URL is not fetched: {reason}")]
    Forbidden {
        /// The rule.
        reason: &'static str,
    },
    /// No connection: no such name, no public address, no server, no valid certificate.
    #[error("nothing could be fetched from this URL; only public addresses are connected to")]
    Unreachable {
        /// What the network said; not for strangers.
        source: Source,
    },
    /// The other server answered, with something else.
    #[error("the server at this URL answered with status {0}")]
    Status(u16),
    /// More redirects than are followed.
    #[error("this URL redirects too often")]
    TooManyRedirects,
    /// More bytes than allowed.
    #[error("the picture at this URL has more than {limit} bytes")]
    TooLarge {
        /// Most bytes allowed.
        limit: usize,
    },
    /// The body ended early.
    #[error("the picture at this URL broke off")]
    Broken {
        /// What the network said; not for strangers.
        source: Source,
    },
    /// It took too long.
    #[error("fetching this URL took too long")]
    Timeout,
    /// The fetcher cannot work at all.
    #[error("pictures cannot be fetched: {source}")]
    Setup {
        /// Why.
        source: Source,
    },
}

impl FetchError {
    pub(super) fn unreachable(source: reqwest::Error) -> FetchError {
        // Its URL may hold a secret in its query, and logs show sources.
        let source = source.without_url().into();
        FetchError::Unreachable { source }
    }

    pub(super) fn broken(source: reqwest::Error) -> FetchError {
        let source = source.without_url().into();
        FetchError::Broken { source }
    }

    pub(crate) fn setup(source: impl Into<Source>) -> FetchError {
        FetchError::Setup {
            source: source.into(),
        }
    }
}
