//! How far a score may be off, by chance of which questions were asked.

/// Resamples of the records.
pub const RESAMPLES: usize = 1000;

/// The middle 95 % of each score over [`RESAMPLES`] resamples of `n` records with replacement: `scores` is
/// given the places of a resample's records. Resamples in which a score is not defined do not count in its
/// interval, of which there is none where it never is. The same seed gives the same intervals.
pub fn intervals(
    n: usize,
    seed: u64,
    mut scores: impl FnMut(&[usize]) -> Vec<Option<f64>>,
) -> Vec<Option<(f64, f64)>> {
    if n == 0 {
        return Vec::new();
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let mut sample = vec![0; n];
    let mut columns: Vec<Vec<f64>> = Vec::new();
    for _ in 0..RESAMPLES {
        sample.fill_with(|| random.usize(..n));
        let values = scores(&sample);
        columns.resize_with(values.len(), Vec::new);
        for (column, value) in columns.iter_mut().zip(values) {
            column.extend(value);
        }
    }
    columns
        .into_iter()
        .map(|mut column| {
            column.sort_by(f64::total_cmp);
            let is_defined = !column.is_empty();
            is_defined.then(|| (quantile(&column, 0.025), quantile(&column, 0.975)))
        })
        .collect()
}

/// Linear between the nearest two, as numpy's default.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_interval_is_as_wide_as_the_standard_error_says() {
        // 400 records, half of them right: the mean's standard error is 0.025.
        let right: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let mean = |sample: &[usize]| {
            let sum: f64 = sample.iter().map(|&i| right[i]).sum();
            vec![Some(sum / sample.len() as f64)]
        };
        let found = intervals(400, 1, mean);
        let (low, high) = found[0].unwrap();
        assert!(
            (low - 0.451).abs() < 0.006 && (high - 0.549).abs() < 0.006,
            "{low} {high}"
        );
        assert_eq!(found, intervals(400, 1, mean));
        assert_ne!(found, intervals(400, 2, mean));
    }

    #[test]
    fn samples_in_which_a_score_is_not_defined_do_not_count() {
        let is_there = |sample: &[usize]| vec![sample.contains(&0).then_some(7.0), None];
        assert_eq!(intervals(5, 1, is_there), [Some((7.0, 7.0)), None]);
    }
}
