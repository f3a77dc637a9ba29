//! `qbridge bench --operations`: where ViT and Q-Former spend their time.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use bridge::image_encoder::ImageEncoder;
use bridge::model::default_device;
use qformer::operations::{Operation, record};
use serde::Serialize;

use super::super::print_json;
use super::report::Seconds;
use super::{finished, instructions, picture_name};
use crate::args::BenchArgs;
use crate::machine::Machine;
use crate::progress;

/// All of it.
#[derive(Debug, Serialize)]
struct Report {
    /// The bundle or checkpoint directory, as it was given.
    model: String,
    /// How ViT and Q-Former multiplied, as the flag says.
    vision: String,
    /// Pictures encoded at once.
    batch: u16,
    /// ViT and Q-Former.
    parts: Vec<Part>,
    /// Where.
    machine: Machine,
}

#[derive(Debug, Serialize)]
struct Part {
    name: &'static str,
    /// Whole runs.
    seconds: Seconds,
    /// In the order in which they first begin; what belongs to none comes last, as `rest`.
    operations: Vec<Row>,
}

/// All operations of one name.
#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    /// In one run.
    calls: usize,
    /// All calls of a run together.
    seconds: Seconds,
    /// Of the medians of all rows, from 0 to 1.
    share: f64,
    /// 10⁹ floating-point operations a second, by the median; none where there is no product.
    #[serde(skip_serializing_if = "Option::is_none")]
    gflops: Option<f64>,
}

/// Runs the command.
pub fn run(args: &BenchArgs, picture: &[u8]) -> Result<ExitCode> {
    let bar = progress::spinner("measuring operations".to_owned());
    let encoder = ImageEncoder::open(&args.bundle, args.engine.vision.into(), &default_device()?)?;
    let batch = args.batch.unwrap_or(1);
    let pixels = encoder
        .pixels(picture)
        .with_context(|| picture_name(args))?
        .unsqueeze(0)?
        .repeat((usize::from(batch), 1, 1, 1))?;
    let texts = instructions(&encoder).repeat(usize::from(batch));
    let vision = encoder.vision(&pixels)?;
    let parts = vec![
        measure("ViT", args, || finished(encoder.vision(&pixels)?).map(drop))?,
        measure("Q-Former", args, || {
            finished(encoder.queries(&vision, &texts)?).map(drop)
        })?,
    ];
    bar.finish_and_clear();
    let report = Report {
        model: args.bundle.display().to_string(),
        vision: args.engine.vision.to_string(),
        batch,
        parts,
        machine: Machine::here(),
    };
    match args.json {
        true => print_json(&report)?,
        false => report.print()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(name: &'static str, args: &BenchArgs, run: impl Fn() -> Result<()>) -> Result<Part> {
    for _ in 0..args.warm_up {
        run()?;
    }
    let (mut totals, mut runs) = (Vec::new(), Vec::new());
    for _ in 0..args.repeat {
        let started = Instant::now();
        let (result, operations) = record(&run);
        totals.push(started.elapsed().as_secs_f64());
        result?;
        runs.push(operations);
    }
    Ok(Part {
        name,
        operations: rows(&totals, &runs),
        seconds: Seconds::of(totals),
    })
}

/// Of runs that do the same: what each operation took, and what is left of the whole.
fn rows(totals: &[f64], runs: &[Vec<Operation>]) -> Vec<Row> {
    let Some(first) = runs.first() else {
        return Vec::new();
    };
    let mut rows: Vec<Row> = first
        .iter()
        .enumerate()
        .map(|(i, operation)| {
            let seconds = runs.iter().filter_map(|run| run.get(i));
            let seconds: Vec<f64> = seconds.map(|run| run.duration.as_secs_f64()).collect();
            let seconds = Seconds::of(seconds);
            let gflops = operation.flops as f64 / 1e9 / seconds.median.max(f64::MIN_POSITIVE);
            Row {
                name: operation.name,
                calls: operation.calls,
                gflops: (operation.flops > 0).then_some(gflops),
                seconds,
                share: 0.0,
            }
        })
        .collect();
    let rest = totals.iter().zip(runs).map(|(total, operations)| {
        let named: f64 = operations
            .iter()
            .map(|operation| operation.duration.as_secs_f64())
            .sum();
        (total - named).max(0.0)
    });
    rows.push(Row {
        name: "rest",
        calls: 1,
        seconds: Seconds::of(rest.collect()),
        share: 0.0,
        gflops: None,
    });
    let all: f64 = rows.iter().map(|row| row.seconds.median).sum();
    for row in &mut rows {
        row.share = row.seconds.median / all.max(f64::MIN_POSITIVE);
    }
    rows
}

impl Report {
    fn print(&self) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        let machine = &self.machine;
        writeln!(
            out,
            "{}: vision {}, {} at once\n{}, {} cores, {}, qbridge {}",
            self.model,
            self.vision,
            self.batch,
            machine.cpu,
            machine.cores,
            machine.platform,
            machine.version
        )?;
        for part in &self.parts {
            let head = format!("{}, {:.2} ms", part.name, 1000.0 * part.seconds.median);
            writeln!(
                out,
                "\n{head:<32} {:>6} {:>10} {:>7} {:>9}",
                "calls", "median ms", "share", "GFLOP/s"
            )?;
            for row in &part.operations {
                let gflops = row.gflops.map_or_else(String::new, |n| format!("{n:.0}"));
                writeln!(
                    out,
                    "{:<32} {:>6} {:>10.2} {:>6.1}% {gflops:>9}",
                    row.name,
                    row.calls,
                    1000.0 * row.seconds.median,
                    100.0 * row.share,
                )?;
            }
        }
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rows_add_up_to_the_whole() {
        let operation = |milliseconds, flops| Operation {
            name: "product",
            calls: 2,
            duration: Duration::from_millis(milliseconds),
            flops,
        };
        let runs = [
            vec![operation(300, 6_000_000_000)],
            vec![operation(100, 6_000_000_000)],
        ];
        let rows = rows(&[0.5, 0.1], &runs);
        assert_eq!(rows.len(), 2);
        let (product, rest) = (&rows[0], &rows[1]);
        assert_eq!((product.calls, rest.name), (2, "rest"));
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(near(product.seconds.median, 0.2), "{product:?}");
        assert!(near(product.gflops.unwrap(), 30.0), "{product:?}");
        // 0.2 of the first run, nothing of the second.
        assert!(near(rest.seconds.median, 0.1), "{rest:?}");
        assert!(near(product.share + rest.share, 1.0));
    }
}
