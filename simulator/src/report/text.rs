//! The report as text.

use std::fmt::{self, Write};

use lapidary_npu_isa::machine::DramPreset;

use super::summary::Summary;
use super::{Report, UNITS};
use crate::ledger::Cause;
use crate::tally::Share;

/// With commas between thousands.
pub fn grouped(value: u128) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

/// In one sentence: what is busy most, and whether that explains the time.
pub fn bound(report: &Report) -> String {
    let bound = report.bound();
    let what = match bound.by {
        "dram" => "DRAM's bus".to_string(),
        "sequencer" => "the sequencer".to_string(),
        unit => format!("the {unit} unit"),
    };
    match bound.share {
        share if share >= 0.8 => format!("{what}, busy {} of the time", percent(share)),
        share => format!("waiting: {what} is busy most, {} of the time", percent(share)),
    }
}

/// What a person wants to know first.
pub fn summary(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a text does not fail.
    let _ = write(&mut out, report);
    out
}

/// Ops, modules and the router, each where there are some. Of ops and modules the `top` with most cycles; what is left is summed
/// up.
pub fn tables(report: &Report, top: usize) -> String {
    let mut out = String::new();
    if !report.routing.is_empty() {
        out += &router(report);
        out.push('\n');
    }
    let ops = report.ops().into_iter().map(|(name, share)| {
        let name = if name.is_empty() { "(no label)" } else { name };
        (name.to_string(), share)
    });
    out += &shares(report, "op", ops.collect(), top);
    let modules = report.modules();
    if !modules.is_empty() {
        out.push('\n');
        let name = |module: i64| format!("{module}: {} tokens", grouped(report.visits(module).into()));
        let modules = modules.into_iter().map(|(module, share)| (name(module), share)).collect();
        out += &shares(report, "module", modules, top);
    }
    out
}

/// What routing alone takes, by stage and in one line; nothing if the program has none.
pub fn router(report: &Report) -> String {
    if report.routing.is_empty() {
        return String::new();
    }
    let all = report.router();
    let energy =
        if report.total.energy_fj == 0 { 0.0 } else { all.amounts.energy_fj as f64 / report.total.energy_fj as f64 };
    let stages = report.routing.iter().map(|(stage, share)| (stage.name().to_string(), share.clone())).collect();
    format!(
        "routing      {} of the cycles, {} of the energy\n{}",
        percent(all.cycles as f64 / report.cycles.max(1) as f64),
        percent(energy),
        shares(report, "stage", stages, usize::MAX)
    )
}

/// Lines with most cycles first.
fn shares(report: &Report, what: &str, mut lines: Vec<(String, Share)>, top: usize) -> String {
    lines.sort_by_key(|(_, share)| std::cmp::Reverse(share.cycles));
    if lines.len() > top {
        let mut rest = Share::default();
        let count = lines.len() - top;
        lines.drain(top..).for_each(|(_, share)| rest.add(&share));
        lines.push((format!("{count} more"), rest));
    }
    let width = lines.iter().map(|(name, _)| name.chars().count()).chain([what.len()]).max().unwrap_or(0);
    let mut out =
        format!("{what:<width$} {:>15} {:>8} {:>15} {:>15} {:>12}\n", "cycles", "", "DRAM B", "multiply-adds", "µJ");
    for (name, share) in lines {
        let (cycles, of_run) =
            (grouped(share.cycles.into()), percent(share.cycles as f64 / report.cycles.max(1) as f64));
        let bytes = grouped(share.amounts.dram_read_bytes + share.amounts.dram_write_bytes);
        let (macs, energy) = (grouped(share.amounts.macs), share.amounts.energy_fj as f64 / 1e9);
        let _ = writeln!(out, "{name:<width$} {cycles:>15} {of_run:>8} {bytes:>15} {macs:>15} {energy:>12.3}");
    }
    out
}

