//! Why a picture was not decoded.

/// Result inside this module.
pub(super) type Result<T> = std::result::Result<T, ImageError>;

/// Why a picture was not decoded, in one line that is safe to send to whoever sent the picture: a
/// decoder's own words are in the source only.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// There are no bytes.
    #[error("the picture is empty (0 bytes): send the bytes of a picture file")]
    Empty,
    /// More bytes than allowed.
    #[error("the picture has {bytes} bytes, the limit is {limit}: send a smaller file")]
    TooManyBytes {
        /// Bytes of the encoded picture.
        bytes: usize,
        /// Most bytes allowed.
        limit: usize,
    },
    /// More pixels than allowed.
    #[error(
        "the picture is {width} x {height} = {pixels} pixels, the limit is {limit}: scale it down"
    )]
    TooManyPixels {
        /// Columns announced by the header.
        width: u32,
        /// Rows announced by the header.
        height: u32,
        /// Their product.
        pixels: u64,
        /// Most pixels allowed.
        limit: u64,
    },
    /// A header that announces no pixels.
    #[error("the picture is {width} x {height} pixels: send one with at least 1 x 1")]
    NoPixels {
        /// Columns announced by the header.
        width: u32,
        /// Rows announced by the header.
        height: u32,
    },
    /// Not one of the formats that are read.
    #[error(
        "the picture is {looks_like}, not a PNG, JPEG, WebP, GIF, BMP or TIFF file: convert it to one"
    )]
    Format {
        /// What the bytes look like instead.
        looks_like: &'static str,
    },
    /// A variant of a known format that is not read.
    #[error("the {format} picture has {what}, which is not supported: save it as a plain PNG")]
    Unsupported {
        /// The format.
        format: &'static str,
        /// What it has.
        what: &'static str,
    },
    /// A file that is damaged or cut short.
    #[error("the {format} picture is damaged or cut short: save it or send it again")]
    Broken {
        /// The format.
        format: &'static str,
        /// What the decoder said; not for strangers.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ImageError {
    /// Whether a smaller version of the same picture would do (HTTP 413), rather than another
    /// picture (400).
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::TooManyBytes { .. } | Self::TooManyPixels { .. })
    }
}
