//! From a decoded picture to the numbers the vision model reads.
//!
//! The steps of BLIP's line are those of Hugging Face's `BlipImageProcessorPil` (transformers 5.23.0,
//! `models/blip/image_processing_pil_blip.py`), which are also LAVIS's `BlipImageEvalProcessor`:
//! squash to a square with Pillow's bicubic filter, rescale, normalize each channel. The picture's
//! aspect ratio is not kept and nothing is cropped: that is how these models were trained.
//!
//! CLIP's are those of `CLIPImageProcessorPil` (`models/clip/image_processing_pil_clip.py`), which
//! are also OpenAI's: the shorter side is brought to the model's with the same filter, and the middle
//! of the longer one is kept.

use std::path::Path;

use ::image::RgbImage;
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::resize::{self, Size as PixelSize, Window};
use crate::{Error, Result};

/// Pillow's number for the bicubic filter, `PIL.Image.Resampling.BICUBIC`.
const BICUBIC: u32 = 3;
/// The largest side accepted: four times the largest BLIP-2 model (490 pixels, paper's table 4).
const MAX_SIZE: usize = 2048;
/// The class's default where `size` is missing (`BlipImageProcessor.size`).
const DEFAULT_SIZE: usize = 384;
/// CLIP's (`CLIPImageProcessor.size` and `.crop_size`).
const CLIP_DEFAULT_SIZE: usize = 224;
/// How the two processors are called in files, whatever follows.
const BLIP_PROCESSOR: &str = "BlipImageProcessor";
const CLIP_PROCESSORS: [&str; 2] = ["CLIPImageProcessor", "CLIPFeatureExtractor"];
/// CLIP's channel means, the class's default (`OPENAI_CLIP_MEAN`).
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// CLIP's channel deviations, the class's default (`OPENAI_CLIP_STD`).
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// How a picture becomes `[3, size, size]` numbers.
///
/// Reads and writes the fields of Hugging Face's `preprocessor_config.json`. A field that asks for
/// something this crate does not do (another filter, a side that is not square, a crop that is not
/// CLIP's) is refused by name when it is read, never ignored:
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
    /// Side of the square that the picture becomes, in pixels.
    pub size: usize,
    /// How it becomes a square.
    pub fit: Fit,
    /// Subtracted from each channel (red, green, blue) after rescaling.
    pub mean: [f32; 3],
    /// Divides each channel after the mean is subtracted.
    pub std: [f32; 3],
    /// Multiplies the 8-bit values before anything is subtracted; 1/255 in every published model.
    pub rescale_factor: f64,
}

/// How a picture becomes a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Squashed, whatever its aspect ratio: BLIP's line.
    Squash,
    /// Its shorter side brought to `shortest_edge` pixels, at least [`Preprocessing::size`], and the
    /// middle kept: CLIP.
    Crop {
        /// Shorter side before the crop, in pixels.
        shortest_edge: usize,
    },
}

impl Preprocessing {
    /// Preprocessing for a model that reads `size` x `size` pixels, normalized as CLIP's: every
    /// published BLIP-2 and InstructBLIP.
    pub fn clip(size: usize) -> Self {
        Self {
            size,
            fit: Fit::Squash,
            mean: CLIP_MEAN,
            std: CLIP_STD,
            rescale_factor: 1.0 / 255.0,
        }
    }

    /// Preprocessing for a CLIP that reads `size` x `size` pixels, as OpenAI's do.
    pub fn clip_cropped(size: usize) -> Self {
        Self {
            fit: Fit::Crop {
                shortest_edge: size,
            },
            ..Self::clip(size)
        }
    }

