//! The picture that is measured where none is given.

use anyhow::{Context, Result};
use mozjpeg::{ColorSpace, Compress};

const WIDTH: usize = 640;
const HEIGHT: usize = 480;

/// A JPEG of COCO's usual size, quality 90: soft gradients with some noise, the same on every machine.
pub fn jpeg() -> Result<Vec<u8>> {
    let mut noise = 1_u32;
    let mut pixels = Vec::with_capacity(WIDTH * HEIGHT * 3);
    for y in 0..HEIGHT {
        for x in 0..WIDTH {
            // A linear congruential generator's best bits.
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let grain = (noise >> 28) as usize;
            for value in [
                x * 240 / WIDTH,
                y * 240 / HEIGHT,
                (x + y) * 240 / (WIDTH + HEIGHT),
            ] {
                pixels.push((value + grain) as u8);
            }
        }
    }
    let mut compress = Compress::new(ColorSpace::JCS_RGB);
    compress.set_size(WIDTH, HEIGHT);
    compress.set_quality(90.0);
    let mut compress = compress.start_compress(Vec::new())?;
    compress.write_scanlines(&pixels)?;
    compress.finish().context("a JPEG")
}
