//! JPEG, through libjpeg (the `mozjpeg` crate).
//!
//! The standard leaves the inverse transform's rounding and the interpolation of colour open, and
//! decoders differ by it. Pillow's is libjpeg-turbo; this one shares its code and gives the same
//! bytes. Measured on 13 pictures against Pillow 13.0.0, the pure Rust decoders do not: zune-jpeg
//! 0.5.15 is off by up to 24/255 at the right edge and 10/255 inside, with 10 % of the values off
//! by more than 1; jpeg-decoder 0.3.2 by up to 4/255, with 2 % (5 % for 4:2:2) off by more than 1.
//! In both, the colour planes are interpolated with other roundings, and a step there is almost
//! two in blue.

use std::cell::Cell;
use std::io::{self, BufRead, Read};

use ::image::RgbImage;
use ::image::metadata::Orientation;
use mozjpeg::{ColorSpace, Decompress, Marker};

use super::error::{ImageError, Result};
use super::format::Format;
use super::{ImageLimits, broken, rgb, upright};

#[cfg(panic = "abort")]
compile_error!("libjpeg reports a damaged JPEG by unwinding: build with panic = \"unwind\"");

/// Most scans of a progressive picture; encoders write about ten. Every scan visits every block, so
/// thousands of almost empty ones would keep a core busy for hours.
const MAX_SCANS: usize = 100;
/// What an EXIF segment begins with.
const EXIF: &[u8] = b"Exif\0\0";

pub(super) fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<RgbImage> {
    let ended = Cell::new(false);
    let source = Source {
        rest: bytes,
        ended: &ended,
    };
    let told = |error: io::Error| broken(Format::Jpeg, error);
    let decoder = Decompress::builder()
        .with_markers(&[Marker::APP(1)])
        .from_reader(source)
        .map_err(told)?;
    let (width, height) = decoder.size();
    let (Ok(width), Ok(height)) = (u32::try_from(width), u32::try_from(height)) else {
        return Err(broken(Format::Jpeg, "size beyond 32 bits"));
    };
    limits.check(width, height)?;
    if scans(bytes) > MAX_SCANS {
        return Err(ImageError::Unsupported {
            format: Format::Jpeg.name(),
            what: "hundreds of progressive scans",
        });
    }
    let orientation = decoder
        .markers()
        .find_map(|marker| marker.data.strip_prefix(EXIF))
        .and_then(Orientation::from_exif_chunk)
        .unwrap_or(Orientation::NoTransforms);

    let (columns, rows) = (width as usize, height as usize);
    let mut pixels = vec![0; 3 * columns * rows];
    match decoder.color_space() {
        ColorSpace::JCS_GRAYSCALE | ColorSpace::JCS_RGB | ColorSpace::JCS_YCbCr => {
            let mut decoder = decoder.rgb().map_err(told)?;
            decoder.read_scanlines_into(&mut pixels).map_err(told)?;
        }
        ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK => {
            let mut decoder = decoder.to_colorspace(ColorSpace::JCS_CMYK).map_err(told)?;
            let mut inks = vec![[0; 4]; columns];
            for row in pixels.chunks_exact_mut(3 * columns) {
                decoder.read_scanlines_into(&mut inks).map_err(told)?;
                let (row, _) = row.as_chunks_mut::<3>();
                for (pixel, inks) in row.iter_mut().zip(&inks) {
                    // Adobe stores inks inverted, and Pillow takes every file to be Adobe's.
                    *pixel = rgb::cmyk(inks.map(|ink| 255 - ink));
                }
            }
        }
        _ => {
            return Err(ImageError::Unsupported {
                format: Format::Jpeg.name(),
                what: "colours that are neither grey, RGB, YCbCr, CMYK nor YCCK",
            });
        }
    }
    // libjpeg fills what is missing with grey; half a picture is no picture.
    if ended.get() {
        return Err(broken(
            Format::Jpeg,
            "the data ends before the picture does",
        ));
    }
    let picture = RgbImage::from_raw(width, height, pixels)
        .ok_or_else(|| broken(Format::Jpeg, "fewer pixels than announced"))?;
    Ok(upright(picture, orientation))
}

/// The encoded bytes, with a note of whether more were asked for than there are.
struct Source<'a> {
    rest: &'a [u8],
    ended: &'a Cell<bool>,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.rest.read(buffer)
    }
}

impl BufRead for Source<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.rest.is_empty() {
            self.ended.set(true);
        }
        Ok(self.rest)
    }

    fn consume(&mut self, amount: usize) {
        self.rest = self.rest.get(amount..).unwrap_or_default();
    }
}

/// How many scans libjpeg will go through: 1 where the first holds the whole picture.
fn scans(bytes: &[u8]) -> usize {
    const START_OF_SCAN: u8 = 0xda;
    const END_OF_IMAGE: u8 = 0xd9;
    let mut scans = 0;
    let mut components = None;
    let mut progressive = false;
    let mut rest = bytes.get(2..).unwrap_or_default();
    while let Some(at) = rest.iter().position(|byte| *byte == 0xff) {
        let Some((&marker, after)) = rest[at + 1..].split_first() else {
            break;
        };
        rest = after;
        match marker {
            // Fill bytes and, inside a scan, stuffed zeros and restart marks.
            0xff => rest = &bytes[bytes.len() - after.len() - 1..],
            0x00 | 0x01 | 0xd0..=0xd8 => {}
            END_OF_IMAGE => break,
            _ => {
                let [high, low, ..] = *rest else { break };
                let length = usize::from(u16::from_be_bytes([high, low]));
                let Some(segment) = rest.get(2..length) else {
                    break;
                };
                match marker {
                    // SOF0 to SOF15, less DHT, JPG and DAC, which share their range.
                    0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                        components = segment.get(5).copied();
                        progressive = marker & 0b11 == 0b10;
                    }
                    START_OF_SCAN => {
                        scans += 1;
                        let whole = !progressive && segment.first().copied() == components;
                        if whole || scans > MAX_SCANS {
                            break;
                        }
                    }
                    _ => {}
                }
                rest = &rest[length..];
            }
        }
    }
    scans
}