    /// The preprocessing of a checkpoint directory: `preprocessor_config.json`, or the
    /// `image_processor` of `processor_config.json` (as transformers 5 writes it); none where only
    /// the model was saved.
    ///
    /// # Errors
    /// A file cannot be read, or asks for what is not done here.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        for (file, key) in [
            ("preprocessor_config.json", None),
            ("processor_config.json", Some("image_processor")),
        ] {
            let path = dir.join(file);
            let text = match std::fs::read_to_string(&path) {
                Ok(text) => text,
                Err(source) if source.kind() == std::io::ErrorKind::NotFound => continue,
                Err(source) => return Err(Error::Io { path, source }),
            };
            let invalid = |error: serde_json::Error| Error::Config {
                path: path.clone(),
                reason: error.to_string(),
            };
            let mut value: serde_json::Value = serde_json::from_str(&text).map_err(invalid)?;
            if let Some(key) = key {
                let Some(inner) = value.get_mut(key) else {
                    continue;
                };
                value = inner.take();
            }
            return serde_json::from_value(value).map(Some).map_err(invalid);
        }
        Ok(None)
    }

    /// Pictures as a tensor `[pictures, 3, size, size]` on the CPU; see [`Preprocessing::pixels`].
    ///
    /// # Errors
    /// There are none.
    pub fn batch(&self, pictures: &[RgbImage]) -> Result<Tensor> {
        let pixels: Vec<f32> = pictures
            .iter()
            .flat_map(|picture| self.pixels(picture))
            .collect();
        let shape = (pictures.len(), 3, self.size, self.size);
        Ok(Tensor::from_vec(pixels, shape, &Device::Cpu)?)
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

    /// The picture as `size` x `size` pixels, before rescaling: `3 * size * size` bytes, rows of red,
    /// green, blue; equal to what `PIL.Image.resize(.., BICUBIC)` makes of it, cropped where
    /// [`Preprocessing::fit`] says so.
    pub fn resize(&self, picture: &RgbImage) -> Vec<u8> {
        let from = PixelSize {
            width: picture.width() as usize,
            height: picture.height() as usize,
        };
        if from.width == 0 || from.height == 0 {
            return vec![0; 3 * self.size * self.size];
        }
        let size = PixelSize {
            width: self.size,
            height: self.size,
        };
        let to = match self.fit {
            Fit::Squash => size,
            Fit::Crop { shortest_edge } => shortest_edge_to(from, shortest_edge.max(self.size)),
        };
        let window = Window {
            left: (to.width - size.width) / 2,
            top: (to.height - size.height) / 2,
            size,
        };
        resize::bicubic(picture.as_raw(), from, to, window)
    }
}

/// The size of a picture whose shorter side becomes `edge` pixels; the longer one is rounded down
/// (transformers, `get_resize_output_image_size`).
fn shortest_edge_to(from: PixelSize, edge: usize) -> PixelSize {
    let (short, long) = (from.width.min(from.height), from.width.max(from.height));
    let long = ((edge as f64 * long as f64) / short as f64) as usize;
    match from.width <= from.height {
        true => PixelSize {
            width: edge,
            height: long,
        },
        false => PixelSize {
            width: long,
            height: edge,
        },
    }
}

/// `preprocessor_config.json` as it is written, before what it asks for is checked.
#[derive(Deserialize, Serialize)]
struct Config {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image_processor_type: Option<String>,
    /// The same in files of 2021 and 2022.
    #[serde(default, skip_serializing)]
    feature_extractor_type: Option<String>,
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crop_size: Option<Size>,
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
    Shortest { shortest_edge: usize },
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

impl Size {
    /// The side of a square.
    fn square(self, field: &'static str) -> Result<usize> {
        let side = match self {
            Self::Side(side) => side,
            Self::Sides { height, width } if height == width => height,
            Self::Sides { height, width } => {
                return refuse(field, format!("{height} x {width} is not square"));
            }
            Self::Shortest { .. } => {
                return refuse(
                    field,
                    "\"shortest_edge\" is not supported, only height and width",
                );
            }
            Self::Other(other) => {
                let keys: Vec<_> = other.into_keys().collect();
                return refuse(
                    field,
                    format!(
                        "\"{}\" is not supported, only height and width",
                        keys.join("\", \"")
                    ),
                );
            }
        };
        in_range(field, side)
    }
}

fn in_range(field: &'static str, side: usize) -> Result<usize> {
    if (1..=MAX_SIZE).contains(&side) {
        Ok(side)
    } else {
        refuse(field, format!("{side} is not between 1 and {MAX_SIZE}"))
    }
}

/// Side and fit of a `CLIPImageProcessor`.
fn clip_fit(
    do_center_crop: Option<bool>,
    size: Option<Size>,
    crop_size: Option<Size>,
) -> Result<(usize, Fit)> {
    let shortest_edge = match size {
        None => CLIP_DEFAULT_SIZE,
        // A number alone is the shorter side to this processor.
        Some(
            Size::Side(edge)
            | Size::Shortest {
                shortest_edge: edge,
            },
        ) => in_range("size", edge)?,
        // A square leaves nothing to crop, unless the crop is smaller.
        Some(size) => {
            let side = size.square("size")?;
            let crop = match (do_center_crop, crop_size) {
                (Some(false), _) => side,
                (_, None) => CLIP_DEFAULT_SIZE,
                (_, Some(crop)) => crop.square("crop_size")?,
            };
            if crop != side {
                return refuse("crop_size", format!("{crop} is not size = {side}"));
            }
            return Ok((side, Fit::Squash));
        }
    };
    only("do_center_crop", do_center_crop, true)?;
    let side = match crop_size {
        None => CLIP_DEFAULT_SIZE,
        Some(crop) => crop.square("crop_size")?,
    };
    if side > shortest_edge {
        return refuse(
            "crop_size",
            format!("{side} is more than the shortest edge of {shortest_edge} leaves"),
        );
    }
    Ok((side, Fit::Crop { shortest_edge }))
}

impl TryFrom<Config> for Preprocessing {
    type Error = Error;

