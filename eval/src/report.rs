//! Scores of answers.

use std::collections::BTreeSet;
use std::rc::Rc;

use serde::Serialize;

use crate::bootstrap::intervals;
use crate::caption::{self, BleuStats, MAX_N, Pair};
use crate::vqa::Humans;
use crate::{Dataset, Record, Reference, Task, gqa, pope, textvqa, vqa};

/// The scores of a benchmark.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Which benchmark.
    pub task: Task,
    /// Answers that were scored.
    pub records: usize,
    /// The scores, the main one first.
    pub metrics: Vec<Metric>,
}

/// One score, on the official scorer's scale.
#[derive(Debug, Clone, Serialize)]
pub struct Metric {
    /// What is measured.
    pub name: String,
    /// The score; none where nothing counts in it, as the precision where no answer is yes.
    pub value: Option<f64>,
    /// The middle 95 % of what other samples of questions would give; none where the score is no
    /// statistic of single answers, or is not there.
    pub interval: Option<(f64, f64)>,
}

/// A score of those records whose places are given, where they have one.
type Score<'a> = Box<dyn Fn(&[usize]) -> Option<f64> + 'a>;

/// A record that people answered, and the model's answer.
type Answered<'d> = (&'d Record, &'d str);

/// Scores answers, one for each record of the data set and in its order; `seed` draws the intervals. Records
/// whose reference is hidden do not count; where nothing counts, there are no scores.
pub fn score(dataset: &Dataset, answers: &[String], seed: u64) -> Report {
    let answered: Vec<Answered<'_>> = dataset
        .records
        .iter()
        .zip(answers.iter().map(String::as_str))
        .filter(|(record, _)| !matches!(record.reference, Reference::Hidden))
        .collect();
    if answered.is_empty() {
        return Report {
            task: dataset.task,
            records: 0,
            metrics: Vec::new(),
        };
    }
    let scores = match dataset.task {
        Task::Vqav2 | Task::Okvqa => vqa_scores(&answered),
        Task::Textvqa => textvqa_scores(&answered),
        Task::Gqa => gqa_scores(&answered),
        Task::Coco | Task::Nocaps => caption_scores(&answered),
        Task::Pope => pope_scores(&answered),
        // Nothing is answered: `retrieval::score` is theirs.
        Task::CocoRetrieval | Task::Flickr30k => Vec::new(),
    };
    let all: Vec<usize> = (0..answered.len()).collect();
    let spread = intervals(answered.len(), seed, |sample| {
        scores.iter().map(|(_, score)| score(sample)).collect()
    });
    let mut metrics: Vec<Metric> = scores
        .iter()
        .zip(spread)
        .map(|((name, score), interval)| Metric {
            name: name.clone(),
            value: score(&all),
            interval,
        })
        .collect();
    if dataset.task == Task::Gqa {
        metrics.push(Metric {
            name: "distribution".to_owned(),
            value: Some(gqa::distribution(
                answered.iter().filter_map(|answered| group(answered)),
            )),
            interval: None,
        });
    }
    Report {
        task: dataset.task,
        records: answered.len(),
        metrics,
    }
}

/// The mean over the records that have a value, times `scale`.
fn mean<'a>(values: Vec<Option<f64>>, scale: f64) -> Score<'a> {
    Box::new(move |sample| {
        let (mut sum, mut n) = (0.0, 0);
        for value in sample.iter().filter_map(|&i| values[i]) {
            sum += value;
            n += 1;
        }
        (n > 0).then(|| scale * sum / f64::from(n))
    })
}

/// Each name once, in order.
fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let names: BTreeSet<&str> = names.collect();
    names.into_iter().collect()
}

fn vqa_scores<'a>(answered: &[Answered<'_>]) -> Vec<(String, Score<'a>)> {
    let scored: Vec<(f64, &str)> = answered
        .iter()
        .filter_map(|(record, answer)| match &record.reference {
            Reference::Vqa {
                answers: humans,
                answer_type,
            } => {
                let accuracy = Humans::new(humans).accuracy(&vqa::normalize(answer));
                Some((accuracy, answer_type.as_str()))
            }
            _ => None,
        })
        .collect();
    let column = |of: Option<&str>| {
        let counts = |kind: &str| of.is_none_or(|of| of == kind);
        let values = scored.iter();
        mean(
            values
                .map(|(value, kind)| counts(kind).then_some(*value))
                .collect(),
            100.0,
        )
    };
    let mut scores = vec![("accuracy".to_owned(), column(None))];
    for kind in distinct(scored.iter().map(|(_, kind)| *kind)) {
        scores.push((format!("accuracy {kind}"), column(Some(kind))));
    }
    scores
}

