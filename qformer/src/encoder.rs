//! ViT and Q-Former in a row, or a ViT alone.

use candle_core::{DType, Tensor};

use crate::checkpoint::{Checkpoint, Compute};
use crate::config::{QFormerConfig, VisionConfig};
use crate::model::{QFormerModel, TextNames};
use crate::vision::VisionModel;
use crate::{Error, Result};

/// Patches, one after the other, that a model without a Q-Former joins to one
/// row (MiniGPT-4, `minigpt4.py`, `encode_img`).
pub const JOINED_PATCHES: usize = 4;

/// The frozen ViT and the Q-Former of one model.
#[derive(Debug)]
pub struct Encoder {
    vision: VisionModel,
    qformer: Option<QFormerModel>,
}

/// What [`Encoder::encode`] gives, f32 whatever was computed in.
#[derive(Debug, Clone)]
pub struct Encoding {
    /// ViT output after the last norm, `[batch, positions, vision width]`.
    pub vision: Tensor,
    /// Query embeddings, `[batch, queries, Q-Former width]`; without a
    /// Q-Former, patches joined by four, `[batch, patches / 4, 4 * vision width]`.
    pub queries: Tensor,
}

impl Encoder {
    /// Loads `vision_model.*`, `query_tokens` and `qformer.*`.
    ///
    /// Weights may be f32, f16, bf16 or in 8 bits in the file, whatever `compute` says.
    ///
    /// # Errors
    /// A config describes no model, or a tensor is missing, has another shape
    /// than the configs say, or is of a dtype that no weight has.
    pub fn load(
        checkpoint: &Checkpoint,
        vision: &VisionConfig,
        qformer: &QFormerConfig,
        num_query_tokens: usize,
        compute: &Compute,
    ) -> Result<Self> {
        check_widths(vision, qformer)?;
        let weights = checkpoint.weights(compute);
        Ok(Self {
            vision: VisionModel::load(&weights.pp("vision_model"), vision)?,
            qformer: Some(QFormerModel::load(
                &weights,
                qformer,
                num_query_tokens,
                TextNames::InstructBlip,
            )?),
        })
    }

    /// Loads `vision_model.*` of a model without a Q-Former.
    ///
    /// # Errors
    /// As [`Encoder::load`]'s; or the patches are no multiple of
    /// [`JOINED_PATCHES`].
    pub fn load_vision(
        checkpoint: &Checkpoint,
        vision: &VisionConfig,
        compute: &Compute,
    ) -> Result<Self> {
        let patches = vision.grid() * vision.grid();
        if !patches.is_multiple_of(JOINED_PATCHES) {
            return Err(Error::ConfigValue {
                field: "vision_config.image_size".to_owned(),
                reason: format!(
                    "{} makes {patches} patches, which cannot be joined by {JOINED_PATCHES}",
                    vision.image_size
                ),
            });
        }
        let weights = checkpoint.weights(compute);
        Ok(Self {
            vision: VisionModel::load(&weights.pp("vision_model"), vision)?,
            qformer: None,
        })
    }

    /// The ViT, to be run alone.
    pub fn vision(&self) -> &VisionModel {
        &self.vision
    }

    /// The Q-Former, to be run alone.
    pub fn qformer(&self) -> Option<&QFormerModel> {
        self.qformer.as_ref()
    }

    /// Encodes normalized pixels `[batch, 3, image_size, image_size]`.
    ///
    /// # Errors
    /// [`Error::Text`] where the Q-Former reads a text too;
    /// `pixels` has another shape, or the device fails.
    pub fn encode(&self, pixels: &Tensor) -> Result<Encoding> {
        if self.qformer.as_ref().is_some_and(QFormerModel::reads_text) {
            return Err(Error::Text {
                reason: "this Q-Former reads one beside the picture, and none is given".to_owned(),
            });
        }
        let vision = self.vision.forward(pixels)?;
        let queries = match &self.qformer {
            Some(qformer) => qformer.forward(&vision)?,
            None => joined_patches(&vision)?,
        };
        Ok(Encoding {
            vision: vision.to_dtype(DType::F32)?,
            queries: queries.to_dtype(DType::F32)?,
        })
    }
}

/// Refuses a Q-Former that reads rows of another width than the ViT gives.
pub(crate) fn check_widths(vision: &VisionConfig, qformer: &QFormerConfig) -> Result<()> {
    if qformer.encoder_hidden_size == vision.hidden_size {
        return Ok(());
    }
    Err(Error::ConfigValue {
        field: "qformer_config.encoder_hidden_size".to_owned(),
        reason: format!(
            "{} is not vision_config.hidden_size = {}",
            qformer.encoder_hidden_size, vision.hidden_size
        ),
    })
}

/// ViT output `[batch, 1 + patches, width]` to rows of four patches each, the
/// class token left out: `[batch, patches / 4, 4 * width]`, what a model
/// without a Q-Former has for query embeddings.
///
/// # Errors
/// `vision` has other than three dimensions.
pub fn joined_patches(vision: &Tensor) -> candle_core::Result<Tensor> {
    let (batch, positions, width) = vision.dims3()?;
    let rows = positions.saturating_sub(1) / JOINED_PATCHES;
    vision
        .narrow(1, 1, rows * JOINED_PATCHES)?
        .reshape((batch, rows, JOINED_PATCHES * width))
}