    fn try_from(config: Config) -> Result<Self> {
        let name = config
            .image_processor_type
            .as_deref()
            .or(config.feature_extractor_type.as_deref())
            .unwrap_or(BLIP_PROCESSOR);
        only("do_convert_rgb", config.do_convert_rgb, true)?;
        only("do_resize", config.do_resize, true)?;
        only("do_pad", config.do_pad, false)?;
        if let Some(filter) = config.resample
            && filter != BICUBIC
        {
            return refuse(
                "resample",
                format!("filter {filter} is not supported, only {BICUBIC} (bicubic)"),
            );
        }
        // Another processor has other defaults for what the file leaves out.
        let (size, fit) = if name.starts_with(BLIP_PROCESSOR) {
            only("do_center_crop", config.do_center_crop, false)?;
            match config.size {
                None => (DEFAULT_SIZE, Fit::Squash),
                Some(size) => (size.square("size")?, Fit::Squash),
            }
        } else if CLIP_PROCESSORS.iter().any(|known| name.starts_with(known)) {
            clip_fit(config.do_center_crop, config.size, config.crop_size)?
        } else {
            return refuse(
                "image_processor_type",
                format!(
                    "\"{name}\" is not supported, only \"{BLIP_PROCESSOR}\" and \"{}\"",
                    CLIP_PROCESSORS[0]
                ),
            );
        };
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
            fit,
            mean,
            std,
            rescale_factor,
        })
    }
}

impl From<Preprocessing> for Config {
    fn from(preprocessing: Preprocessing) -> Self {
        let square = Size::Sides {
            height: preprocessing.size,
            width: preprocessing.size,
        };
        let (name, do_center_crop, size, crop_size) = match preprocessing.fit {
            Fit::Squash => (BLIP_PROCESSOR, None, square, None),
            Fit::Crop { shortest_edge } => (
                CLIP_PROCESSORS[0],
                Some(true),
                Size::Shortest { shortest_edge },
                Some(square),
            ),
        };
        Self {
            image_processor_type: Some(name.into()),
            feature_extractor_type: None,
            do_convert_rgb: Some(true),
            do_resize: Some(true),
            resample: Some(BICUBIC),
            do_center_crop,
            do_pad: None,
            do_rescale: Some(true),
            rescale_factor: Some(preprocessing.rescale_factor),
            do_normalize: Some(true),
            image_mean: Some(PerChannel::Each(preprocessing.mean)),
            image_std: Some(PerChannel::Each(preprocessing.std)),
            size: Some(size),
            crop_size,
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
        for preprocessing in [preprocessing, Preprocessing::clip_cropped(336)] {
            let json = serde_json::to_string(&preprocessing).unwrap();
            assert_eq!(read(&json), Ok(preprocessing));
        }
    }

    #[test]
    fn reads_the_published_files_of_clip() {
        // openai/clip-vit-base-patch32, preprocessor_config.json.
        let patch32 = r#"{
            "crop_size": 224, "do_center_crop": true, "do_normalize": true, "do_resize": true,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 224
        }"#;
        assert_eq!(read(patch32), Ok(Preprocessing::clip_cropped(224)));
        // openai/clip-vit-large-patch14-336 in today's form.
        let large = r#"{
            "crop_size": {"height": 336, "width": 336}, "do_center_crop": true,
            "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 336}
        }"#;
        assert_eq!(read(large), Ok(Preprocessing::clip_cropped(336)));
        let name = r#"{"image_processor_type": "CLIPImageProcessorFast"}"#;
        assert_eq!(read(name), Ok(Preprocessing::clip_cropped(224)));
        let square = r#"{"image_processor_type": "CLIPImageProcessor", "do_center_crop": false,
            "size": {"height": 64, "width": 64}}"#;
        assert_eq!(read(square), Ok(Preprocessing::clip(64)));
    }

    #[test]
    fn a_crop_keeps_the_middle() {
        // Columns 0, 1, .. 7, of which a crop without a resize keeps 2 to 5.
        let picture = RgbImage::from_fn(8, 4, |x, _| ::image::Rgb([x as u8; 3]));
        let cropped = Preprocessing::clip_cropped(4).resize(&picture);
        assert_eq!(cropped[..12], [2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5]);
        // A line would be 64 million pixels long.
        let line = RgbImage::from_pixel(200_000, 1, ::image::Rgb([9, 8, 7]));
        let pixels = Preprocessing::clip_cropped(336).resize(&line);
        assert_eq!(pixels, [9, 8, 7].repeat(336 * 336));
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
                r#"{"image_processor_type": "ViTImageProcessor"}"#,
                "ViTImageProcessor",
            ),
            (
                r#"{"image_processor_type": "CLIPImageProcessor", "crop_size": 300}"#,
                "crop_size: 300 is more",
            ),
            (
                r#"{"image_processor_type": "CLIPImageProcessor", "do_center_crop": false}"#,
                "do_center_crop",
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
