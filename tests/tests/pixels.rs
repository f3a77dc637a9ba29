//! Pictures of every kind against Pillow and transformers: `golden/make_pixels.py` made both the
//! pictures and what is expected of them. Run with `--nocapture` for the table of differences.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use image::RgbImage;
use proptest::prelude::*;
use qformer::image::{ImageError, ImageLimits, decode};
use qformer::preprocess::Preprocessing;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/pixels")
}

/// A golden picture: its name, its bytes, its upright width and height, and the sizes at which the
/// reference resized it.
struct Golden {
    name: String,
    bytes: Vec<u8>,
    sides: (u32, u32),
    sizes: Vec<usize>,
}

fn pictures() -> Vec<Golden> {
    let list = fs::read_to_string(golden().join("pixels.json")).unwrap();
    let list: Vec<serde_json::Value> = serde_json::from_str(&list).unwrap();
    list.iter()
        .map(|entry| {
            let name = entry["name"].as_str().unwrap();
            let number = |key: &str| entry[key].as_u64().unwrap() as u32;
            let sizes = entry["sizes"].as_array().unwrap().iter();
            Golden {
                name: name.to_owned(),
                bytes: fs::read(golden().join(name)).unwrap(),
                sides: (number("width"), number("height")),
                sizes: sizes.map(|size| size.as_u64().unwrap() as usize).collect(),
            }
        })
        .collect()
}

fn picture(name: &str) -> Vec<u8> {
    fs::read(golden().join(name)).unwrap()
}

fn decode_default(bytes: &[u8]) -> Result<RgbImage, qformer::Error> {
    decode(bytes, &ImageLimits::default())
}

fn image_error(bytes: &[u8], limits: &ImageLimits) -> ImageError {
    match decode(bytes, limits) {
        Err(qformer::Error::Image(error)) => error,
        Err(error) => panic!("not an image error: {error}"),
        Ok(_) => panic!("decoded"),
    }
}

