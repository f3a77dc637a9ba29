//! Files beside pictures that say what is in them.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use super::{beside, named};
use crate::args::{CaptionArgs, SidecarFormat};
use crate::batch::{Existing, NameHash, hash};

/// Writes files beside pictures.
#[derive(Debug, Clone)]
pub struct Sidecars {
    format: SidecarFormat,
    existing: Existing,
    /// Whether the output says which pictures are done; else the files that are there do.
    has_output: bool,
    /// Whose each file is, of those that this run writes: two pictures in flight may have the same one.
    owners: Arc<Mutex<HashMap<NameHash, NameHash>>>,
}

/// A file that is written whole, under another name; that goes where the file is not [put](Prepared::put).
#[derive(Debug)]
pub struct Prepared {
    new: PathBuf,
    path: PathBuf,
    replaces: bool,
}

impl Sidecars {
    /// As the command line says, and whether the run that is gone on with was to replace files.
    pub fn of(args: &CaptionArgs, replaces: bool) -> Option<Sidecars> {
        args.sidecar.map(|format| Sidecars {
            format,
            existing: match replaces {
                true => Existing::Overwrite,
                false => Existing::of(args.resume, args.overwrite),
            },
            has_output: args.out.is_some(),
            owners: Arc::default(),
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
        if self.existing != Existing::Resume || self.has_output {
            return false;
        }
        // In this order: what this run writes has its owner before it is there.
        let path = self.path(picture);
        let is_others = |owner: NameHash| owner != hash_path(picture);
        path.exists() && !self.owner(&path).is_some_and(is_others)
    }

    /// Takes the file beside a picture for it. Called in the order of the pictures, so that it is the first of several
    /// that has it.
    ///
    /// # Errors
    /// It is another picture's of this run, or was taken for this one and may not be replaced.
    pub fn claim(&self, picture: &Path) -> Result<()> {
        let path = self.path(picture);
        let picture = hash_path(picture);
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        match owners.insert(hash_path(&path), picture) {
            Some(owner) if owner != picture => {
                owners.insert(hash_path(&path), owner);
                bail!(
                    "{} is that of another picture of this run: --sidecar xmp writes one for each",
                    path.display()
                )
            }
            Some(_) if self.existing != Existing::Overwrite => {
                bail!("{} is written in this run already", path.display())
            }
            _ => Ok(()),
        }
    }

    fn owner(&self, path: &Path) -> Option<NameHash> {
        let owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.get(&hash_path(path)).copied()
    }

    /// Refuses a picture whose file would replace another one.
    ///
    /// # Errors
    /// There is one, and nothing was said of replacing it.
    pub fn check(&self, picture: &Path) -> Result<()> {
        let path = self.path(picture);
        if self.existing != Existing::Overwrite && path.symlink_metadata().is_ok() {
            bail!("{} exists already: --overwrite replaces it", path.display());
        }
        Ok(())
    }

    /// Writes the file beside a picture, under another name for now.
    ///
    /// # Errors
    /// It cannot be written, or a directory has its name.
    pub fn prepare(&self, picture: &Path, captions: &[String]) -> Result<Prepared> {
        let path = self.path(picture);
        self.prepare_at(path.clone(), captions)
            .with_context(|| named(&path))
    }

    fn prepare_at(&self, path: PathBuf, captions: &[String]) -> io::Result<Prepared> {
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // A name that is too long, for one.
            Err(error) => return Err(error),
        }
        let text = match self.format {
            SidecarFormat::Txt => {
                let lines = captions.iter().map(|caption| caption.replace('\n', " "));
                lines.collect::<Vec<_>>().join("\n") + "\n"
            }
            SidecarFormat::Xmp => xmp(captions),
        };
        let (mut file, new) = new_file(path.parent().unwrap_or(Path::new("")))?;
        let prepared = Prepared {
            new,
            path,
            replaces: self.existing == Existing::Overwrite,
        };
        file.write_all(text.as_bytes())?;
        Ok(prepared)
    }

    /// Writes the file of a picture that has its row already. What is there was written for it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_again(&self, picture: &Path, captions: &[String]) -> Result<()> {
        let mut prepared = self.prepare(picture, captions)?;
        prepared.replaces = true;
        prepared.put()
    }
}

impl Prepared {
    /// Gives the file its name.
    ///
    /// # Errors
    /// There is one meanwhile that it may not replace, or it cannot be renamed.
    pub fn put(self) -> Result<()> {
        let put = match self.replaces {
            true => fs::rename(&self.new, &self.path),
            false => self.put_new(),
        };
        put.with_context(|| named(&self.path))
    }

