//! `lapidary bench`.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lapidary_runtime::{ArtifactFile, Session};
use serde_json::json;

use crate::cli::{BenchOptions, Format};
use crate::engine;
use crate::failure::{Unsupported, Usage};
use crate::limits::{self, Limits};
use crate::tensors;
use crate::ui::{Ui, bytes, table};
use crate::work::{Sizes, Work};

/// All cases take turns, so that a change in the machine's mood meets them all.
const ROUNDS: usize = 5;
/// Time for all repetitions of a case when `--reps` is not given.
const CASE_TIME: Duration = Duration::from_secs(2);

/// One thing to time.
struct Case {
    artifact: String,
    threads: usize,
    tokens: usize,
    session: Session,
    sizes: Sizes,
    limits: Limits,
    context: usize,
    seconds: Vec<f64>,
    work: Work,
    ids: Ids,
}

/// Where token ids come from.
enum Ids {
    /// Pseudo-random, so that routing varies as it does on text.
    Random { state: u64, vocab_size: u32 },
    /// These, from the first on for every call of several tokens and in turn for single ones.
    Given { ids: Arc<[u32]>, at: usize },
}

impl Ids {
    fn next(&mut self) -> u32 {
        match self {
            Ids::Random { state, vocab_size } => {
                *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (*state >> 33) as u32 % *vocab_size
            }
            Ids::Given { ids, at } => {
                let id = ids[*at % ids.len()];
                *at += 1;
                id
            }
        }
    }

    fn take(&mut self, n: usize) -> Vec<u32> {
        if let Ids::Given { at, .. } = self {
            *at = 0;
        }
        (0..n).map(|_| self.next()).collect()
    }
}

impl Case {
    fn is_decode(&self) -> bool {
        self.tokens == 1
    }

    /// Runs and times one repetition.
    fn repeat(&mut self, timed: bool) -> anyhow::Result<()> {
        let max_tokens = self.session.model().manifest().max_tokens as usize;
        let ids = if self.is_decode() {
            if self.session.position() as usize + 1 > max_tokens || self.session.position() == 0 {
                self.session.reset();
                let context = self.ids.take(self.context);
                self.session.prefill(&context)?;
            }
            vec![self.ids.next()]
        } else {
            self.session.reset();
            self.ids.take(self.tokens)
        };
        self.session.reset_counters();
        let start = Instant::now();
        if self.is_decode() {
            self.session.decode(ids[0])?;
        } else {
            self.session.prefill(&ids)?;
        }
        let seconds = start.elapsed().as_secs_f64();
        if timed {
            let chunk = self.session.model().manifest().max_chunk_tokens as usize;
            let calls = self.tokens.div_ceil(chunk) as u64;
            let work = self.sizes.work(&self.session, calls, self.tokens as u64);
            self.seconds.push(seconds);
            self.work.bytes += work.bytes;
            self.work.float_multiply_adds += work.float_multiply_adds;
            self.work.integer_multiply_adds += work.integer_multiply_adds;
        }
        Ok(())
    }

    /// Sorted times in milliseconds.
    fn milliseconds(&self) -> Vec<f64> {
        let mut ms: Vec<f64> = self.seconds.iter().map(|s| s * 1e3).collect();
        ms.sort_by(f64::total_cmp);
        ms
    }

    /// What the machine would need at least for the same work, in seconds per repetition: reading its bytes or doing its
    /// multiply-adds, whichever takes longer.
    fn limit_seconds(&self) -> f64 {
        let reps = self.seconds.len().max(1) as f64;
        let read = self.work.bytes as f64 / reps / self.limits.bytes_per_s;
        let floats = self.work.float_multiply_adds as f64 / reps / self.limits.multiply_adds_per_s;
        let integers = self.work.integer_multiply_adds as f64 / reps / self.limits.int8_multiply_adds_per_s;
        read.max(floats + integers)
    }

    fn multiply_adds(&self) -> u64 {
        self.work.float_multiply_adds + self.work.integer_multiply_adds
    }
}

