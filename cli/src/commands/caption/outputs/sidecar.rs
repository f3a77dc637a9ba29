//! Files beside pictures that say what is in them.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{beside, named};
use crate::args::{CaptionArgs, SidecarFormat};
use crate::batch::Existing;

/// Writes files beside pictures.
#[derive(Debug, Clone, Copy)]
pub struct Sidecars {
    format: SidecarFormat,
    existing: Existing,
    /// Whether the output says which pictures are done; else the files that are there do.
    has_output: bool,
}

impl Sidecars {
    /// As the command line says.
    pub fn of(args: &CaptionArgs) -> Option<Sidecars> {
        args.sidecar.map(|format| Sidecars {
            format,
            existing: Existing::of(args.resume, args.overwrite),
            has_output: args.out.is_some(),
        })
    }

    /// The file beside a picture.
    pub fn path(&self, picture: &Path) -> PathBuf {
        match self.format {
            // What trainers look for.
            SidecarFormat::Txt => picture.with_extension("txt"),
            // What photo managers look for: a.jpg and a.png have one each.
            SidecarFormat::Xmp => beside(picture, ".xmp"),
        }
    }

    /// Whether an earlier run that had no other output wrote this picture's file.
    pub fn is_done(&self, picture: &Path) -> bool {
        self.existing == Existing::Resume && !self.has_output && self.path(picture).exists()
    }

    /// Refuses a picture whose file would replace another one.
    ///
    /// # Errors
    /// There is one, and nothing was said of replacing it.
    pub fn check(&self, picture: &Path) -> Result<()> {
        let path = self.path(picture);
        if self.existing != Existing::Overwrite && path.exists() {
            bail!("{} exists already: --overwrite replaces it", path.display());
        }
        Ok(())
    }

    /// Writes the file beside a picture, whole or not at all.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, picture: &Path, captions: &[String]) -> Result<()> {
        let path = self.path(picture);
        let text = match self.format {
            SidecarFormat::Txt => {
                let lines = captions.iter().map(|caption| caption.replace('\n', " "));
                lines.collect::<Vec<_>>().join("\n") + "\n"
            }
            SidecarFormat::Xmp => xmp(captions),
        };
        let new = beside(&path, ".new");
        File::create(&new)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .and_then(|()| std::fs::rename(&new, &path))
            .with_context(|| named(&path))
    }
}

/// An XMP packet (ISO 16684-1) with the captions as Dublin Core's description.
fn xmp(captions: &[String]) -> String {
    let text = escape(&captions.join("\n"));
    format!(
        "<?xpacket begin=\"\u{feff}\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>
<x:xmpmeta xmlns:x=\"adobe:ns:meta/\">
 <rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">
  <rdf:Description rdf:about=\"\" xmlns:dc=\"http://purl.org/dc/elements/1.1/\">
   <dc:description>
    <rdf:Alt>
     <rdf:li xml:lang=\"x-default\">{text}</rdf:li>
    </rdf:Alt>
   </dc:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end=\"w\"?>
"
    )
}

/// Text as XML 1.0 can hold it.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\n' | '\t' => escaped.push(character),
            control if control.is_control() => {}
            '\u{fffe}' | '\u{ffff}' => {}
            other => escaped.push(other),
        }
    }
    escaped
}
