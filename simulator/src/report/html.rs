//! A run as one HTML page that needs no network.

use minijinja::{Environment, context};
use serde::Serialize;

use super::heat::{DomainVisits, Heat, TokenModules};
use super::summary::Summary;
use super::timeline::Timeline;
use super::{Report, UNITS, text};
use crate::ledger::Cause;
use crate::tally::Share;

const PAGE: &str = include_str!("report.html");

/// Colours of what cycles are spent on.
const COLOURS: [&str; Cause::ALL.len()] = [
    "#4f9d69", "#d1495b", "#edae49", "#c97b63", "#8d99ae", "#30638e", "#6d597a", "#00798c", "#b56576", "#e9ecef",
    "#f8f9fa",
];

/// Rows of the tables that are shown at once: those with most cycles.
const TOP: usize = 25;
/// Most rows of modules by op.
const MOST_PARTS: usize = 2000;

/// What only the caller knows of a run, each shown if it is there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Details<'d> {
    /// The report is the sum of several runs: those.
    pub summary: Option<&'d Summary>,
    /// Domains by modules.
    pub domains: Option<&'d DomainVisits>,
    /// Tokens, in their order.
    pub tokens: &'d [TokenModules],
}

/// A bar of a timeline, in percent of its width.
#[derive(Serialize)]
struct Bar {
    left: f64,
    width: f64,
    colour: &'static str,
    title: String,
}

#[derive(Serialize)]
struct Strip {
    unit: &'static str,
    busy: f64,
    bars: Vec<Bar>,
    /// Cycles by cause, those of the table's columns.
    cycles: Vec<u64>,
}

#[derive(Serialize)]
struct Legend {
    name: &'static str,
    about: &'static str,
    colour: &'static str,
}

#[derive(Clone, Serialize)]
struct Row {
    name: String,
    about: &'static str,
    instructions: u64,
    cycles: u64,
    share: f64,
    unit_cycles: Vec<u64>,
    dram_bytes: String,
    macs: String,
    energy_uj: f64,
}

/// Rows with most cycles first, at most so many.
fn top(rows: &[Row], count: usize) -> Vec<Row> {
    let mut rows = rows.to_vec();
    rows.sort_by_key(|row| std::cmp::Reverse(row.cycles));
    rows.truncate(count);
    rows
}

#[derive(Serialize)]
struct PhaseRow {
    name: String,
    runs: u64,
    tokens: u64,
    /// All, p50, p95, longest.
    ms: [f64; 4],
    tokens_per_second: f64,
}

fn phases(summary: &Summary, clock_mhz: u64) -> Vec<PhaseRow> {
    let ms = |cycles: u64| cycles as f64 / (clock_mhz as f64 * 1e3);
    let phases = summary.phases().into_iter();
    let row = |p: super::summary::Phase| PhaseRow {
        ms: [p.cycles, p.p50_cycles, p.p95_cycles, p.max_cycles].map(ms),
        name: p.name,
        runs: p.runs,
        tokens: p.tokens,
        tokens_per_second: p.tokens_per_second,
    };
    phases.map(row).collect()
}

