//! Pictures drawn with escape sequences: as pixels where a terminal says that it can, else two to a character.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::imageops::thumbnail;
use qformer::image::{ImageLimits, RgbImage, decode};

/// Columns that a picture takes at most.
const MAX_COLUMNS: u32 = 40;
/// Rows that it takes at most.
const MAX_ROWS: u32 = 16;
/// Pixels that are sent for a column; a row has twice as many.
const PIXELS: u32 = 10;
/// Bytes of base64 that Kitty takes at once.
const KITTY_CHUNK: usize = 4096;

/// How a terminal draws pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drawing {
    /// Kitty's graphics protocol.
    Kitty,
    /// iTerm2's inline images.
    Iterm,
    /// Upper half blocks in 24-bit colours.
    Blocks,
    /// Upper half blocks in xterm's 256 colours.
    Blocks256,
}

impl Drawing {
    /// What the environment tells of the terminal; none where it draws no colours or nothing is known of it.
    pub fn detect(env: impl Fn(&str) -> Option<String>) -> Option<Drawing> {
        let is = |name: &str, values: &[&str]| {
            env(name).is_some_and(|value| values.contains(&value.as_str()))
        };
        let term = env("TERM").unwrap_or_default();
        if term.is_empty()
            || term == "dumb"
            || env("NO_COLOR").is_some_and(|value| !value.is_empty())
        {
            return None;
        }
        // Multiplexers pass no pictures on.
        let is_multiplexed =
            env("TMUX").is_some() || term.starts_with("screen") || term.starts_with("tmux");
        if !is_multiplexed {
            let is_kitty = env("KITTY_WINDOW_ID").is_some()
                || ["xterm-kitty", "xterm-ghostty"].contains(&term.as_str());
            if is_kitty {
                return Some(Drawing::Kitty);
            }
            if is("TERM_PROGRAM", &["iTerm.app", "WezTerm"]) {
                return Some(Drawing::Iterm);
            }
        }
        match is("COLORTERM", &["truecolor", "24bit"]) {
            true => Some(Drawing::Blocks),
            false => term.contains("256color").then_some(Drawing::Blocks256),
        }
    }

    /// The sequences that draw a picture in at most `columns`, and a line break.
    ///
    /// # Errors
    /// It cannot be decoded.
    pub fn draw(self, file: &[u8], columns: u32) -> qformer::Result<String> {
        let picture = decode(file, &ImageLimits::default())?;
        let (columns, rows) = cells(&picture, columns.min(MAX_COLUMNS));
        Ok(match self {
            Drawing::Kitty => {
                let (width, height) = (columns * PIXELS, rows * 2 * PIXELS);
                kitty(&thumbnail(&picture, width, height), columns, rows)
            }
            Drawing::Iterm => format!(
                "\x1b]1337;File=inline=1;size={};width={columns};height={rows}:{}\x07\n",
                file.len(),
                STANDARD.encode(file)
            ),
            Drawing::Blocks => blocks(&thumbnail(&picture, columns, rows * 2), |[r, g, b]| {
                format!("2;{r};{g};{b}")
            }),
            Drawing::Blocks256 => blocks(&thumbnail(&picture, columns, rows * 2), |colour| {
                format!("5;{}", cube(colour))
            }),
        })
    }
}

/// Columns and rows of a picture; a character is twice as high as it is wide.
fn cells(picture: &RgbImage, max_columns: u32) -> (u32, u32) {
    let (width, height) = (f64::from(picture.width()), f64::from(picture.height()));
    let scale = (f64::from(max_columns) / width).min(f64::from(MAX_ROWS * 2) / height);
    let columns = (width * scale).round().max(1.0) as u32;
    let rows = (height * scale / 2.0).round().max(1.0) as u32;
    (columns, rows)
}

/// "Transmit and display" of 24-bit pixels, in chunks; `q=2` asks for no reply, which would look like typing.
fn kitty(picture: &RgbImage, columns: u32, rows: u32) -> String {
    let data = STANDARD.encode(picture.as_raw());
    let mut drawn = String::with_capacity(data.len() + data.len() / 256);
    let mut rest = data.as_str();
    let mut control = format!(
        "a=T,f=24,s={},v={},c={columns},r={rows},q=2,",
        picture.width(),
        picture.height()
    );
    loop {
        let (chunk, after) = rest.split_at(rest.len().min(KITTY_CHUNK));
        let more = u8::from(!after.is_empty());
        // Writing to a string does not fail.
        let _ = write!(drawn, "\x1b_G{control}m={more};{chunk}\x1b\\");
        if after.is_empty() {
            break;
        }
        rest = after;
        control = "q=2,".to_owned();
    }
    drawn.push('\n');
    drawn
}

