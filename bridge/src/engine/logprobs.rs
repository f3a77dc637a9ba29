//! What the model made of a token and of its rivals.

/// The logarithm of the probability of token `id`, and the `n` likeliest tokens with
/// theirs, best first and the first of equals first. `logits` is `[n_vocab]`.
pub fn logprobs(logits: &[f32], id: i32, n: usize) -> (f32, Vec<(i32, f32)>) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from((x - max).exp())).sum();
    let normalizer = f64::from(max) + sum.ln();
    let log_prob = |logit: f32| (f64::from(logit) - normalizer) as f32;
    let mut top: Vec<(i32, f32)> = Vec::with_capacity(n + 1);
    for (&logit, id) in logits.iter().zip(0..) {
        if top.len() == n && top.last().is_none_or(|&(_, worst)| logit <= worst) {
            continue;
        }
        let at = top.partition_point(|&(_, other)| other >= logit);
        top.insert(at, (id, logit));
        top.truncate(n);
    }
    for (_, logit) in &mut top {
        *logit = log_prob(*logit);
    }
    let of_id = usize::try_from(id).ok().and_then(|id| logits.get(id));
    let of_id = of_id.map_or(f32::NEG_INFINITY, |&logit| log_prob(logit));
    (of_id, top)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_known_distribution() {
        let weights: [f32; 4] = [0.1, 0.4, 0.3, 0.2];
        let logits = weights.map(|weight| weight.ln() + 7.0);
        let (of_id, top) = logprobs(&logits, 3, 2);
        assert!((of_id.exp() - 0.2).abs() < 1e-6);
        assert_eq!(top.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [1, 2]);
        assert!((top[0].1.exp() - 0.4).abs() < 1e-6);
        assert_eq!(logprobs(&logits, 0, 0).1, []);
        assert_eq!(logprobs(&[1.0, 1.0, 0.0], 0, 9).1.len(), 3);
    }

    proptest! {
        #[test]
        fn the_likeliest_are_those_of_a_full_sort(
            logits in prop::collection::vec(-20..20i32, 1..200),
            n in 0..21usize,
        ) {
            let logits: Vec<f32> = logits.into_iter().map(|x| x as f32 / 4.0).collect();
            let (_, top) = logprobs(&logits, 0, n);
            let mut sorted: Vec<i32> = (0..logits.len() as i32).collect();
            sorted.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
            sorted.truncate(n);
            prop_assert_eq!(top.iter().map(|&(id, _)| id).collect::<Vec<_>>(), sorted);
            let all = logprobs(&logits, 0, logits.len()).1;
            let sum: f32 = all.iter().map(|&(_, log_prob)| log_prob.exp()).sum();
            prop_assert!((sum - 1.0).abs() < 1e-4);
        }
    }
}
