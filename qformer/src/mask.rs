//! Which rows of a Q-Former see which: the three masks of its first stage.

use std::ops::Range;

/// How the self-attention that queries and text share is masked, one way for each objective of
/// the first stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// Image-text contrastive learning (ITC): neither side sees the other.
    Unimodal,
    /// Image-text matching (ITM), and InstructBLIP: everything sees everything.
    Bidirectional,
    /// Image-grounded text generation (ITG): text sees the queries and the text before it;
    /// queries do not see the text.
    MultimodalCausal,
}

impl Mask {
    /// The rows that row `row` attends to, of `n_queries` queries and, behind them, text up to
    /// row `n_rows`. What comes behind that is padding, which nothing attends to, and which
    /// sees itself alone.
    ///
    /// Three queries `q`, three tokens `t`; `#` is seen, each row of the picture by its own row:
    ///
    /// ```text
    ///       Unimodal           Bidirectional       MultimodalCausal
    ///         (ITC)                (ITM)                 (ITG)
    ///      q q q t t t          q q q t t t          q q q t t t
    ///    q # # # . . .        q # # # # # #        q # # # . . .
    ///    q # # # . . .        q # # # # # #        q # # # . . .
    ///    q # # # . . .        q # # # # # #        q # # # . . .
    ///    t . . . # # #        t # # # # # #        t # # # # . .
    ///    t . . . # # #        t # # # # # #        t # # # # # .
    ///    t . . . # # #        t # # # # # #        t # # # # # #
    /// ```
    ///
    /// Each row sees one stretch, so that is what is given. Under [`Mask::Unimodal`] both sides
    /// may as well be computed apart, and under [`Mask::MultimodalCausal`] the queries may be
    /// computed once, and text be added behind their keys and values token by token.
    ///
    /// Source: BLIP-2, figure 2 (Li et al. 2023, arXiv:2301.12597); LAVIS,
    /// `models/blip2_models/Qformer.py`, `get_extended_attention_mask`.
    pub fn visible(self, row: usize, n_queries: usize, n_rows: usize) -> Range<usize> {
        let is_query = row < n_queries;
        match self {
            _ if row >= n_rows => row..row + 1,
            Mask::Bidirectional => 0..n_rows,
            Mask::Unimodal | Mask::MultimodalCausal if is_query => 0..n_queries,
            Mask::Unimodal => n_queries..n_rows,
            Mask::MultimodalCausal => 0..row + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The picture of the documentation, as the function draws it.
    fn picture(mask: Mask) -> String {
        let line = |row| {
            let seen = mask.visible(row, 3, 6);
            (0..6)
                .map(|key| if seen.contains(&key) { '#' } else { '.' })
                .collect::<String>()
        };
        (0..6).map(line).collect::<Vec<_>>().join("/")
    }

    #[test]
    fn the_masks_are_those_of_the_picture() {
        for (mask, expected) in [
            (Mask::Unimodal, "###.../###.../###.../...###/...###/...###"),
            (
                Mask::Bidirectional,
                "######/######/######/######/######/######",
            ),
            (
                Mask::MultimodalCausal,
                "###.../###.../###.../####../#####./######",
            ),
        ] {
            assert_eq!(picture(mask), expected, "{mask:?}");
        }
    }

    #[test]
    fn padding_is_seen_by_itself_alone() {
        for mask in [Mask::Unimodal, Mask::Bidirectional, Mask::MultimodalCausal] {
            for row in 0..5 {
                assert!(mask.visible(row, 3, 5).end <= 5, "{mask:?}");
            }
            assert_eq!(mask.visible(6, 3, 5), 6..7);
        }
    }
}