/// Tokens by how many modules they were given, over all selections.
fn tokens_by_count(report: &Report) -> Vec<(usize, u64)> {
    let mut sums: Vec<u64> = Vec::new();
    for selections in &report.selections {
        let counts = &selections.tokens_by_count;
        sums.resize(sums.len().max(counts.len()), 0);
        sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    sums.into_iter().enumerate().filter(|(_, tokens)| *tokens > 0).collect()
}

/// Points of a chart in its own units, for `<polyline>`.
fn polyline(points: impl Iterator<Item = (f64, f64)>) -> String {
    let points: Vec<String> = points.map(|(x, y)| format!("{x:.2},{y:.2}")).collect();
    points.join(" ")
}

fn strips(report: &Report, timeline: &Timeline, causes: &[Cause]) -> Vec<Strip> {
    let steps = timeline.steps(report.cycles);
    UNITS
        .into_iter()
        .map(|queue| {
            let mut bars: Vec<Bar> = Vec::new();
            let mut begun: Option<(usize, usize)> = None;
            // Of each step what most of it was spent on; equal neighbours are one bar.
            let most: Vec<usize> = steps
                .iter()
                .map(|step| {
                    let cycles = step.cycles[queue.index()];
                    (0..cycles.len()).max_by_key(|cause| (cycles[*cause], std::cmp::Reverse(*cause))).unwrap_or(0)
                })
                .collect();
            for (i, cause) in most.iter().copied().chain([usize::MAX]).enumerate() {
                if let Some((first, same)) = begun.filter(|(_, same)| *same != cause) {
                    let width = 100.0 / steps.len().max(1) as f64;
                    let (left, width) = (first as f64 * width, (i - first) as f64 * width);
                    let (begin, end) = (first as u64 * timeline.step_cycles(), i as u64 * timeline.step_cycles());
                    let title = format!("cycles {begin} to {}: {}", end.min(report.cycles), Cause::ALL[same].name());
                    bars.push(Bar { left, width, colour: COLOURS[same], title });
                    begun = None;
                }
                if begun.is_none() && cause != usize::MAX {
                    begun = Some((i, cause));
                }
            }
            let cycles = causes.iter().map(|cause| report.spent_cycles(queue, *cause)).collect();
            let busy = report.busy_cycles(queue) as f64 / report.cycles.max(1) as f64;
            Strip { unit: queue.name(), busy, bars, cycles }
        })
        .collect()
}

fn row(report: &Report, name: String, share: &Share) -> Row {
    Row {
        name,
        about: "",
        instructions: share.amounts.instructions,
        cycles: share.cycles,
        share: share.cycles as f64 / report.cycles.max(1) as f64,
        unit_cycles: UNITS.iter().map(|queue| share.unit_cycles[queue.index()]).collect(),
        dram_bytes: text::grouped(share.amounts.dram_read_bytes + share.amounts.dram_write_bytes),
        macs: text::grouped(share.amounts.macs),
        energy_uj: share.amounts.energy_fj as f64 / 1e9,
    }
}

/// A machine's roof, and where the run and its parts are below it: multiply-adds per cycle over multiply-adds per byte of DRAM, both
/// logarithmic.
#[derive(Serialize)]
struct Roofline {
    roof: String,
    points: Vec<Point>,
    ticks: Vec<Tick>,
    levels: Vec<Tick>,
}

#[derive(Serialize)]
struct Point {
    x: f64,
    y: f64,
    title: String,
    is_run: bool,
}

#[derive(Serialize)]
struct Tick {
    at: f64,
    label: String,
}

/// Powers of two that the roofline spans to the right and downwards.
const OCTAVES: f64 = 16.0;
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;

fn roofline(report: &Report) -> Option<Roofline> {
    if report.total.macs == 0 || report.dram.requests == 0 {
        return None;
    }
    let peak = (report.machine.matrix.rows * report.machine.matrix.cols) as f64;
    let bandwidth = report.dram_bytes_per_cycle();
    // From 1/16 of a multiply-add per byte on; from the array's peak down.
    let x = |intensity: f64| (intensity.log2() + 4.0).clamp(0.0, OCTAVES) / OCTAVES * WIDTH;
    let y = |rate: f64| (peak.log2() - rate.max(1e-9).log2()).clamp(0.0, OCTAVES) / OCTAVES * HEIGHT;
    let intensities = (0..=64).map(|i| f64::from(i) / 4.0 - 4.0).map(f64::exp2);
    let roof = polyline(intensities.map(|i| (x(i), y(peak.min(i * bandwidth)))));
    let point = |name: &str, macs: u128, bytes: u128, cycles: u64, is_run: bool| {
        let (intensity, rate) = (macs as f64 / bytes.max(1) as f64, macs as f64 / cycles.max(1) as f64);
        let per_byte = if bytes == 0 { "without DRAM".to_string() } else { format!("{intensity:.2} per byte of DRAM") };
        let title = format!("{name}: {rate:.2} multiply-adds per cycle, {per_byte}");
        Point { x: x(intensity), y: y(rate), title, is_run }
    };
    let moved = |a: &crate::tally::Amounts| a.dram_read_bytes + a.dram_write_bytes;
    let ops = report.ops();
    let parts = ops.iter().filter(|(name, s)| s.amounts.macs > 0 && s.cycles > 0 && !name.is_empty());
    let mut points: Vec<Point> =
        parts.map(|(name, s)| point(name, s.amounts.macs, moved(&s.amounts), s.cycles, false)).collect();
    points.push(point("the run", report.total.macs, moved(&report.total), report.cycles, true));
    let ticks = (0..=8).map(|i| f64::from(2 * i) - 4.0);
    let ticks = ticks.map(|e| Tick { at: x(e.exp2()), label: format!("{}", e.exp2()) }).collect();
    let levels = (0..=4).map(|i| peak / f64::from(i * 4).exp2());
    let levels = levels.map(|rate| Tick { at: y(rate), label: format!("{rate}") }).collect();
    Some(Roofline { roof, points, ticks, levels })
}

/// Renders the page. `title` says what was run.
pub fn page(report: &Report, timeline: &Timeline, title: &str) -> Result<String, minijinja::Error> {
    page_with(report, timeline, title, &Details::default())
}

/// Renders the page with what the caller knows. A timeline of several runs comes from [`crate::observe::After`].
pub fn page_with(
    report: &Report,
    timeline: &Timeline,
    title: &str,
    details: &Details<'_>,
) -> Result<String, minijinja::Error> {
    let spent = |cause: &Cause| UNITS.iter().any(|queue| report.spent_cycles(*queue, *cause) > 0);
    let causes: Vec<Cause> = Cause::ALL.iter().copied().filter(spent).collect();
    let legend: Vec<Legend> = causes
        .iter()
        .map(|cause| Legend { name: cause.name(), about: cause.about().trim(), colour: COLOURS[*cause as usize] })
        .collect();
    let steps = timeline.steps(report.cycles);
    let peak = report.dram_bytes_per_cycle();
    let rate = |bytes: u64| (bytes as f64 / timeline.step_cycles() as f64 / peak).min(1.0);
    let chart = |which: usize| {
        let width = WIDTH / steps.len().max(1) as f64;
        polyline(steps.iter().enumerate().flat_map(|(i, step)| {
            let y = 100.0 * (1.0 - rate(step.dram_bytes[which]));
            [(i as f64 * width, y), ((i + 1) as f64 * width, y)]
        }))
    };
    let mut environment = Environment::new();
    environment.add_filter("fixed", |value: f64, digits: usize| format!("{value:.digits$}"));
    environment.add_filter("grouped", |value: u64| text::grouped(value.into()));
    environment.add_template("report.html", PAGE)?;
    let ops: Vec<Row> = report.ops().iter().map(|(name, s)| row(report, (*name).to_string(), s)).collect();
    let modules: Vec<Row> = report.modules().iter().map(|(n, s)| row(report, n.to_string(), s)).collect();
    let classes: Vec<Row> = report.classes.iter().map(|(class, s)| row(report, class.name().into(), s)).collect();
    let part =
        |p: &crate::tally::Part| p.module.map(|module| row(report, format!("{}, module {module}", p.name), &p.share));
    let parts: Vec<Row> = report.parts.iter().filter_map(part).collect();
    let stages = report
        .routing
        .iter()
        .map(|(stage, s)| Row { about: stage.about().trim(), ..row(report, stage.name().into(), s) });
    let router = row(report, "all of the router".into(), &report.router());
    let energy_share = router.energy_uj / report.energy_uj().max(f64::MIN_POSITIVE);
    let layers = details.tokens.iter().map(|token| token.modules.len()).max().unwrap_or(0);
    let visits: Vec<String> = report.modules().iter().map(|(n, _)| text::grouped(report.visits(*n).into())).collect();
    environment.get_template("report.html")?.render(context! {
        title => title,
        summary => text::summary(report),
        machine => report.machine.name(),
        cycles => report.cycles,
        latency_ms => report.latency_ms(),
        step_cycles => timeline.step_cycles(),
        strips => strips(report, timeline, &causes),
        legend => legend,
        units => UNITS.map(|queue| queue.name()),
        is_many_ops => ops.len() > TOP,
        top_ops => top(&ops, TOP),
        ops => ops,
        modules => modules,
        module_visits => visits,
        parts => top(&parts, MOST_PARTS),
        parts_left => parts.len().saturating_sub(MOST_PARTS),
        stages => stages.collect::<Vec<Row>>(),
        router => router,
        router_energy_share => energy_share,
        heat => Heat::of_selections(&report.selections),
        tokens_by_count => tokens_by_count(report),
        unknown_tokens => report.selections.iter().map(|s| s.unknown_tokens).sum::<u64>(),
        domains => details.domains.and_then(Heat::of_domains),
        tokens => details.tokens,
        layers => (0..layers).collect::<Vec<usize>>(),
        phases => details.summary.map(|summary| phases(summary, report.machine.clock_mhz)).unwrap_or_default(),
        classes => classes,
        roofline => roofline(report),
        dram_load => chart(0),
        dram_store => chart(1),
        dram_peak => peak,
        has_dram => report.dram.requests > 0,
    })
}
