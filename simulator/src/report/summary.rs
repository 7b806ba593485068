//! Several runs: prefill and decode steps, or a set of inputs.
//!
//! ```
//! use lapidary_npu_isa::{Machine, asm::assemble};
//! use lapidary_simulator::report::summary::Summary;
//! use lapidary_simulator::{Device, Options};
//!
//! let program = assemble("li r1, 40\nr.iota sp[64], count=r1\nhalt").unwrap();
//! let mut device = Device::new(&Machine::preset("edge-16").unwrap(), Options::default());
//! let mut summary = Summary::default();
//! for step in 0..4 {
//!     let report = device.run(&program, &mut ()).unwrap();
//!     summary.add(if step == 0 { "prefill" } else { "decode" }, 1, &report).unwrap();
//! }
//! assert_eq!(summary.report().unwrap().cycles, 36);
//! let phases = summary.phases();
//! assert_eq!((phases[1].name.as_str(), phases[1].runs, phases[1].p95_cycles), ("decode", 3, 9));
//! ```

use std::collections::HashMap;

use super::Report;
use crate::tally::Share;

/// Reports that cannot be added up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("runs: wanted all on {wanted}, found one on {found}")]
pub struct OtherRun {
    /// Machine of the first, and whether it computed values.
    pub wanted: String,
    /// Of the other.
    pub found: String,
}

fn conditions(report: &Report) -> String {
    let values = if report.values { "with values" } else { "without values" };
    format!("machine {} (hash {}), {values}", report.machine.name(), short_hash(report))
}

fn short_hash(report: &Report) -> String {
    report.machine.hash().iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// Adds the shares of `others` to those with the same key.
fn add_shares<K: Copy + Ord>(shares: &mut Vec<(K, Share)>, offset: u64, others: &[(K, Share)]) {
    for (key, other) in others {
        let place = shares.partition_point(|(k, _)| k < key);
        if shares.get(place).is_none_or(|(k, _)| k != key) {
            shares.insert(place, (*key, Share::default()));
        }
        shares[place].1.add_after(offset, other);
    }
}

impl Report {
    /// Adds a later run on the same machine, as if it began when this one ended: the result has the cycles, amounts, parts and
    /// selections of both. An error changes nothing.
    pub fn merge(&mut self, other: &Report) -> Result<(), OtherRun> {
        if (&self.machine, self.values) != (&other.machine, other.values) {
            return Err(OtherRun { wanted: conditions(self), found: conditions(other) });
        }
        let offset = self.cycles;
        self.cycles += other.cycles;
        let causes = self.cycles_by_cause.iter_mut().flatten();
        causes.zip(other.cycles_by_cause.iter().flatten()).for_each(|(mine, others)| *mine += others);
        self.dram.add(&other.dram);
        self.total.add(&other.total);
        add_shares(&mut self.classes, offset, &other.classes);
        add_shares(&mut self.routing, offset, &other.routing);
        let keys = self.parts.iter().zip(0..).map(|(part, place)| ((part.name.clone(), part.module), place));
        let places: HashMap<(String, Option<i64>), usize> = keys.collect();
        for part in &other.parts {
            match places.get(&(part.name.clone(), part.module)) {
                Some(place) => self.parts[*place].share.add_after(offset, &part.share),
                None => {
                    let mut share = Share::default();
                    share.add_after(offset, &part.share);
                    self.parts.push(crate::tally::Part { share, ..part.clone() });
                }
            }
        }
        for other in &other.selections {
            match self.selections.iter_mut().find(|mine| mine.name == other.name) {
                Some(mine) => mine.add(other),
                None => self.selections.push(other.clone()),
            }
        }
        for cycles in self.cycles_by_cause {
            assert_eq!(cycles.iter().sum::<u64>(), self.cycles, "cycles of a unit");
        }
        self.check();
        Ok(())
    }
}

/// How long one run took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimedRun {
    /// What it was for: `prefill`, `decode`.
    pub phase: String,
    /// Tokens that it processed.
    pub tokens: u64,
    /// Cycles.
    pub cycles: u64,
}

/// All runs of a phase.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// How many runs.
    pub runs: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Their cycles.
    pub cycles: u64,
    /// Cycles that half of the runs do not exceed: the ⌈0.5·n⌉th shortest.
    pub p50_cycles: u64,
    /// The ⌈0.95·n⌉th shortest.
    pub p95_cycles: u64,
    /// The longest.
    pub max_cycles: u64,
    /// At the machine's clock; 0 if the runs took no cycles.
    pub tokens_per_second: f64,
}

/// Sums over runs on one machine, and how long each took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    runs: Vec<TimedRun>,
    report: Option<Report>,
}

impl Summary {
    /// Adds a run. An error changes nothing.
    pub fn add(&mut self, phase: &str, tokens: u64, report: &Report) -> Result<(), OtherRun> {
        match &mut self.report {
            Some(sum) => sum.merge(report)?,
            None => self.report = Some(report.clone()),
        }
        self.runs.push(TimedRun { phase: phase.into(), tokens, cycles: report.cycles });
        Ok(())
    }

    /// All runs as one, each beginning when the one before ended; nothing before the first.
    pub fn report(&self) -> Option<&Report> {
        self.report.as_ref()
    }

    /// Each run.
    pub fn runs(&self) -> &[TimedRun] {
        &self.runs
    }

    /// Cycles of all runs.
    pub fn cycles(&self) -> u64 {
        self.report.as_ref().map_or(0, |report| report.cycles)
    }

    /// By phase, in the order of the first run of each. Their cycles add up to those of the report.
    pub fn phases(&self) -> Vec<Phase> {
        let clock_mhz = self.report.as_ref().map_or(0, |report| report.machine.clock_mhz);
        let mut names: Vec<&str> = Vec::new();
        for run in &self.runs {
            if !names.contains(&run.phase.as_str()) {
                names.push(&run.phase);
            }
        }
        let phase = |name: &str| {
            let runs = self.runs.iter().filter(|run| run.phase == name);
            let mut sorted: Vec<u64> = runs.clone().map(|run| run.cycles).collect();
            sorted.sort_unstable();
            let percentile = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1];
            let (tokens, cycles) = (runs.map(|run| run.tokens).sum::<u64>(), sorted.iter().sum::<u64>());
            let seconds = cycles as f64 / (clock_mhz as f64 * 1e6);
            Phase {
                name: name.into(),
                runs: sorted.len() as u64,
                tokens,
                cycles,
                p50_cycles: percentile(50),
                p95_cycles: percentile(95),
                max_cycles: percentile(100),
                tokens_per_second: if cycles == 0 { 0.0 } else { tokens as f64 / seconds },
            }
        };
        let phases: Vec<Phase> = names.into_iter().map(phase).collect();
        assert_eq!(phases.iter().map(|p| p.cycles).sum::<u64>(), self.cycles(), "cycles of phases");
        phases
    }
}
