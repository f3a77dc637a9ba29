//! A report to read.

use std::fmt;

use crate::{Report, Task};

impl Report {
    /// Digits behind the point, as the benchmark's papers have them: percents have two.
    fn decimals(&self) -> usize {
        match self.task {
            Task::Vqav2 | Task::Okvqa | Task::Gqa | Task::Textvqa => 2,
            Task::CocoRetrieval | Task::Flickr30k => 2,
            Task::Coco | Task::Nocaps | Task::Pope => 4,
        }
    }
}

impl fmt::Display for Report {
    /// A table: a line for each score, with its interval.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = self.decimals();
        let what = match self.task.is_retrieval() {
            true => "pictures",
            false => "answers",
        };
        let title = format!("{}, {} {what}", self.task.title(), self.records);
        let names = self
            .metrics
            .iter()
            .map(|metric| metric.name.chars().count());
        let width = names.fold(title.chars().count(), usize::max);
        write!(f, "{title:width$}     score  95 % interval")?;
        for metric in &self.metrics {
            write!(f, "\n{:width$}  ", metric.name)?;
            match metric.value {
                Some(value) => write!(f, "{value:8.decimals$}")?,
                None => write!(f, "{:>8}", "-")?,
            }
            if let Some((low, high)) = metric.interval {
                write!(f, "  {low:.decimals$} to {high:.decimals$}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Metric;

    #[test]
    fn columns_are_as_wide_as_their_widest_entry() {
        let report = Report {
            task: Task::Gqa,
            records: 12,
            metrics: vec![
                Metric {
                    name: "accuracy".to_owned(),
                    value: Some(51.4706),
                    interval: Some((45.5, 57.25)),
                },
                Metric {
                    name: "accuracy normalized".to_owned(),
                    value: Some(100.0),
                    interval: None,
                },
                Metric {
                    name: "accuracy open".to_owned(),
                    value: None,
                    interval: None,
                },
            ],
        };
        let expected = "\
GQA, 12 answers         score  95 % interval
accuracy                51.47  45.50 to 57.25
accuracy normalized    100.00
accuracy open               -";
        assert_eq!(report.to_string(), expected);
    }
}
