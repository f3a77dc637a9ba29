//! Encoded pictures (PNG, JPEG, WebP, GIF, BMP, TIFF) to 8-bit RGB, as the reference reads them.
//!
//! The reference is `PIL.ImageOps.exif_transpose(PIL.Image.open(..))` handed to transformers
//! 5.23.0's `BlipImageProcessorPil`, whose `convert_to_rgb` composites transparency on white.
//! Colour profiles are ignored there and here; of an animation the first frame counts.
//!
//! Pictures come from strangers, so:
//! - the format is told by the first bytes, never by a name or a MIME type, and only the six
//!   formats above have a decoder at all;
//! - the size in the header is checked against [`ImageLimits`] before a pixel is decoded;
//! - a decoder's own words stay in the error's source: the message is ours, one line, and safe to
//!   send to a client;
//! - a panic inside a decoder is an error like any other.
//!
//! Known differences from Pillow 13:
//! - 16-bit grey is scaled to 8 bits (the high byte counts, as Pillow itself does for 16-bit
//!   colour). Pillow's `I;16` to RGB clips at 255 instead, which turns such a picture white.
//! - The orientation is read from EXIF alone, not from XMP.
//! - Bytes after the end of the picture are ignored, as Pillow does: phones append videos there.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use ::image::RgbImage;
use ::image::codecs::{bmp::BmpDecoder, gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};
use ::image::metadata::Orientation;
use ::image::{DynamicImage, ImageDecoder};

mod error;
mod format;
mod jpeg;
mod rgb;
mod tiff;

pub use error::ImageError;
use error::Result;
use format::Format;
pub use format::media_type;

/// Largest encoded picture read by default: 20 MiB, OpenAI's limit.
pub const MAX_BYTES: usize = 20 << 20;
/// Most pixels decoded by default: 64 megapixels, above what phones take by default.
pub const MAX_PIXELS: u64 = 64_000_000;

/// Bytes a decoder may hold for a pixel: 16-bit RGBA.
const MAX_BYTES_PER_PIXEL: u64 = 8;
/// Bytes a decoder may hold besides the pixels: tables, text chunks, colour profiles.
const MAX_OVERHEAD: u64 = 16 << 20;

/// What a picture may cost. The smallest picture is always 1 x 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageLimits {
    /// Most bytes of the encoded picture.
    pub max_bytes: usize,
    /// Most pixels (width times height) the header may announce. Decoding holds up to about
    /// 9 bytes for each: 3 for the result and 6 for a progressive JPEG's coefficients.
    pub max_pixels: u64,
}

impl Default for ImageLimits {
    /// [`MAX_BYTES`] and [`MAX_PIXELS`].
    fn default() -> Self {
        Self {
            max_bytes: MAX_BYTES,
            max_pixels: MAX_PIXELS,
        }
    }
}

impl ImageLimits {
    /// Refuses a picture whose header announces no pixels or too many.
    fn check(&self, width: u32, height: u32) -> Result<()> {
        let pixels = u64::from(width) * u64::from(height);
        if pixels == 0 {
            return Err(ImageError::NoPixels { width, height });
        }
        if pixels > self.max_pixels {
            return Err(ImageError::TooManyPixels {
                width,
                height,
                pixels,
                limit: self.max_pixels,
            });
        }
        Ok(())
    }

    fn max_alloc(&self) -> u64 {
        self.max_pixels
            .saturating_mul(MAX_BYTES_PER_PIXEL)
            .saturating_add(MAX_OVERHEAD)
    }

    fn for_decoder(&self) -> ::image::Limits {
        let mut limits = ::image::Limits::no_limits();
        limits.max_alloc = Some(self.max_alloc());
        limits
    }
}

/// Decodes an encoded picture to 8-bit RGB, upright, transparency composited on white.
///
/// # Errors
/// [`Error::Image`](crate::Error::Image), with
/// - [`ImageError::TooManyBytes`], [`ImageError::TooManyPixels`]: beyond `limits`; nothing was
///   decoded.
/// - [`ImageError::Empty`], [`ImageError::NoPixels`]: nothing to look at.
/// - [`ImageError::Format`]: not one of the six formats; says what it looks like instead.
/// - [`ImageError::Unsupported`]: a rare variant of a known format.
/// - [`ImageError::Broken`]: damaged or cut short.
pub fn decode(bytes: &[u8], limits: &ImageLimits) -> crate::Result<RgbImage> {
    Ok(decode_sniffed(bytes, limits)?)
}

fn decode_sniffed(bytes: &[u8], limits: &ImageLimits) -> Result<RgbImage> {
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    if bytes.len() > limits.max_bytes {
        return Err(ImageError::TooManyBytes {
            bytes: bytes.len(),
            limit: limits.max_bytes,
        });
    }
    let format = format::sniff(bytes)?;
    // libjpeg reports its errors by unwinding; for the others this is a second net.
    catch_unwind(AssertUnwindSafe(|| decode_as(format, bytes, limits))).unwrap_or_else(|panic| {
        let detail = panic.downcast_ref::<String>().cloned();
        let detail = detail.unwrap_or_else(|| "the decoder panicked".into());
        Err(broken(format, detail))
    })
}