#[test]
fn every_kind_of_picture_equals_pillow() {
    println!(
        "{:<28} {:>4}  {:>7}  {:>9}",
        "picture", "S", "largest", "differing"
    );
    let mut wrong = Vec::new();
    let pictures = pictures();
    assert!(pictures.len() >= 80);
    for golden_picture in pictures {
        let name = &golden_picture.name;
        let decoded = match decode_default(&golden_picture.bytes) {
            Ok(decoded) => decoded,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        if decoded.dimensions() != golden_picture.sides {
            wrong.push(format!(
                "{name}: {:?}, expected {:?}",
                decoded.dimensions(),
                golden_picture.sides
            ));
            continue;
        }
        for size in golden_picture.sizes {
            let expected = golden().join(format!("{name}@{size}.png"));
            let expected = image::open(expected).unwrap().into_rgb8().into_raw();
            let resized = Preprocessing::clip(size).resize(&decoded);
            assert_eq!(resized.len(), expected.len());
            let differences = resized
                .iter()
                .zip(&expected)
                .map(|(one, other)| one.abs_diff(*other));
            let largest = differences.clone().max().unwrap();
            let differing = differences.filter(|difference| *difference > 0).count();
            let share = 100.0 * differing as f64 / expected.len() as f64;
            println!("{name:<28} {size:>4}  {largest:>7}  {share:>8.3}%");
            if largest > 0 {
                wrong.push(format!("{name} at {size}: off by up to {largest}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn normalized_pixels_equal_the_processor() {
    for name in ["photo.png", "420.jpg"] {
        let bytes = picture(&format!("{name}@64.f32"));
        let (expected, _) = bytes.as_chunks::<4>();
        let expected: Vec<f32> = expected
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        let decoded = decode_default(&picture(name)).unwrap();
        assert_eq!(Preprocessing::clip(64).pixels(&decoded), expected, "{name}");
    }
}

#[test]
fn a_huge_header_is_refused_before_any_pixel() {
    // IHDR of 30000 x 30000, 8-bit RGB, with its checksum, and no pixels.
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\x75\x30\0\0\x75\x30\x08\x02\0\0\0".to_vec();
    png.extend(0xe945_6fed_u32.to_be_bytes());
    png.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xae\x42\x60\x82");
    let jpeg = with_jpeg_size(&picture("420.jpg"), 60_000, 50_000);
    let mut gif = picture("plain.gif");
    gif[6..10].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
    let mut bmp = picture("rgb.bmp");
    bmp[18..22].copy_from_slice(&60_000_i32.to_le_bytes());
    bmp[22..26].copy_from_slice(&60_000_i32.to_le_bytes());
    let mut webp = picture("animated.webp");
    webp[24..30].copy_from_slice(&[0x0f, 0x27, 0, 0x1f, 0x4e, 0]);
    let mut tiff = b"II*\0\x08\0\0\0\x09\0".to_vec();
    let tags = [(256, 40_000), (257, 30_000), (258, 8), (259, 1), (262, 1)];
    let strip = [(273, 8), (277, 1), (278, 30_000), (279, 16)];
    for (tag, value) in tags.into_iter().chain(strip) {
        tiff.extend([tag as u8, (tag >> 8) as u8, 4, 0, 1, 0, 0, 0]);
        tiff.extend(u32::to_le_bytes(value));
    }
    tiff.extend([0; 4]);
    for (bytes, sides) in [
        (png, "30000 x 30000"),
        (webp, "10000 x 20000"),
        (tiff, "40000 x 30000"),
        (jpeg, "60000 x 50000"),
        (gif, "65535 x 65535"),
        (bmp, "60000 x 60000"),
    ] {
        let start = Instant::now();
        let error = image_error(&bytes, &ImageLimits::default());
        let took = start.elapsed();
        assert!(error.is_too_large(), "{sides}: {error}");
        assert!(error.to_string().contains(sides), "{error}");
        assert!(error.to_string().contains("64000000"), "{error}");
        println!("{sides}: {took:?}");
        assert!(took.as_millis() < 20, "{sides} took {took:?}");
    }
}

/// A JPEG whose frame header announces another size.
fn with_jpeg_size(jpeg: &[u8], width: u16, height: u16) -> Vec<u8> {
    let mut jpeg = jpeg.to_vec();
    let frame = jpeg
        .windows(2)
        .position(|marker| marker == [0xff, 0xc0])
        .unwrap();
    jpeg[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
    jpeg[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
    jpeg
}

#[test]
fn limits_are_inclusive() {
    let bytes = picture("turned-6.jpg");
    let limits = ImageLimits {
        max_bytes: bytes.len(),
        max_pixels: 60 * 40,
    };
    assert!(decode(&bytes, &limits).is_ok());
    let error = image_error(
        &bytes,
        &ImageLimits {
            max_bytes: bytes.len() - 1,
            ..limits
        },
    );
    assert!(matches!(error, ImageError::TooManyBytes { .. }), "{error}");
    let error = image_error(
        &bytes,
        &ImageLimits {
            max_pixels: 60 * 40 - 1,
            ..limits
        },
    );
    assert!(
        matches!(
            error,
            ImageError::TooManyPixels {
                width: 60,
                height: 40,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn what_is_no_picture_is_said_in_one_line() {
    let limits = ImageLimits::default();
    for (bytes, told) in [
        (&b""[..], "empty"),
        (b"<html><body>404", "a web page"),
        (b"I am text in a file named .png", "text"),
        (b"\x89PNG\r\n\x1a\n", "PNG picture is damaged or cut short"),
        (b"\xff\xd8\xff", "JPEG picture is damaged or cut short"),
        (b"GIF89a", "GIF picture is damaged or cut short"),
        (b"BM", "BMP picture is damaged or cut short"),
        (b"II*\0", "TIFF picture is damaged or cut short"),
        (b"RIFF\0\0\0\0WEBP", "WebP picture is damaged or cut short"),
    ] {
        let error = image_error(bytes, &limits).to_string();
        assert!(error.contains(told), "{bytes:?}: {error}");
        assert!(!error.contains('\n') && error.contains(':'), "{error}");
    }
    let gif_without_columns = [
        &picture("plain.gif")[..6],
        &[0, 0, 9, 0],
        &picture("plain.gif")[10..],
    ]
    .concat();
    let error = image_error(&gif_without_columns, &limits).to_string();
    assert!(error.contains("0 x 9"), "{error}");
}

#[test]
fn half_a_picture_is_an_error() {
    for golden_picture in pictures() {
        let whole = golden_picture.bytes;
        let half = &whole[..whole.len() / 2];
        // Half of this one is still the whole picture: what is cut off are later frames or junk.
        if ["animated.webp", "animated.gif", "trailing-junk.jpg"]
            .contains(&golden_picture.name.as_str())
        {
            continue;
        }
        let error = image_error(half, &ImageLimits::default()).to_string();
        assert!(
            error.contains("damaged or cut short") || error.contains("not supported"),
            "{}: {error}",
            golden_picture.name
        );
    }
}

#[test]
fn thousands_of_scans_are_refused() {
    let jpeg = picture("progressive.jpg");
    let scan = jpeg
        .windows(2)
        .rposition(|marker| marker == [0xff, 0xda])
        .unwrap();
    let end = jpeg.len() - 2;
    let many = [&jpeg[..end], &jpeg[scan..end].repeat(200), &jpeg[end..]].concat();
    let error = image_error(&many, &ImageLimits::default());
    assert!(matches!(error, ImageError::Unsupported { .. }), "{error}");
}

#[test]
fn the_decoders_words_stay_in_the_source() {
    let mut png = picture("rgba.png");
    let middle = png.len() / 2;
    png[middle] ^= 0xff;
    let error = image_error(&png, &ImageLimits::default());
    let detail = std::error::Error::source(&error).unwrap().to_string();
    assert!(!error.to_string().contains(&detail));
}

/// Decodes with a watch on panics: [`decode`] turns them into errors, here they are failures.
fn decode_without_panic(bytes: &[u8], limits: &ImageLimits) -> Option<RgbImage> {
    static WATCH: std::sync::Once = std::sync::Once::new();
    thread_local!(static PANICS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) });
    WATCH.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            before(info);
        }));
    });
    let before = PANICS.get();
    let decoded = decode(bytes, limits);
    assert_eq!(PANICS.get(), before, "a decoder panicked");
    decoded.ok()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000), start in 0..7_usize) {
        let magic = [&b""[..], b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xc0", b"GIF89a", b"BM", b"II*\0", b"RIFF\0\0\0\0WEBPVP8 "];
        decode_without_panic(&[magic[start], &bytes].concat(), &ImageLimits::default());
    }

    #[test]
    fn damaged_pictures_never_panic(
        which in any::<prop::sample::Index>(),
        cut in any::<prop::sample::Index>(),
        whole in any::<bool>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
    ) {
        let pictures = small_pictures();
        let mut bytes = pictures[which.index(pictures.len())].clone();
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        for (at, mask) in flips {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] ^= mask;
            }
        }
        // Small limits: a flipped size must not make a test of seconds.
        let limits = ImageLimits { max_pixels: 1 << 20, ..ImageLimits::default() };
        if let Some(picture) = decode_without_panic(&bytes, &limits) {
            prop_assert!(picture.width() > 0 && picture.height() > 0);
            let pixels = Preprocessing::clip(8).pixels(&picture);
            prop_assert!(pixels.iter().all(|value| value.is_finite()));
        }
    }
}

/// Pictures of every format, read once.
fn small_pictures() -> &'static [Vec<u8>] {
    static PICTURES: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    PICTURES.get_or_init(|| {
        let pictures = pictures()
            .into_iter()
            .map(|golden_picture| golden_picture.bytes);
        pictures.filter(|bytes| bytes.len() < 16_000).collect()
    })
}