/// Two pixels a character: the upper one in its colour, the lower one behind it.
fn blocks(picture: &RgbImage, colour: impl Fn([u8; 3]) -> String) -> String {
    let mut drawn = String::new();
    for row in 0..picture.height() / 2 {
        for column in 0..picture.width() {
            let upper = colour(picture.get_pixel(column, row * 2).0);
            let lower = colour(picture.get_pixel(column, row * 2 + 1).0);
            let _ = write!(drawn, "\x1b[38;{upper};48;{lower}m\u{2580}");
        }
        drawn.push_str("\x1b[0m\n");
    }
    drawn
}

/// The nearest colour of xterm's 6 x 6 x 6 cube, whose steps are 0, 95, 135, 175, 215 and 255.
fn cube([r, g, b]: [u8; 3]) -> u8 {
    let step = |value: u8| match value {
        0..48 => 0,
        48..115 => 1,
        _ => (value - 35) / 40,
    };
    16 + 36 * step(r) + 6 * step(g) + step(b)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use image::Rgb;

    use super::*;

    fn detect(env: &[(&str, &str)]) -> Option<Drawing> {
        Drawing::detect(|name| {
            let found = env.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn terminals_are_known_by_their_environment() {
        let kitty = ("KITTY_WINDOW_ID", "1");
        let iterm = ("TERM_PROGRAM", "iTerm.app");
        let xterm = ("TERM", "xterm-256color");
        let truecolor = ("COLORTERM", "truecolor");
        for (env, drawing) in [
            (&[("TERM", "xterm-kitty")][..], Some(Drawing::Kitty)),
            (&[xterm, kitty], Some(Drawing::Kitty)),
            (&[xterm, iterm, truecolor], Some(Drawing::Iterm)),
            (&[xterm, truecolor], Some(Drawing::Blocks)),
            (&[xterm], Some(Drawing::Blocks256)),
            (
                &[("TERM", "screen-256color"), kitty],
                Some(Drawing::Blocks256),
            ),
            (
                &[xterm, kitty, ("TMUX", "1"), truecolor],
                Some(Drawing::Blocks),
            ),
            (&[("TERM", "linux")], None),
            (&[("TERM", "dumb"), truecolor], None),
            (&[xterm, truecolor, ("NO_COLOR", "1")], None),
            (&[truecolor], None),
        ] {
            assert_eq!(detect(env), drawing, "{env:?}");
        }
    }

    #[test]
    fn a_character_is_two_pixels() {
        let mut picture = RgbImage::new(1, 4);
        for (y, value) in [10, 20, 30, 40].into_iter().enumerate() {
            picture.put_pixel(0, y as u32, Rgb([value, 0, 255]));
        }
        let colour = |[r, _, b]: [u8; 3]| format!("{r}/{b}");
        assert_eq!(
            blocks(&picture, colour),
            "\x1b[38;10/255;48;20/255m▀\x1b[0m\n\x1b[38;30/255;48;40/255m▀\x1b[0m\n"
        );
    }

    #[test]
    fn pictures_keep_their_shape_within_their_room() {
        for ((width, height), expected) in [
            ((100, 100), (32, 16)),
            ((400, 100), (40, 5)),
            ((10, 1000), (1, 16)),
            ((1, 1), (32, 16)),
            ((5000, 1), (40, 1)),
        ] {
            assert_eq!(cells(&RgbImage::new(width, height), 40), expected);
        }
    }

    #[test]
    fn kitty_is_sent_every_pixel_in_chunks() {
        let picture = RgbImage::from_fn(90, 40, |x, y| Rgb([x as u8, y as u8, 7]));
        let drawn = kitty(&picture, 9, 2);
        let chunks: Vec<(&str, &str)> = drawn
            .trim_end()
            .split_terminator("\x1b\\")
            .map(|chunk| {
                chunk
                    .strip_prefix("\x1b_G")
                    .unwrap()
                    .split_once(';')
                    .unwrap()
            })
            .collect();
        assert_eq!(chunks[0].0, "a=T,f=24,s=90,v=40,c=9,r=2,q=2,m=1");
        let (last, others) = chunks.split_last().unwrap();
        assert_eq!(last.0, "q=2,m=0");
        assert!(others.iter().all(|(_, data)| data.len() == KITTY_CHUNK));
        let data: String = chunks.iter().map(|(_, data)| *data).collect();
        assert_eq!(&STANDARD.decode(data).unwrap(), picture.as_raw());
    }

    #[test]
    fn colours_are_the_nearest_of_the_cube() {
        let steps = [0u8, 95, 135, 175, 215, 255];
        for value in 0..=255u8 {
            let found = steps[usize::from((cube([value, 0, 0]) - 16) / 36)];
            let nearest = steps.iter().map(|step| step.abs_diff(value)).min().unwrap();
            assert!(found.abs_diff(value) <= nearest + 1, "{value}: {found}");
        }
        assert_eq!(cube([255, 255, 255]), 231);
    }
}
