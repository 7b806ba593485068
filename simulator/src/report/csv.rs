//! The report as CSV: one line per cost class.

use std::fmt::Write;

use lapidary_npu_isa::Queue;

use super::Report;

/// Columns: class, instructions, cycles in the units of the queues, cycles of the sequencer, multiply-adds, bytes of each memory, energy.
pub fn by_class(report: &Report) -> String {
    let mut out = String::from(
        "class,instructions,unit_cycles,sequencer_cycles,macs,dram_read,dram_write,spad_read,spad_write,weights_read,weights_write,\
         acc_read,acc_write,energy_uj\n",
    );
    for (class, share) in &report.classes {
        let a = &share.amounts;
        let sequencer = share.unit_cycles[Queue::Sequencer.index()];
        // Writing to a text does not fail.
        let _ = writeln!(
            out,
            "{},{},{},{},{},{},{},{},{},{},{},{},{},{}",
            class.name(),
            a.instructions,
            share.unit_cycles.iter().sum::<u64>() - sequencer,
            sequencer,
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
    out
}
