//! From a decoded picture to the numbers the vision model reads.
//!
//! The steps are those of Hugging Face's `BlipImageProcessorPil` (transformers 5.23.0,
//! `models/blip/image_processing_pil_blip.py`), which are also LAVIS's `BlipImageEvalProcessor`:
//! squash to a square with Pillow's bicubic filter, rescale, normalize each channel. The picture's
//! aspect ratio is not kept and nothing is cropped: that is how these models were trained.

use ::image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, resize};

/// Pillow's number for the bicubic filter, `PIL.Image.Resampling.BICUBIC`.
const BICUBIC: u32 = 3;
/// The largest side accepted: four times the largest BLIP-2 model (490 pixels, paper's table 4).
const MAX_SIZE: usize = 2048;
/// The class's default where `size` is missing (`BlipImageProcessor.size`).
const DEFAULT_SIZE: usize = 384;
/// CLIP's channel means, the class's default (`OPENAI_CLIP_MEAN`).
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// CLIP's channel deviations, the class's default (`OPENAI_CLIP_STD`).
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// How a picture becomes `[3, size, size]` numbers.
///
/// Reads and writes the fields of Hugging Face's `preprocessor_config.json`. A field that asks for
/// something this crate does not do (a crop, another filter, a side that is not square) is refused
/// by name when it is read, never ignored:
///
/// ```
/// use qformer::preprocess::Preprocessing;
///
/// let json = r#"{"do_resize": true, "size": {"height": 224, "width": 224}, "resample": 3}"#;
/// let preprocessing: Preprocessing = serde_json::from_str(json)?;
/// assert_eq!(preprocessing.size, 224);
///
/// let error = serde_json::from_str::<Preprocessing>(r#"{"do_center_crop": true}"#).unwrap_err();
/// assert!(error.to_string().contains("do_center_crop"));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Config", into = "Config")]
pub struct Preprocessing {
    /// Side of the square the picture is squashed to, in pixels.
    pub size: usize,
    /// Subtracted from each channel (red, green, blue) after rescaling.
    pub mean: [f32; 3],
    /// Divides each channel after the mean is subtracted.
    pub std: [f32; 3],
    /// Multiplies the 8-bit values before anything is subtracted; 1/255 in every published model.
    pub rescale_factor: f64,
}

impl Preprocessing {
    /// Preprocessing for a model that reads `size` x `size` pixels, normalized as CLIP's: every
    /// published BLIP-2 and InstructBLIP.
    pub fn clip(size: usize) -> Self {
        Self {
            size,
            mean: CLIP_MEAN,
            std: CLIP_STD,
            rescale_factor: 1.0 / 255.0,
        }
    }

    /// The picture as `f32` numbers of shape `[3, size, size]` (channel, row, column), row-major.
    ///
    /// Bit-equal to the reference's array for the same decoded picture. A picture without pixels,
    /// which [`decode`](crate::image::decode) never returns, counts as black.
    pub fn pixels(&self, picture: &RgbImage) -> Vec<f32> {
        let resized = self.resize(picture);
        // Eight bits leave 256 values a channel, so the arithmetic runs once for each of them.
        let mut normalized = Vec::with_capacity(3 * self.size * self.size);
        for (channel, (mean, std)) in self.mean.iter().zip(&self.std).enumerate() {
            let table: [f32; 256] = std::array::from_fn(|value| {
                ((value as f64 * self.rescale_factor) as f32 - mean) / std
            });
            let values = resized.iter().skip(channel).step_by(3);
            normalized.extend(values.map(|value| table[usize::from(*value)]));
        }
        normalized
    }

    /// The picture squashed to `size` x `size`, before rescaling: `3 * size * size` bytes, rows of
    /// red, green, blue; equal to `PIL.Image.resize((size, size), BICUBIC)`.
    pub fn resize(&self, picture: &RgbImage) -> Vec<u8> {
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        if width == 0 || height == 0 {
            return vec![0; 3 * self.size * self.size];
        }
        resize::bicubic_square(picture.as_raw(), width, height, self.size)
    }
}