/// Times every (artifact, threads, tokens); 0 threads: as many as the machine has.
pub fn run(
    artifacts: Vec<ArtifactFile>,
    args: &BenchOptions,
    threads: &[usize],
    format: Format,
    ui: &Ui,
) -> anyhow::Result<ExitCode> {
    if args.routing != "model" {
        bail!(Unsupported(format!(
            "--routing: wanted `model`, found `{}`\nhint: made-up and recorded routing are for the NPU simulator, which is \
             not here yet",
            args.routing
        )));
    }
    if args.tokens.contains(&0) || args.reps == Some(0) {
        bail!(Usage("--tokens, --reps: wanted numbers from 1 on, found 0".into()));
    }
    let mut cases = cases(artifacts, args, threads, ui)?;
    let bar = ui.count_bar("timing", (cases.len() * ROUNDS) as u64);
    for case in &mut cases {
        for _ in 0..args.warmup {
            case.repeat(false)?;
        }
    }
    for round in 0..ROUNDS {
        for case in &mut cases {
            let start = Instant::now();
            let done = case.seconds.len();
            let wanted = args.reps.map(|reps| reps.saturating_mul(round + 1).div_ceil(ROUNDS));
            loop {
                let enough = match wanted {
                    Some(wanted) => case.seconds.len() >= wanted,
                    None => case.seconds.len() > done && start.elapsed() >= CASE_TIME / ROUNDS as u32,
                };
                if enough {
                    break;
                }
                case.repeat(true)?;
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    match format {
        Format::Text => print_text(&cases),
        Format::Json => print_json(&cases),
    }
    Ok(ExitCode::SUCCESS)
}

fn cases(artifacts: Vec<ArtifactFile>, args: &BenchOptions, threads: &[usize], ui: &Ui) -> anyhow::Result<Vec<Case>> {
    let mut cases = Vec::new();
    let given: Option<Arc<[u32]>> = match &args.ids {
        Some(path) => Some(tensors::read_one(path).context("--ids")?.into()),
        None => None,
    };
    let spinner = ui.spinner("limits");
    let limits: Vec<(usize, Limits)> = threads
        .iter()
        .map(|n| engine::threads(*n))
        .map(|n| Ok((n, limits::measure(n)?)))
        .collect::<anyhow::Result<_>>()?;
    spinner.finish_and_clear();
    for artifact in artifacts {
        let path = artifact.path().to_path_buf();
        let start = Instant::now();
        let first = engine::open(artifact, 1)?;
        ui.detail(format!("{}: opened in {:.2} ms", path.display(), start.elapsed().as_secs_f64() * 1e3));
        let model = Arc::clone(first.model());
        let manifest = *model.manifest();
        for (threads, limits) in &limits {
            for tokens in &args.tokens {
                if *tokens == 1 && !engine::can_decode(&first) {
                    bail!(Unsupported(format!(
                        "{}: --tokens 1 times decode, which this model cannot do: {}",
                        path.display(),
                        manifest.cannot_decode
                    )));
                }
                if *tokens == 1 && manifest.max_tokens < 2 {
                    bail!(Unsupported(format!(
                        "{}: --tokens 1 times decode behind a token: wanted a context of 2, found 1\n\
                         hint: compile it with a larger --max-tokens",
                        path.display()
                    )));
                }
                if *tokens > manifest.max_tokens as usize {
                    bail!(Usage(format!(
                        "--tokens: wanted at most {} (the context of {}), found {tokens}",
                        manifest.max_tokens,
                        path.display()
                    )));
                }
                cases.push(Case {
                    artifact: path.display().to_string(),
                    threads: *threads,
                    tokens: *tokens,
                    session: engine::session(Arc::clone(&model), *threads)?,
                    sizes: Sizes::of(model.artifact()),
                    limits: *limits,
                    context: args.context.min(manifest.max_tokens as usize - 1).max(1),
                    seconds: Vec::new(),
                    work: Work::default(),
                    ids: match &given {
                        Some(ids) => Ids::Given { ids: Arc::clone(ids), at: 0 },
                        None => Ids::Random { state: 42, vocab_size: manifest.vocab_size },
                    },
                });
            }
        }
    }
    Ok(cases)
}

/// Median and 99th percentile of sorted numbers.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * q).round() as usize).copied().unwrap_or(f64::NAN)
}

/// Peak memory of this process, from `/proc/self/status`; 0 where there is none.
fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn print_text(cases: &[Case]) {
    let rows = cases.iter().map(|case| {
        let ms = case.milliseconds();
        let median = quantile(&ms, 0.5);
        vec![
            case.artifact.clone(),
            if case.is_decode() { "decode" } else { "prefill" }.into(),
            case.tokens.to_string(),
            case.threads.to_string(),
            format!("{:.1}", case.tokens as f64 * 1e3 / median),
            format!("{:.3}", ms[0]),
            format!("{median:.3}"),
            format!("{:.3}", quantile(&ms, 0.99)),
            bytes(case.work.bytes / ms.len() as u64 / case.tokens as u64),
            format!("{:.2}", median / 1e3 / case.limit_seconds()),
        ]
    });
    let header = [
        "artifact",
        "test",
        ">tokens",
        ">threads",
        ">tokens/s",
        ">min ms",
        ">median ms",
        ">p99 ms",
        ">bytes/token",
        ">× limit",
    ];
    println!("{}", table(&header, rows));
    for case in cases.iter().filter(|c| c.tokens == cases[0].tokens && c.artifact == cases[0].artifact) {
        println!(
            "limits of {} thread{}: {:.1} GFLOP/s f32, {:.1} GOP/s int8, {:.1} GB/s read",
            case.threads,
            if case.threads == 1 { "" } else { "s" },
            2e-9 * case.limits.multiply_adds_per_s,
            2e-9 * case.limits.int8_multiply_adds_per_s,
            1e-9 * case.limits.bytes_per_s
        );
    }
    println!("peak memory of the process: {}", bytes(peak_rss_bytes()));
}

fn print_json(cases: &[Case]) {
    let results: Vec<_> = cases
        .iter()
        .map(|case| {
            let ms = case.milliseconds();
            let median = quantile(&ms, 0.5);
            json!({
                "artifact": case.artifact,
                "test": if case.is_decode() { "decode" } else { "prefill" },
                "tokens": case.tokens,
                "threads": case.threads,
                "reps": ms.len(),
                "tokens_per_s": case.tokens as f64 * 1e3 / median,
                "min_ms": ms[0],
                "median_ms": median,
                "p99_ms": quantile(&ms, 0.99),
                "peak_rss_bytes": peak_rss_bytes(),
                "bytes_per_token": case.work.bytes / ms.len() as u64 / case.tokens as u64,
                "multiply_adds_per_token": case.multiply_adds() / ms.len() as u64 / case.tokens as u64,
                "limit_ratio": median / 1e3 / case.limit_seconds(),
                "limit_bytes_per_s": case.limits.bytes_per_s,
                "limit_multiply_adds_per_s": case.limits.multiply_adds_per_s,
                "limit_int8_multiply_adds_per_s": case.limits.int8_multiply_adds_per_s,
            })
        })
        .collect();
    println!("{:#}", json!({ "schema": "lapidary.bench/1", "results": results }));
}
