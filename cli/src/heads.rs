//! A bundle that compares pictures and texts, as `index`, `search`, `filter`, `bootstrap` and retrieval in `eval` use it.

use std::path::Path;

use anyhow::{Context, Result, bail};
use bridge::bundle::Manifest;
use bridge::matcher::Matcher;
use bridge::model::default_device;
use candle_core::{Device, Tensor};
use qformer::stage1::{CaptionOptions, contrastive};

use crate::args::VisionProducts;
use crate::batch::Failure;
use crate::progress;

/// Texts that are read together with a picture in one batch: more gain little, and memory grows with them.
const BATCH: usize = 32;

/// Pictures that are compared with all texts at once: with 25,000 texts and 32 rows each, 51 MB.
const COMPARED: usize = 16;

/// A loaded bundle with heads that compare.
pub struct Heads {
    matcher: Matcher,
}

/// A picture as the heads read it.
pub struct Seen(Tensor);

/// Rows of features, each of length 1.
pub type Rows = Vec<Vec<f32>>;

impl Heads {
    /// Opens a bundle, with a spinner beside it.
    ///
    /// # Errors
    /// It cannot be opened, or has no such heads.
    pub fn open(bundle: &Path, vision: VisionProducts) -> Result<Heads> {
        let spinner = progress::spinner(format!("loading {}", bundle.display()));
        let matcher = Matcher::open(bundle, vision.into(), &default_device()?)?;
        spinner.finish_and_clear();
        Ok(Heads { matcher })
    }

    /// The bundle's manifest.
    pub fn manifest(&self) -> &Manifest {
        self.matcher.manifest()
    }

    /// Rows of features of a picture, and numbers of a row.
    ///
    /// # Errors
    /// The model has no features to compare.
    pub fn shape(&self) -> Result<(usize, usize)> {
        self.matcher.feature_shape().with_context(|| {
            let name = &self.manifest().name;
            format!("{name} has no features of pictures and texts: take a first stage of BLIP-2, a CLIP, or a BLIP for retrieval")
        })
    }

    /// Refuses a bundle without the head that `what` reads.
    ///
    /// # Errors
    /// The model has no matching head.
    pub fn must_match(&self, what: &str) -> Result<()> {
        if !self.matcher.abilities().matches {
            let name = &self.manifest().name;
            bail!(
                "{name} has no matching head, which {what} reads: take a first stage of BLIP-2, or a BLIP for retrieval"
            );
        }
        Ok(())
    }

    /// A picture file through the ViT.
    ///
    /// # Errors
    /// It is no picture, or the device fails.
    pub fn see(&self, file: &[u8]) -> bridge::Result<Seen> {
        Ok(Seen(self.matcher.vision(file)?))
    }

    /// The features of a picture.
    ///
    /// # Errors
    /// The device fails.
    pub fn picture_features(&self, picture: &Seen) -> bridge::Result<Rows> {
        let features = self.matcher.heads().image_features(&picture.0)?;
        Ok(features.squeeze(0)?.to_vec2()?)
    }

    /// The features of texts, one row each.
    ///
    /// # Errors
    /// The device fails.
    pub fn text_features(&self, texts: &[&str]) -> bridge::Result<Rows> {
        let mut rows = Rows::with_capacity(texts.len());
        for texts in texts.chunks(BATCH) {
            rows.extend(self.matcher.heads().text_features(texts)?.to_vec2()?);
        }
        Ok(rows)
    }

    /// The matching head's logit of each text, that it is the picture's; LAVIS ranks by it (`compute_itm`).
    ///
    /// # Errors
    /// The device fails.
    pub fn match_logits(&self, picture: &Seen, texts: &[&str]) -> bridge::Result<Vec<f32>> {
        let logits = self.logits(picture, texts)?;
        Ok(logits.into_iter().map(|[_, yes]| yes).collect())
    }

    /// The probability of each text that it is the picture's.
    ///
    /// # Errors
    /// The device fails.
    pub fn probabilities(&self, picture: &Seen, texts: &[&str]) -> bridge::Result<Vec<f32>> {
        let logits = self.logits(picture, texts)?;
        let probability = |[no, yes]: [f32; 2]| 1.0 / (1.0 + (no - yes).exp());
        Ok(logits.into_iter().map(probability).collect())
    }

    fn logits(&self, picture: &Seen, texts: &[&str]) -> bridge::Result<Vec<[f32; 2]>> {
        let mut found = Vec::with_capacity(texts.len());
        for texts in texts.chunks(BATCH) {
            let logits = self.matcher.heads().match_logits(&picture.0, texts)?;
            let (no, yes) = (logits.narrow(1, 0, 1)?, logits.narrow(1, 1, 1)?);
            let no: Vec<f32> = no.flatten_all()?.to_vec1()?;
            let yes: Vec<f32> = yes.flatten_all()?.to_vec1()?;
            found.extend(no.into_iter().zip(yes).map(|(no, yes)| [no, yes]));
        }
        Ok(found)
    }

    /// Whether a head writes captions.
    pub fn writes_captions(&self) -> bool {
        self.matcher.heads().writes_captions()
    }

    /// How captions are chosen where nothing is said.
    pub fn default_caption(&self) -> CaptionOptions {
        self.matcher.default_caption()
    }

    /// A caption of a picture.
    ///
    /// # Errors
    /// No head writes captions, or the device fails.
    pub fn caption(&self, picture: &Seen, options: &CaptionOptions) -> bridge::Result<String> {
        let captions = self.matcher.heads().caption(&picture.0, options)?;
        let caption = captions.into_iter().next().ok_or(bridge::Error::Stopped)?;
        Ok(caption.text.trim().to_owned())
    }
}

/// The largest cosine of any of a picture's rows and a text's.
pub fn similarity(picture: &Rows, text: &[f32]) -> f32 {
    let cosine = |row: &Vec<f32>| row.iter().zip(text).map(|(x, y)| x * y).sum();
    picture.iter().map(cosine).fold(f32::NEG_INFINITY, f32::max)
}

/// The largest cosine of any row of each picture with each text: `[pictures, texts]`, picture after picture.
///
/// # Errors
/// The device fails.
pub fn similarities(pictures: &[&Rows], texts: &Rows) -> Result<Vec<f32>> {
    let matrix = |rows: Vec<&Vec<f32>>| {
        let n = rows.len();
        let width = rows.first().map_or(0, |row| row.len());
        let numbers: Vec<f32> = rows.into_iter().flatten().copied().collect();
        Tensor::from_vec(numbers, (n, width), &Device::Cpu)
    };
    let all_texts = matrix(texts.iter().collect())?;
    let mut found = Vec::with_capacity(pictures.len() * texts.len());
    for pictures in pictures.chunks(COMPARED) {
        let rows = matrix(pictures.iter().copied().flatten().collect())?;
        let (n, width) = rows.dims2()?;
        let rows = rows.reshape((pictures.len(), n / pictures.len(), width))?;
        found.extend(
            contrastive(&rows, &all_texts)?
                .flatten_all()?
                .to_vec1::<f32>()?,
        );
    }
    Ok(found)
}

/// Runs `work`, which computes, beside the asynchronous work.
///
/// # Errors
/// It failed.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Failure::Run(error.into()))?
}