fn decode_as(format: Format, bytes: &[u8], limits: &ImageLimits) -> Result<RgbImage> {
    let told = |error| explain(format, error);
    let reader = Cursor::new(bytes);
    match format {
        Format::Jpeg => jpeg::decode(bytes, limits),
        Format::Tiff => tiff::decode(bytes, limits),
        Format::Png => {
            // The decoder reads on to the first pixels before it tells the size.
            if let Some((width, height)) = png_size(bytes) {
                limits.check(width, height)?;
            }
            // Counts what metadata unpacks to; the pixels have their limit below.
            let mut overhead = ::image::Limits::no_limits();
            overhead.max_alloc = Some(MAX_OVERHEAD);
            let decoder = PngDecoder::with_limits(reader, overhead);
            read(format, decoder.map_err(told)?, limits)
        }
        Format::WebP => {
            let decoder = WebPDecoder::new(reader).map_err(told)?;
            // The decoder makes room for what a chunk says that it holds before it looks.
            match webp_is_whole(bytes) {
                true => read(format, decoder, limits),
                false => read_pixels(format, decoder, limits, Orientation::NoTransforms),
            }
        }
        Format::Gif => read(format, GifDecoder::new(reader).map_err(told)?, limits),
        Format::Bmp => read(format, BmpDecoder::new(reader).map_err(told)?, limits),
    }
}

/// Width and height in a PNG's first chunk, where that is the header it must be.
fn png_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let header = bytes.get(12..24)?.strip_prefix(b"IHDR")?;
    let (width, height) = header.split_first_chunk()?;
    let height = height.first_chunk()?;
    Some((u32::from_be_bytes(*width), u32::from_be_bytes(*height)))
}

/// Whether all chunks of a WebP end within the file.
fn webp_is_whole(bytes: &[u8]) -> bool {
    // "RIFF", a length, "WEBP"; then names of four letters, lengths, and contents padded to even.
    let mut rest = bytes.get(12..).unwrap_or_default();
    while let Some((length, contents)) = rest.get(4..).and_then(<[u8]>::split_first_chunk) {
        let length = u32::from_le_bytes(*length) as usize;
        if length > contents.len() {
            return false;
        }
        rest = contents
            .get(length.next_multiple_of(2)..)
            .unwrap_or_default();
    }
    true
}

/// Reads the picture of a decoder that has read the header.
fn read(format: Format, mut decoder: impl ImageDecoder, limits: &ImageLimits) -> Result<RgbImage> {
    let (width, height) = decoder.dimensions();
    limits.check(width, height)?;
    // Metadata that cannot be read is no reason to refuse the picture.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    read_pixels(format, decoder, limits, orientation)
}

/// Reads the pixels of a decoder that has read the header.
fn read_pixels(
    format: Format,
    mut decoder: impl ImageDecoder,
    limits: &ImageLimits,
    orientation: Orientation,
) -> Result<RgbImage> {
    let told = |error| explain(format, error);
    let (width, height) = decoder.dimensions();
    limits.check(width, height)?;
    decoder.set_limits(limits.for_decoder()).map_err(told)?;
    let picture = DynamicImage::from_decoder(decoder).map_err(told)?;
    let picture = rgb::from_dynamic(picture).ok_or(ImageError::Unsupported {
        format: format.name(),
        what: "floating-point pixels",
    })?;
    Ok(upright(picture, orientation))
}

/// Applies an EXIF orientation.
fn upright(picture: RgbImage, orientation: Orientation) -> RgbImage {
    if orientation == Orientation::NoTransforms {
        return picture;
    }
    let mut picture = DynamicImage::ImageRgb8(picture);
    picture.apply_orientation(orientation);
    picture.into_rgb8()
}

fn broken(
    format: Format,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> ImageError {
    ImageError::Broken {
        format: format.name(),
        source: source.into(),
    }
}

/// A decoder's error in our own words.
fn explain(format: Format, error: ::image::ImageError) -> ImageError {
    match error {
        ::image::ImageError::Unsupported(_) => ImageError::Unsupported {
            format: format.name(),
            what: "a rare variant of the format",
        },
        ::image::ImageError::Limits(_) => ImageError::Unsupported {
            format: format.name(),
            what: "tables or metadata that need too much memory",
        },
        error => broken(format, error),
    }
}

#[cfg(test)]
mod tests {
    use super::webp_is_whole;

    #[test]
    fn a_chunk_beyond_the_end_of_a_webp_is_seen() {
        let webp = |exif_length: u32| {
            let mut bytes = b"RIFF\x20\0\0\0WEBPVP8X\x03\0\0\0abc\0EXIF".to_vec();
            bytes.extend(exif_length.to_le_bytes());
            bytes.extend(b"data");
            bytes
        };
        assert!(webp_is_whole(&webp(4)));
        assert!(webp_is_whole(&webp(3)));
        assert!(!webp_is_whole(&webp(5)));
        assert!(!webp_is_whole(&webp(u32::MAX)));
        assert!(webp_is_whole(b"RIFF"));
    }
}
