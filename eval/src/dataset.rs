//! The questions of a benchmark with what people answered, from the files that its authors publish.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::caption;
use crate::json::{self, Id};
use crate::textvqa::HUMANS;
use crate::vqa::HumanAnswer;
use crate::{Error, Result};

/// A benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// VQA v2.0 (Goyal et al. 2017).
    Vqav2,
    /// OK-VQA (Marino et al. 2019).
    Okvqa,
    /// GQA (Hudson and Manning 2019).
    Gqa,
    /// TextVQA (Singh et al. 2019).
    Textvqa,
    /// COCO captions (Chen et al. 2015).
    Coco,
    /// NoCaps (Agrawal et al. 2019).
    Nocaps,
    /// POPE (Li et al. 2023).
    Pope,
    /// Pictures and captions of COCO, each found by the other (Karpathy's splits, as LAVIS publishes them).
    #[serde(rename = "coco-retrieval")]
    CocoRetrieval,
    /// Pictures and captions of Flickr30k (Young et al. 2014), each found by the other.
    Flickr30k,
}

/// Names of the published files: split, questions, annotations where they are apart.
type Split = (&'static str, &'static str, Option<&'static str>);

impl Task {
    /// Every task.
    pub const ALL: [Task; 9] = [
        Task::Vqav2,
        Task::Okvqa,
        Task::Gqa,
        Task::Textvqa,
        Task::Coco,
        Task::Nocaps,
        Task::Pope,
        Task::CocoRetrieval,
        Task::Flickr30k,
    ];

    /// Those whose questions are answered, which is all but retrieval.
    pub fn answered() -> impl Iterator<Item = Task> {
        Self::ALL.into_iter().filter(|task| !task.is_retrieval())
    }

    /// The task of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|task| task.name() == name)
    }

    /// As the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Task::Vqav2 => "vqav2",
            Task::Okvqa => "okvqa",
            Task::Gqa => "gqa",
            Task::Textvqa => "textvqa",
            Task::Coco => "coco",
            Task::Nocaps => "nocaps",
            Task::Pope => "pope",
            Task::CocoRetrieval => "coco-retrieval",
            Task::Flickr30k => "flickr30k",
        }
    }

    /// What it is called in full.
    pub fn title(self) -> &'static str {
        match self {
            Task::Vqav2 => "VQA v2.0",
            Task::Okvqa => "OK-VQA",
            Task::Gqa => "GQA",
            Task::Textvqa => "TextVQA",
            Task::Coco => "COCO captions",
            Task::Nocaps => "NoCaps",
            Task::Pope => "POPE",
            Task::CocoRetrieval => "COCO retrieval",
            Task::Flickr30k => "Flickr30k retrieval",
        }
    }

    /// Names of its splits, whose published files are known.
    pub fn split_names(self) -> impl Iterator<Item = &'static str> {
        self.splits().iter().map(|(name, ..)| *name)
    }

    /// Whether pictures are to be captioned, without a question.
    pub fn is_caption(self) -> bool {
        matches!(self, Task::Coco | Task::Nocaps)
    }

    /// Whether pictures and texts are to be found by each other: nothing is asked, and [`crate::retrieval`] scores.
    pub fn is_retrieval(self) -> bool {
        matches!(self, Task::CocoRetrieval | Task::Flickr30k)
    }

    fn splits(self) -> &'static [Split] {
        match self {
            Task::Vqav2 => &[
                (
                    "val",
                    "v2_OpenEnded_mscoco_val2014_questions.json",
                    Some("v2_mscoco_val2014_annotations.json"),
                ),
                (
                    "test-dev",
                    "v2_OpenEnded_mscoco_test-dev2015_questions.json",
                    None,
                ),
                ("test", "v2_OpenEnded_mscoco_test2015_questions.json", None),
            ],
            Task::Okvqa => &[(
                "val",
                "OpenEnded_mscoco_val2014_questions.json",
                Some("mscoco_val2014_annotations.json"),
            )],
            Task::Gqa => &[
                ("testdev", "testdev_balanced_questions.json", None),
                ("val", "val_balanced_questions.json", None),
                ("test", "submission_all_questions.json", None),
            ],
            Task::Textvqa => &[
                ("val", "TextVQA_0.5.1_val.json", None),
                ("test", "TextVQA_0.5.1_test.json", None),
            ],
            Task::Coco => &[
                ("karpathy-test", "coco_karpathy_test_gt.json", None),
                ("karpathy-val", "coco_karpathy_val_gt.json", None),
                ("val2014", "captions_val2014.json", None),
                ("val2017", "captions_val2017.json", None),
            ],
            Task::Nocaps => &[
                ("val", "nocaps_val_4500_captions.json", None),
                ("test", "nocaps_test_image_info.json", None),
            ],
            Task::Pope => &[
                ("random", "coco_pope_random.json", None),
                ("popular", "coco_pope_popular.json", None),
                ("adversarial", "coco_pope_adversarial.json", None),
            ],
            Task::CocoRetrieval => &[
                ("karpathy-test", "coco_karpathy_test.json", None),
                ("karpathy-val", "coco_karpathy_val.json", None),
            ],
            Task::Flickr30k => &[
                ("test", "flickr30k_test.json", None),
                ("val", "flickr30k_val.json", None),
            ],
        }
    }

    /// The published files of a split in `dir`; without a split, of the first one that is there.
    ///
    /// # Errors
    /// They are not there, or there is no such split.
    pub fn find(self, dir: &Path, split: Option<&str>) -> Result<Files> {
        let names = || self.split_names().collect::<Vec<_>>().join(", ");
        let found = match split {
            Some(split) => {
                let Some(found) = self.splits().iter().find(|(name, ..)| *name == split) else {
                    return Err(Error::NotThere {
                        dir: dir.to_owned(),
                        reason: format!(
                            "{} has no split {split:?}, it has {}",
                            self.name(),
                            names()
                        ),
                    });
                };
                found
            }
            None => self
                .splits()
                .iter()
                .find(|(_, questions, _)| dir.join(questions).exists())
                .unwrap_or(&self.splits()[0]),
        };
        let (_, questions, annotations) = found;
        for file in [Some(questions), annotations.as_ref()]
            .into_iter()
            .flatten()
        {
            if !dir.join(file).exists() {
                return Err(Error::NotThere {
                    dir: dir.to_owned(),
                    reason: format!(
                        "{file} of {} is not here; name the file itself, or another split ({})",
                        self.name(),
                        names()
                    ),
                });
            }
        }
        Ok(Files {
            questions: dir.join(questions),
            annotations: annotations.map(|file| dir.join(file)),
        })
    }
}

