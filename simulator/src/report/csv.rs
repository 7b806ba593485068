//! The report as CSV, one line per cost class, op, module or stage of routing.
//!
//! | columns | |
//! |---|---|
//! | the first | what the line is about |
//! | `instructions` | executed or issued |
//! | `cycles` | of the run, in which one of its instructions was the next to complete; of all lines of classes or ops: the run |
//! | `matrix` to `sequencer` | its instructions' time in each unit, summed |
//! | `macs` | multiply-adds |
//! | `dram_read` to `acc_write` | bytes |
//! | `energy_uj` | µJ |

use std::fmt::Write;

use lapidary_npu_isa::Queue;

use super::{Report, UNITS};
use crate::tally::Share;

/// Columns: class, instructions, cycles in the units of the queues, cycles of the sequencer, multiply-adds, bytes of each memory, energy.
pub fn by_class(report: &Report) -> String {
    let mut out = String::from(
        "class,instructions,unit_cycles,sequencer_cycles,macs,dram_read,dram_write,spad_read,spad_write,weights_read,weights_write,\
         acc_read,acc_write,energy_uj\n",
    );
    for (class, share) in &report.classes {
        let sequencer = share.unit_cycles[Queue::Sequencer.index()];
        let units = share.unit_cycles.iter().sum::<u64>() - sequencer;
        // Writing to a text does not fail.
        let _ = write!(out, "{},{},{units},{sequencer},", class.name(), share.amounts.instructions);
        amounts(&mut out, share);
    }
    out
}

/// One line per op label, all modules of it together; instructions without one are the op with no name.
pub fn by_op(report: &Report) -> String {
    table("op", report.ops().iter().map(|(name, s)| (quoted(name), s)))
}

/// One line per op label and module; the module is left out of instructions that belong to none.
pub fn by_part(report: &Report) -> String {
    let key = |part: &crate::tally::Part| {
        format!("{},{}", quoted(&part.name), part.module.map_or(String::new(), |module| module.to_string()))
    };
    table("op,module", report.parts.iter().map(|part| (key(part), &part.share)))
}

/// One line per module, all labels of it together; `tokens` are how often selections chose it.
pub fn by_module(report: &Report) -> String {
    let modules = report.modules();
    table("module,tokens", modules.iter().map(|(n, s)| (format!("{n},{}", report.visits(*n)), s)))
}

/// One line per stage of routing that occurred.
pub fn by_stage(report: &Report) -> String {
    table("stage", report.routing.iter().map(|(stage, s)| (stage.name().to_string(), s)))
}

/// One line per op label with a selection and module: how often it was chosen.
pub fn visits(report: &Report) -> String {
    let mut out = String::from("op,module,tokens\n");
    for selections in &report.selections {
        for (module, tokens) in selections.visits.iter().enumerate() {
            let _ = writeln!(out, "{},{module},{tokens}", quoted(&selections.name));
        }
    }
    out
}

fn table<'s>(key: &str, lines: impl Iterator<Item = (String, &'s Share)>) -> String {
    let units = UNITS.map(Queue::name).join(",");
    let mut out = format!(
        "{key},instructions,cycles,{units},macs,dram_read,dram_write,spad_read,spad_write,weights_read,weights_write,acc_read,\
         acc_write,energy_uj\n"
    );
    for (name, share) in lines {
        let _ = write!(out, "{name},{},{},", share.amounts.instructions, share.cycles);
        UNITS.iter().for_each(|queue| out += &format!("{},", share.unit_cycles[queue.index()]));
        amounts(&mut out, share);
    }
    out
}

fn amounts(out: &mut String, share: &Share) {
    let a = &share.amounts;
    let _ = writeln!(
        out,
        "{},{},{},{},{},{},{},{},{},{}",
        a.macs,
        a.dram_read_bytes,
        a.dram_write_bytes,
        a.scratchpad_read_bytes,
        a.scratchpad_write_bytes,
        a.weights_read_bytes,
        a.weights_write_bytes,
        a.accumulators_read_bytes,
        a.accumulators_write_bytes,
        a.energy_fj as f64 / 1e9,
    );
}

/// Names have no `"`, but may have commas.
fn quoted(name: &str) -> String {
    if name.contains(',') { format!("\"{name}\"") } else { name.into() }
}
