//! TIFF, through the `tiff` crate, which leaves small samples and extra ones to its caller, and
//! does not read palettes: those are read as grey, and looked up here.

use std::borrow::Cow;
use std::io::Cursor;

use ::image::RgbImage;
use ::image::metadata::Orientation;
use ::tiff::decoder::{Decoder, DecodingResult, Limits};
use ::tiff::tags::Tag;
use ::tiff::{ColorType, TiffError};

use super::error::{ImageError, Result};
use super::format::Format;
use super::{ImageLimits, MAX_OVERHEAD, broken, rgb, upright};

/// Values of the ExtraSamples tag.
const UNSPECIFIED: u16 = 0;
const ALPHA_MULTIPLIED: u16 = 1;
const ALPHA: u16 = 2;

pub(super) fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<RgbImage> {
    let mut allowed = Limits::default();
    allowed.decoding_buffer_size = usize::try_from(limits.max_alloc()).unwrap_or(usize::MAX);
    allowed.intermediate_buffer_size = allowed.decoding_buffer_size;
    allowed.ifd_value_size = MAX_OVERHEAD as usize;
    let (bytes, indexed) = match palette_as_grey(bytes) {
        Some(grey) => (Cow::Owned(grey), true),
        None => (Cow::Borrowed(bytes), false),
    };
    let mut decoder = Decoder::new(Cursor::new(bytes.as_ref()))
        .map_err(explain)?
        .with_limits(allowed);
    let (width, height) = decoder.dimensions().map_err(explain)?;
    limits.check(width, height)?;
    let color = decoder.colortype().map_err(explain)?;
    let orientation = decoder
        .find_tag_unsigned(Tag::Orientation)
        .ok()
        .flatten()
        .and_then(Orientation::from_exif)
        .unwrap_or(Orientation::NoTransforms);
    let planes = decoder.find_tag_unsigned::<u16>(Tag::PlanarConfiguration);
    if !matches!(planes, Ok(None | Some(1))) {
        return unsupported("one plane for each colour");
    }
    let extra = decoder.find_tag_unsigned_vec::<u16>(Tag::ExtraSamples);
    let extra = match extra {
        Ok(Some(extra)) => extra.first().copied().unwrap_or(UNSPECIFIED),
        // Files without the tag mean alpha, as Pillow takes them.
        _ => ALPHA,
    };
    let palette = match indexed {
        true => decoder.get_tag_u16_vec(Tag::ColorMap).map_err(explain)?,
        false => Vec::new(),
    };
    let samples = match decoder.read_image().map_err(explain)? {
        DecodingResult::U8(samples) => samples,
        DecodingResult::U16(samples) => rgb::high_bytes(&samples),
        _ => return unsupported("pixels of 32 bits or more, or floating-point ones"),
    };
    let row = width as usize;
    let pixels = match color {
        ColorType::Gray(bits @ (1 | 2 | 4 | 8)) if indexed => {
            let colors = rgb::high_bytes(&palette);
            let count = colors.len() / 3;
            let color = |index| {
                let index = usize::from(index);
                [0, 1, 2].map(|channel| match index < count {
                    true => colors[channel * count + index],
                    false => 0,
                })
            };
            unpack(&samples, row, bits).flat_map(color).collect()
        }
        _ if indexed => return unsupported("a palette of more than 256 colours"),
        ColorType::Gray(bits @ (1 | 2 | 4)) => {
            let white = (1 << bits) - 1;
            let grey = unpack(&samples, row, bits).map(|value| value * (255 / white));
            rgb::from_grey(&grey.collect::<Vec<u8>>())
        }
        ColorType::Gray(8 | 16) => rgb::from_grey(&samples),
        // Grey with one more sample, which may be alpha or anything.
        ColorType::Multiband {
            bit_depth: 8 | 16,
            num_samples: 2,
        } if extra == ALPHA => rgb::from_grey_alpha(&samples),
        ColorType::RGB(8 | 16) => samples,
        ColorType::RGBA(8 | 16) => match extra {
            UNSPECIFIED => rgb::from_rgbx(&samples),
            ALPHA_MULTIPLIED => rgb::from_rgba_multiplied(&samples),
            _ => rgb::from_rgba(&samples),
        },
        ColorType::CMYK(8 | 16) => rgb::from_cmyk(&samples),
        _ => return unsupported("a colour space other than grey, RGB, CMYK or a palette"),
    };
    let picture = RgbImage::from_raw(width, height, pixels)
        .ok_or_else(|| broken(Format::Tiff, "another number of pixels than announced"))?;
    Ok(upright(picture, orientation))
}

/// The file with its first picture declared grey, if it was declared to have a palette.
fn palette_as_grey(bytes: &[u8]) -> Option<Vec<u8>> {
    const PHOTOMETRIC: u16 = 262;
    const BLACK_IS_ZERO: u8 = 1;
    const PALETTE: u16 = 3;
    let little = bytes.starts_with(b"II*\0");
    if !little && !bytes.starts_with(b"MM\0*") {
        return None;
    }
    let short = |at: usize| {
        let bytes = bytes.get(at..)?.first_chunk()?;
        Some(if little {
            u16::from_le_bytes(*bytes)
        } else {
            u16::from_be_bytes(*bytes)
        })
    };
    let offset = *bytes.get(4..)?.first_chunk()?;
    let offset = if little {
        u32::from_le_bytes(offset)
    } else {
        u32::from_be_bytes(offset)
    };
    let offset = usize::try_from(offset).ok()?;
    // A directory: the number of entries, then 12 bytes each: tag, type, count, value.
    let entries = usize::from(short(offset)?);
    let entry = (0..entries)
        .map(|entry| offset + 2 + 12 * entry)
        .find(|entry| short(*entry) == Some(PHOTOMETRIC))?;
    if short(entry + 8)? != PALETTE {
        return None;
    }
    let mut grey = bytes.to_vec();
    *grey.get_mut(entry + if little { 8 } else { 9 })? = BLACK_IS_ZERO;
    Some(grey)
}

/// The samples of rows that start on a byte each, first sample in the high bits.
fn unpack(bytes: &[u8], row: usize, bits: u8) -> impl Iterator<Item = u8> {
    let per_byte = usize::from(8 / bits);
    let mask = u8::MAX >> (8 - bits);
    bytes.chunks(row.div_ceil(per_byte)).flat_map(move |bytes| {
        (0..row.min(bytes.len() * per_byte)).map(move |at| {
            let shift = 8 - bits as usize * (at % per_byte + 1);
            (bytes[at / per_byte] >> shift) & mask
        })
    })
}

fn unsupported<T>(what: &'static str) -> Result<T> {
    Err(ImageError::Unsupported {
        format: Format::Tiff.name(),
        what,
    })
}

/// The decoder's error in our own words.
fn explain(error: TiffError) -> ImageError {
    match error {
        TiffError::UnsupportedError(_) => ImageError::Unsupported {
            format: Format::Tiff.name(),
            what: "a rare variant of the format",
        },
        TiffError::LimitsExceeded => ImageError::Unsupported {
            format: Format::Tiff.name(),
            what: "tables or metadata that need too much memory",
        },
        error => broken(Format::Tiff, error),
    }
}