/// Where a task's questions are.
#[derive(Debug, Clone)]
pub struct Files {
    /// Questions, or captions.
    pub questions: PathBuf,
    /// People's answers, where they are in a file of their own.
    pub annotations: Option<PathBuf>,
}

/// A benchmark's questions.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Which it is.
    pub task: Task,
    /// Its questions, or pictures to caption, in the order of the file (GQA: of their ids).
    pub records: Vec<Record>,
}

/// A question about a picture, or a picture to caption.
#[derive(Debug, Clone)]
pub struct Record {
    /// Of the question, or of the picture where there is none.
    pub id: Id,
    /// File name of the picture, and the folder that it is in where the benchmark's pictures are unpacked.
    pub picture: (String, &'static str),
    /// The question, empty where a caption is asked for.
    pub question: String,
    /// What people say.
    pub reference: Reference,
}

/// What people say.
#[derive(Debug, Clone)]
pub enum Reference {
    /// Nothing that is published.
    Hidden,
    /// Ten answers, and which kind they are: yes/no, number, other.
    Vqa {
        /// The answers.
        answers: Vec<HumanAnswer>,
        /// Their kind.
        answer_type: String,
    },
    /// Ten answers.
    Textvqa(Vec<String>),
    /// The one right answer.
    Gqa {
        /// The answer.
        answer: String,
        /// Whether the question is open, rather than one between two things.
        is_open: bool,
        /// The group of questions whose answers are distributed alike.
        group: Option<String>,
    },
    /// Captions, tokenized.
    Captions {
        /// The captions.
        captions: Vec<String>,
        /// NoCaps' domain.
        domain: Option<String>,
    },
    /// Whether there is what is asked for.
    Pope(bool),
    /// Captions as they are published, to find the picture by.
    Texts(Vec<String>),
}

impl Dataset {
    /// Reads a task's files, the first `limit` records of them.
    ///
    /// # Errors
    /// A file cannot be read, or is not as its authors publish it: the error names record and field.
    pub fn read(task: Task, files: &Files, limit: Option<usize>) -> Result<Self> {
        let path = &files.questions;
        let limit = limit.unwrap_or(usize::MAX);
        let records = match task {
            Task::Vqav2 | Task::Okvqa => vqa(files, limit)?,
            Task::Gqa => gqa(path, limit)?,
            Task::Textvqa => textvqa(path, limit)?,
            Task::Coco | Task::Nocaps => captions(task, path, limit)?,
            Task::Pope => pope(path, limit)?,
            Task::CocoRetrieval | Task::Flickr30k => retrieval(path, limit)?,
        };
        if records.is_empty() {
            return Err(Error::file(path, "", "no questions are in it"));
        }
        let mut seen = HashSet::new();
        if let Some(record) = records.iter().find(|record| !seen.insert(record.id.key())) {
            return Err(Error::file(
                path,
                "",
                format!("the id {} is there twice", record.id),
            ));
        }
        Ok(Self { task, records })
    }