fn textvqa_scores<'a>(answered: &[Answered<'_>]) -> Vec<(String, Score<'a>)> {
    let accuracy = |(record, answer): &Answered<'_>| {
        let Reference::Textvqa(humans) = &record.reference else {
            return None;
        };
        let humans: Vec<String> = humans
            .iter()
            .map(|human| textvqa::normalize(human))
            .collect();
        Some(textvqa::accuracy(&textvqa::normalize(answer), &humans))
    };
    let values = answered.iter().map(accuracy).collect();
    vec![("accuracy".to_owned(), mean(values, 100.0))]
}

fn gqa_scores<'a>(answered: &[Answered<'_>]) -> Vec<(String, Score<'a>)> {
    let column = |counts: &dyn Fn(bool) -> bool, normalize: bool| {
        let right = |(record, given): &Answered<'_>| match &record.reference {
            Reference::Gqa {
                answer, is_open, ..
            } if counts(*is_open) => {
                let is_right = match normalize {
                    true => vqa::normalize(given) == *answer,
                    false => given == answer,
                };
                Some(f64::from(u8::from(is_right)))
            }
            _ => None,
        };
        mean(answered.iter().map(right).collect(), 100.0)
    };
    vec![
        ("accuracy".to_owned(), column(&|_| true, false)),
        (
            "accuracy binary".to_owned(),
            column(&|is_open| !is_open, false),
        ),
        (
            "accuracy open".to_owned(),
            column(&|is_open| is_open, false),
        ),
        ("accuracy normalized".to_owned(), column(&|_| true, true)),
    ]
}

/// A question's group, its right answer and the given one.
fn group<'d>((record, given): &Answered<'d>) -> Option<(&'d str, &'d str, &'d str)> {
    match &record.reference {
        Reference::Gqa {
            answer,
            group: Some(group),
            ..
        } => Some((group.as_str(), answer.as_str(), *given)),
        _ => None,
    }
}

fn pope_scores<'a>(answered: &[Answered<'_>]) -> Vec<(String, Score<'a>)> {
    let said: Rc<[(bool, bool)]> = answered
        .iter()
        .map(|(record, answer)| {
            let is_there = matches!(record.reference, Reference::Pope(true));
            (pope::is_yes(answer), is_there)
        })
        .collect();
    let names = ["accuracy", "precision", "recall", "f1", "yes ratio"];
    let score = |(which, name): (usize, &str)| {
        let said = said.clone();
        let score: Score<'a> = Box::new(move |sample| {
            let mut counts = pope::Counts::default();
            for &i in sample {
                counts.add(said[i].0, said[i].1);
            }
            counts.scores()[which]
        });
        (name.to_owned(), score)
    };
    names.into_iter().enumerate().map(score).collect()
}

/// CIDEr first, since that is what papers compare; NoCaps' domains each by themselves too.
fn caption_scores<'a>(answered: &[Answered<'_>]) -> Vec<(String, Score<'a>)> {
    let (pairs, domains): (Vec<Pair>, Vec<Option<&str>>) = answered
        .iter()
        .filter_map(|(record, answer)| match &record.reference {
            Reference::Captions { captions, domain } => {
                let pair = Pair {
                    candidate: caption::tokenize(answer),
                    references: captions.clone(),
                };
                Some((pair, domain.as_deref()))
            }
            _ => None,
        })
        .unzip();
    let cider = caption::cider(&pairs).into_iter().map(Some).collect();
    let mut scores = vec![("CIDEr".to_owned(), mean(cider, 1.0))];
    let stats: Rc<[BleuStats]> = pairs.iter().map(BleuStats::of).collect();
    for n in (0..MAX_N).rev() {
        let stats = stats.clone();
        let score: Score<'a> =
            Box::new(move |sample| Some(caption::bleu(sample.iter().map(|&i| &stats[i]))[n]));
        scores.push((format!("BLEU-{}", n + 1), score));
    }
    let rouge = pairs
        .iter()
        .map(|pair| Some(caption::rouge_l(pair)))
        .collect();
    scores.push(("ROUGE-L".to_owned(), mean(rouge, 1.0)));
    for name in distinct(domains.iter().copied().flatten()) {
        let places: Vec<usize> = (0..pairs.len())
            .filter(|&i| domains[i] == Some(name))
            .collect();
        let part: Vec<Pair> = places.iter().map(|&i| pairs[i].clone()).collect();
        let mut values = vec![None; pairs.len()];
        for (place, value) in places.into_iter().zip(caption::cider(&part)) {
            values[place] = Some(value);
        }
        scores.push((format!("CIDEr {name}"), mean(values, 1.0)));
    }
    scores
}
