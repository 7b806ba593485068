//! What a run says: the numbers, and their text, JSON, CSV, trace and page.

use lapidary_npu_isa::{CostClass, Machine, Queue};

use crate::ledger::Cause;
use crate::tally::{Amounts, Part, Share, Tally};
use crate::timing::dram::DramCounts;

/// Everything that was counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// Whether values were computed.
    pub values: bool,
    /// Cycles of the run.
    pub cycles: u64,
    /// Cycles of each unit ([`Queue::index`]) by cause ([`Cause::ALL`]); each unit's add up to `cycles`.
    pub cycles_by_cause: [[u64; Cause::ALL.len()]; 6],
    /// What DRAM did.
    pub dram: DramCounts,
    /// All amounts.
    pub total: Amounts,
    /// By cost class, those that occurred.
    pub classes: Vec<(CostClass, Share)>,
    /// By label and module, in the order of their first instruction.
    pub parts: Vec<Part>,
}

impl Report {
    pub(crate) fn new(
        machine: &Machine,
        values: bool,
        cycles: u64,
        cycles_by_cause: [[u64; Cause::ALL.len()]; 6],
        dram: DramCounts,
        tally: Tally<'_>,
    ) -> Report {
        let total = tally.total();
        let classes = tally.classes.into_iter().filter(|(_, share)| share.amounts.instructions > 0).collect();
        Report { machine: machine.clone(), values, cycles, cycles_by_cause, dram, total, classes, parts: tally.parts }
    }

    /// Cycles in which a unit worked.
    pub fn busy_cycles(&self, queue: Queue) -> u64 {
        self.cycles_by_cause[queue.index()][Cause::Busy as usize]
    }
}