    /// Whether answers can be scored.
    pub fn has_references(&self) -> bool {
        self.records
            .iter()
            .all(|record| !matches!(record.reference, Reference::Hidden))
    }
}

impl Record {
    /// Where the picture is: in `dir` itself, or in the folder of its benchmark there.
    ///
    /// # Errors
    /// It is in neither.
    pub fn find_picture(&self, dir: &Path) -> Result<PathBuf> {
        let (name, folder) = &self.picture;
        [dir.join(folder).join(name), dir.join(name)]
            .into_iter()
            .find(|path| path.exists())
            .ok_or_else(|| Error::NotThere {
                dir: dir.to_owned(),
                reason: format!("the picture {name} is neither here nor in {folder}/"),
            })
    }
}

#[derive(Deserialize)]
struct VqaQuestions {
    /// `val2014`, `test-dev2015`
    data_subtype: String,
    questions: Vec<VqaQuestion>,
}

#[derive(Deserialize)]
struct VqaQuestion {
    question_id: Id,
    image_id: u64,
    question: String,
}

#[derive(Deserialize)]
struct VqaAnnotations {
    annotations: Vec<VqaAnnotation>,
}

#[derive(Deserialize)]
struct VqaAnnotation {
    question_id: Id,
    answer_type: String,
    answers: Vec<HumanAnswer>,
}

fn vqa(files: &Files, limit: usize) -> Result<Vec<Record>> {
    let questions: VqaQuestions = json::read(&files.questions)?;
    let folder = coco_folder(&questions.data_subtype).ok_or_else(|| {
        let reason = format!(
            "{:?} is no part of COCO, such as val2014",
            questions.data_subtype
        );
        Error::file(&files.questions, "data_subtype", reason)
    })?;
    let mut annotated: Option<HashMap<String, Reference>> = None;
    if let Some(path) = &files.annotations {
        let annotations: VqaAnnotations = json::read(path)?;
        let mut by_id = HashMap::new();
        for (i, annotation) in annotations.annotations.into_iter().enumerate() {
            if annotation.answers.is_empty() {
                let place = format!("annotations[{i}].answers");
                return Err(Error::file(path, place, "no answers are in it"));
            }
            let reference = Reference::Vqa {
                answers: annotation.answers,
                answer_type: annotation.answer_type,
            };
            by_id.insert(annotation.question_id.key(), reference);
        }
        annotated = Some(by_id);
    }
    let reference = |id: &Id| match (&mut annotated, &files.annotations) {
        (Some(by_id), Some(path)) => by_id.remove(&id.key()).ok_or_else(|| {
            let reason = format!(
                "no annotation of the question {id}, which {} has",
                files.questions.display()
            );
            Error::file(path, "annotations", reason)
        }),
        _ => Ok(Reference::Hidden),
    };
    let questions = questions.questions.into_iter().take(limit);
    let mut reference = reference;
    questions
        .map(|question| {
            Ok(Record {
                reference: reference(&question.question_id)?,
                id: question.question_id,
                picture: (coco_picture(folder, question.image_id), folder),
                question: question.question,
            })
        })
        .collect()
}

/// The folder of COCO's pictures that a part of its questions is about.
fn coco_folder(subtype: &str) -> Option<&'static str> {
    match subtype {
        "train2014" => Some("train2014"),
        "val2014" => Some("val2014"),
        "test2015" | "test-dev2015" => Some("test2015"),
        _ => None,
    }
}

