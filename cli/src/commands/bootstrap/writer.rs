//! What writes captions: the bundle's own head, or another bundle.

use std::sync::Arc;

use anyhow::{Result, bail};
use bridge::bundle::Manifest;
use qformer::stage1::CaptionOptions;

use super::super::caption::{Captioner, itg};
use crate::args::{BootstrapArgs, CaptionArgs};
use crate::batch::Failure;
use crate::heads::{Heads, Seen, blocking};
use crate::inputs::{Item, Picture};

/// Writes captions.
pub enum Writer {
    /// The head of the bundle that matches; the picture is looked at once for both.
    Own {
        heads: Arc<Heads>,
        options: CaptionOptions,
    },
    /// Another bundle.
    Other(Box<Captioner>),
}

impl Writer {
    /// What the command line names.
    ///
    /// # Errors
    /// It cannot be opened, or writes no captions.
    pub fn open(args: &BootstrapArgs, heads: &Arc<Heads>) -> Result<Writer> {
        let Some(captioner) = &args.captioner else {
            if !heads.writes_captions() {
                bail!(
                    "{}: this bundle has no head that writes captions, as Hugging Face's conversion drops it: name one \
                     that does with --captioner",
                    args.bundle.display()
                );
            }
            itg::check_generation("a head that writes its captions itself", &args.generation)?;
            return Ok(Writer::Own {
                options: itg::options(&args.generation, heads.default_caption()),
                heads: heads.clone(),
            });
        };
        let manifest = Manifest::read(captioner)?;
        let args = CaptionArgs {
            bundle: captioner.clone(),
            inputs: Vec::new(),
            null: false,
            image_column: None,
            shard: None,
            out: None,
            format: None,
            sidecar: None,
            resume: false,
            overwrite: false,
            unordered: false,
            quiet: true,
            json: false,
            prompt: args.prompt.clone(),
            prefix: None,
            captions: 1,
            scores: false,
            min_score: None,
            generation: args.generation.clone(),
            slots: args.slots,
            engine: args.engine.clone(),
        };
        Ok(Writer::Other(Box::new(Captioner::open(
            &args, &manifest, None,
        )?)))
    }

    /// A caption of a picture; none where nothing was written.
    ///
    /// # Errors
    /// The picture cannot be read, or the captioner fails.
    pub async fn caption(
        &self,
        seen: Arc<Seen>,
        file: Arc<[u8]>,
    ) -> Result<Option<String>, Failure> {
        let caption = match self {
            Writer::Own { heads, options } => {
                let (heads, options) = (heads.clone(), options.clone());
                let write = move || Ok(heads.caption(&seen, &options)?);
                Some(blocking(write).await?)
            }
            Writer::Other(captioner) => {
                let item = Item {
                    name: String::new(),
                    key: None,
                    text: None,
                    picture: Picture::Bytes(file),
                };
                let (row, _) = captioner.caption(item).await.map_err(Failure::Run)?;
                match row.error {
                    Some(error) => return Err(Failure::Picture(error)),
                    None => row.caption,
                }
            }
        };
        Ok(caption.filter(|caption| !caption.is_empty()))
    }
}