/// Phases of several runs, one line each.
pub fn phases(summary: &Summary) -> String {
    let Some(report) = summary.report() else { return String::new() };
    let ms = |cycles: u64| cycles as f64 / (report.machine.clock_mhz as f64 * 1e3);
    let phases = summary.phases();
    let width = phases.iter().map(|p| p.name.chars().count()).chain(["phase".len()]).max().unwrap_or(0);
    let mut out = format!(
        "{:<width$} {:>6} {:>8} {:>12} {:>12} {:>12} {:>12} {:>12}\n",
        "phase", "runs", "tokens", "ms", "p50 ms", "p95 ms", "max ms", "tokens/s"
    );
    for p in phases {
        let [all, p50, p95, max] = [p.cycles, p.p50_cycles, p.p95_cycles, p.max_cycles].map(ms);
        let _ = writeln!(
            out,
            "{:<width$} {:>6} {:>8} {all:>12.4} {p50:>12.4} {p95:>12.4} {max:>12.4} {:>12.1}",
            p.name, p.runs, p.tokens, p.tokens_per_second
        );
    }
    out
}

fn write(out: &mut String, report: &Report) -> fmt::Result {
    let (machine, total) = (&report.machine, &report.total);
    let array = format!("{} × {} array", machine.matrix.rows, machine.matrix.cols);
    let (clock, dram) = (machine.clock_mhz, machine.dram.preset.name());
    writeln!(out, "machine      {}: {array}, {clock} MHz, {dram}", machine.name())?;
    writeln!(out, "cycles       {}", grouped(report.cycles.into()))?;
    writeln!(out, "latency      {:.6} ms at {clock} MHz", report.latency_ms())?;
    let macs = grouped(total.macs);
    writeln!(out, "utilisation  {} of the array: {macs} multiply-adds", percent(report.utilisation()))?;
    writeln!(out, "bound by     {}", bound(report))?;
    let memory = |out: &mut String, name: &str, read: u128, written: u128| {
        writeln!(out, "{name:<12} {:>15} B read {:>15} B written", grouped(read), grouped(written))
    };
    memory(out, "DRAM", total.dram_read_bytes, total.dram_write_bytes)?;
    memory(out, "scratchpad", total.scratchpad_read_bytes, total.scratchpad_write_bytes)?;
    memory(out, "weights", total.weights_read_bytes, total.weights_write_bytes)?;
    memory(out, "accumulators", total.accumulators_read_bytes, total.accumulators_write_bytes)?;
    if machine.dram.preset != DramPreset::Ideal && report.dram.requests > 0 {
        let d = &report.dram;
        let share = |count: u64| percent(count as f64 / d.requests as f64);
        let requests = grouped(d.requests.into());
        let (hits, empty, misses) = (share(d.hits), share(d.empties), share(d.misses));
        writeln!(out, "requests     {requests}: {hits} row hits, {empty} of closed rows, {misses} misses")?;
    }
    writeln!(out, "energy       {:.3} µJ", report.energy_uj())?;
    writeln!(out)?;
    writeln!(out, "{:<12} {:>15} {:>8}  stalls", "unit", "busy", "")?;
    for queue in UNITS {
        let busy = report.busy_cycles(queue);
        let share = |cycles: u64| percent(cycles as f64 / report.cycles.max(1) as f64);
        let stalls = Cause::ALL.iter().skip(1).map(|cause| (cause.name(), report.spent_cycles(queue, *cause)));
        let mut stalls: Vec<(&str, u64)> = stalls.filter(|(_, cycles)| *cycles > 0).collect();
        stalls.sort_by_key(|(_, cycles)| std::cmp::Reverse(*cycles));
        let stalls: Vec<String> = stalls.iter().map(|(name, cycles)| format!("{name} {}", share(*cycles))).collect();
        let line =
            format!("{:<12} {:>15} {:>8}  {}", queue.name(), grouped(busy.into()), share(busy), stalls.join(", "));
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn thousands_are_kept_apart() {
        let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")];
        for (value, text) in cases {
            assert_eq!(super::grouped(value), text);
        }
    }
}