/// `preprocessor_config.json` as it is written, before what it asks for is checked.
#[derive(Deserialize, Serialize)]
struct Config {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image_processor_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    do_convert_rgb: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    do_resize: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resample: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    do_center_crop: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    do_pad: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    do_rescale: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rescale_factor: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    do_normalize: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image_mean: Option<PerChannel>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image_std: Option<PerChannel>,
    // Last, because a table must follow the plain values where this is written as TOML.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<Size>,
}

#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum PerChannel {
    One(f32),
    Each([f32; 3]),
}

impl PerChannel {
    fn values(self) -> [f32; 3] {
        match self {
            Self::One(value) => [value; 3],
            Self::Each(values) => values,
        }
    }
}

#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum Size {
    Side(usize),
    Sides { height: usize, width: usize },
    Other(std::collections::BTreeMap<String, serde_json::Value>),
}

fn refuse<T>(field: &'static str, reason: impl Into<String>) -> Result<T> {
    Err(Error::ConfigValue {
        field: field.into(),
        reason: reason.into(),
    })
}

fn only(field: &'static str, asked: Option<bool>, honoured: bool) -> Result<()> {
    match asked {
        Some(asked) if asked != honoured => {
            refuse(field, format!("{asked} is not supported, only {honoured}"))
        }
        _ => Ok(()),
    }
}

impl TryFrom<Config> for Preprocessing {
    type Error = Error;

    fn try_from(config: Config) -> Result<Self> {
        // Another processor has other defaults for what the file leaves out: CLIP's would crop.
        if let Some(name) = &config.image_processor_type
            && !name.starts_with("BlipImageProcessor")
        {
            return refuse(
                "image_processor_type",
                format!("\"{name}\" is not supported, only \"BlipImageProcessor\""),
            );
        }
        only("do_convert_rgb", config.do_convert_rgb, true)?;
        only("do_resize", config.do_resize, true)?;
        only("do_center_crop", config.do_center_crop, false)?;
        only("do_pad", config.do_pad, false)?;
        if let Some(filter) = config.resample
            && filter != BICUBIC
        {
            return refuse(
                "resample",
                format!("filter {filter} is not supported, only {BICUBIC} (bicubic)"),
            );
        }
        let size = match config.size {
            None => DEFAULT_SIZE,
            Some(Size::Side(side)) => side,
            Some(Size::Sides { height, width }) if height == width => height,
            Some(Size::Sides { height, width }) => {
                return refuse("size", format!("{height} x {width} is not square"));
            }
            Some(Size::Other(other)) => {
                let keys: Vec<_> = other.into_keys().collect();
                return refuse(
                    "size",
                    format!(
                        "\"{}\" is not supported, only height and width",
                        keys.join("\", \"")
                    ),
                );
            }
        };
        if !(1..=MAX_SIZE).contains(&size) {
            return refuse("size", format!("{size} is not between 1 and {MAX_SIZE}"));
        }
        let rescale_factor = match config.do_rescale {
            Some(false) => 1.0,
            _ => config.rescale_factor.unwrap_or(1.0 / 255.0),
        };
        if !rescale_factor.is_finite() {
            return refuse(
                "rescale_factor",
                format!("{rescale_factor} is not a finite number"),
            );
        }
        let (mean, std) = match config.do_normalize {
            Some(false) => ([0.0; 3], [1.0; 3]),
            _ => (
                config.image_mean.map_or(CLIP_MEAN, PerChannel::values),
                config.image_std.map_or(CLIP_STD, PerChannel::values),
            ),
        };
        if !mean.iter().all(|mean| mean.is_finite()) {
            return refuse("image_mean", format!("{mean:?} are not all finite numbers"));
        }
        if !std.iter().all(|std| std.is_finite() && *std > 0.0) {
            return refuse("image_std", format!("{std:?} are not all above zero"));
        }
        Ok(Self {
            size,
            mean,
            std,
            rescale_factor,
        })
    }
}