    /// A link is made only where there is nothing, whoever else is at work.
    fn put_new(&self) -> io::Result<()> {
        match fs::hard_link(&self.new, &self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
            // Some file systems know no links.
            Err(_) if self.path.symlink_metadata().is_err() => fs::rename(&self.new, &self.path),
            done => done,
        }
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // It is gone where it was renamed.
        let _ = fs::remove_file(&self.new);
    }
}

fn hash_path(path: &Path) -> NameHash {
    hash(path.as_os_str().as_encoded_bytes())
}

/// A file in `directory` under a name that nothing had. It is short: those of pictures may be as long as names can be.
fn new_file(directory: &Path) -> io::Result<(File, PathBuf)> {
    let mut number = 0;
    loop {
        let path = directory.join(format!(".qbridge-{}-{number}.new", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((file, path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
        }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn sidecars(format: SidecarFormat, existing: Existing) -> Sidecars {
        Sidecars {
            format,
            existing,
            has_output: false,
            owners: Arc::default(),
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        let mut names: Vec<String> = entries.map(|entry| name(entry.unwrap())).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_the_first_pictures_alone() {
        let txt = sidecars(SidecarFormat::Txt, Existing::Resume);
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a.jpg", "a.png"].map(|name| dir.path().join(name));
        txt.claim(&a).unwrap();
        let error = txt.claim(&a).unwrap_err().to_string();
        assert!(error.contains("already"), "{error}");
        let error = txt.claim(&b).unwrap_err().to_string();
        assert!(
            error.contains("a.txt is that of another picture"),
            "{error}"
        );
        // What this run writes does not make the other picture done.
        fs::write(dir.path().join("a.txt"), "").unwrap();
        assert!(!txt.is_done(&b));
        assert!(sidecars(SidecarFormat::Txt, Existing::Resume).is_done(&b));
        let overwrite = sidecars(SidecarFormat::Txt, Existing::Overwrite);
        overwrite.claim(&a).unwrap();
        overwrite.claim(&a).unwrap();
        assert!(overwrite.claim(&b).is_err());
        assert!(overwrite.claim(&b).is_err());
        let xmp = sidecars(SidecarFormat::Xmp, Existing::Refuse);
        xmp.claim(&a).unwrap();
        xmp.claim(&b).unwrap();
    }

    #[test]
    fn nothing_is_replaced_unasked_and_nothing_left_over() {
        let dir = tempfile::tempdir().unwrap();
        let picture = dir.path().join("a.png");
        let captions = ["a cat".to_owned()];
        let new = sidecars(SidecarFormat::Txt, Existing::Refuse);
        let prepare = |sidecars: &Sidecars| sidecars.prepare(&picture, &captions).unwrap();
        drop(prepare(&new));
        assert_eq!(names(dir.path()), Vec::<String>::new());
        fs::write(dir.path().join("a.txt.new"), "mine").unwrap();
        let [first, second] = [prepare(&new), prepare(&new)];
        first.put().unwrap();
        assert!(second.put().is_err());
        assert_eq!(names(dir.path()), ["a.txt", "a.txt.new"]);
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(
            (read("a.txt"), read("a.txt.new")),
            ("a cat\n".into(), "mine".into())
        );
        fs::write(dir.path().join("a.txt"), "mine").unwrap();
        prepare(&sidecars(SidecarFormat::Txt, Existing::Overwrite))
            .put()
            .unwrap();
        assert_eq!(read("a.txt"), "a cat\n");
    }

    #[test]
    fn what_cannot_be_written_is_told_before_its_row_is() {
        let dir = tempfile::tempdir().unwrap();
        let overwrite = sidecars(SidecarFormat::Txt, Existing::Overwrite);
        fs::create_dir(dir.path().join("a.txt")).unwrap();
        for name in [
            "a.png".to_owned(),
            format!("{}.png", "b".repeat(252)),
            "absent/c.png".to_owned(),
        ] {
            let picture = dir.path().join(name);
            let error = overwrite.prepare(&picture, &[]).unwrap_err();
            assert!(error.to_string().contains(".txt"), "{error:#}");
        }
        let long = dir.path().join(format!("{}.png", "b".repeat(251)));
        overwrite.prepare(&long, &[]).unwrap().put().unwrap();
        assert!(
            sidecars(SidecarFormat::Xmp, Existing::Overwrite)
                .prepare(&long, &[])
                .is_err()
        );
    }
}
