//! ViT and Q-Former in a row.

use candle_core::{DType, Device, Tensor};

use crate::checkpoint::Checkpoint;
use crate::config::{QFormerConfig, VisionConfig};
use crate::model::QFormerModel;
use crate::vision::VisionModel;
use crate::{Error, Result};

/// The frozen ViT and the Q-Former of one model.
#[derive(Debug)]
pub struct Encoder {
    vision: VisionModel,
    qformer: QFormerModel,
}

/// What [`Encoder::encode`] gives, f32 whatever was computed in.
#[derive(Debug, Clone)]
pub struct Encoding {
    /// ViT output after the last norm, `[batch, positions, vision width]`.
    pub vision: Tensor,
    /// Query embeddings, `[batch, queries, Q-Former width]`.
    pub queries: Tensor,
}

impl Encoder {
    /// Loads `vision_model.*`, `query_tokens` and `qformer.*`.
    ///
    /// Weights may be f32, f16 or bf16 in the file; `dtype` is what is
    /// computed in: f32 to be exact, and on a CPU also the fastest.
    ///
    /// # Errors
    /// A config describes no model, or a tensor is missing, has another shape
    /// than the configs say, or is of a dtype that no weight has.
    pub fn load(
        checkpoint: &Checkpoint,
        vision: &VisionConfig,
        qformer: &QFormerConfig,
        num_query_tokens: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        if qformer.encoder_hidden_size != vision.hidden_size {
            return Err(Error::ConfigValue {
                field: "qformer_config.encoder_hidden_size".to_owned(),
                reason: format!(
                    "{} is not vision_config.hidden_size = {}",
                    qformer.encoder_hidden_size, vision.hidden_size
                ),
            });
        }
        let weights = checkpoint.weights(dtype, device);
        Ok(Self {
            vision: VisionModel::load(&weights.pp("vision_model"), vision)?,
            qformer: QFormerModel::load(&weights, qformer, num_query_tokens)?,
        })
    }

    /// The ViT, to be run alone.
    pub fn vision(&self) -> &VisionModel {
        &self.vision
    }

    /// The Q-Former, to be run alone.
    pub fn qformer(&self) -> &QFormerModel {
        &self.qformer
    }

    /// Encodes normalized pixels `[batch, 3, image_size, image_size]`.
    ///
    /// # Errors
    /// [`Error::Text`] where the Q-Former reads a text too;
    /// `pixels` has another shape, or the device fails.
    pub fn encode(&self, pixels: &Tensor) -> Result<Encoding> {
        if self.qformer.reads_text() {
            return Err(Error::Text {
                reason: "this Q-Former reads one beside the picture, and none is given".to_owned(),
            });
        }
        let vision = self.vision.forward(pixels)?;
        let queries = self.qformer.forward(&vision)?;
        Ok(Encoding {
            vision: vision.to_dtype(DType::F32)?,
            queries: queries.to_dtype(DType::F32)?,
        })
    }
}
