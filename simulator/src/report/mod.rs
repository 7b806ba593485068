//! What a run says: the numbers, and their text, JSON, CSV, trace and page.
//!
//! | | |
//! |---|---|
//! | [`text`](text::summary) | what a person wants to know first |
//! | [`json`](json::to_json) | everything, `lapidary.sim/1` |
//! | [`csv`](csv::by_class) | one line per cost class, op, module, or stage of routing |
//! | [`summary::Summary`] | several runs: their sums, and how long each took |
//! | [`trace::ChromeTrace`] | an observer that writes events, for Perfetto |
//! | [`timeline::Timeline`] | an observer that keeps what [`html::page`] draws |

pub mod csv;
mod heat;
pub mod html;
pub mod json;
pub mod summary;
pub mod text;
pub mod timeline;
pub mod trace;

use std::collections::HashMap;

use lapidary_npu_isa::{CostClass, Machine, Queue};

pub use heat::{DomainVisits, TokenModules};

use crate::ledger::Cause;
use crate::selections::Selections;
use crate::stage::RoutingStage;
use crate::tally::{Amounts, Part, Share, Tally};
use crate::timing::dram::DramCounts;

/// Units in the order of reports.
pub const UNITS: [Queue; 6] = [Queue::Matrix, Queue::Vector, Queue::Load, Queue::Store, Queue::Route, Queue::Sequencer];

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
    /// What DRAM did; with `dram.preset = "ideal"` nothing.
    pub dram: DramCounts,
    /// All amounts.
    pub total: Amounts,
    /// By cost class, those that occurred.
    pub classes: Vec<(CostClass, Share)>,
    /// By label and module, in the order of their first instruction.
    pub parts: Vec<Part>,
    /// The router alone, by stage, those that occurred. What they did is part of `parts` as well.
    pub routing: Vec<(RoutingStage, Share)>,
    /// What selections chose, by op label.
    pub selections: Vec<Selections>,
}

/// What has the highest share of its time busy.
#[derive(Clone, Debug, PartialEq)]
pub struct Bound {
    /// A unit, or `dram`.
    pub by: &'static str,
    /// Busy cycles over all cycles.
    pub share: f64,
}

impl Report {
    pub(crate) fn new(
        machine: &Machine,
        values: bool,
        cycles: u64,
        cycles_by_cause: [[u64; Cause::ALL.len()]; 6],
        dram: DramCounts,
        tally: Tally<'_>,
        selections: Vec<Selections>,
    ) -> Report {
        let total = tally.total();
        let occurred = |share: &Share| share.amounts.instructions > 0;
        let classes = tally.classes.into_iter().filter(|(_, share)| occurred(share)).collect();
        let routing = tally.routing.into_iter().filter(|(_, share)| occurred(share)).collect();
        let (machine, parts) = (machine.clone(), tally.parts);
        let report =
            Report { machine, values, cycles, cycles_by_cause, dram, total, classes, parts, routing, selections };
        report.check();
        report
    }

    /// Everything is attributed, once: cycles of parts and of classes are the run's, their amounts its total, the router's no
    /// more, and each module that was chosen was chosen by a token.
    fn check(&self) {
        let (mut parts, mut classes) = (Share::default(), Share::default());
        self.parts.iter().for_each(|part| parts.add(&part.share));
        self.classes.iter().for_each(|(_, share)| classes.add(share));
        assert_eq!((parts.cycles, classes.cycles), (self.cycles, self.cycles), "cycles of parts and of classes");
        assert_eq!((&parts.amounts, &classes.amounts), (&self.total, &self.total), "amounts of parts and of classes");
        assert!(self.router().cycles <= self.cycles);
        self.selections.iter().for_each(Selections::check);
    }

    /// The router alone, all stages.
    pub fn router(&self) -> Share {
        let mut all = Share::default();
        self.routing.iter().for_each(|(_, share)| all.add(share));
        all
    }

    /// How often a module was chosen, over all selections. A module's number is its column.
    pub fn visits(&self, module: i64) -> u64 {
        let of = |s: &Selections| usize::try_from(module).ok().and_then(|module| s.visits.get(module).copied());
        self.selections.iter().filter_map(of).sum()
    }

    /// Cycles in which a unit worked.
    pub fn busy_cycles(&self, queue: Queue) -> u64 {
        self.cycles_by_cause[queue.index()][Cause::Busy as usize]
    }

    /// Cycles that a unit spent on something.
    pub fn spent_cycles(&self, queue: Queue, cause: Cause) -> u64 {
        self.cycles_by_cause[queue.index()][cause as usize]
    }

    /// Time of the run at the machine's clock.
    pub fn latency_ms(&self) -> f64 {
        self.cycles as f64 / (self.machine.clock_mhz as f64 * 1e3)
    }

    /// Energy of the run.
    pub fn energy_uj(&self) -> f64 {
        self.total.energy_fj as f64 / 1e9
    }

    /// Multiply-adds over those that the array could have made.
    pub fn utilisation(&self) -> f64 {
        let most = (self.machine.matrix.rows * self.machine.matrix.cols) as f64 * self.cycles as f64;
        if self.cycles == 0 { 0.0 } else { self.total.macs as f64 / most }
    }

    /// Share of its time that the DRAM's bus moves data, of all channels.
    pub fn dram_share(&self) -> f64 {
        let moved_ps = self.dram.requests as f64 * self.machine.burst_ps() as f64;
        let most_ps = self.cycles as f64 * 1e6 / self.machine.clock_mhz as f64 * self.machine.dram.channels as f64;
        if self.cycles == 0 { 0.0 } else { moved_ps / most_ps }
    }

    /// Bytes per cycle that the DRAM's bus can move.
    pub fn dram_bytes_per_cycle(&self) -> f64 {
        let burst_cycles = self.machine.burst_ps() as f64 * self.machine.clock_mhz as f64 / 1e6;
        self.machine.dma.burst_bytes as f64 * self.machine.dram.channels as f64 / burst_cycles
    }

    /// What the run is bound by, as far as shares say: the unit or memory that is busy most. LOAD and STORE, whose work is the
    /// DRAM's, are not asked.
    pub fn bound(&self) -> Bound {
        let share = |queue| if self.cycles == 0 { 0.0 } else { self.busy_cycles(queue) as f64 / self.cycles as f64 };
        let units = UNITS.into_iter().filter(|queue| !matches!(queue, Queue::Load | Queue::Store));
        let mut bound = Bound { by: "dram", share: self.dram_share() };
        for queue in units {
            if share(queue) > bound.share {
                bound = Bound { by: queue.name(), share: share(queue) };
            }
        }
        bound
    }

    /// By label, all modules of it together.
    pub fn ops(&self) -> Vec<(&str, Share)> {
        self.grouped(|part| Some(part.name.as_str()))
    }

    /// By module number, all labels of it together.
    pub fn modules(&self) -> Vec<(i64, Share)> {
        let mut modules = self.grouped(|part| part.module);
        modules.sort_by_key(|(number, _)| *number);
        modules
    }

    /// Parts with the same key together, in the order of the first of each.
    fn grouped<'r, K: Copy + Eq + std::hash::Hash>(&'r self, key: impl Fn(&'r Part) -> Option<K>) -> Vec<(K, Share)> {
        let mut places = HashMap::new();
        let mut groups: Vec<(K, Share)> = Vec::new();
        for part in &self.parts {
            let Some(key) = key(part) else { continue };
            let place = *places.entry(key).or_insert(groups.len());
            match groups.get_mut(place) {
                Some((_, share)) => share.add(&part.share),
                None => groups.push((key, part.share.clone())),
            }
        }
        groups
    }
}
