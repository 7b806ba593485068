//! The report as text.

use std::fmt::{self, Write};

use lapidary_npu_isa::machine::DramPreset;

use super::{Report, UNITS};
use crate::ledger::Cause;

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
