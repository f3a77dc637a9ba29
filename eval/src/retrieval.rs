//! Pictures found by texts and texts by pictures: recall at 1, 5 and 10, as LAVIS computes it
//! (`tasks/retrieval.py`, `_report_metrics`, and `models/blip_models/blip_outputs.py`'s callers).
//!
//! A similarity puts all in order, then another score the first `k` of each: [`first`] says which these are, and
//! [`Ranking::place`] where the right ones end.

use std::cmp::Ordering;

use crate::bootstrap::intervals;
use crate::preset::lavis_caption;
use crate::{Dataset, Metric, Reference, Report};

/// Texts that are put in order anew, of each picture, and pictures of each text: `k_test` of LAVIS's
/// `ret_coco_eval.yaml` and `ret_flickr_eval.yaml`.
pub const RERANKED: usize = 128;

/// Places that recall is told of.
const PLACES: [usize; 3] = [1, 5, 10];

/// The texts of all pictures.
#[derive(Debug, Clone, Default)]
pub struct Texts {
    /// The texts, picture after picture.
    pub texts: Vec<String>,
    /// The place of each one's picture among the records.
    pub picture: Vec<usize>,
}

impl Texts {
    /// Those of a data set, as they are or as LAVIS's `blip_caption` leaves them.
    pub fn of(dataset: &Dataset, as_lavis: bool) -> Texts {
        let mut all = Texts::default();
        for (picture, record) in dataset.records.iter().enumerate() {
            let Reference::Texts(texts) = &record.reference else {
                continue;
            };
            for text in texts {
                all.texts.push(match as_lavis {
                    true => lavis_caption(text),
                    false => text.clone(),
                });
                all.picture.push(picture);
            }
        }
        all
    }
}

/// The `k` places with the highest scores, best first, the first of equals.
pub fn first(scores: &[f32], k: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..scores.len()).collect();
    let order = |&a: &usize, &b: &usize| by_score((a, scores[a]), (b, scores[b]));
    if k < places.len() {
        places.select_nth_unstable_by(k, order);
        places.truncate(k);
    }
    places.sort_unstable_by(order);
    places
}

fn by_score((a, of_a): (usize, f32), (b, of_b): (usize, f32)) -> Ordering {
    of_b.total_cmp(&of_a).then(a.cmp(&b))
}

/// One order: by a similarity, and of those places that were scored anew, which come first, by that.
#[derive(Debug, Clone, Copy)]
pub struct Ranking<'a> {
    /// Of all.
    pub similarity: &'a [f32],
    /// Place and new score of some.
    pub scored: &'a [(usize, f32)],
}

impl Ranking<'_> {
    /// Where the best of those comes that `is_right`, from 0; none where nothing is right.
    pub fn place(&self, is_right: impl Fn(usize) -> bool) -> Option<usize> {
        let best = |scores: &mut dyn Iterator<Item = (usize, f32)>| {
            let right = scores.filter(|(place, _)| is_right(*place));
            right.min_by(|a, b| by_score(*a, *b))
        };
        let before = |scores: &mut dyn Iterator<Item = (usize, f32)>, best| {
            scores
                .filter(|other| by_score(*other, best).is_lt())
                .count()
        };
        if let Some(found) = best(&mut self.scored.iter().copied()) {
            return Some(before(&mut self.scored.iter().copied(), found));
        }
        let is_left = |place: usize| self.scored.iter().all(|(scored, _)| *scored != place);
        let all = || self.similarity.iter().copied().enumerate();
        let found = best(&mut all())?;
        // Nothing right is among those that were scored anew, so that all of these come before it.
        let ahead = before(&mut all().filter(|(place, _)| is_left(*place)), found);
        Some(self.scored.len() + ahead)
    }
}

/// Recall in percent, with intervals over samples of pictures together with their texts. `of_pictures` is where the best
/// text of each picture comes among all texts, `of_texts` where the picture of each text comes among all pictures, and
/// `picture` whose each text is.
pub fn score(
    dataset: &Dataset,
    of_pictures: &[usize],
    of_texts: &[usize],
    picture: &[usize],
    seed: u64,
) -> Report {
    let n = of_pictures.len();
    let mut texts: Vec<Vec<usize>> = vec![Vec::new(); n];
    for (&picture, &place) in picture.iter().zip(of_texts) {
        if let Some(texts) = texts.get_mut(picture) {
            texts.push(place);
        }
    }
    let recall = |places: &mut dyn Iterator<Item = usize>, at: usize| {
        let (mut found, mut n) = (0, 0);
        for place in places {
            found += u64::from(place < at);
            n += 1;
        }
        100.0 * found as f64 / f64::from(n.max(1))
    };
    let scores = |sample: &[usize]| {
        let by_text = PLACES.map(|at| {
            let mut places = sample.iter().flat_map(|&i| texts[i].iter().copied());
            recall(&mut places, at)
        });
        let by_picture = PLACES.map(|at| recall(&mut sample.iter().map(|&i| of_pictures[i]), at));
        let mut scores: Vec<f64> = by_text.into_iter().chain(by_picture).collect();
        scores.push(scores.iter().sum::<f64>() / scores.len() as f64);
        scores
    };
    let names = ["text-to-picture", "picture-to-text"].into_iter();
    let names = names.flat_map(|way| PLACES.map(|at| format!("{way} recall@{at}")));
    let all: Vec<usize> = (0..n).collect();
    let values = names
        .chain(["mean recall".to_owned()])
        .zip(scores(&all))
        .zip(intervals(n, seed, |sample| {
            scores(sample).into_iter().map(Some).collect()
        }));
    Report {
        task: dataset.task,
        records: n,
        metrics: values
            .map(|((name, value), interval)| Metric {
                name,
                value: Some(value),
                interval,
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_those_of_a_full_sort() {
        let scores: Vec<f32> = (0..100).map(|i| ((i * 37) % 50) as f32).collect();
        let all = first(&scores, 100);
        assert_eq!((all[0], all[1]), (27, 77), "equals as they were");
        for k in [0, 1, 7, 99, 200] {
            assert_eq!(first(&scores, k), all[..k.min(100)]);
        }
    }

    #[test]
    fn what_is_scored_anew_comes_first() {
        let ranking = Ranking {
            similarity: &[0.9, 0.8, 0.7, 0.1, 0.7],
            scored: &[(0, -1.0), (1, 3.0)],
        };
        let place = |right: &[usize]| ranking.place(|place| right.contains(&place));
        assert_eq!(place(&[1]), Some(0));
        assert_eq!(place(&[0]), Some(1));
        assert_eq!(place(&[2]), Some(2));
        assert_eq!(place(&[4]), Some(3));
        assert_eq!(place(&[3]), Some(4));
        assert_eq!(place(&[3, 0]), Some(1), "the best of several");
        assert_eq!(place(&[]), None);
    }
}
