//! Which format a picture has, told by its first bytes.

use super::error::{ImageError, Result};

/// The formats that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Bmp,
    Gif,
    Jpeg,
    Png,
    Tiff,
    WebP,
}

impl Format {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bmp => "BMP",
            Self::Gif => "GIF",
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::Tiff => "TIFF",
            Self::WebP => "WebP",
        }
    }
}

/// The media type of an encoded picture by its first bytes, such as `image/png`; none where it is in no format that is read.
pub fn media_type(bytes: &[u8]) -> Option<&'static str> {
    let format = sniff(bytes).ok()?;
    Some(match format {
        Format::Bmp => "image/bmp",
        Format::Gif => "image/gif",
        Format::Jpeg => "image/jpeg",
        Format::Png => "image/png",
        Format::Tiff => "image/tiff",
        Format::WebP => "image/webp",
    })
}

/// The format of an encoded picture.
pub(super) fn sniff(bytes: &[u8]) -> Result<Format> {
    match bytes {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Ok(Format::Png),
        [0xff, 0xd8, 0xff, ..] => Ok(Format::Jpeg),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Ok(Format::Gif),
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => Ok(Format::WebP),
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Ok(Format::Tiff),
        [b'B', b'M', ..] => Ok(Format::Bmp),
        _ => Err(ImageError::Format {
            looks_like: looks_like(bytes),
        }),
    }
}

/// What a file that is no picture of ours seems to be, for the error message.
fn looks_like(bytes: &[u8]) -> &'static str {
    let start = &bytes[..bytes.len().min(512)];
    let printable = |byte: &u8| !byte.is_ascii_control() || byte.is_ascii_whitespace();
    match start {
        [_, _, _, _, b'f', b't', b'y', b'p', brand @ ..] => match brand {
            [b'a', b'v', b'i', b'f' | b's', ..] => "an AVIF picture",
            [b'h', b'e', ..] | [b'm', b'i', b'f', b'1', ..] => "a HEIC picture",
            _ => "a video",
        },
        [0xff, 0x0a, ..] | [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] => "a JPEG XL picture",
        [0, 0, 0, 12, b'j', b'P', ..] => "a JPEG 2000 picture",
        [b'8', b'B', b'P', b'S', ..] => "a Photoshop document",
        [b'%', b'P', b'D', b'F', ..] => "a PDF document",
        [0, 0, 1, 0, ..] => "an icon (ICO)",
        [b'P', b'K', 3, 4, ..] => "a ZIP archive",
        _ if start.iter().all(|byte| *byte == 0) => "zeros only",
        _ if contains(start, b"<svg") => "an SVG drawing",
        _ if contains(start, b"<html") || contains(start, b"<!DOCTYPE html") => "a web page",
        _ if std::str::from_utf8(start)
            .map_or_else(|error| error.valid_up_to() + 4 > start.len(), |_| true)
            && start.iter().all(printable) =>
        {
            "text"
        }
        _ => "data of an unknown kind",
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window.eq_ignore_ascii_case(needle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_it_is_not() {
        for (bytes, expected) in [
            (&b"hello, this is no picture\n"[..], "text"),
            (b"<?xml version=\"1.0\"?><svg xmlns=\"\">", "an SVG drawing"),
            (b"<!doctype HTML><p>404", "a web page"),
            (b"%PDF-1.7", "a PDF document"),
            (b"\0\0\0\x18ftypheic", "a HEIC picture"),
            (b"\0\0\0\x18ftypavif", "an AVIF picture"),
            (b"\0\0\0\0\0\0", "zeros only"),
            (b"\x01\xff\xfe\x80", "data of an unknown kind"),
            (b"\x89PNG", "data of an unknown kind"),
        ] {
            let error = sniff(bytes).unwrap_err().to_string();
            assert!(error.contains(expected), "{bytes:?}: {error}");
        }
    }
}