fn coco_picture(folder: &str, image_id: u64) -> String {
    format!("COCO_{folder}_{image_id:012}.jpg")
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GqaQuestion {
    question: String,
    image_id: String,
    answer: Option<String>,
    #[serde(default = "yes")]
    is_balanced: bool,
    types: Option<GqaTypes>,
    groups: Option<GqaGroups>,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
struct GqaTypes {
    structural: String,
}

#[derive(Deserialize)]
struct GqaGroups {
    global: Option<String>,
}

/// Only questions of the balanced set count.
fn gqa(path: &Path, limit: usize) -> Result<Vec<Record>> {
    let questions: BTreeMap<String, GqaQuestion> = json::read(path)?;
    Ok(questions
        .into_iter()
        .filter(|(_, question)| question.is_balanced)
        .take(limit)
        .map(|(id, question)| Record {
            id: Id::Text(id),
            picture: (format!("{}.jpg", question.image_id), "images"),
            question: question.question,
            reference: match question.answer {
                Some(answer) => Reference::Gqa {
                    answer,
                    is_open: question
                        .types
                        .is_some_and(|types| types.structural == "query"),
                    group: question.groups.and_then(|groups| groups.global),
                },
                None => Reference::Hidden,
            },
        })
        .collect())
}

#[derive(Deserialize)]
struct TextvqaFile {
    data: Vec<TextvqaQuestion>,
}

#[derive(Deserialize)]
struct TextvqaQuestion {
    question_id: Id,
    image_id: String,
    question: String,
    #[serde(default)]
    set_name: String,
    answers: Option<Vec<String>>,
}

fn textvqa(path: &Path, limit: usize) -> Result<Vec<Record>> {
    let file: TextvqaFile = json::read(path)?;
    file.data
        .into_iter()
        .take(limit)
        .enumerate()
        .map(|(i, question)| {
            let reference = match question.answers {
                Some(answers) if answers.len() == HUMANS => Reference::Textvqa(answers),
                None => Reference::Hidden,
                Some(answers) => {
                    let place = format!("data[{i}].answers");
                    let reason = format!("{} answers, there must be {HUMANS}", answers.len());
                    return Err(Error::file(path, place, reason));
                }
            };
            // The pictures of val are among those of train.
            let folder = match question.set_name.as_str() {
                "test" => "test_images",
                _ => "train_images",
            };
            Ok(Record {
                id: question.question_id,
                picture: (format!("{}.jpg", question.image_id), folder),
                question: question.question,
                reference,
            })
        })
        .collect()
}

#[derive(Deserialize)]
struct CaptionFile {
    images: Vec<CaptionImage>,
    annotations: Option<Vec<CaptionAnnotation>>,
}

#[derive(Deserialize)]
struct CaptionImage {
    id: Id,
    file_name: Option<String>,
    domain: Option<String>,
}

#[derive(Deserialize)]
struct CaptionAnnotation {
    image_id: Id,
    caption: String,
}

fn captions(task: Task, path: &Path, limit: usize) -> Result<Vec<Record>> {
    let file: CaptionFile = json::read(path)?;
    let has_captions = file.annotations.is_some();
    let mut by_image: HashMap<String, Vec<String>> = HashMap::new();
    for annotation in file.annotations.unwrap_or_default() {
        let captions = by_image.entry(annotation.image_id.key()).or_default();
        captions.push(annotation.caption);
    }
    file.images
        .into_iter()
        .take(limit)
        .enumerate()
        .map(|(i, image)| {
            let reference = match by_image.remove(&image.id.key()) {
                Some(captions) => Reference::Captions {
                    captions: captions.iter().map(|c| caption::tokenize(c)).collect(),
                    domain: image.domain,
                },
                None if has_captions => {
                    let reason = format!("no caption of the picture {}", image.id);
                    return Err(Error::file(path, "annotations", reason));
                }
                None => Reference::Hidden,
            };
            let picture = match (image.file_name, &image.id) {
                (Some(name), _) if task == Task::Nocaps => (name, "val"),
                (Some(name), _) => {
                    let folder = if name.starts_with("COCO_") {
                        "val2014"
                    } else {
                        "val2017"
                    };
                    (name, folder)
                }
                // LAVIS's files of Karpathy's splits, all of whose pictures are of val2014.
                (None, Id::Number(id)) if task == Task::Coco => {
                    (coco_picture("val2014", *id), "val2014")
                }
                (None, _) => {
                    let place = format!("images[{i}]");
                    return Err(Error::file(path, place, "missing field `file_name`"));
                }
            };
            Ok(Record {
                id: image.id,
                picture,
                question: String::new(),
                reference,
            })
        })
        .collect()
}

#[derive(Deserialize)]
struct PopeLine {
    question_id: Id,
    image: String,
    text: String,
    label: String,
}

fn pope(path: &Path, limit: usize) -> Result<Vec<Record>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .take(limit)
        .map(|(i, line)| {
            let place = format!("line {}", i + 1);
            let line: PopeLine = json::parse(path, &place, line)?;
            let is_there = match line.label.as_str() {
                "yes" => true,
                "no" => false,
                other => {
                    let reason = format!("{other:?} is neither \"yes\" nor \"no\"");
                    return Err(Error::file(path, format!("{place}, label"), reason));
                }
            };
            Ok(Record {
                id: line.question_id,
                picture: (line.image, "val2014"),
                question: line.text,
                reference: Reference::Pope(is_there),
            })
        })
        .collect()
}

#[derive(Deserialize)]
struct RetrievalPicture {
    /// `val2014/COCO_val2014_000000391895.jpg`, `flickr30k-images/1007129816.jpg`
    image: String,
    caption: Vec<String>,
}

/// Folders that pictures of retrieval are published in.
const RETRIEVAL_FOLDERS: [&str; 3] = ["val2014", "train2014", "flickr30k-images"];

fn retrieval(path: &Path, limit: usize) -> Result<Vec<Record>> {
    let pictures: Vec<RetrievalPicture> = json::read(path)?;
    let record = |(i, picture): (usize, RetrievalPicture)| {
        if picture.caption.is_empty() {
            let place = format!("[{i}].caption");
            return Err(Error::file(path, place, "no captions are in it"));
        }
        let (folder, name) = picture.image.rsplit_once('/').unwrap_or_default();
        let known = RETRIEVAL_FOLDERS.into_iter().find(|known| *known == folder);
        Ok(Record {
            picture: match known {
                Some(folder) => (name.to_owned(), folder),
                None => (picture.image.clone(), ""),
            },
            id: Id::Text(picture.image),
            question: String::new(),
            reference: Reference::Texts(picture.caption),
        })
    };
    let pictures = pictures.into_iter().take(limit).enumerate();
    pictures.map(record).collect()
}
