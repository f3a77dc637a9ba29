//! Decoded pixels of any kind to 8-bit RGB, with Pillow's arithmetic.

use ::image::{DynamicImage, RgbImage};

/// The picture as RGB: grey repeated, 16 bits cut to the high byte, alpha composited on white.
/// `None` for floating-point pixels.
pub(super) fn from_dynamic(picture: DynamicImage) -> Option<RgbImage> {
    let (width, height) = (picture.width(), picture.height());
    let pixels = match picture {
        DynamicImage::ImageRgb8(picture) => return Some(picture),
        DynamicImage::ImageLuma8(picture) => from_grey(picture.as_raw()),
        DynamicImage::ImageLumaA8(picture) => from_grey_alpha(picture.as_raw()),
        DynamicImage::ImageRgba8(picture) => from_rgba(picture.as_raw()),
        DynamicImage::ImageLuma16(picture) => from_grey(&high_bytes(picture.as_raw())),
        DynamicImage::ImageLumaA16(picture) => from_grey_alpha(&high_bytes(picture.as_raw())),
        DynamicImage::ImageRgb16(picture) => high_bytes(picture.as_raw()),
        DynamicImage::ImageRgba16(picture) => from_rgba(&high_bytes(picture.as_raw())),
        _ => return None,
    };
    RgbImage::from_raw(width, height, pixels)
}

/// 16-bit samples cut to 8 bits.
pub(super) fn high_bytes(samples: &[u16]) -> Vec<u8> {
    samples.iter().map(|sample| (sample >> 8) as u8).collect()
}

pub(super) fn from_grey(samples: &[u8]) -> Vec<u8> {
    samples.iter().flat_map(|grey| [*grey; 3]).collect()
}

pub(super) fn from_grey_alpha(samples: &[u8]) -> Vec<u8> {
    let (pixels, _) = samples.as_chunks::<2>();
    pixels
        .iter()
        .flat_map(|[grey, alpha]| [on_white(*grey, *alpha); 3])
        .collect()
}

pub(super) fn from_rgba(samples: &[u8]) -> Vec<u8> {
    let (pixels, _) = samples.as_chunks::<4>();
    pixels
        .iter()
        .flat_map(|[red, green, blue, alpha]| {
            [*red, *green, *blue].map(|value| on_white(value, *alpha))
        })
        .collect()
}

/// RGB with a fourth sample that means nothing.
pub(super) fn from_rgbx(samples: &[u8]) -> Vec<u8> {
    let (pixels, _) = samples.as_chunks::<4>();
    pixels
        .iter()
        .flat_map(|[red, green, blue, _]| [*red, *green, *blue])
        .collect()
}

/// RGB that is already multiplied by its alpha: divided again first, as Pillow does.
pub(super) fn from_rgba_multiplied(samples: &[u8]) -> Vec<u8> {
    let mut divided = samples.to_vec();
    let (pixels, _) = divided.as_chunks_mut::<4>();
    for [colors @ .., alpha] in pixels {
        if *alpha > 0 {
            let alpha = u16::from(*alpha);
            *colors = colors.map(|value| (255 * u16::from(value) / alpha).min(255) as u8);
        }
    }
    from_rgba(&divided)
}

/// Ink percentages as Pillow's CMYK to RGB: `(255 - ink) * (255 - black) / 255`, rounded.
pub(super) fn from_cmyk(samples: &[u8]) -> Vec<u8> {
    let (pixels, _) = samples.as_chunks::<4>();
    pixels.iter().flat_map(|pixel| cmyk(*pixel)).collect()
}

/// One pixel of [`from_cmyk`].
pub(super) fn cmyk([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    let light = 255 - black;
    [cyan, magenta, yellow]
        .map(|ink| light - divide_by_255(u32::from(ink) * u32::from(light)) as u8)
}

/// A value composited on white, rounded as in Pillow's `alpha_composite`.
fn on_white(value: u8, alpha: u8) -> u8 {
    let clear = 255 - alpha;
    divide_by_255(u32::from(value) * u32::from(alpha) + 255 * u32::from(clear)) as u8
}

/// `value / 255` rounded, for up to 255 * 255.
fn divide_by_255(value: u32) -> u32 {
    let value = value + 128;
    ((value >> 8) + value) >> 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_alpha_keeps_and_none_is_white() {
        for value in 0..=255 {
            assert_eq!(on_white(value, 255), value);
            assert_eq!(on_white(value, 0), 255);
        }
        assert_eq!(on_white(0, 128), 127);
    }

    #[test]
    fn sixteen_bits_keep_the_high_byte() {
        assert_eq!(
            high_bytes(&[0, 255, 256, 40_000, 65_535]),
            [0, 0, 1, 156, 255]
        );
    }

    #[test]
    fn no_ink_is_white_and_black_is_black() {
        assert_eq!(cmyk([0, 0, 0, 0]), [255, 255, 255]);
        assert_eq!(cmyk([17, 99, 0, 255]), [0, 0, 0]);
        assert_eq!(cmyk([255, 0, 0, 0]), [0, 255, 255]);
    }
}