impl From<Preprocessing> for Config {
    fn from(preprocessing: Preprocessing) -> Self {
        Self {
            image_processor_type: Some("BlipImageProcessor".into()),
            do_convert_rgb: Some(true),
            do_resize: Some(true),
            resample: Some(BICUBIC),
            do_center_crop: None,
            do_pad: None,
            do_rescale: Some(true),
            rescale_factor: Some(preprocessing.rescale_factor),
            do_normalize: Some(true),
            image_mean: Some(PerChannel::Each(preprocessing.mean)),
            image_std: Some(PerChannel::Each(preprocessing.std)),
            size: Some(Size::Sides {
                height: preprocessing.size,
                width: preprocessing.size,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Preprocessing, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn reads_the_published_files() {
        // Salesforce/blip2-opt-2.7b, preprocessor_config.json.
        let blip2 = r#"{
            "do_normalize": true, "do_rescale": true, "do_resize": true,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_processor_type": "BlipImageProcessor",
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "processor_class": "Blip2Processor", "resample": 3,
            "rescale_factor": 0.00392156862745098, "size": {"height": 224, "width": 224}
        }"#;
        assert_eq!(read(blip2), Ok(Preprocessing::clip(224)));
        assert_eq!(read(r#"{"size": 364}"#), Ok(Preprocessing::clip(364)));
        assert_eq!(read("{}"), Ok(Preprocessing::clip(384)));
        let nulls = r#"{"do_center_crop": null, "crop_size": null, "do_pad": null, "size": 224}"#;
        assert_eq!(read(nulls), Ok(Preprocessing::clip(224)));
    }

    #[test]
    fn what_is_written_reads_back() {
        let preprocessing = Preprocessing {
            mean: [0.5, 0.25, 0.125],
            ..Preprocessing::clip(448)
        };
        let json = serde_json::to_string(&preprocessing).unwrap();
        assert_eq!(read(&json), Ok(preprocessing));
    }

    #[test]
    fn steps_can_be_left_out() {
        let raw = read(r#"{"do_rescale": false, "do_normalize": false, "size": 1}"#).unwrap();
        let picture = RgbImage::from_pixel(1, 1, ::image::Rgb([3, 100, 255]));
        assert_eq!(raw.pixels(&picture), [3.0, 100.0, 255.0]);
    }

    #[test]
    fn refuses_by_name_what_it_does_not_do() {
        for (json, field) in [
            (r#"{"do_center_crop": true}"#, "do_center_crop"),
            (r#"{"do_pad": true}"#, "do_pad"),
            (r#"{"do_resize": false}"#, "do_resize"),
            (r#"{"do_convert_rgb": false}"#, "do_convert_rgb"),
            (r#"{"resample": 2}"#, "resample"),
            (r#"{"size": {"shortest_edge": 224}}"#, "shortest_edge"),
            (r#"{"size": {"height": 224, "width": 336}}"#, "224 x 336"),
            (r#"{"size": 0}"#, "size"),
            (r#"{"size": 1000000}"#, "size"),
            (r#"{"image_std": [0.5, 0.0, 0.5]}"#, "image_std"),
            (
                r#"{"image_processor_type": "CLIPImageProcessor"}"#,
                "CLIPImageProcessor",
            ),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(field), "{json}: {error}");
        }
    }

    #[test]
    fn channels_come_one_after_another() {
        let mut picture = RgbImage::new(2, 2);
        picture.put_pixel(1, 0, ::image::Rgb([255, 0, 0]));
        let pixels = Preprocessing {
            mean: [0.0; 3],
            std: [1.0; 3],
            ..Preprocessing::clip(2)
        }
        .pixels(&picture);
        assert_eq!(
            pixels,
            [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
        );
    }

    #[test]
    fn a_picture_without_pixels_is_black() {
        assert_eq!(
            Preprocessing::clip(4).resize(&RgbImage::new(0, 9)),
            vec![0; 48]
        );
    }
}
